"""Recursions along the words of documents, run over all chunks of all documents side by side.

Viterbi, forward and backward go word by word: a document of a million words is a million small steps. Cut in chunks
that advance together, it takes as many steps as one chunk has words. What a chunk hears from its neighbour is first
guessed, by a short run over the neighbour's nearest words; then chunks whose neighbour ends otherwise than guessed are
run again, until all agree. So the result is that of the plain pass, and the guess is nearly always right, because a
chain forgets (Maleki, Musuvathi and Mytkowicz 2014, "Parallelizing dynamic programming using rank convergence").

All in NumPy, whose calls cost a fraction of PyTorch's: for a few sentences that is what a pass costs.

Shapes: N words of all documents, one document after the other; C chunks, longest first; L words of the longest; K tags.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

CHUNK_WORDS = 64
MAX_SLAB_WORDS = 65_536
MAX_ROUNDS = 16


@dataclass(frozen=True)
class Recursion:
    """One way to go from word to word; the state of a word is a column, `[K, C]` scores or `[C]` tags."""

    combine: Callable[[np.ndarray, np.ndarray], np.ndarray]
    """From what a word hears of each tag `[K, C]`, and its inputs `[K, C]`, its state."""
    tell: Callable[[np.ndarray], np.ndarray]
    """From a word's state, what the next word hears `[K, C]`."""
    neutral: float
    """What is heard from a neighbour that knows nothing."""
    rtol: float
    """Within `rtol` and `atol`, what is heard is equal: above rounding, far below what shows in an answer."""
    atol: float


