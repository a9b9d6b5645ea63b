"""Which windows make which step, decided without communication: every worker computes the same plan.

A step's windows depend on the seed, the epoch and the data alone, never on the number of workers; a worker takes its
share of each step. So one worker and many see the same global batches, and a resumed run goes on exactly where it was.

Shapes: B windows, T sub-tokens, W words, K tags.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

POOL_BATCHES = 16
"""Windows are sorted by length within a shuffled pool of this many batches."""


@dataclass(frozen=True)
class Batch:
    """Windows padded to one length, on some device."""

    input_ids_BT: Tensor
    attention_mask_BT: Tensor
    word_starts_BW: Tensor
    tag_ids_BW: Tensor
    lengths_B: Tensor
    """Words of each window."""
    starts_B: Tensor
    """Whether the window begins its document."""
    ends_B: Tensor
    targets_BWK: Tensor | None = None
    """Probabilities of each word's tags, where those are learned instead of `tag_ids_BW`."""
    states_BWH: Tensor | None = None
    """A teacher's hidden states of each word, where those are followed."""

    def to(self, device: torch.device) -> "Batch":
        """The batch on a device."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def repeat(self, times: int) -> "Batch":
        """All windows, so many times one after another."""
        return self if times == 1 else self._map(lambda tensor: torch.cat([tensor] * times))

    def _map(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        return Batch(*(None if tensor is None else change(tensor) for tensor in vars(self).values()))  # type: ignore[arg-type]


def find_words(batch: Batch) -> Tensor:
    """Which places of a batch are words, `[B, W]`."""
    return torch.arange(batch.tag_ids_BW.shape[1], device=batch.lengths_B.device) < batch.lengths_B[:, None]


class Windows(Protocol):
    """What the loop trains on; what it calls words is what the model scores in them."""

    record_ids: pa.ChunkedArray
    num_tokens: np.ndarray
    usable: np.ndarray
    """Indices of the windows that teach something."""

    def count_words(self, step: np.ndarray, epoch: int) -> int:
        """Words of a step's windows, in an epoch from 0."""

    def collate(self, indices: Sequence[int], pad_id: int, epoch: int = 0) -> Batch:
        """Windows as one padded batch, as they are in an epoch."""


class TrainingWindows:
    """All encoded training windows of a corpus, as flat arrays.

    Args:
        table: columns `record_id`, `input_ids`, `word_starts`, `tag_ids` (lists of integers), `starts_document`,
            `ends_document`; in any order of rows. Windows without words are left out: they teach nothing. With a
            column `targets` (the probabilities of each word's tags, word after word) those are learned, not the ids;
            a column `states` has a teacher's hidden states, likewise.
    """

    def __init__(self, table: pa.Table) -> None:
        order = np.argsort(np.array(table["record_id"].to_pylist(), dtype=object), kind="stable")
        self._input_ids = Ragged(table["input_ids"], order)
        self._word_starts = Ragged(table["word_starts"], order)
        self._tag_ids = Ragged(table["tag_ids"], order)
        self._targets, self._states = (
            Ragged(table[name], order) if name in table.column_names else None for name in ("targets", "states")
        )
        self._starts = table["starts_document"].to_numpy()[order]
        self._ends = table["ends_document"].to_numpy()[order]
        self.record_ids = table["record_id"].take(order)
        self.num_tokens = self._input_ids.lengths
        self.num_words = self._tag_ids.lengths
        self.usable = np.flatnonzero(self.num_words > 0)

    def count_words(self, step: np.ndarray, epoch: int) -> int:
        """Words of the windows of a step."""
        return int(self.num_words[step].sum())

    def collate(self, indices: Sequence[int], pad_id: int, epoch: int = 0) -> Batch:
        """The windows at `indices` as one padded batch."""
        input_ids = [self._input_ids[index] for index in indices]
        lengths_B = torch.as_tensor(self.num_words[list(indices)])
        return Batch(
            pad_rows(input_ids, pad_id),
            pad_rows([np.ones(len(ids)) for ids in input_ids], 0),
            pad_rows([self._word_starts[index] for index in indices], 0),
            pad_rows([self._tag_ids[index] for index in indices], 0),
            lengths_B,
            torch.as_tensor(self._starts[list(indices)]),
            torch.as_tensor(self._ends[list(indices)]),
            self._collate_by_word(self._targets, indices),
            self._collate_by_word(self._states, indices),
        )

    def _collate_by_word(self, column: "Ragged | None", indices: Sequence[int]) -> Tensor | None:
        if column is None:
            return None
        rows = [torch.from_numpy(column[index].astype(np.float32)) for index in indices]
        return pad_sequence([row.view(int(self.num_words[i]), -1) for i, row in zip(indices, rows, strict=True)], True)


