"""Words to sub-tokens to windows, and windows to padded batches under a token budget.

Each word is tokenized by itself, so that a word has the same sub-tokens in a corpus of words and in raw text, wherever
it stands. A document longer than the window becomes overlapping windows; each word is *owned* by the window in which it
has most context, and `word_starts` lists only owned words. Concatenating the windows' words therefore gives the
document's words again, each once.

Shapes: B windows, T sub-tokens, W words.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from pipelines.ner.casing import CASE_STEP, find_case
from pipelines.ner.errors import UserError
from pipelines.ner.words import split_pieces

CACHE_SIZE = 200_000
CACHED_CHARACTERS = 64
"""Of a word; longer ones are rare, never seen again, and may be as large as whole documents."""


class EncodingError(UserError):
    """A window that the encoder cannot have, or a tokenizer that cannot be used."""


def find_window_problems(window: int | None, longest: int, name: str) -> list[UserError]:
    """What is wrong with a window for an encoder of that name, which reads so many sub-tokens (0: any number)."""
    if window is None or 8 <= window <= (longest or window):
        return []
    return [
        EncodingError(
            "a window that the encoder cannot have",
            where="`encoding.window`",
            rule=f"8 to {longest} sub-tokens for `{name}`, special tokens included" if longest else "at least 8",
            value=window,
        )
    ]


@dataclass(frozen=True)
class EncodingConfig:
    """How text becomes windows of sub-tokens."""

    window: int | None = None
    """Sub-tokens an encoder sees at once, special tokens included; default 256, or the encoder's maximum if smaller."""
    stride: int | None = None
    """Sub-tokens by which neighbouring windows of a long document overlap; default a quarter of the window."""
    splitter: str = "auto"
    """How text becomes words: unicode, punctuation, whitespace, bert; auto takes punctuation for a corpus of texts and
    unicode for a corpus of words."""


@dataclass(frozen=True, slots=True)
class Window:
    """A slice of a document, ready for the encoder."""

    input_ids: list[int]
    """Sub-tokens with the tokenizer's special tokens; where the encoder learns it, with their case."""
    word_starts: list[int]
    """Position in `input_ids` of the first sub-token of each owned word."""
    starts_document: bool
    ends_document: bool


@dataclass(frozen=True, slots=True)
class EncodedDocument:
    """All windows of a document, and what they cover."""

    windows: list[Window]
    num_tokens: int
    num_tokens_read: int


class Encoder:
    """Encodes documents with one tokenizer, one window size and one stride.

    Args:
        tokenizer: a Hugging Face tokenizer; a fast one is much faster.
        window: maximal length of `Window.input_ids`, special tokens included.
        stride: overlap of neighbouring windows, in sub-tokens; at most half of the room in a window.
        splitter: cuts the words of a corpus further (`pipelines.ner.words`), as raw text would be cut.
        casing: whether ids carry the case of their word (`pipelines.ner.casing`).
    """

    def __init__(self, tokenizer: Any, *, window: int, stride: int, splitter: str, casing: bool = False) -> None:
        self.tokenizer, self.window, self.stride, self.splitter = tokenizer, window, stride, splitter
        self.casing = casing
        self.backend = getattr(tokenizer, "backend_tokenizer", None)
        if self.backend is not None:
            self.backend.no_truncation()
            self.backend.no_padding()
        self.prefix, self.suffix = read_special_tokens(tokenizer)
        self.capacity = window - len(self.prefix) - len(self.suffix)
        if self.capacity < 2:
            raise EncodingError(
                "the window has no room for words",
                rule=f"a window holds {len(self.prefix) + len(self.suffix)} special tokens and at least 2 more",
                value=f"window {window}",
                remedy="set `--encoding.window` to 128 or more",
            )
        if not 0 <= stride <= self.capacity // 2:
            raise EncodingError(
                "the stride does not fit the window",
                rule=f"0 ≤ stride ≤ {self.capacity // 2}, half of the room in a window of {window}",
                value=f"stride {stride}",
                remedy="set `--encoding.stride` to a quarter of the window",
            )
        unknown = [tokenizer.unk_token_id, tokenizer.mask_token_id, tokenizer.pad_token_id, 0]
        self.unknown_id: int = next(index for index in unknown if index is not None)
        self.pad_id: int = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
        self._cache: dict[str, tuple[int, ...]] = {}

    def encode_words(self, words: Sequence[str]) -> EncodedDocument:
        """Windows over a document given as words; each word has one start."""
        pieces: list[str] = []
        is_start: list[bool] = []
        for word in words:
            parts = split_pieces(word, self.splitter)
            pieces.extend(parts)
            is_start.extend([True, *[False] * (len(parts) - 1)])
        return self.encode_pieces(pieces, is_start)

    def encode_pieces(self, pieces: Sequence[str], is_start: Sequence[bool] | None = None) -> EncodedDocument:
        """Windows over pieces of text; those that are a start (default: all) get a position in `word_starts`."""
        found = self.tokenize(pieces)
        units: list[tuple[int, ...]] = []
        starts: list[bool] = []
        for index, ids in enumerate(found):
            starts.append(is_start is None or is_start[index])
            if len(ids) <= self.capacity:
                units.append(ids)
            else:  # too long even for a window of its own: no sub-token is cut
                chunks = [ids[at : at + self.capacity] for at in range(0, len(ids), self.capacity)]
                units.extend(chunks)
                starts.extend([False] * (len(chunks) - 1))
        return self._build_windows(units, starts)

    def count_tokens(self, pieces: Sequence[str]) -> int:
        """Sub-tokens of the pieces, without special tokens."""
        return sum(map(len, self.tokenize(pieces)))

    def tokenize(self, pieces: Sequence[str]) -> list[tuple[int, ...]]:
        """The sub-tokens of each piece, at least one."""
        if len(self._cache) > CACHE_SIZE:
            self._cache = {}  # a new one: another thread may be reading the old
        cache = self._cache
        new = [piece for piece in dict.fromkeys(pieces) if piece not in cache]
        readable = [piece.encode("utf-8", "replace").decode() for piece in new]  # a lone surrogate becomes `?`
        if self.backend is None:
            ids: Iterable[Sequence[int]] = (self.tokenizer.encode(word, add_special_tokens=False) for word in readable)
        else:
            words = [[word] for word in readable]
            found = self.backend.encode_batch(words, is_pretokenized=True, add_special_tokens=False) if words else []
            ids = (encoding.ids for encoding in found)
        long: dict[str, tuple[int, ...]] = {}
        for piece, piece_ids in zip(new, ids, strict=True):
            shift = find_case(piece) * CASE_STEP if self.casing else 0
            known = cache if len(piece) <= CACHED_CHARACTERS else long
            known[piece] = tuple(token + shift for token in piece_ids) or (self.unknown_id + shift,)
        if long:
            return [long[piece] if piece in long else cache[piece] for piece in pieces]
        return [cache[piece] for piece in pieces]

    def _build_windows(self, units: Sequence[tuple[int, ...]], is_start: Sequence[bool]) -> EncodedDocument:
        ends = [0]
        for unit in units:
            ends.append(ends[-1] + len(unit))
        slices = plan_windows(ends, self.capacity, self.stride)
        windows = []
        for index, (first, last, owned_first, owned_last) in enumerate(slices):
            ids = [token for unit in units[first:last] for token in unit]
            offset = len(self.prefix) - ends[first]
            starts = [ends[unit] + offset for unit in range(owned_first, owned_last) if is_start[unit]]
            ids = [*self.prefix, *ids, *self.suffix]
            windows.append(Window(ids, starts, index == 0, index == len(slices) - 1))
        read = sum(ends[last] - ends[max(first, previous)] for (first, last, *_), previous in _with_previous(slices))
        return EncodedDocument(windows, ends[-1], read)


