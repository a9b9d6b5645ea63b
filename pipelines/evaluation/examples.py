"""Examples for the error browser: a fair sample of records, and their text cut at every edge of a mention."""

import hashlib
import heapq
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from pipelines.evaluation.matching import CORRECT, Match, match_spans
from pipelines.evaluation.metrics import Scored
from pipelines.ner.entities import Span

CONTEXT_CHARACTERS = 200
MAX_FINDINGS = 50
"""Of a record; the first ones are shown, the others counted."""
LONG_CHARACTERS = 1000
"""A longer mention is shown at its edges, and no window grows further than this over mentions that overlap."""
MENTION_CHARACTERS = 300
"""Of a mention in the list of findings."""
_SNAP_CHARACTERS = 24
_PICTURES = {code: 0x2400 + code for code in range(32) if chr(code) not in "\t\n\r"} | {0x7F: 0x2421}
_SURROGATES = dict.fromkeys(range(0xD800, 0xE000), 0xFFFD)
_VISIBLE = _PICTURES | _SURROGATES


@dataclass(slots=True, order=True)
class _Entry:
    rank: int
    scored: Scored = field(compare=False)


@dataclass(slots=True)
class Reservoir:
    """A random sample of bounded size that depends on the records and the seed only, not on order or partition.

    Each record has a priority, the hash of its content; the smallest stay (bottom-k sampling).
    """

    size: int
    seed: int = 0
    total: int = 0
    """How many records were offered."""
    _heap: list["_Entry"] = field(default_factory=list)

    def add(self, scored: Scored) -> None:
        """Offer a record."""
        self.total += 1
        self._push(_Entry(-_hash_record(scored, self.seed), scored))

    def merge(self, other: "Reservoir") -> None:
        """Take in another sample, as if its records had been offered here."""
        self.total += other.total
        for entry in other._heap:
            self._push(entry)

    def __len__(self) -> int:
        """How many records are kept."""
        return len(self._heap)

    def get_records(self) -> list[Scored]:
        """The sample, in the order of sources."""
        return sorted((entry.scored for entry in self._heap), key=_order_of_source)

    def _push(self, entry: "_Entry") -> None:
        if len(self._heap) < self.size:
            heapq.heappush(self._heap, entry)
        elif self.size and entry > self._heap[0]:
            heapq.heapreplace(self._heap, entry)


@dataclass(frozen=True, slots=True)
class Segment:
    """A piece of text over which the same mentions lie."""

    text: str
    gold: tuple[Span, ...]
    """The innermost first; more than one only where gold is nested."""
    predicted: tuple[Span, ...]
    starts_gold: bool
    starts_predicted: bool
    ends_predicted: bool

    @property
    def title(self) -> str:
        """What a pointer that rests on the piece is told."""
        parts = [f"gold {span.label}" for span in self.gold]
        return " · ".join(parts + [f"predicted {span.label} {span.score:.2f}" for span in self.predicted])


@dataclass(frozen=True, slots=True)
class Finding:
    """One match in words, with the text of its sides."""

    kind: str
    gold: Span | None
    predicted: Span | None
    gold_text: str
    predicted_text: str

    @property
    def labels(self) -> list[str]:
        """The labels of both sides."""
        return sorted({span.label for span in (self.gold, self.predicted) if span})


@dataclass(frozen=True, slots=True)
class Example:
    """A record as the error browser shows it."""

    source: str
    doc_id: str
    windows: list[list[Segment]]
    findings: list[Finding]
    """The first errors; for a record without errors its correct matches."""
    num_more: int
    """How many findings are left out."""
    cut_before: bool
    cut_after: bool
    num_correct: int

    @property
    def is_correct(self) -> bool:
        """Whether the record has no error."""
        return all(finding.kind == CORRECT for finding in self.findings)


def make_example(scored: Scored, context: int = CONTEXT_CHARACTERS) -> Example:
    """Cut a record into windows around its first errors (around its mentions where it has none) and segments."""
    text, gold, predicted = to_characters(scored)
    matches = match_spans(gold, predicted)
    found = [match for match in matches if match.kind != CORRECT] or matches
    shown = found[:MAX_FINDINGS]
    windows = find_windows(text, shown, [*gold, *predicted], context)
    parts = zip(windows, _share_out(gold, windows), _share_out(predicted, windows), strict=True)
    return Example(
        source=make_visible(scored.source),
        doc_id=make_visible(scored.doc_id),
        windows=[cut_segments(text, *window, *spans) for window, *spans in parts],
        findings=[_describe(text, match) for match in shown],
        num_more=len(found) - len(shown),
        cut_before=windows[0][0] > 0,
        cut_after=windows[-1][1] < len(text),
        num_correct=sum(match.kind == CORRECT for match in matches),
    )


def to_characters(scored: Scored) -> tuple[str, list[Span], list[Span]]:
    """The text and its gold and predicted spans in characters; words are joined by spaces."""
    if scored.text is not None:
        return make_visible(scored.text), list(scored.gold), list(scored.predicted)
    words = [make_visible(word) for word in scored.words or ()]
    starts, position = [], 0
    for word in words:
        starts.append(position)
        position += len(word) + 1

    def move(spans: Sequence[Span]) -> list[Span]:
        """From words to characters of the joined text."""
        return [
            Span(starts[span.start], starts[span.end - 1] + len(words[span.end - 1]), span.label, span.score)
            for span in spans
        ]

    return " ".join(words), move(scored.gold), move(scored.predicted)


