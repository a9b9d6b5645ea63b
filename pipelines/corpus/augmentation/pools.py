"""What a corpus has to exchange: its mentions by label, its words by tag; and gazetteers, which add mentions."""

import random
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from typing import Any, Generic, TypeVar

from pipelines.corpus.augmentation.samples import Phrase, Sample, cut_text, is_unspaced, is_word
from pipelines.corpus.formats.files import find_files
from pipelines.corpus.formats.opening import read_lines
from pipelines.corpus.records import CorpusError

Item = TypeVar("Item", bound=Any)
Kind = tuple[str, bool]
"""A label, and whether the mention begins in a script that is written without spaces."""
Tag = tuple[str, bool, bool]
"""A label ("" outside mentions), whether the word is the first of its mention, and its script as in `Kind`."""


@dataclass
class Counts:
    """How often train has each mention and each word; counts of blocks add up."""

    mentions: dict[Kind, Counter[Phrase]] = field(default_factory=dict)
    words: dict[Tag, Counter[str]] = field(default_factory=dict)

    def add_sample(self, sample: Sample) -> None:
        """Count a record."""
        for span in sample.spans:
            self.add_mention(span.label, sample.cut(span.start, span.end))
        for tag, word in zip(list_tags(sample), sample.words, strict=True):
            if is_word(word):
                self.words.setdefault(tag, Counter())[word] += 1

    def add_mention(self, label: str, phrase: Phrase) -> None:
        """Count a mention, if it can stand in any record."""
        if phrase.is_solid:
            self.mentions.setdefault(name_kind(label, phrase), Counter())[phrase] += 1

    def merge(self, other: "Counts") -> None:
        """Add another one's counts to these."""
        for kind, mentions in other.mentions.items():
            self.mentions.setdefault(kind, Counter()).update(mentions)
        for tag, words in other.words.items():
            self.words.setdefault(tag, Counter()).update(words)

    def freeze(self) -> "Pools":
        """What to draw from, the same for the same counts in whatever order they were added."""
        return Pools(
            {kind: Pool.of(counts) for kind, counts in self.mentions.items()},
            {tag: Pool.of(counts) for tag, counts in self.words.items()},
        )


@dataclass(frozen=True)
class Pool(Generic[Item]):
    """Items, each drawn as often as it was counted."""

    items: Sequence[Item]
    """In order."""
    sums: Sequence[int]
    """Counts added up."""

    @classmethod
    def of(cls, counts: Counter[Item]) -> "Pool[Item]":
        """The pool of what was counted."""
        items = sorted(counts)
        return cls(items, list(accumulate(counts[item] for item in items)))

    @cached_property
    def places(self) -> dict[Item, int]:
        """Item → where it is."""
        return {item: place for place, item in enumerate(self.items)}

    def draw_other(self, rng: random.Random, item: Item) -> Item | None:
        """One that is not `item`; None if there is none."""
        place = self.places.get(item)
        before = 0 if place is None else self.sums[place - 1] if place else 0
        own = 0 if place is None else self.sums[place] - before
        left = self.sums[-1] - own
        if not left:
            return None
        drawn = rng.randrange(left)
        return self.items[bisect_right(self.sums, drawn if drawn < before else drawn + own)]


@dataclass(frozen=True)
class Pools:
    """What a corpus has to exchange."""

    mentions: dict[Kind, Pool[Phrase]]
    words: dict[Tag, Pool[str]]


def list_tags(sample: Sample) -> list[Tag]:
    """The tag of each word."""
    places = [("", False)] * len(sample.words)
    for span in sample.spans:
        places[span.start : span.end] = [(span.label, True), *[(span.label, False)] * (span.end - span.start - 1)]
    return [(*place, is_unspaced(word)) for place, word in zip(places, sample.words, strict=True)]


def name_kind(label: str, phrase: Phrase) -> Kind:
    """What a mention can be exchanged within."""
    return label, is_unspaced(phrase.words[0])


def read_gazetteer(patterns: Sequence[str], splitter: str) -> dict[str, set[Phrase]]:
    """Label → the mentions of files of lines `mention<TAB>label`. Raises CorpusError."""
    found: dict[str, set[Phrase]] = {}
    for path in find_files(patterns):
        is_empty = True
        for number, line in enumerate(read_lines(path), 1):
            if not line.strip():
                continue
            parts = [part.strip() for part in line.split("\t")]
            if len(parts) != 2 or not all(parts):
                raise CorpusError(
                    "a line of a gazetteer that is none",
                    where=f"{path}:{number}",
                    rule="a mention, a tab, and its label",
                    value=line,
                    remedy="mend or remove the line",
                )
            is_empty = False
            mention, label = parts
            sample = cut_text(mention, [], splitter)
            found.setdefault(label, set()).add(sample.cut(0, len(sample.words)))
        if is_empty:
            raise CorpusError(
                "the gazetteer holds no mention",
                where=path,
                rule="lines of a mention, a tab, and its label",
                value="blank lines alone",
                remedy="fill the file, or leave it out of `--corpus.augmentation.gazetteer`",
            )
    return found


def check_gazetteer(labels: Iterable[str], known: Iterable[str], patterns: Sequence[str]) -> list[str]:
    """The labels of a gazetteer that train lacks. Raises CorpusError if those are all."""
    lacking = sorted(set(labels) - set(known))
    if lacking and len(lacking) == len(set(labels)):
        raise CorpusError(
            "no label of the gazetteer is one of the corpus",
            where="`corpus.augmentation.gazetteer` " + ", ".join(patterns),
            rule="labels of train: " + ", ".join(f"`{label}`" for label in sorted(known)),
            value=", ".join(f"`{label}`" for label in lacking),
            remedy="use the corpus's label names in the gazetteer",
        )
    return lacking