def plan_windows(ends: Sequence[int], capacity: int, stride: int) -> list[tuple[int, int, int, int]]:
    """Slices of units (first, last, first owned, last owned), half-open, that cover a document.

    Args:
        ends: cumulative lengths: unit i spans `ends[i]:ends[i + 1]`; no unit is longer than `capacity`.
        capacity: maximal length of a slice.
        stride: overlap of neighbours, as many whole units as it holds; the last slice overlaps as much as it can.
    """
    num_units = len(ends) - 1
    slices: list[tuple[int, int]] = []
    first = 0
    while num_units:
        last = first
        while last < num_units and ends[last + 1] - ends[first] <= capacity:
            last += 1
        if last == num_units and slices:  # the last window reaches back as far as it can
            while first > slices[-1][0] + 1 and ends[last] - ends[first - 1] <= capacity:
                first -= 1
        slices.append((first, last))
        if last == num_units:
            break
        following = last
        while following > first + 1 and ends[last] - ends[following - 1] <= stride:
            following -= 1
        while ends[last + 1] - ends[following] > capacity:  # the next unit is long: less overlap, or no progress
            following += 1
        first = following
    owned = [0]
    for (_, last), (next_first, _) in pairwise(slices):
        border = next_first
        while border < last and ends[last] - ends[border + 1] >= ends[border] - ends[next_first]:
            border += 1
        owned.append(max(border, owned[-1]))
    owned.append(num_units)
    return [(first, last, owned[i], owned[i + 1]) for i, (first, last) in enumerate(slices)]


def plan_batches(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Indices grouped so that each group's padded size (count × longest) stays within `max_tokens`, longest first.

    An item longer than the budget is a group of its own.
    """
    batches: list[list[int]] = []
    longest = 0
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if batches and longest * (len(batches[-1]) + 1) <= max_tokens:
            batches[-1].append(index)
        else:
            batches.append([index])
            longest = lengths[index]
    return batches


def pad(rows: Sequence[Sequence[int]], value: int) -> Tensor:
    """Rows of integers as one `[len(rows), longest]` int64 tensor, filled up with `value`; at least one column."""
    width = max((len(row) for row in rows), default=0) or 1
    return torch.tensor([[*row, *[value] * (width - len(row))] for row in rows], dtype=torch.long)


def fingerprint_tokenizer(tokenizer: Any) -> str:
    """A hash of everything that decides which sub-tokens a word has."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        state: Any = sorted(tokenizer.get_vocab().items())
    else:
        settings = json.loads(backend.to_str())
        state = {key: value for key, value in settings.items() if key not in ("truncation", "padding")}
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()[:16]


def read_special_tokens(tokenizer: Any) -> tuple[list[int], list[int]]:
    """The ids that the tokenizer puts before and after a sequence."""
    probe = tokenizer(["a"], is_split_into_words=True, add_special_tokens=True)["input_ids"]
    plain = tokenizer(["a"], is_split_into_words=True, add_special_tokens=False)["input_ids"]
    at = next(i for i in range(len(probe) - len(plain) + 1) if probe[i : i + len(plain)] == plain)
    return probe[:at], probe[at + len(plain) :]


def _with_previous(slices: Sequence[tuple[int, int, int, int]]) -> Iterable[tuple[tuple[int, int, int, int], int]]:
    return zip(slices, [0, *(last for _, last, *_ in slices)], strict=False)
