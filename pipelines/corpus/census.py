"""What the input holds, counted before anything is labelled: one pass over the files, one Ray task a file.

Only counts travel to the driver, nothing a document. The same counts tell later whether every document was labelled
or quarantined, and whether a file was changed while the job ran.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any
from urllib.parse import unquote

import pyarrow as pa
import ray.data

from pipelines.corpus.assembly import name_partition
from pipelines.corpus.chunks import RECORD_COLUMNS, count_characters, cut_chunks, read_items
from pipelines.corpus.formats.options import FormatOptions
from pipelines.corpus.ledger import LedgerEntry, check_bad_fraction
from pipelines.corpus.reading import MAX_BLOCKS, UNREADABLE, stand_in
from pipelines.corpus.records import CorpusError
from pipelines.ner.errors import UserError, raise_all

SHOWN_ENTRIES = 10
MAX_PARTITIONS = 1000
MAX_FOLDER_BYTES = 255
"""Of a folder's name, on any usual file system."""


@dataclass(frozen=True)
class FileCensus:
    """Counts of one file."""

    path: str
    num_records: int
    """Documents to label."""
    num_rejected: int
    num_characters: int
    num_chunks: int
    is_damaged: bool
    """Whether the file could not be read, or not to its end."""
    entries: list[str]
    """The first rejections, `path:line: reason: detail`."""
    kept: list[str]
    """Columns to keep that the file has."""
    partitions: list[str]
    """The folders that the columns to partition by make: `lang=en/year=2024`."""