def make_visible(text: str) -> str:
    """Replace control characters and lone surrogates, which HTML cannot carry, by pictures of the same length."""
    return text.translate(_VISIBLE)


def find_windows(text: str, matches: Iterable[Match], spans: Sequence[Span], context: int) -> list[tuple[int, int]]:
    """Ranges around the matches, merged where they touch; they cut no mention, nor words if a space is near.

    Of a mention longer than `LONG_CHARACTERS` there are two, around its edges.
    """
    focus = [place for match in matches for span in (match.gold, match.predicted) if span for place in _focus(span)]
    windows: list[tuple[int, int]] = []
    nearby = _Nearby([span for span in spans if not _is_long(span)])
    for first, last in sorted(focus) or [(0, 0)]:
        start, end = _grow(text, max(0, first - context), min(len(text), last + context), nearby)
        while windows and start <= windows[-1][1]:
            before = windows.pop()
            start, end = min(start, before[0]), max(end, before[1])
        windows.append((start, end))
    return windows


def cut_segments(text: str, start: int, end: int, gold: Sequence[Span], predicted: Sequence[Span]) -> list[Segment]:
    """The text from `start` to `end`, cut at every edge; the pieces joined are that text exactly."""
    edges = {start, end, *(edge for span in (*gold, *predicted) for edge in (span.start, span.end))}
    pieces = list(pairwise(sorted(edge for edge in edges if start <= edge <= end)))
    covers = zip(pieces, _cover(gold, pieces), _cover(predicted, pieces), strict=True)
    return [
        Segment(
            text=text[a:b],
            gold=over_gold,
            predicted=over_predicted,
            starts_gold=any(span.start == a for span in over_gold),
            starts_predicted=any(span.start == a for span in over_predicted),
            ends_predicted=any(span.end == b for span in over_predicted),
        )
        for (a, b), over_gold, over_predicted in covers
    ]


def _cover(spans: Sequence[Span], pieces: Sequence[tuple[int, int]]) -> Iterator[tuple[Span, ...]]:
    """For each piece, in their order, the spans that lie over it, the innermost first."""
    coming = sorted(spans, key=lambda span: span.start, reverse=True)
    over: list[Span] = []
    for start, _ in pieces:
        while coming and coming[-1].start <= start:
            over.append(coming.pop())
        over = sorted((span for span in over if span.end > start), key=lambda span: span.end - span.start)
        yield tuple(over)


def _share_out(spans: Sequence[Span], windows: Sequence[tuple[int, int]]) -> list[list[Span]]:
    """For each window the spans that reach into it."""
    ends = [end for _, end in windows]
    shares: list[list[Span]] = [[] for _ in windows]
    for span in spans:
        number = bisect_right(ends, span.start)
        while number < len(windows) and windows[number][0] < span.end:
            shares[number].append(span)
            number += 1
    return shares


class _Nearby:
    """Spans by position, so that those over a position are found without looking at all of them."""

    def __init__(self, spans: Sequence[Span]) -> None:
        self.spans = sorted(spans)
        self.starts = [span.start for span in self.spans]
        self.longest = max((span.end - span.start for span in spans), default=0)

    def find_cut(self, position: int) -> list[Span]:
        """The spans that begin before the position and end after it."""
        first = bisect_left(self.starts, position - self.longest)
        last = bisect_left(self.starts, position)
        return [span for span in self.spans[first:last] if span.end > position]


def _grow(text: str, start: int, end: int, nearby: _Nearby) -> tuple[int, int]:
    first, last = start - LONG_CHARACTERS, end + LONG_CHARACTERS
    while True:
        if start > 0:
            space = text.rfind(" ", max(0, start - _SNAP_CHARACTERS), start)
            start = space + 1 if space >= 0 else start
        if end < len(text):
            space = text.find(" ", end, end + _SNAP_CHARACTERS)
            end = space if space >= 0 else end
        cut = nearby.find_cut(start) + nearby.find_cut(end)
        if not cut or start < first or end > last:
            return start, end
        start, end = min(start, *(span.start for span in cut)), max(end, *(span.end for span in cut))


def _focus(span: Span) -> list[tuple[int, int]]:
    return [(span.start, span.start), (span.end, span.end)] if _is_long(span) else [(span.start, span.end)]


def _is_long(span: Span) -> bool:
    return span.end - span.start > LONG_CHARACTERS


def _describe(text: str, match: Match) -> Finding:
    gold_text, predicted_text = (_quote(text, span) if span else "" for span in (match.gold, match.predicted))
    return Finding(match.kind, match.gold, match.predicted, gold_text, predicted_text)


def _quote(text: str, span: Span) -> str:
    """A mention's text, of a long one its beginning and its end."""
    if span.end - span.start <= MENTION_CHARACTERS:
        return text[span.start : span.end]
    half = MENTION_CHARACTERS // 2
    return f"{text[span.start : span.start + half]} … {text[span.end - half : span.end]}"


def _hash_record(scored: Scored, seed: int) -> int:
    content = scored.text if scored.text is not None else "\x1f".join(scored.words or ())
    key = "\x1e".join((str(seed), scored.doc_id, scored.source, content))
    return int.from_bytes(hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")


def _order_of_source(scored: Scored) -> tuple[str, int, str]:
    path, _, line = scored.source.rpartition(":")
    return (path, int(line), "") if line.isdecimal() else (scored.source, 0, scored.doc_id)
