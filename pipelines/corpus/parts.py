"""The parts of an unfinished job: a Parquet file for each chunk that is done, with its counts in the file's metadata.

A part appears whole or not at all, and its appearing is what makes a chunk done. What a chunk has to quarantine is
written before its part, so that whoever sees the part may rely on both.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.corpus.attempts import ATTEMPTS_FOLDER
from pipelines.corpus.chunks import parse_chunk

WORK_FOLDER = ".work"
COUNTS_KEY = b"rayner"
QUARANTINE_SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("doc_id", "record_id", "source", "stage", "reason", "detail", "text")]
)
"""`stage` is `read` or `label`; `text` is null where there is none, or a long one."""
_CHUNKS_PER_FOLDER = 1000


@dataclass(frozen=True)
class ChunkCounts:
    """What became of a chunk, and what it took."""

    chunk: str
    num_documents: int
    """Labelled ones."""
    quarantined: dict[str, int]
    """Reason → documents."""
    num_characters: int
    num_words: int
    num_tokens: int
    num_windows: int
    num_tokens_skipped: int
    """Sub-tokens that no window held: none."""
    entities: dict[str, int]
    """Label → entities."""
    run: str
    """Id of the driver's run that had it labelled."""
    actor: str
    """Host and process that labelled it."""
    started: float
    """Seconds since the epoch."""
    seconds: float
    """From its beginning to its end."""
    busy_seconds: float
    """Those of them in which the actor had nothing else to account for: its chunks overlap."""
    cpu_seconds: float
    """CPU time of the actor's process."""
    gpu_seconds: float
    """Time during which it held its GPU, or a fraction of one."""
    peak_memory_mib: int
    """Of the actor's process so far."""
    engine: dict[str, Any] = field(default_factory=dict)
    """Runtime, precision and token budget."""

    @property
    def num_quarantined(self) -> int:
        """Documents that were read or labelled in vain."""
        return sum(self.quarantined.values())

    def to_json(self) -> str:
        """As `from_json` reads it."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str | bytes) -> "ChunkCounts":
        """The inverse of `to_json`."""
        return cls(**json.loads(text))


@dataclass(frozen=True)
class Part:
    """What the footer of a part tells."""

    counts: ChunkCounts
    schema: pa.Schema


class PartFolder:
    """The parts below a job's work folder. Every node of the cluster has to see it."""

    def __init__(self, root: Path) -> None:
        """Give the work folder; nothing is made yet."""
        self.root = root
        self.parts = root / "parts"
        self.quarantine = root / "quarantine"

    def prepare(self) -> None:
        """Make the folders. Only the driver does this: an actor that outlives its job finds nowhere to write."""
        for folder in (self.parts, self.quarantine, self.root / ATTEMPTS_FOLDER):
            folder.mkdir(parents=True, exist_ok=True)

    def commit(self, counts: ChunkCounts, labelled: pa.Table, quarantined: pa.Table) -> None:
        """Write what a chunk gave; with the part in place it is done. Raises OSError, e.g. for a full disk."""
        if quarantined.num_rows:
            _write_whole(self._place(self.quarantine, counts.chunk), quarantined)
        metadata = (labelled.schema.metadata or {}) | {COUNTS_KEY: counts.to_json().encode()}
        _write_whole(self._place(self.parts, counts.chunk), labelled.replace_schema_metadata(metadata))

    def read_part(self, chunk: str) -> Part | None:
        """The footer of a part; None if there is none, or if the file is damaged (by a power failure)."""
        try:
            schema = pq.read_schema(self.find_part(chunk))
            return Part(ChunkCounts.from_json(schema.metadata[COUNTS_KEY]), schema.remove_metadata())
        except (OSError, pa.ArrowInvalid, TypeError, KeyError, ValueError):
            return None

    def list_parts(self) -> Iterator[Part]:
        """The footers of all parts, in the order of the input."""
        for folder in sorted(self.parts.iterdir(), key=lambda path: parse_chunk(path.name)):
            names = [path.stem for path in folder.glob("[!.]*.parquet")]
            found = (self.read_part(chunk) for chunk in sorted(names, key=parse_chunk))
            yield from (part for part in found if part is not None)

    def find_part(self, chunk: str) -> Path:
        """Where the entities of a chunk are, once it is done."""
        return self.parts / _name_folder(chunk) / f"{chunk}.parquet"

    def find_quarantine(self, chunk: str) -> Path:
        """Where a chunk's quarantined documents are, if it has some."""
        return self.quarantine / _name_folder(chunk) / f"{chunk}.parquet"

    def _place(self, folder: Path, chunk: str) -> Path:
        below = folder / _name_folder(chunk)
        below.mkdir(exist_ok=True)
        return below / f"{chunk}.parquet"


def read_quarantine(path: Path) -> list[dict[str, Any]]:
    """The rows of one file of quarantined documents."""
    rows: list[dict[str, Any]] = pq.read_table(path, partitioning=None).to_pylist()
    return rows


def _name_folder(chunk: str) -> str:
    """No folder holds more than a thousand parts."""
    file, number = parse_chunk(chunk)
    return f"{file:05d}-{number // _CHUNKS_PER_FOLDER:06d}"


def _write_whole(path: Path, table: pa.Table) -> None:
    """Write a Parquet file that appears whole or not at all, also if the machine loses its power."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    staging = path.with_name(f".{path.name}.{os.uname().nodename}.{os.getpid()}")
    with staging.open("wb") as file:
        file.write(sink.getvalue())
        file.flush()
        os.fsync(file.fileno())
    os.replace(staging, path)