@dataclass(frozen=True)
class Census:
    """Counts of all files, in the order of the input."""

    files: list[FileCensus]
    keep: list[str] = field(default_factory=list)
    """Columns to keep, wherever some file has them."""

    @property
    def num_records(self) -> int:
        """Documents to label."""
        return sum(file.num_records for file in self.files)

    @property
    def num_rejected(self) -> int:
        """Documents that could not be read; a damaged file counts as one more."""
        return sum(file.num_rejected for file in self.files)

    @property
    def num_documents(self) -> int:
        """All documents that were met."""
        return self.num_records + self.num_rejected

    @property
    def num_characters(self) -> int:
        """Characters to label."""
        return sum(file.num_characters for file in self.files)

    def list_columns(self) -> tuple[str, ...]:
        """Columns to keep that some document has."""
        found = {name for file in self.files for name in file.kept}
        return tuple(name for name in self.keep if name in found)

    def to_dict(self) -> dict[str, Any]:
        """As JSON takes it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "Census":
        """The inverse of `to_dict`."""
        return cls([FileCensus(**file) for file in content["files"]], content["keep"])

    def check(self, max_bad_fraction: float) -> None:
        """Raise CorpusError for too many rejections, no documents, absent columns or impossible partitions."""
        self._check_fraction(max_bad_fraction)
        errors: list[UserError] = []
        if not self.num_records:
            errors.append(CorpusError("the input holds no documents", where=_show_files(self.files)))
        found = {*self.list_columns(), *RECORD_COLUMNS}
        for name in self.keep if self.num_records else ():
            if name not in found:
                rule = "`keep` names columns that some document has"
                errors.append(CorpusError(f"no document has a column `{name}`", rule=rule, remedy="mend `--keep`"))
        if len({one for file in self.files for one in file.partitions}) > MAX_PARTITIONS:
            errors.append(
                CorpusError(
                    "too many partitions",
                    rule=f"the columns of `partition_by` have at most {MAX_PARTITIONS} different values together",
                    remedy="partition by a column with fewer values, or not at all",
                )
            )
        raise_all(errors + self._find_long_folder())

    def _find_long_folder(self) -> list[UserError]:
        names = {name: file.path for file in self.files for place in file.partitions for name in place.split("/")}
        longest = max(names, key=len, default="")
        if len(longest) <= MAX_FOLDER_BYTES:
            return []
        return [
            CorpusError(
                "a value to partition by is too long for the name of a folder",
                where=names[longest],
                rule=f"`column=value` takes at most {MAX_FOLDER_BYTES} bytes; a byte that is not ASCII takes three",
                value=f"{len(longest)} bytes: {unquote(longest)}",
                remedy="partition by a column with shorter values, or not at all",
            )
        ]

    def _check_fraction(self, max_bad_fraction: float) -> None:
        damaged = [file for file in self.files if file.is_damaged]
        check_bad_fraction(
            self.num_rejected,
            self.num_documents,
            "documents",
            [entry for file in self.files for entry in file.entries][:SHOWN_ENTRIES],
            max_bad_fraction,
        )
        if len(damaged) > max_bad_fraction * len(self.files):
            shown = [entry for file in damaged for entry in file.entries if f": {UNREADABLE}" in entry]
            lines = [f"{len(damaged)} of {len(self.files)} files cannot be read to their end:"]
            lines += [f"    {entry}" for entry in shown[:SHOWN_ENTRIES]]
            raise CorpusError(
                "\n".join(lines),
                rule=f"at most {max_bad_fraction:.2%} of the files may be damaged (`max_bad_fraction`)",
                value=f"{len(damaged) / len(self.files):.2%}",
                remedy="mend the files named above, or raise `max_bad_fraction` to go on without what is lost in them",
            )


def take_census(
    paths: Sequence[str], reader: FormatOptions, chunk_characters: int, partition_by: Sequence[str] = ()
) -> Census:
    """Read every file once and count, on the whole cluster."""
    settings = {"reader": reader, "chunk_characters": chunk_characters, "partition_by": tuple(partition_by)}
    settings["folder"] = os.getcwd()
    rows = [{"file": number, "path": path} for number, path in enumerate(paths)]
    files = ray.data.from_items(rows, override_num_blocks=min(len(rows), MAX_BLOCKS))
    counted = files.map_batches(_count_files, fn_kwargs=settings, batch_size=1, batch_format="pyarrow")
    found = {row["file"]: json.loads(row["census"]) for row in counted.iter_rows()}
    return Census([FileCensus(**found[number]) for number in range(len(paths))], list(reader.extra_columns))


def count_file(path: str, reader: FormatOptions, chunk_characters: int, partition_by: Sequence[str] = ()) -> FileCensus:
    """Counts of one file."""
    num_records = num_rejected = num_characters = num_chunks = 0
    is_damaged = False
    entries: list[str] = []
    kept: set[str] = set()
    partitions: set[str] = set()
    for chunk in cut_chunks(read_items(path, reader), chunk_characters):
        num_chunks += 1
        for item in chunk:
            num_characters += count_characters(item)
            if isinstance(item, LedgerEntry):
                num_rejected += 1
                is_damaged |= item.reason == UNREADABLE
                if len(entries) < SHOWN_ENTRIES or item.reason == UNREADABLE:
                    entries.append(item.render())
                continue
            num_records += 1
            kept.update(item.extra)
            if partition_by and len(partitions) <= MAX_PARTITIONS:
                partitions.add(name_partition(partition_by, [item.extra.get(name) for name in partition_by]))
    counts = (num_records, num_rejected, num_characters, num_chunks)
    return FileCensus(path, *counts, is_damaged, entries, sorted(kept), sorted(partitions))


def _count_files(
    batch: pa.Table, reader: FormatOptions, chunk_characters: int, partition_by: Sequence[str], folder: str
) -> pa.Table:
    with stand_in(folder):
        counts = [count_file(path, reader, chunk_characters, partition_by) for path in batch["path"].to_pylist()]
    return pa.table({"file": batch["file"], "census": [json.dumps(asdict(one)) for one in counts]})


def _show_files(files: Sequence[FileCensus]) -> str:
    return " ".join(file.path for file in files[:5]) + (" …" if len(files) > 5 else "")