class BatchPlan:
    """The global batches of every epoch, and each worker's share of them.

    Args:
        num_tokens: length of each window.
        usable: indices of the windows to train on.
        batch_tokens: sub-tokens of a global batch, over all workers.
        device_batch_tokens: padded sub-tokens of one forward pass on one worker; more is accumulated.
        seed: decides the order.
    """

    def __init__(
        self, num_tokens: np.ndarray, usable: np.ndarray, *, batch_tokens: int, device_batch_tokens: int, seed: int
    ) -> None:
        self.num_tokens, self.usable = num_tokens, usable
        self.batch_tokens, self.device_batch_tokens, self.seed = batch_tokens, device_batch_tokens, seed

    def plan_epoch(self, epoch: int) -> list[np.ndarray]:
        """The windows of each step of an epoch: each usable window once."""
        generator = np.random.default_rng((self.seed, epoch))
        order = generator.permutation(self.usable)
        lengths = self.num_tokens[order]
        pools = np.cumsum(lengths) // (self.batch_tokens * POOL_BATCHES)
        directions = np.where(pools % 2, -lengths, lengths)  # up and down, so that a step across two pools fits too
        order = order[np.lexsort((directions, pools))]
        steps = _cut(order, self.num_tokens[order], self.batch_tokens)
        return [steps[index] for index in generator.permutation(len(steps))]

    def share(self, step: np.ndarray, rank: int, world_size: int) -> list[list[int]]:
        """A worker's micro-batches of a step; the same number for every worker, some perhaps empty.

        Each is of neighbours in length, so that little is padded and windows of one length stay together, and of about
        the same number of sub-tokens.
        """
        longest = int(self.num_tokens[step].max())
        rounds = -(-len(step) // (max(1, self.device_batch_tokens // longest) * world_size))
        hands = _divide(step, self.num_tokens[step], rounds * world_size)
        while max(map(self._pad, hands)) > self.device_batch_tokens:
            rounds += 1
            most = rounds * world_size
            hands = _divide(step, self.num_tokens[step] if most < len(step) else np.ones(len(step)), most)
        return [hand.tolist() for hand in hands[rank::world_size]]

    def _pad(self, windows: np.ndarray) -> int:
        """Sub-tokens of windows as one batch, with padding; of one alone, whatever its length, none too many."""
        return len(windows) * int(self.num_tokens[windows].max()) if len(windows) > 1 else 0


def _divide(step: np.ndarray, lengths: np.ndarray, num_hands: int) -> list[np.ndarray]:
    """Consecutive windows for each of several hands, about as many sub-tokens for each."""
    ends = np.cumsum(lengths)
    owners = (ends - lengths / 2) * num_hands // ends[-1]
    return np.split(step, np.searchsorted(owners, np.arange(1, num_hands)))


def deal(step: np.ndarray, num_hands: int, hand: int) -> list[int]:
    """What one of several hands gets of windows that are sorted by length, dealt to and fro."""
    turns = np.arange(len(step)) % (2 * num_hands)
    dealt: list[int] = step[(turns == hand) | (turns == 2 * num_hands - 1 - hand)].tolist()
    return dealt


def _cut(order: np.ndarray, lengths: np.ndarray, budget: int) -> list[np.ndarray]:
    """Consecutive slices whose lengths sum to at most `budget`; at least one window each."""
    cuts, total = [], 0
    for position, length in enumerate(lengths.tolist()):
        if total and total + length > budget:
            cuts.append(position)
            total = 0
        total += length
    steps: list[np.ndarray] = np.split(order, cuts) if len(order) else []
    return steps


class Ragged:
    """A column of lists of numbers as one flat array and its offsets; in another order, if given, without a copy."""

    def __init__(self, column: pa.ChunkedArray, order: np.ndarray | None = None) -> None:
        lists = column.combine_chunks()
        if isinstance(lists, pa.ChunkedArray):
            lists = pa.concat_arrays(lists.chunks)
        self.values = lists.flatten().to_numpy(zero_copy_only=False)
        self.lengths = lists.value_lengths().to_numpy(zero_copy_only=False).astype(np.int64)
        self.ends = np.cumsum(self.lengths)
        if order is not None:
            self.lengths, self.ends = self.lengths[order], self.ends[order]

    def __getitem__(self, index: int) -> np.ndarray:
        """One list, as a view of the flat array."""
        row: np.ndarray = self.values[self.ends[index] - self.lengths[index] : self.ends[index]]
        return row


def pad_rows(rows: Sequence[np.ndarray], value: int) -> Tensor:
    """Rows of integers as one tensor, filled up with `value`."""
    padded = np.full((len(rows), max(map(len, rows))), value, dtype=np.int64)
    for row, values in enumerate(rows):
        padded[row, : len(values)] = values
    return torch.from_numpy(padded)
