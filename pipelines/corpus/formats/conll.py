"""CoNLL-style columns: one word a line, a blank line between sentences; also UD-style `.iob2`."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from pipelines.corpus.formats.names import get_extension
from pipelines.corpus.formats.options import FormatOptions
from pipelines.corpus.ledger import LedgerEntry
from pipelines.corpus.records import CorpusError, Record

_WHITE = " \t"
_RUN_OF_WHITE = re.compile(r"[ \t]+")
_TAG = re.compile(r"O|[BIESLUM]-\S+")
_CAPITALS = re.compile(r".-(?!\d)[^a-z]+")
_MOST = 0.6
_DOCUMENT_MARKS = ("-DOCSTART-", "#begin document", "# newdoc")
_IGNORED_LINES = ("#end document",)
_UD_COMMENT = re.compile(r"# ?(sent_id|text|newdoc|newpar)\b")
_UD_RANGE = re.compile(r"\d+[-.]\d+")
_UD_EXTENSION = ".iob2"
_CONLLU_NUM_COLUMNS = 10

NumberedLine = tuple[int, str]


def read_conll(
    lines: Iterable[str], source: str, options: FormatOptions | None = None
) -> Iterator[Record | LedgerEntry]:
    """Records of column lines, one a sentence, in the order of the file; a sentence with a bad line is rejected whole.

    Words are kept exactly as the file has them. `doc_id` is `path#docN` after the N-th document mark (`-DOCSTART-`,
    `# newdoc`, `#begin document`), and the record's own id where no mark came before.
    """
    reader = _Reader(source, options or FormatOptions(), has_comments=get_extension(source) == _UD_EXTENSION)
    for number, line in enumerate(lines, 1):
        line = line.removesuffix("\n").removesuffix("\r")
        if "\r" in line:
            _check_line_ends(line, f"{source}:{number}")
        yield from reader.take(number, line)
    yield from reader.finish()
    yield from reader.release()


def looks_like_conll(lines: Iterable[str]) -> bool:
    """Whether most lines that hold anything are columns of which one is a tag.

    Words between blanks are columns only if these lines have equally many of them, and their tags are not such as
    prose has (`Vitamin B-12`, `by E-mail`): one is `O`, or all labels are capitals.
    """
    held = [line for line in lines if line.strip(_WHITE) and not line.startswith(("# ", *_DOCUMENT_MARKS))]
    rows = [(line, _split(line, None)) for line in held]
    tagged = [(line, row) for line, row in rows if _find_tag(row)]
    if not held or len(tagged) < _MOST * len(held):
        return False
    if any("\t" in line for line, _ in tagged):
        return True
    [(_, num_alike)] = Counter(len(row) for _, row in tagged).most_common(1)
    tags = {_find_tag(row) for _, row in tagged}
    return num_alike >= _MOST * len(held) and ("O" in tags or all(map(_CAPITALS.fullmatch, tags)))


def is_tag(column: str) -> bool:
    """Whether a column reads as a tag: `O`, or a prefix, a dash and a label."""
    return bool(_TAG.fullmatch(column))


@dataclass
class _Reader:
    """The state of one pass over a file."""

    source: str
    options: FormatOptions
    num_documents: int = 0
    num_columns: int = 2
    """Columns of the last good sentence."""
    has_comments: bool = False
    """Whether comment lines came by, or the file's name says that it is UD-style."""
    is_ud: bool | None = None
    """Whether the file is UD-style; None until a sentence shows it."""
    has_ud_comments: bool = False
    was_numbered: bool = False
    """Whether a sentence of several words was numbered as UD numbers it."""
    sentence: list[NumberedLine] = field(default_factory=list)
    waiting: list[tuple[int, list[NumberedLine], list[list[str]]]] = field(default_factory=list)
    """Sentences, each with its document's number and its columns, that the next one tells how to read."""

    def take(self, number: int, line: str) -> Iterator[Record | LedgerEntry]:
        """Read one more line; yields the sentence that it ends."""
        if not line.strip(_WHITE):
            yield from self.finish()
        elif line.startswith(_DOCUMENT_MARKS) and not ("\t" in line and line[0] == "#"):
            yield from self.finish()
            self.num_documents += 1
            self.has_comments |= line.startswith("# ")
            self.has_ud_comments |= line.startswith("# ")
        elif not line.startswith(_IGNORED_LINES):
            self.sentence.append((number, line))

    def finish(self) -> Iterator[Record | LedgerEntry]:
        """The sentence gathered so far, if there is one that can be read by now."""
        lines = self._drop_comments(self.sentence)
        self.sentence = []
        if not lines:
            return
        rows = split_columns([line for _, line in lines], self.options.delimiter_character())
        self.waiting.append((self.num_documents, lines, rows))
        if self.is_ud is None:
            shown = self._show_ud(rows)
            is_doubtful = shown and not self.was_numbered and not self.has_comments
            self.was_numbered |= bool(shown)
            self.is_ud = None if is_doubtful else shown  # the words may be 1, 2, 3: one more sentence is to agree
        if self.is_ud is not None or not (self.was_numbered or _may_be_number(rows)):
            yield from self.release()

    def release(self) -> Iterator[Record | LedgerEntry]:
        """The sentences that wait; where only they tell, several numbered ones or its name make a file UD-style."""
        is_told = self.has_ud_comments or self.was_numbered or get_extension(self.source) == _UD_EXTENSION
        if self.is_ud is None and (len(self.waiting) > 1 or is_told):
            others = self.waiting[1:] if self.was_numbered else self.waiting
            self.is_ud = all(_may_be_number(rows) for _, _, rows in others) or None
        for document, lines, rows in self.waiting:
            yield self._to_record(lines, rows, document)
        self.waiting = []

    def _drop_comments(self, lines: list[NumberedLine]) -> list[NumberedLine]:
        if not any(line.startswith("#") for _, line in lines):
            return lines
        known = [len(_split(line, None)) for _, line in lines if not line.startswith("#")]
        num_columns = known[0] if known else self.num_columns
        held: list[NumberedLine] = []
        for number, line in lines:
            if not _is_comment(line, num_columns, is_first=not held):
                held.append((number, line))
        self.has_comments |= len(held) < len(lines)
        self.has_ud_comments |= any(_UD_COMMENT.match(line) for _, line in lines)
        return held

    def _to_record(self, lines: list[NumberedLine], rows: list[list[str]], document: int) -> Record | LedgerEntry:
        places = [f"{self.source}:{number}" for number, _ in lines]
        if self.is_ud:
            kept = [index for index, row in enumerate(rows) if not _UD_RANGE.fullmatch(row[0])]
            places, rows = [places[index] for index in kept or [0]], [rows[index] for index in kept]
        record_id = places[0]
        bad = self._find_bad_line(rows)
        if bad:
            index, reason, detail = bad
            return LedgerEntry(places[index], record_id, "rejected", reason, detail)
        self.num_columns = len(rows[0])
        return Record(
            record_id=record_id,
            doc_id=f"{self.source}#doc{document}" if document else record_id,
            source=record_id,
            words=[row[self._word_column] for row in rows],
            tags=[row[self._tag_column].strip(_WHITE) for row in rows],
        )

    def _find_bad_line(self, rows: Sequence[list[str]]) -> tuple[int, str, str] | None:
        """(index, reason, detail) of the first line that spoils its sentence."""
        if not rows:
            return 0, "no_words", "the sentence has only multi-word ranges and empty nodes"
        word_column, tag_column = self._word_column, self._tag_column
        needed = max(2, *(column + 1 if column >= 0 else -column for column in (word_column, tag_column)))
        for index, row in enumerate(rows):
            if len(row) < needed:
                return index, "too_few_columns", f"`{' '.join(row)}` has {len(row)} of at least {needed} columns"
        for index, row in enumerate(rows):
            if len(row) != len(rows[0]) and not self.is_ud:
                detail = f"`{' '.join(row)}` has {len(row)} columns, its sentence began with {len(rows[0])}"
                return index, "ragged_columns", detail
            if self.is_ud and self.options.word_column is None and not row[0].isdecimal():
                detail = f"`{' '.join(row)}` does not begin with its number; if no word has one, set `word_column 0`"
                return index, "no_number", detail
            if not row[word_column].strip(_WHITE):
                return index, "empty_word", f"the word's column is empty in `{' '.join(row)}`"
            if not row[tag_column].strip(_WHITE):
                return index, "empty_tag", f"the tag's column is empty in `{' '.join(row)}`"
        return None

    @property
    def _word_column(self) -> int:
        return self.options.word_column if self.options.word_column is not None else int(bool(self.is_ud))

    @property
    def _tag_column(self) -> int:
        return self.options.tag_column if self.options.tag_column is not None else 2 if self.is_ud else -1

    def _show_ud(self, rows: Sequence[list[str]]) -> bool | None:
        """Whether a sentence is numbered as UD numbers it; None where it cannot tell."""
        options = self.options
        if options.word_column == 0 or (options.word_column is not None and not self.has_comments):
            return False
        whole = [row for row in rows if len(row) > 2 and not _UD_RANGE.fullmatch(row[0])]
        is_damaged = any(len(row) < 3 for row in rows)
        if not whole or (is_damaged and not self.has_comments):
            return None if whole or self.has_comments else False
        ids = [row[0] for row in whole]
        numbered = ids == [str(number) for number in range(1, len(ids) + 1)]
        if is_damaged:  # a damaged line hides its number
            numbered = ids[0] == "1" and all(one.isdecimal() for one in ids)
        num_columns = len(whole[0])
        if not numbered or (_may_be_number(rows) and num_columns != _CONLLU_NUM_COLUMNS):
            return None if numbered else False
        if options.tag_column is not None:
            return True
        if num_columns == _CONLLU_NUM_COLUMNS:
            raise CorpusError(
                "the file is CoNLL-U, which has no column for entities",
                where=self.source,
                rule="a column holds the tag of every word",
                value=" ".join(whole[0]),
                remedy="set `tag_column` (and `word_column 1`) if one of its columns holds tags",
            )
        is_tagged = all(is_tag(row[2]) for row in whole)
        if num_columns > 3 and not is_tagged and (not self.has_comments or all(is_tag(row[-1]) for row in whole)):
            raise CorpusError(
                "the first column numbers the words, and the third holds no tags",
                where=self.source,
                rule="a numbered file has the word in its second column and the tag in its third",
                value=" ".join(whole[0]),
                remedy="set `word_column` and `tag_column`, counted from 0",
            )
        return True


