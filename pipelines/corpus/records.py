"""The one record type that every corpus file becomes, and its Arrow form."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from pipelines.ner.entities import Span
from pipelines.ner.errors import UserError


class CorpusError(UserError):
    """A corpus that cannot be read or used as it is."""


class EmptyFile(CorpusError):
    """A file that is whole and holds no records."""


@dataclass(frozen=True)
class Record:
    """One sentence or document.

    It has either `text`, and then `spans` are ranges of its characters (Unicode code points), or `words`, and then
    `spans` are ranges of words. `spans` is None where the record carries no gold. `tags` are the untouched gold tags of
    a record with words (None for text); they become spans once the corpus's label scheme is known.
    """

    record_id: str
    """Unique: source and position, e.g. `news.conll:17`."""
    doc_id: str
    """The document it belongs to; equal to `record_id` where the file marks no documents."""
    source: str
    """`path:line` (1-based line of the record's start) or `path:row`."""
    text: str | None = None
    words: Sequence[str] | None = None
    tags: Sequence[str] | None = None
    spans: Sequence[Span] | None = None
    extra: dict[str, Any] = field(default_factory=dict)
    """Other columns of the row, kept on request."""


SPAN_TYPE = pa.struct([("start", pa.int32()), ("end", pa.int32()), ("label", pa.string())])
RECORD_SCHEMA = pa.schema(
    [
        ("record_id", pa.string()),
        ("doc_id", pa.string()),
        ("source", pa.string()),
        ("text", pa.string()),
        ("words", pa.list_(pa.string())),
        ("tags", pa.list_(pa.string())),
        ("spans", pa.list_(SPAN_TYPE)),
    ]
)


def to_table(records: Sequence[Record]) -> pa.Table:
    """Records as a table with `RECORD_SCHEMA`."""
    rows = [
        {
            "record_id": record.record_id,
            "doc_id": record.doc_id,
            "source": record.source,
            "text": record.text,
            "words": record.words,
            "tags": record.tags,
            "spans": None if record.spans is None else [_span_row(span) for span in record.spans],
        }
        for record in records
    ]
    return pa.Table.from_pylist(rows, schema=RECORD_SCHEMA)


def to_records(table: pa.Table) -> list[Record]:
    """The inverse of `to_table`; other columns are ignored."""
    return [
        Record(**{**row, "spans": None if row["spans"] is None else [Span(**span) for span in row["spans"]]})
        for row in table.select(RECORD_SCHEMA.names).to_pylist()
    ]


def _span_row(span: Span) -> dict[str, Any]:
    return {"start": span.start, "end": span.end, "label": span.label}
