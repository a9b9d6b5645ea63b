"""Tables to records: CSV, Arrow, pandas and Hugging Face datasets, streamed."""

import csv
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import pyarrow as pa

from pipelines.corpus.formats.opening import UndecodableLine
from pipelines.corpus.formats.options import FormatOptions
from pipelines.corpus.formats.rows import read_row
from pipelines.corpus.ledger import LedgerEntry
from pipelines.corpus.records import CorpusError, Record

_BATCH_ROWS = 1024
_DELIMITERS = ",\t;|"
_CELL_LIMIT = 2**26
"""Characters; a quote that never ends would gather the rest of the file."""


def read_csv(lines: Iterable[str], source: str, options: FormatOptions | None = None) -> Iterator[Record | LedgerEntry]:
    """A record of every row below the header; `lines` keep their ends, for a quoted cell may hold some of its own.

    The header is the first line that holds anything. Raises CorpusError for one that cannot be read.
    """
    options = options or FormatOptions()
    watched = _Lines(lines)
    filled = ((number, line) for number, line in enumerate(watched, 1) if line.strip())
    number, header_line = next(filled, (0, ""))
    if not number:
        return
    if isinstance(header_line, UndecodableLine):
        raise header_line.error
    csv.field_size_limit(_CELL_LIMIT)
    place = f"{source}:{number}"
    delimiter = options.delimiter_character() or _detect_delimiter(header_line, place, options)
    if delimiter == "whitespace":
        delimiter = " "
    header = _split_header(header_line, delimiter, place)
    check_columns(header, source, options)
    reader = csv.reader(watched, delimiter=delimiter, strict=True)
    watched.take()
    while True:
        line = number + reader.line_num + 1
        position = f"{source}:{line}"
        cells: list[str] = []
        broken: csv.Error | None = None
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            broken = error
        taken = watched.take()
        are_rows = delimiter == "\t" and (broken or len(taken) > 1) and _are_rows(taken, len(header))
        if are_rows and broken:
            for at, one in enumerate(taken, line):
                yield from _read_plain(one, header, f"{source}:{at}", options)
        elif are_rows:  # one cell by its quotes, several rows by its tabs: which is meant nobody can tell
            detail = f"quote marks join lines that may be rows by themselves (lines {line} to {line + len(taken) - 1})"
            for at, one in enumerate(taken, line):
                if one.strip():
                    yield _reject(f"{source}:{at}", "ambiguous_quotes", detail)
        elif broken:
            last = number + reader.line_num
            detail = f"{broken} (lines {line} to {last})"
            for lost in range(line, last + 1):  # each counts, so that a quote left open is no single bad row
                yield _reject(f"{source}:{lost}", "broken_csv", detail)
        else:
            bad = next((one for one in taken if isinstance(one, UndecodableLine)), None)
            yield from [bad.reject(position)] if bad else _read_cells(cells, header, position, options)


def _are_rows(lines: list[str], num_columns: int) -> bool:
    """Whether lines with tabs that a quote holds together are rows: most tools write them without any quoting."""
    return num_columns > 1 and all(one.count("\t") == num_columns - 1 for one in (lines[0], lines[-1]))


def _read_plain(line: str, header: list[str], position: str, options: FormatOptions) -> Iterator[Record | LedgerEntry]:
    """The record of a line with tabs, in which quote marks are characters as any."""
    if isinstance(line, UndecodableLine):
        yield line.reject(position)
    elif line.strip():
        yield from _read_cells(line.rstrip("\r\n").split("\t"), header, position, options)


def _read_cells(
    cells: list[str], header: list[str], position: str, options: FormatOptions
) -> Iterator[Record | LedgerEntry]:
    if len(cells) == len(header):
        yield from read_row(dict(zip(header, cells, strict=True)), position, options)
    elif cells:
        detail = f"the row has {len(cells)} cells, the header {len(header)}: {cells!r:.80}"
        yield _reject(position, "ragged_row", detail)


def read_table(table: Any, source: str, options: FormatOptions | None = None) -> Iterator[Record | LedgerEntry]:
    """Records of an Arrow table, a pandas frame or a Hugging Face dataset; `source:N` is the N-th row."""
    options = options or FormatOptions()
    if isinstance(table, pa.RecordBatch):
        table = pa.Table.from_batches([table])
    names = list(table.column_names if hasattr(table, "column_names") else table.columns)
    check_columns(names, source, options)
    columns = [name for name in names if name in options.column_names()]
    if isinstance(table, pa.Table):
        options = with_label_names(table.schema, options)
        rows = _iterate(table.select(columns).to_batches(_BATCH_ROWS))
    elif hasattr(table, "iterrows"):
        rows = _iterate_frame(table, columns)
    else:
        options = with_label_names(table.features.arrow_schema, options)
        rows = _iterate(table.select_columns(columns).with_format("arrow").iter(_BATCH_ROWS))
    for number, row in enumerate(rows, 1):
        yield from read_row(row, f"{source}:{number}", options)


