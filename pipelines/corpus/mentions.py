"""Which words of a text are mentions: by a list of names, or by a bundle."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pipelines.corpus.formats.opening import read_lines
from pipelines.corpus.records import CorpusError
from pipelines.ner.bundle import load_bundle
from pipelines.ner.engine import NerEngine
from pipelines.ner.errors import UserError
from pipelines.ner.words import split_words

Range = tuple[int, int]
"""Words from the first to before the second."""


@dataclass(frozen=True)
class MentionSources:
    """What tells mentions."""

    gazetteer: Sequence[str] = field(default_factory=tuple)
    """Files with a name a line."""
    bundle: str | None = None

    def find_problems(self) -> list[UserError]:
        """Files and folders that are not there, or hold no names and no model."""
        problems: list[UserError] = []
        for path in self.gazetteer:
            try:
                if not any(line.strip() for line in read_lines(path)):
                    raise CorpusError("the gazetteer holds no name", where=path, rule="a name a line")
            except CorpusError as error:
                remedy = error.remedy or "give a text file with a name a line"
                where = f"`masking.gazetteer` {path}"
                problems.append(CorpusError(error.what, where=where, rule=error.rule, value=error.value, remedy=remedy))
        return problems + self._find_bundle_problems()

    def _find_bundle_problems(self) -> list[UserError]:
        if not self.bundle:
            return []
        value = self.bundle
        if (Path(self.bundle) / "config.json").is_file():
            try:
                load_bundle(self.bundle)
            except UserError as error:
                value = f"{self.bundle}: {error.value or error.what}"
            else:
                return []
        rule = "a bundle folder, as `rayner train` writes it, or a Hugging Face token-classification checkpoint folder"
        return [CorpusError("no bundle to find mentions with", where="`masking.bundle`", rule=rule, value=value)]

    def open(self, splitter: str) -> "MentionFinder | None":
        """What finds mentions; None where nothing tells them."""
        if not self.gazetteer and not self.bundle:
            return None
        names = [line.strip() for path in self.gazetteer for line in read_lines(path)]
        engine = NerEngine.load(self.bundle) if self.bundle else None
        return MentionFinder(names, engine, splitter)


class MentionFinder:
    """Finds mentions in documents that are split into words."""

    def __init__(self, names: Iterable[str], engine: NerEngine | None, splitter: str) -> None:
        self.engine = engine
        self.longest: dict[str, int] = {}
        """First word → the longest name that begins with it."""
        self.names: set[tuple[str, ...]] = set()
        for name in names:
            words = tuple(name[start:end] for start, end in split_words(name, splitter))
            if words:
                self.names.add(words)
                self.longest[words[0]] = max(len(words), self.longest.get(words[0], 0))

    def find(self, documents: Sequence[Sequence[str]]) -> list[list[Range]]:
        """The mentions of each document, in order, none over another; where both tell, a name comes first."""
        predicted = self.engine.predict_words(documents) if self.engine else [[] for _ in documents]
        return [
            _merge(self._match(words), [(span.start, span.end) for span in spans])
            for words, spans in zip(documents, predicted, strict=True)
        ]

    def _match(self, words: Sequence[str]) -> list[Range]:
        """The longest name at each word, from left to right."""
        found, at = [], 0
        while at < len(words):
            sizes = range(min(self.longest.get(words[at], 0), len(words) - at), 0, -1)
            size = next((size for size in sizes if tuple(words[at : at + size]) in self.names), 0)
            if size:
                found.append((at, at + size))
            at += size or 1
        return found


def _merge(first: Sequence[Range], second: Sequence[Range]) -> list[Range]:
    taken = {word for start, end in first for word in range(start, end)}
    return sorted([*first, *(one for one in second if taken.isdisjoint(range(*one)))])
