"""Output files that appear whole or not at all: Parquet with several row groups, or JSON lines."""

import gzip
import json
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.corpus.chunks import JSON_TYPE, to_plain

PARQUET_COMPRESSIONS = ("zstd", "gzip", "none")
JSONL_COMPRESSIONS = ("none", "gzip", "zstd")
ROW_GROUP_BYTES = 16 << 20
"""Arrow memory of the rows that become a row group."""
_EXTENSIONS = {"none": "", "gzip": ".gz", "zstd": ".zst"}
_LINE_ENDS = (("\x85", "\\u0085"), ("\u2028", "\\u2028"), ("\u2029", "\\u2029"))
"""At which some readers end a line, and which JSON leaves as they are."""
_COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "none": bytes,
    "gzip": partial(gzip.compress, mtime=0),
    "zstd": partial(pa.compress, codec="zstd", asbytes=True),
}


class FileSink(ABC):
    """Rows into one file, by way of a buffer.

    Python writes the bytes, so that a full disk raises an OSError that says so and names the file.
    """

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        """Begin a file beside `path`, which it becomes when it is closed."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self.schema = path, schema
        self.staging = path.with_name(f".{path.name}.partial")
        self.file = self.staging.open("wb")
        self.buffered: list[pa.Table] = []
        self.num_buffered_bytes = 0

    def add(self, rows: pa.Table) -> None:
        """Take rows with this schema."""
        self.buffered.append(rows)
        self.num_buffered_bytes += rows.nbytes
        if self.num_buffered_bytes >= ROW_GROUP_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write what was taken."""
        if self.buffered:
            self.write(pa.concat_tables(self.buffered))
        self.buffered, self.num_buffered_bytes = [], 0

    def close(self) -> None:
        """Finish the file and give it its name."""
        self.flush()
        self.finish()
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()
        self.staging.replace(self.path)

    @abstractmethod
    def write(self, rows: pa.Table) -> None:
        """Write rows in the format of the file."""

    @abstractmethod
    def finish(self) -> None:
        """Write what stands at the end of the format."""


class ParquetSink(FileSink):
    """A row group each time that the buffer is full."""

    def __init__(self, path: Path, schema: pa.Schema, compression: str) -> None:
        """As FileSink."""
        super().__init__(path, schema)
        self.writer = pq.ParquetWriter(self.file, schema, compression=compression)

    def write(self, rows: pa.Table) -> None:
        """Write one row group."""
        self.writer.write_table(rows, row_group_size=max(1, rows.num_rows))

    def finish(self) -> None:
        """Write the footer."""
        self.writer.close()


class JsonlSink(FileSink):
    """A JSON object a line; compressed files are a row of members (gzip) or frames (zstd), as both formats allow."""

    def __init__(self, path: Path, schema: pa.Schema, compression: str) -> None:
        """As FileSink."""
        super().__init__(path, schema)
        self.json_names = [field.name for field in schema if field.type == JSON_TYPE]
        self.compress = _COMPRESS[compression]

    def write(self, rows: pa.Table) -> None:
        """Write a line a row."""
        for batch in rows.to_batches(max_chunksize=1000):
            lines = (_to_json(row | self._parse(row)) + "\n" for row in batch.to_pylist())
            self.file.write(self.compress("".join(lines).encode("utf-8")))

    def finish(self) -> None:
        """Lines need no end."""

    def _parse(self, row: dict[str, Any]) -> dict[str, Any]:
        """The columns of a row that hold JSON, as what they say."""
        return {name: json.loads(row[name]) for name in self.json_names if row[name] is not None}


def _to_json(row: dict[str, Any]) -> str:
    """JSON that is one line to every reader; it knows no number that is none, or infinite: these become null."""
    try:
        text = json.dumps(row, ensure_ascii=False, default=to_plain, allow_nan=False)
    except ValueError:
        text = json.dumps(_without_nan(row), ensure_ascii=False, default=to_plain)
    for mark, escaped in _LINE_ENDS:
        text = text.replace(mark, escaped)
    return text


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_nan(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_without_nan(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def open_sink(folder: Path, number: int, schema: pa.Schema, file_format: str, compression: str) -> FileSink:
    """A sink for `part-NNNNN` in a folder."""
    if file_format == "parquet":
        return ParquetSink(folder / f"part-{number:05d}.parquet", schema, compression)
    return JsonlSink(folder / f"part-{number:05d}.jsonl{_EXTENSIONS[compression]}", schema, compression)
