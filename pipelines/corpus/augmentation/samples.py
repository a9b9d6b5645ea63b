"""A record as augmentation sees it: words with what stands between them, whether it is of words or of text."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import regex

from pipelines.ner.entities import Span
from pipelines.ner.labels import read_spans
from pipelines.ner.words import split_words

_UNSPACED = regex.compile(r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}]")


@dataclass(frozen=True, order=True)
class Phrase:
    """Words, and what stands between each two of them."""

    words: tuple[str, ...]
    gaps: tuple[str, ...]

    @property
    def is_solid(self) -> bool:
        """Whether it can stand in any text: neither it nor a word of it begins or ends with white space."""
        return bool(self.words) and all(word and word == word.strip() for word in self.words)


@dataclass(frozen=True)
class Sample:
    """A record's words and gold.

    Of a record of words, `gaps` tell how its words would be written in a text.
    """

    words: tuple[str, ...]
    gaps: tuple[str, ...]
    """What stands before each word, and after the last one."""
    spans: tuple[Span, ...]
    is_text: bool

    @property
    def outside(self) -> list[int]:
        """Places of the words that are in no mention."""
        inside = {place for span in self.spans for place in range(span.start, span.end)}
        return [place for place in range(len(self.words)) if place not in inside]

    @property
    def segments(self) -> list[tuple[int, int]]:
        """Mentions, and the ranges of words before, between and after them; half-open, in order, none empty."""
        edges = sorted({0, len(self.words), *(edge for span in self.spans for edge in (span.start, span.end))})
        return list(pairwise(edges))

    def cut(self, start: int, end: int) -> Phrase:
        """The words of a range."""
        return Phrase(self.words[start:end], self.gaps[start + 1 : end])

    def replace_words(self, changes: Mapping[int, str]) -> "Sample":
        """Other words at some places."""
        words = tuple(changes.get(place, word) for place, word in enumerate(self.words))
        return Sample(words, self.gaps, self.spans, self.is_text)

    def replace_ranges(self, changes: Mapping[tuple[int, int], Phrase]) -> "Sample":
        """Phrases for some ranges of words, which are spans or lie outside of them, and do not overlap."""
        ends = {start: (end, phrase) for (start, end), phrase in changes.items()}
        words: list[str] = []
        gaps: list[str] = []
        moved: dict[int, int] = {}
        place = 0
        while place < len(self.words):
            moved[place] = len(words)
            end, phrase = ends.get(place) or (place + 1, self.cut(place, place + 1))
            words += phrase.words
            gaps += [self.gaps[place], *phrase.gaps]
            place = end
        moved[place] = len(words)
        spans = tuple(Span(moved[span.start], moved[span.end], span.label) for span in self.spans)
        return Sample(tuple(words), (*gaps, self.gaps[-1]), spans, self.is_text)

    def to_row(self) -> dict[str, Any]:
        """`text` or `words`, with `spans` over it; `tags` are left to be written."""
        if not self.is_text:
            spans = [(span.start, span.end, span.label) for span in self.spans]
            text = None
        else:
            starts, ends, at = [], [], 0
            for gap, word in zip(self.gaps, self.words, strict=False):
                starts.append(at + len(gap))
                at = starts[-1] + len(word)
                ends.append(at)
            text = "".join(part for pair in zip(self.gaps, (*self.words, ""), strict=True) for part in pair)
            spans = [(starts[span.start], ends[span.end - 1], span.label) for span in self.spans]
        return {
            "text": text,
            "words": None if self.is_text else list(self.words),
            "tags": None,
            "spans": [dict(zip(("start", "end", "label"), span, strict=True)) for span in spans],
        }


def read_sample(row: Mapping[str, Any], splitter: str, scheme: str) -> Sample:
    """A row of the corpus (`RECORD_SCHEMA`) as a sample.

    Args:
        splitter: cuts texts into words, at the edges of gold in any case.
        scheme: of the tags, which are read as conlleval reads them.
    """
    if row["text"] is None:
        words = tuple(row["words"])
        given = row["spans"]
        found = (
            read_spans(row["tags"], scheme)
            if row["tags"] is not None
            else [Span(span["start"], span["end"], span["label"]) for span in given or ()]
        )
        return Sample(words, join_words(words), tuple(found), is_text=False)
    text = row["text"]
    return cut_text(text, [Span(span["start"], span["end"], span["label"]) for span in row["spans"] or ()], splitter)


def cut_text(text: str, spans: Sequence[Span], splitter: str) -> Sample:
    """A text with spans of its characters as a sample."""
    ranges = split_words(text, splitter, {edge for span in spans for edge in (span.start, span.end)})
    first_at = {start: place for place, (start, _) in enumerate(ranges)}
    last_at = {end: place for place, (_, end) in enumerate(ranges)}
    befores = [0, *(end for _, end in ranges)]
    afters = [*(start for start, _ in ranges), len(text)]
    return Sample(
        tuple(text[start:end] for start, end in ranges),
        tuple(text[start:end] for start, end in zip(befores, afters, strict=True)),
        tuple(Span(first_at[span.start], last_at[span.end] + 1, span.label) for span in spans),
        is_text=True,
    )


def join_words(words: Sequence[str]) -> tuple[str, ...]:
    """The gaps of words that come without: a space, but not between scripts written without."""
    inner = [find_gap(one, other) for one, other in pairwise(words)]
    return ("", *inner, "") if words else ("",)


def find_gap(one: str, other: str) -> str:
    """What stands between two words where the text does not tell."""
    return "" if is_unspaced(one[-1:]) or is_unspaced(other) else " "


def is_unspaced(word: str) -> bool:
    """Whether a word begins in a script that is written without spaces."""
    return _UNSPACED.match(word) is not None


def is_word(word: str) -> bool:
    """Whether a word has a letter or a digit, and no white space at its edges: it can stand where another one stood."""
    return any(map(str.isalnum, word)) and word == word.strip()
