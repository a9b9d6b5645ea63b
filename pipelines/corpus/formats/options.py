"""How to read corpus files: the choices of every reader in one place."""

from dataclasses import dataclass
from typing import Literal

from pipelines.corpus.records import CorpusError

Format = Literal["auto", "conll", "jsonl", "json", "csv", "parquet", "text", "hf", "brat", "pubtator"]
Overlaps = Literal["reject_record", "keep_longest"]
BadEncoding = Literal["refuse_file", "reject_record"]
NO_COLUMN = "none"

_DELIMITERS = {"tab": "\t", "\\t": "\t", "comma": ",", "semicolon": ";", "space": " ", "pipe": "|"}


@dataclass(frozen=True)
class FormatOptions:
    """How corpus files are read. The defaults read every supported format as it is usually written."""

    format: Format = "auto"
    """Format of the files; `auto` looks at the extension, then at the content."""
    delimiter: str | None = None
    """Column delimiter of CoNLL and CSV files: a character, `tab`, `comma`, `semicolon`, `pipe`, `space` or
    `whitespace`. By default CoNLL files use tabs where they have them and white space otherwise, CSV files whichever
    delimiter makes sense of the header."""
    word_column: int | None = None
    """CoNLL: position of the word's column, from 0, negative from the end; by default the first (where words are
    numbered, as in UD: the second)."""
    tag_column: int | None = None
    """CoNLL: position of the tag's column; by default the last (where words are numbered: the third)."""
    text_column: str | None = None
    """Column with the raw text; by default `text`."""
    spans_column: str | None = None
    """Column with the gold spans; by default `entities`, `spans`, `label` or `labels`; `none` reads text without
    gold."""
    words_column: str | None = None
    """Column with the list of words; by default `words` or `tokens`."""
    tags_column: str | None = None
    """Column with the list of tags; by default `tags`, `ner_tags` or `labels`; `none` reads words without gold."""
    id_column: str | None = None
    """Column with the document's id; by default `doc_id` or `id`, else the record's position in the file."""
    label_names: tuple[str, ...] = ()
    """Tag names by number, for tags that are stored as numbers. Hugging Face datasets bring their own."""
    extra_columns: tuple[str, ...] = ()
    """Further columns to keep beside the record; of the commands `predict` alone keeps some, named by `--keep`."""
    document_per: Literal["line", "paragraph", "file"] = "line"
    """Plain text: whether every line is a document (blank lines are not), every paragraph (blank lines end it), or
    every file."""
    overlapping_spans: Overlaps = "reject_record"
    """Whether a record whose gold spans overlap is rejected, or those are dropped that a longer one covers or crosses:
    a word has one label at most."""
    bad_encoding: BadEncoding = "refuse_file"
    """JSONL, CSV, Parquet, PubTator and plain text: whether bytes that are not UTF-8 refuse the file or reject the one
    record. Binary files are refused either way."""

    def find_idle(self, place: str = "reader") -> list[str]:
        """Settings given that change nothing in a run of any command, each with its reason."""
        reason = "`rayner predict` alone keeps columns, by `--keep`"
        return [f"`{place}.extra_columns` has no effect: {reason}"] if self.extra_columns else []

    def text_names(self) -> tuple[str, ...]:
        """Column names that may hold the text."""
        return _names(self.text_column, "text")

    def spans_names(self) -> tuple[str, ...]:
        """Column names that may hold spans, the likeliest first."""
        return _names(self.spans_column, "entities", "spans", "label", "labels")

    def words_names(self) -> tuple[str, ...]:
        """Column names that may hold words."""
        return _names(self.words_column, "words", "tokens")

    def tags_names(self) -> tuple[str, ...]:
        """Column names that may hold tags."""
        return _names(self.tags_column, "tags", "ner_tags", "labels")

    def id_names(self) -> tuple[str, ...]:
        """Column names that may hold the document's id."""
        return _names(self.id_column, "doc_id", "id")

    def column_names(self) -> set[str]:
        """Every column that a reader may look at."""
        groups = (self.text_names(), self.spans_names(), self.words_names(), self.tags_names(), self.id_names())
        return {name for group in groups for name in group} | set(self.extra_columns) | {"data", "annotations"}

    def delimiter_character(self) -> str | None:
        """The delimiter with its name resolved; None where it is to be found, `whitespace` for runs of it."""
        if self.delimiter is None:
            return None
        delimiter = _DELIMITERS.get(self.delimiter, self.delimiter)
        if len(delimiter) != 1 and delimiter != "whitespace":
            raise CorpusError(
                "the delimiter is not understood",
                rule="`delimiter` is one character, `whitespace`, or one of "
                + ", ".join(f"`{n}`" for n in _DELIMITERS),
                value=f"`{self.delimiter}`",
                remedy="leave it out to have it found",
            )
        return delimiter


def _names(chosen: str | None, *usual: str) -> tuple[str, ...]:
    if chosen is None:
        return usual
    return () if chosen == NO_COLUMN else (chosen,)
