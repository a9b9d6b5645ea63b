"""Documents cut into chunks: what is labelled at once, committed at once, and after a kill done again.

Where one chunk ends and the next begins depends on nothing but the files and the settings, so that a job that goes on
after a kill labels the same chunks as one that was left alone.
"""

import base64
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any

import pyarrow as pa

from pipelines.corpus.formats.files import read_records
from pipelines.corpus.formats.options import FormatOptions
from pipelines.corpus.ledger import LedgerEntry
from pipelines.corpus.reading import UNREADABLE
from pipelines.corpus.records import CorpusError, EmptyFile, Record

MAX_DOCUMENTS = 4096
KEPT_PREFIX = "keep."
"""Before the names of columns that are kept: they may be called like ours."""
RECORD_COLUMNS = ("text", "source")
"""Columns to keep that every document has; where the input has one of that name, that is kept instead."""
JSON_TYPE = pa.large_string()
"""Of columns whose text is JSON, of objects and lists; plain text is `string`."""
CHUNK_SCHEMA = pa.schema(
    [
        ("record_id", pa.string()),
        ("doc_id", pa.string()),
        ("source", pa.string()),
        ("text", pa.string()),
        ("words", pa.list_(pa.string())),
        ("reason", pa.string()),  # of a rejected document; null for one to label
        ("detail", pa.string()),
    ]
)

Item = Record | LedgerEntry


def name_chunk(file: int, number: int) -> str:
    """The id of a chunk: `00017-000042` is the 43rd chunk of the 18th file."""
    return f"{file:05d}-{number:06d}"


def parse_chunk(chunk: str) -> tuple[int, int]:
    """The inverse of `name_chunk`; sorts in the order of the input, however large the numbers."""
    file, number = chunk.split("-")
    return int(file), int(number)


def read_items(path: str, reader: FormatOptions) -> Iterator[Item]:
    """The documents of a file, and an entry for each that is rejected; damage to the file itself is the last entry."""
    try:
        for item in read_records(path, reader):
            if isinstance(item, Record) or item.outcome == "rejected":
                yield item
    except EmptyFile:
        return  # as clusters write them where a task had no rows: nothing is lost with it
    except CorpusError as error:
        facts = [fact for fact in (error.what, error.where, error.value) if fact is not None and fact != path]
        detail = " ".join("; ".join(map(str, facts)).split())
        yield LedgerEntry(path, path, "rejected", UNREADABLE, detail)


def cut_chunks(items: Iterable[Item], max_characters: int) -> Iterator[list[Item]]:
    """Consecutive items, as many as `max_characters` and `MAX_DOCUMENTS` allow; a larger document is a chunk alone."""
    chunk: list[Item] = []
    size = 0
    for item in items:
        characters = count_characters(item)
        if chunk and (size + characters > max_characters or len(chunk) == MAX_DOCUMENTS):
            yield chunk
            chunk, size = [], 0
        chunk.append(item)
        size += characters
    if chunk:
        yield chunk


def count_characters(item: Item) -> int:
    """Characters of a document: of its text, or of its words joined by single spaces."""
    if isinstance(item, LedgerEntry):
        return 0
    if item.text is not None:
        return len(item.text)
    words = item.words or ()
    return sum(map(len, words)) + max(0, len(words) - 1)


def pack_chunk(items: Sequence[Item], keep: Sequence[str]) -> bytes:
    """Items as an Arrow stream: columns as `CHUNK_SCHEMA`, and those to keep."""
    columns: dict[str, list[Any]] = {name: [] for name in CHUNK_SCHEMA.names}
    for item in items:
        rejected = isinstance(item, LedgerEntry)
        for name, values in columns.items():
            values.append(item.record_id if rejected and name == "doc_id" else getattr(item, name, None))
    arrays = [pa.array(columns[field.name], field.type) for field in CHUNK_SCHEMA]
    kept = [[getattr(item, "extra", {}).get(name) for item in items] for name in keep]
    table = pa.table(
        [*arrays, *map(build_column, kept)], [*CHUNK_SCHEMA.names, *(f"{KEPT_PREFIX}{name}" for name in keep)]
    )
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


def unpack_chunk(packed: pa.Buffer) -> pa.Table:
    """The inverse of `pack_chunk`; it lies in the buffer's memory."""
    return pa.ipc.open_stream(packed).read_all()


def build_column(values: Sequence[Any]) -> pa.Array:
    """Values of any kind as an Arrow array, which gives them back; as text where none does."""
    has_nanoseconds = any(getattr(value, "nanosecond", 0) for value in values)  # which pyarrow would not see
    if _have_same_keys(values):
        with suppress(pa.ArrowException, OverflowError, TypeError, ValueError):
            column = pa.array(values)
            if has_nanoseconds and pa.types.is_timestamp(column.type):
                column = pa.array(values, pa.timestamp("ns", column.type.tz))
            return column
    is_json = all(isinstance(value, dict | list) for value in values if value is not None)
    texts = [None if value is None else to_text(value) for value in values]
    return pa.array(texts, JSON_TYPE if is_json else pa.string())


def _have_same_keys(values: Sequence[Any]) -> bool:
    """Whether objects in one place, at any depth, have the same keys, and some: a struct has all of its fields."""
    left = [values]
    while left:
        values = left.pop()
        objects = [value for value in values if isinstance(value, dict)]
        if objects:
            names = objects[0].keys()
            if not names or any(one.keys() != names for one in objects):
                return False
            left += [[one[name] for one in objects] for name in names]
        items = [item for value in values if isinstance(value, list) for item in value]
        if items:
            left.append(items)
    return True


def to_text(value: Any) -> str:
    """A value as text: what JSON knows as JSON, but for strings, which are as they are; others as `to_plain` does."""
    is_json = value is None or isinstance(value, bool | int | float | list | tuple | dict)
    text = json.dumps(value, ensure_ascii=False, default=to_plain) if is_json else to_plain(value)
    return text.encode("utf-8", "backslashreplace").decode("utf-8")  # a lone surrogate has no UTF-8


def to_plain(value: Any) -> str:
    """A value that JSON does not know as a string: bytes in base64, a date as it is written."""
    return base64.b64encode(value).decode() if isinstance(value, bytes) else str(value)
