"""The offline job as its work folder knows it: what is counted, done and left, and whether it adds up."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import pyarrow as pa

from pipelines.corpus.agreement import LoadEngine
from pipelines.corpus.assembly import (
    OutputSpec,
    PartFile,
    assemble_output,
    assemble_quarantine,
    move_output,
    unify_parts,
)
from pipelines.corpus.census import SHOWN_ENTRIES, Census
from pipelines.corpus.chunks import parse_chunk
from pipelines.corpus.inference import load_engine
from pipelines.corpus.labeller import LabellingJob
from pipelines.corpus.labelling import label_chunks
from pipelines.corpus.ledger import check_bad_fraction
from pipelines.corpus.parts import QUARANTINE_SCHEMA, WORK_FOLDER, ChunkCounts, PartFolder, read_quarantine

CENSUS_FILE = "census.json"
SESSIONS_FILE = "sessions.jsonl"


class OfflineJob:
    """What the driver does in a work folder; every step goes on where an earlier run was cut short.

    Args:
        folder: of the output; the work folder lies in it.
        run: id of this run of the driver.
    """

    def __init__(self, folder: Path, run: str) -> None:
        self.folder, self.run = folder, run
        self.work = PartFolder(folder / WORK_FOLDER)
        self.census = Census([])

    @property
    def has_begun(self) -> bool:
        """Whether the input was counted, and found good."""
        return (self.work.root / CENSUS_FILE).is_file()

    def keep_what_is_done(self) -> bool:
        """Whether a chunk is done. If none is, the work folder goes, and with it all that tells of this job."""
        if any(self.list_done()):
            return True
        self.clear()
        return False

    def begin(self, take: Callable[[], Census], max_bad_fraction: float) -> None:
        """Count the input, or remember what an earlier run has counted. Raises CorpusError for input that is no good.

        Until it is found good, nothing is written.
        """
        path = self.work.root / CENSUS_FILE
        if self.has_begun:
            self.census = Census.from_dict(json.loads(path.read_text(encoding="utf-8")))
        else:
            self.census = take()
        self.census.check(max_bad_fraction)
        self.work.prepare()
        staging = path.with_name(f".{path.name}.partial")
        staging.write_text(json.dumps(self.census.to_dict()), encoding="utf-8")
        staging.replace(path)

    def note_session(self, started: float) -> dict[str, float]:
        """Note when this run of the driver began; returns when each began, this one last."""
        path = self.work.root / SESSIONS_FILE
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"run": self.run, "started": started}) + "\n")
            file.flush()
            os.fsync(file.fileno())
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        return {row["run"]: row["started"] for row in rows}

    def list_done(self) -> Iterator[ChunkCounts]:
        """The counts of the chunks that are done, in the order of the input."""
        return (part.counts for part in self.work.list_parts())

    def label(
        self,
        settings: LabellingJob,
        max_bad_fraction: float,
        tell: Callable[[ChunkCounts], None],
        load: LoadEngine = load_engine,
    ) -> None:
        """Label every chunk that is not done, and tell of each.

        Raises:
            CorpusError: more documents than allowed cannot be labelled, or the input was changed.
        """
        done: list[list[int]] = [[] for _ in self.census.files]
        num_bad = 0
        for counts in self.list_done():
            file, number = parse_chunk(counts.chunk)
            done[file].append(number)
            num_bad += counts.num_quarantined
        self._check_bad(num_bad, max_bad_fraction)  # of an earlier run, which may have left nothing to label
        for counts in label_chunks(settings, self.census, done, load):
            tell(counts)
            num_bad += counts.num_quarantined
            self._check_bad(num_bad, max_bad_fraction)

    def finish(self, spec: OutputSpec, max_bad_fraction: float, add: Callable[[ChunkCounts], None]) -> list[str]:
        """Make the output of the parts, in the order of the input; returns its files.

        Args:
            add: is given the counts of each chunk, once.

        Raises:
            CorpusError: more documents than allowed are quarantined.
            RuntimeError: documents that were counted are neither labelled nor quarantined.
        """
        files: list[PartFile] = []
        quarantines: list[PartFile] = []
        schemas: dict[pa.Schema, list[str]] = {}
        num_chunks = num_documents = num_bad = 0
        for part in self.work.list_parts():
            counts = part.counts
            add(counts)
            num_chunks += 1
            num_documents += counts.num_documents + counts.num_quarantined
            num_bad += counts.num_quarantined
            files.append(PartFile.of(self.work.find_part(counts.chunk)))
            schemas.setdefault(part.schema, []).append(files[-1].path)
            if counts.num_quarantined:
                quarantines.append(PartFile.of(self.work.find_quarantine(counts.chunk)))
        counted = (sum(file.num_chunks for file in self.census.files), self.census.num_documents)
        if (num_chunks, num_documents) != counted:
            told = "{} chunks with {} documents".format
            raise RuntimeError(f"{told(*counted)} were counted, {told(num_chunks, num_documents)} are done")
        self._check_bad(num_bad, max_bad_fraction)
        assemble_output(self.work, files, unify_parts(schemas), spec)
        assemble_quarantine(self.work, quarantines, QUARANTINE_SCHEMA, spec.file_bytes)
        return move_output(self.work, self.folder)

    def clear(self) -> None:
        """Remove the work folder."""
        shutil.rmtree(self.work.root, ignore_errors=True)

    def _check_bad(self, num_bad: int, max_bad_fraction: float) -> None:
        """Raise CorpusError if so many quarantined documents are more than allowed."""
        total = self.census.num_documents
        if num_bad > max_bad_fraction * total:
            entries = list(islice(self._iterate_bad(), SHOWN_ENTRIES))
            check_bad_fraction(num_bad, total, "documents", entries, max_bad_fraction)

    def _iterate_bad(self) -> Iterator[str]:
        """What the ledger tells of each quarantined document, in the order of the input."""
        for counts in self.list_done():
            if counts.num_quarantined:
                for row in read_quarantine(self.work.find_quarantine(counts.chunk)):
                    yield f"{row['source']}: {row['reason']}: {row['detail']}"
