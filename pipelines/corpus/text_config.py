"""What a user says of raw text."""

from dataclasses import dataclass, field
from pathlib import Path

from pipelines.corpus.formats.brat import find_text
from pipelines.corpus.formats.options import FormatOptions
from pipelines.corpus.packing import PACKINGS
from pipelines.corpus.reading import find_all_files
from pipelines.corpus.records import CorpusError
from pipelines.ner.errors import UserError, UserErrors
from pipelines.ner.words import SPLITTERS

SPLITS = ("train", "held_out")


@dataclass(frozen=True)
class TextConfig:
    """Where the raw text is, and how it is read."""

    train: list[str] = field(default_factory=list)
    """Files of raw text: paths, globs, folders, URIs. TXT (a document a line; `--corpus.reader.document_per paragraph`
    or `file`), JSONL, Parquet and CSV with a column of text; annotated files lend their words."""
    held_out: list[str] = field(default_factory=list)
    """Files to measure the perplexity on; if none, a part of the training documents."""
    held_out_fraction: float = 0.05
    """Share of the documents, by a hash of their text, that is held out where no such files are given. Records with one
    `doc_id` are one document, which is held out whole; so are its copies."""
    max_bad_fraction: float = 0.01
    """Stop if more than this share of the documents cannot be read."""
    reader: FormatOptions = field(default_factory=FormatOptions)

    def find_problems(self) -> list[UserError]:
        """Every mistake in these settings."""
        problems: list[UserError] = []
        if not self.train:
            problems.append(CorpusError("no text is given", remedy="`--corpus.train 'texts/*.txt'`"))
        ranges = (
            ("held_out_fraction", 0 < self.held_out_fraction < 1, "0 < fraction < 1"),
            ("max_bad_fraction", 0 <= self.max_bad_fraction < 1, "0 ≤ fraction < 1"),
        )
        problems += [
            CorpusError("a fraction out of range", where=f"`corpus.{name}`", rule=rule, value=getattr(self, name))
            for name, holds, rule in ranges
            if not holds
        ]
        return problems

    def list_patterns(self) -> dict[str, list[str]]:
        """Split → what stands for its files."""
        return {split: getattr(self, split) for split in SPLITS}

    def find_file_problems(self) -> list[UserError]:
        """Files that are not there, and local ones that are empty."""
        try:
            files = find_all_files(self.list_patterns(), self.reader.format)
        except UserErrors as errors:
            return errors.errors
        except UserError as error:
            return [error]
        paths = [Path(find_text(file["path"])) for file in files]
        return [
            CorpusError("the file is empty", where=str(path), rule="a file holds at least one document")
            for path in paths
            if path.is_file() and not path.stat().st_size
        ]


@dataclass(frozen=True)
class TextEncoding:
    """How raw text becomes windows."""

    window: int | None = None
    """Sub-tokens of a window, special tokens included; default 256, or the encoder's maximum if smaller."""
    splitter: str = "auto"
    """How text becomes words, each of which is tokenized by itself: unicode, punctuation, whitespace, bert; auto takes,
    as `train` does, punctuation for texts and unicode for words."""
    packing: str = "joined"
    """joined: windows are full, documents stand one after another with a separator between, and attention sees across
    them; apart: a window never holds more than one document."""

    def find_problems(self) -> list[UserError]:
        """Every mistake in these settings."""
        choices = (("splitter", ("auto", *SPLITTERS)), ("packing", PACKINGS))
        return [
            CorpusError("no such choice", where=f"`encoding.{name}`", rule="one of " + ", ".join(known), value=value)
            for name, known in choices
            if (value := getattr(self, name)) not in known
        ]