@dataclass(frozen=True, eq=False)
class Chunks:
    """A slab: consecutive chunks, arranged so that those longer than any given length come first."""

    column_C: np.ndarray
    """Where the first, second … chunk in the order of the words stands in this arrangement."""
    first_C: np.ndarray
    """Index in N of the chunk's first word."""
    lengths_C: np.ndarray
    document_C: np.ndarray
    opens_C: np.ndarray
    """Whether the chunk begins its document."""
    closes_C: np.ndarray
    """Whether the chunk ends its document."""
    before_C: np.ndarray
    """The chunk before it in the same document and slab; -1 for none."""
    after_C: np.ndarray

    def index(self) -> tuple[np.ndarray, np.ndarray]:
        """Index in N of each position `[L, C]`, and whether the chunk reaches so far."""
        position_L1 = np.arange(self.lengths_C[0])[:, None]
        return self.first_C + position_L1, position_L1 < self.lengths_C

    def locate(self, words_M: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Position and chunk of words of this slab, given by their index in N."""
        column_M = self.column_C[self.first_C[self.column_C].searchsorted(words_M, side="right") - 1]
        return words_M - self.first_C[column_M], column_M

    def contains(self, words_M: np.ndarray) -> np.ndarray:
        """Which words, given by their index in N, are of this slab."""
        last = self.column_C[-1]
        end = self.first_C[last] + self.lengths_C[last]
        here_M: np.ndarray = (self.first_C[self.column_C[0]] <= words_M) & (words_M < end)
        return here_M


def cut_documents(lengths_B: np.ndarray) -> list[Chunks]:
    """The chunks of documents that lie one after the other, in slabs that keep memory small."""
    counts_B = (lengths_B + CHUNK_WORDS - 1) // CHUNK_WORDS
    document_C = np.arange(len(lengths_B)).repeat(counts_B)
    offset_C = (np.arange(len(document_C)) - (counts_B.cumsum() - counts_B)[document_C]) * CHUNK_WORDS
    first_C = (lengths_B.cumsum() - lengths_B)[document_C] + offset_C
    rest_C = lengths_B[document_C] - offset_C
    slab_C = first_C // MAX_SLAB_WORDS
    edges = [0, *((slab_C[1:] != slab_C[:-1]).nonzero()[0] + 1).tolist(), len(slab_C)]
    parts = (document_C, offset_C, first_C, rest_C)
    return [_arrange(*(part[begin:end] for part in parts)) for begin, end in pairwise(edges) if begin < end]


class Pass:
    """A recursion over documents, from first word to last or `backward`, slab by slab.

    The states of a slab, `[L, K, C]` or `[L, C]`, take much memory. They are not kept but for the slab where the pass
    ended; `recall` computes those of the others again from what their chunks heard.
    """

    def __init__(
        self,
        recursion: Recursion,
        slabs: Sequence[Chunks],
        load: Callable[[Chunks], np.ndarray],
        edge_K: np.ndarray,
        backward: bool = False,
    ) -> None:
        """`load` gives a slab's inputs `[L, K, C]`; `edge_K` is what the word at the document's edge hears."""
        self.recursion, self.slabs, self.load, self.edge_K, self.backward = recursion, slabs, load, edge_K, backward
        self._heard: dict[Chunks, np.ndarray] = {}
        self._kept: dict[Chunks, np.ndarray] = {}

    def run(self) -> Iterator[tuple[Chunks, np.ndarray]]:
        """Go over all slabs; gives each with its states."""
        carried_K = self.edge_K
        for chunks in reversed(self.slabs) if self.backward else self.slabs:
            states, heard_KC, told_KC = self._run_slab(chunks, carried_K)
            self._heard[chunks], self._kept = heard_KC, {chunks: states}
            carried_K = told_KC[:, chunks.column_C[0 if self.backward else -1]]
            yield chunks, states

    def recall(self, chunks: Chunks) -> np.ndarray:
        """The states of a slab, once the pass has run."""
        if chunks in self._kept:
            return self._kept[chunks]
        return sweep(self.recursion, self.load(chunks), chunks.lengths_C, self._heard[chunks], self.backward)[0]

    def _run_slab(self, chunks: Chunks, carried_K: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """States, what the chunks heard, and what they tell."""
        inputs_LKC, lengths_C = self.load(chunks), chunks.lengths_C
        neighbour_C = chunks.after_C if self.backward else chunks.before_C
        linked = (neighbour_C >= 0).nonzero()[0]
        source = neighbour_C[linked]
        heard_KC = np.full((len(self.edge_K), len(lengths_C)), self.recursion.neutral)
        heard_KC[:, chunks.column_C[-1 if self.backward else 0]] = carried_K
        heard_KC[:, chunks.closes_C if self.backward else chunks.opens_C] = self.edge_K[:, None]
        if not len(linked):
            states, told_KC = sweep(self.recursion, inputs_LKC, lengths_C, heard_KC, self.backward)
            return states, heard_KC, told_KC
        heard_KC[:, linked] = self._guess(inputs_LKC, lengths_C, heard_KC)[:, source]
        states, told_KC = sweep(self.recursion, inputs_LKC, lengths_C, heard_KC, self.backward)
        num_rounds = 0
        while len(stale := self._find_stale(told_KC[:, source], heard_KC[:, linked])):
            num_rounds += 1
            if num_rounds > MAX_ROUNDS:  # this chain forgets too slowly: go on chunk by chunk
                stale = _keep_nearest(stale, chunks.document_C[linked], self.backward)
            columns = linked[stale]
            longest = int(lengths_C[columns[0]])
            heard_KC[:, columns] = told_KC[:, source[stale]]
            states[:longest, ..., columns], told_KC[:, columns] = sweep(
                self.recursion,
                inputs_LKC[:longest, :, columns],
                lengths_C[columns],
                heard_KC[:, columns],
                self.backward,
            )
        return states, heard_KC, told_KC

    def _guess(self, inputs_LKC: np.ndarray, lengths_C: np.ndarray, heard_KC: np.ndarray) -> np.ndarray:
        """What chunks tell, as far as the half of their words shows that is next to the chunk they tell it."""
        half = CHUNK_WORDS // 2
        if self.backward:
            return sweep(self.recursion, inputs_LKC[: CHUNK_WORDS - half], lengths_C, heard_KC, backward=True)[1]
        return sweep(self.recursion, inputs_LKC[half:], lengths_C - half, heard_KC)[1]

    def _find_stale(self, told_KC: np.ndarray, heard_KC: np.ndarray) -> np.ndarray:
        rtol, atol = self.recursion.rtol, self.recursion.atol
        agree_KC = np.isclose(told_KC, heard_KC, rtol=rtol, atol=atol, equal_nan=True)
        stale: np.ndarray = (~agree_KC.all(axis=0)).nonzero()[0]
        return stale


def sweep(
    recursion: Recursion, inputs_LKC: np.ndarray, lengths_C: np.ndarray, heard_KC: np.ndarray, backward: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """States of all words, and what each chunk tells `[K, C]`, given what each chunk hears."""
    counts = np.searchsorted(-lengths_C, -np.arange(len(inputs_LKC))).tolist()  # chunks that reach each word
    heard_KC = heard_KC.copy()  # a chunk that is not yet begun keeps what it hears, one that is through what it tells
    states = None
    for word in reversed(range(len(counts))) if backward else range(len(counts)):
        count = counts[word]
        state = recursion.combine(heard_KC[:, :count], inputs_LKC[word, :, :count])
        if states is None:
            states = np.empty((len(counts), *state.shape[:-1], len(lengths_C)), state.dtype)
        states[word, ..., :count] = state
        heard_KC[:, :count] = recursion.tell(state)
    assert states is not None
    return states, heard_KC


def _arrange(document_C: np.ndarray, offset_C: np.ndarray, first_C: np.ndarray, rest_C: np.ndarray) -> Chunks:
    lengths_C, opens_C, closes_C = rest_C.clip(max=CHUNK_WORDS), offset_C == 0, rest_C <= CHUNK_WORDS
    order_C = (-lengths_C).argsort(kind="stable")
    column_C = order_C.argsort()
    before_C, after_C = np.full((2, len(order_C)), -1)
    before_C[1:] = np.where(opens_C[1:], -1, column_C[:-1])
    after_C[:-1] = np.where(closes_C[:-1], -1, column_C[1:])
    parts = (first_C, lengths_C, document_C, opens_C, closes_C, before_C, after_C)
    return Chunks(column_C, *(part[order_C] for part in parts))


def _keep_nearest(stale: np.ndarray, document_C: np.ndarray, backward: bool) -> np.ndarray:
    """Of each document, only the stale chunk that the recursion meets first."""
    ordered = stale[::-1] if backward else stale
    _, first = np.unique(document_C[ordered], return_index=True)
    return np.sort(ordered[first])