def split_columns(lines: Sequence[str], delimiter: str | None) -> list[list[str]]:
    """Columns of a sentence's lines.

    Without a delimiter, lines with tabs are split at every tab if that gives all of them equally many columns, so that
    words with spaces survive; otherwise at runs of tabs and spaces. Other Unicode white space never splits.
    """
    lines = [line.rstrip(_WHITE) for line in lines]
    if delimiter is None and len({line.count("\t") for line in lines if "\t" in line}) > 1:
        delimiter = "whitespace"
    return [_split(line, delimiter) for line in lines]


def _split(line: str, delimiter: str | None) -> list[str]:
    if delimiter is None:
        delimiter = "\t" if "\t" in line else "whitespace"
    return _RUN_OF_WHITE.split(line.strip(_WHITE)) if delimiter == "whitespace" else line.split(delimiter)


def _is_comment(line: str, num_columns: int, *, is_first: bool) -> bool:
    """A line that starts with `# ` and is not the token `#` of a file with blanks as delimiters.

    With a tab in it, one at the head of a sentence that has other columns than the file (MultiCoNER, GermEval).
    """
    if not line.startswith(("# ", "#\t")):
        return False
    columns = _split(line, None)
    if "\t" in line:
        is_text = line.startswith("# ") or any(mark in line for mark in " [")
        return is_text and is_first and len(columns) != num_columns and not is_tag(columns[-1].strip(_WHITE))
    return not (len(columns) == num_columns and is_tag(columns[-1]))


def _may_be_number(rows: Sequence[list[str]]) -> bool:
    """Whether a sentence is one line that begins with a number, of UD or as the word itself."""
    row = rows[0]
    is_number = row[0] == "1" or _UD_RANGE.fullmatch(row[0])
    return bool(is_number) and len(rows) == 1 and len(row) > 2 and (is_tag(row[-1]) or not is_tag(row[2]))


def _check_line_ends(line: str, position: str) -> None:
    pieces = [piece for piece in line.split("\r") if piece.strip(_WHITE)]
    if len(pieces) > 1 and looks_like_conll(pieces):
        raise CorpusError(
            "the lines end with CR alone",
            where=position,
            rule="lines end with LF or CRLF",
            value=f"{line!r:.80}",
            remedy="convert the file: `tr '\\r' '\\n'`",
        )


def _find_tag(columns: Sequence[str]) -> str:
    """The last column or the third, if it is a tag; else nothing."""
    candidates = [*columns[-1:], *columns[2:3]] if len(columns) > 1 else []
    return next(filter(is_tag, candidates), "")
