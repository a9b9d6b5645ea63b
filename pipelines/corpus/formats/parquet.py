"""Parquet to records, streamed from any file system."""

from collections.abc import Iterator
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.corpus.formats.names import is_uri
from pipelines.corpus.formats.opening import explain_damage
from pipelines.corpus.formats.options import FormatOptions
from pipelines.corpus.formats.rows import read_row
from pipelines.corpus.formats.stores import open_store
from pipelines.corpus.formats.tables import check_columns, with_label_names
from pipelines.corpus.ledger import LedgerEntry
from pipelines.corpus.records import CorpusError, EmptyFile, Record

_BATCH_ROWS = 1024
_BATCH_BYTES = 4 << 20
_BUFFER_BYTES = 1 << 20
_DAMAGE = (pa.ArrowException, OSError)


def read_parquet(path: str, options: FormatOptions | None = None) -> Iterator[Record | LedgerEntry]:
    """A record of every row, one batch in memory at a time; `path:N` is the N-th row.

    Raises CorpusError for a damaged file, once all rows before the damage are read.
    """
    options = options or FormatOptions()
    with _open(path) as file:
        names = file.schema_arrow.names
        check_columns(names, path, options)
        options = with_label_names(file.schema_arrow, options)
        columns = [name for name in names if name in options.column_names()]
        number = 0
        try:
            for batch in _iterate_batches(file, columns):
                for row in _iterate_rows(batch):
                    number += 1
                    yield from _read_row(row, f"{path}:{number}", options)
            if number != file.metadata.num_rows:
                raise OSError(f"{number} rows were found, the footer tells of {file.metadata.num_rows}")
        except _DAMAGE as error:
            raise _describe_damage(path, f"{path}:{number + 1}", error) from error


def _open(path: str) -> pq.ParquetFile:
    """The file with its footer read; its columns are read through buffers, never whole."""
    with explain_damage(path):
        store, name = open_store(path) if is_uri(path) else (None, path)
        try:
            return pq.ParquetFile(
                name,
                filesystem=store,
                pre_buffer=False,
                buffer_size=_BUFFER_BYTES,
                page_checksum_verification=True,
            )
        except pa.ArrowInvalid as error:
            if "file size is 0 bytes" in str(error):
                rule = "a `.parquet` file ends in a complete footer"
                raise EmptyFile("the file is empty", where=path, rule=rule, remedy="remove or fill it") from error
            raise _describe_damage(path, path, error) from error


def _iterate_batches(file: pq.ParquetFile, columns: list[str]) -> Iterator[pa.RecordBatch]:
    """Batches of all rows; where one cannot be read, its rows singly up to the one that cannot."""
    num_rows = 0
    try:
        for batch in file.iter_batches(_count_batch_rows(file.metadata, columns), columns=columns):
            num_rows += batch.num_rows
            yield batch
    except _DAMAGE:
        yield from _iterate_singly(file, columns, num_rows)


def _count_batch_rows(metadata: pq.FileMetaData, columns: list[str]) -> int:
    """How many rows, of the row group with the largest ones, are held at once."""
    num_rows = _BATCH_ROWS
    for group in map(metadata.row_group, range(metadata.num_row_groups)):
        chunks = map(group.column, range(group.num_columns))
        sizes = [one.total_uncompressed_size for one in chunks if one.path_in_schema.split(".")[0] in columns]
        num_rows = min(num_rows, _BATCH_BYTES * group.num_rows // max(1, sum(sizes)))
    return max(1, num_rows)


def _iterate_singly(file: pq.ParquetFile, columns: list[str], start: int) -> Iterator[pa.RecordBatch]:
    """Batches of one row each, from row `start`, counted from 0."""
    sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
    first = 0
    while first < len(sizes) - 1 and start >= sizes[first]:
        start -= sizes[first]
        first += 1
    batches = file.iter_batches(1, row_groups=range(first, len(sizes)), columns=columns)
    return islice(batches, start, None)


def _iterate_rows(batch: pa.RecordBatch) -> Iterator[dict[str, Any] | ValueError | OverflowError]:
    """The rows of a batch; in place of one that is not UTF-8, or has a date that Python has not, the error."""
    try:
        yield from batch.to_pylist()
    except (ValueError, OverflowError):
        for number in range(batch.num_rows):
            try:
                yield batch.slice(number, 1).to_pylist()[0]
            except (ValueError, OverflowError) as error:
                yield error


def _read_row(
    row: dict[str, Any] | ValueError | OverflowError, position: str, options: FormatOptions
) -> Iterator[Record | LedgerEntry]:
    if isinstance(row, dict):
        yield from read_row(row, position, options)
        return
    if not isinstance(row, UnicodeDecodeError):
        yield LedgerEntry(position, position, "rejected", "bad_value", str(row))
        return
    detail = f"the byte 0x{row.object[row.start]:02x} at byte offset {row.start} of a cell"
    if options.bad_encoding == "refuse_file":
        raise CorpusError(
            "the Parquet file is damaged",
            where=position,
            rule="strings are UTF-8",
            value=detail,
            remedy="write the file again",
        )
    yield LedgerEntry(position, position, "rejected", "invalid_utf8", detail)


def _describe_damage(path: str, place: str, error: Exception) -> CorpusError:
    return CorpusError(
        "the Parquet file is damaged",
        where=place,
        rule="a `.parquet` file ends in a complete footer, and every page can be read",
        value=error,
        remedy="write or fetch the file again" + ("; check the network" if is_uri(path) else ""),
    )