def check_columns(names: Iterable[str], source: str, options: FormatOptions) -> None:
    """Raise CorpusError if a table has no column of text or words, lacks one that is named, or has two of one name."""
    names = list(names)
    shown = ", ".join(f"`{name}`" for name in names) or "none"
    wanted = (*options.text_names(), *options.words_names())
    if not any(name in names for name in (*wanted, "data")):
        raise CorpusError(
            "no column holds the text or the words",
            where=source,
            rule="a table has a column " + " or ".join(f"`{name}`" for name in wanted) + ", named in its header",
            value=f"the columns are {shown}",
            remedy="set `text_column` (or `words_column` and `tags_column`) to the column's name",
        )
    twice = sorted({name for name in names if names.count(name) > 1} & options.column_names())
    if twice:
        raise CorpusError(
            f"two columns are called `{twice[0]}`",
            where=source,
            rule="the name of a column that is read tells which one is meant",
            value=f"the columns are {shown}",
            remedy="rename or remove one of them",
        )
    for option in ("spans_column", "tags_column", "id_column"):
        name = getattr(options, option)
        if name not in (None, "none", *names):
            raise CorpusError(
                f"there is no column `{name}`",
                where=source,
                rule=f"`{option}` names a column of the table",
                value=f"the columns are {shown}",
                remedy=f"set `{option}` to one of them, or leave it out",
            )


def with_label_names(schema: pa.Schema, options: FormatOptions) -> FormatOptions:
    """The options with the tag names that Hugging Face's `datasets` keeps in a schema's metadata."""
    told = (schema.metadata or {}).get(b"huggingface")
    if options.label_names or not told:
        return options
    features = json.loads(told).get("info", {}).get("features", {})
    for name in options.tags_names():
        names = _find_class_names(features.get(name))
        if names:
            return replace(options, label_names=tuple(names))
    return options


class _Lines:
    """Lines for `csv`, which forgets what lines a row came from."""

    def __init__(self, lines: Iterable[str]) -> None:
        self._lines = iter(lines)
        self._taken: list[str] = []

    def __iter__(self) -> Iterator[str]:
        """The lines themselves, which can be gone through once."""
        return self

    def __next__(self) -> str:
        """The next line, which is remembered."""
        line = next(self._lines)
        self._taken.append(line)
        return line

    def take(self) -> list[str]:
        """The lines since the last call."""
        taken, self._taken = self._taken, []
        return taken


def _detect_delimiter(header: str, position: str, options: FormatOptions) -> str:
    wanted = {*options.text_names(), *options.words_names()}
    found = (mark for mark in _DELIMITERS if wanted & set(_split_header(header, mark, position)))
    return next(found, ",")


def _split_header(line: str, delimiter: str, position: str) -> list[str]:
    try:
        return next(csv.reader([line], delimiter=delimiter), [])
    except csv.Error as error:
        raise CorpusError(
            "the header of the table cannot be read",
            where=position,
            rule="the first line names the columns; lines end with LF or CRLF",
            value=f"{line!r:.80}",
            remedy="where they end with CR alone, convert the file: `tr '\\r' '\\n'`",
        ) from error


def _find_class_names(feature: Any) -> list[str]:
    """The names of a ClassLabel, or of the one inside a list feature."""
    if isinstance(feature, list) and feature:
        feature = feature[0]
    if not isinstance(feature, dict):
        return []
    return feature["names"] if feature.get("_type") == "ClassLabel" else _find_class_names(feature.get("feature"))


def _iterate(batches: Iterable[Any]) -> Iterator[Mapping[str, Any]]:
    for batch in batches:
        yield from batch.to_pylist()


def _iterate_frame(frame: Any, names: list[str]) -> Iterator[Mapping[str, Any]]:
    for cells in zip(*(frame[name] for name in names), strict=True):
        yield {name: _to_plain(cell) for name, cell in zip(names, cells, strict=True)}


def _to_plain(cell: Any) -> Any:
    """A cell of a frame without numpy, missing values as None."""
    plain = cell.tolist() if hasattr(cell, "tolist") else cell
    is_missing = isinstance(plain, float) and plain != plain
    return None if is_missing or type(plain).__name__ in ("NAType", "NaTType") else plain


def _reject(source: str, reason: str, detail: str) -> LedgerEntry:
    return LedgerEntry(source, source, "rejected", reason, detail)
