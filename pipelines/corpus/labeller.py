"""What an actor of the offline job does with a chunk: label its documents, commit the result, and say what it took."""

import gc
import os
import resource
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.corpus.agreement import LoadEngine, load_agreed
from pipelines.corpus.attempts import ATTEMPTS_FOLDER, Attempts, note_loading, read_attempts
from pipelines.corpus.chunks import KEPT_PREFIX, unpack_chunk
from pipelines.corpus.formats.options import FormatOptions
from pipelines.corpus.inference import (
    COVERAGE_TYPE,
    ENTITIES_TYPE,
    ActorPlan,
    InferenceConfig,
    label_documents,
    to_row,
)
from pipelines.corpus.parts import QUARANTINE_SCHEMA, ChunkCounts, PartFolder
from pipelines.corpus.records import CorpusError
from pipelines.corpus.turns import Meter, Turns
from pipelines.ner.engine import NerEngine
from pipelines.ner.entities import Prediction
from pipelines.ner.errors import UserError
from pipelines.ner.runtimes.runtime import set_up_process
from pipelines.ner.streams import EmissionsError

KILLS_WORKER, CANNOT_LABEL = "kills_worker", "cannot_label"
QUARANTINE_TEXT_LIMIT = 10_000
"""Characters; a longer text is not repeated in the quarantine."""
ENGINE_FACTS = ("runtime", "precision", "device", "num_threads", "max_batch_tokens")


@dataclass(frozen=True)
class LabellingJob:
    """Everything that readers and actors need; it travels to other machines."""

    model: str
    inference: InferenceConfig
    plan: ActorPlan
    reader: FormatOptions
    keep: tuple[str, ...]
    chunk_characters: int
    work: Path
    run: str
    """Id of this run of the driver."""
    folder: str = field(default_factory=os.getcwd)
    """The working folder of the driver."""


class Failure(NamedTuple):
    """Why a document has no prediction."""

    reason: str
    detail: str


Outcome = Prediction | Failure


class ChunkLabeller:
    """One engine in one actor; chunks in, their counts out. Threads may share it.

    Args:
        load: loads the engine; a document that it cannot label is quarantined, alone.
    """

    def __init__(self, job: LabellingJob, load: LoadEngine) -> None:
        self.job = job
        self.parts = PartFolder(job.work)
        self.failure: Exception | None = None
        self.turns, self.meter = Turns(), Meter()
        set_up_process()
        try:
            self.engine = self._load(load)
            gc.freeze()  # what is loaded stays: no need to look through it time and again, while all threads wait
        except Exception as error:  # of what a constructor raises, Ray keeps no more than the text
            self.failure = error

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Counts, as JSON, of the one chunk in a batch.

        Raises UserError where the model cannot be loaded, or the output folder is not seen or cannot be written.
        """
        if self.failure is not None:
            raise self.failure
        chunk = batch["chunk"][0].as_py()
        part = self.parts.read_part(chunk)  # an actor may have been killed after it had committed, before it said so
        try:
            counts = part.counts if part else self._label(chunk, unpack_chunk(batch["packed"][0].as_buffer()))
        except OSError as error:
            raise CorpusError(
                "what is labelled cannot be written",
                where=str(self.job.work.parent),
                rule="a folder that can be written, on a disk with room",
                value=error.strerror or error,
                remedy="make room, and give the same command again: what was labelled is kept",
            ) from error
        return pa.table({"counts": [counts.to_json()]})

    def _load(self, load: LoadEngine) -> NerEngine:
        if not self.parts.parts.is_dir():
            raise CorpusError(
                "a node of the cluster does not see the output folder",
                where=f"{self.job.work.parent} on {os.uname().nodename}",
                rule="every node sees the output folder under the same path",
                remedy="give an `--output_dir` on a file system that all nodes share",
            )
        with note_loading(self.job.work / ATTEMPTS_FOLDER, self.job.run):
            return load_agreed(self.job.work, self.job.model, self.job.inference, self.job.plan, load)

    def _label(self, chunk: str, table: pa.Table) -> ChunkCounts:
        attempts = read_attempts(self.job.work / ATTEMPTS_FOLDER, chunk, self.job.run)
        is_careful = attempts.is_careful
        with self.turns.take(alone=is_careful):  # what dies then, dies of the document that is noted
            attempts.begin()
            started, clock = time.time(), time.perf_counter()
            outcomes = self._find_outcomes(table, attempts if is_careful else None)
        seconds = time.perf_counter() - clock
        busy_seconds, cpu_seconds = self.meter.read(clock)
        counts = ChunkCounts(
            chunk=chunk,
            **_sum_outcomes(outcomes),
            run=self.job.run,
            actor=f"{os.uname().nodename}:{os.getpid()}",
            started=started,
            seconds=seconds,
            busy_seconds=busy_seconds,
            cpu_seconds=cpu_seconds,
            gpu_seconds=busy_seconds * self.job.plan.num_gpus,
            peak_memory_mib=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
            engine={name: value for name, value in self.engine.describe().items() if name in ENGINE_FACTS},
        )
        self.parts.commit(counts, _build_labelled(table, outcomes, self.job.keep), _build_quarantine(table, outcomes))
        attempts.finish()
        return counts

    def _find_outcomes(self, table: pa.Table, attempts: Attempts | None) -> list[Outcome]:
        """What becomes of each document of a chunk; with attempts given, carefully: document by document."""
        readable = table.filter(pc.is_null(table["reason"]))
        labelled = iter(self._predict(readable["text"].to_pylist(), readable["words"].to_pylist(), attempts))
        rejections = zip(table["reason"].to_pylist(), table["detail"].to_pylist(), strict=True)
        return [next(labelled) if reason is None else Failure(reason, detail) for reason, detail in rejections]

    def _predict(self, texts: list[Any], words: list[Any], attempts: Attempts | None) -> Sequence[Outcome]:
        if attempts is None:
            try:
                return label_documents(self.engine, texts, words)
            except Exception as error:  # some document's fault, most likely: which?
                _check_fault(error)
                if len(texts) == 1:
                    return [_explain(error)]
        return self._predict_one_by_one(texts, words, attempts)

    def _predict_one_by_one(self, texts: list[Any], words: list[Any], attempts: Attempts | None) -> list[Outcome]:
        outcomes: list[Outcome] = []
        failures: list[Exception] = []
        for index, (text, one) in enumerate(zip(texts, words, strict=True)):
            if attempts is not None and attempts.is_deadly(index):
                times = attempts.deaths[index]
                outcomes.append(Failure(KILLS_WORKER, f"the worker died {times} times while it labelled this document"))
                continue
            if attempts is not None:
                attempts.note(index)
            try:
                outcomes += label_documents(self.engine, [text], [one])
            except Exception as error:
                _check_fault(error)
                failures.append(error)
                outcomes.append(_explain(error))
        if failures and len(failures) == len(texts) > 1:
            raise failures[0]  # each and every one: that is the engine's fault, not theirs
        return outcomes


def _check_fault(error: Exception) -> None:
    """Raise what no document is at fault for. One may overflow in fp16 where all others do not."""
    if isinstance(error, UserError) and not isinstance(error, EmissionsError):
        raise error


def _explain(error: Exception) -> Failure:
    return Failure(CANNOT_LABEL, " ".join(f"{type(error).__name__}: {error}".split()))


def _sum_outcomes(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """What the predictions cover, the entities of each label, and the failures of each reason."""
    predictions = [one for one in outcomes if isinstance(one, Prediction)]
    coverage = [one.coverage for one in predictions]
    names = ("num_characters", "num_words", "num_tokens", "num_windows")
    entities = Counter(entity.label for one in predictions for entity in one.entities)
    reasons = Counter(one.reason for one in outcomes if isinstance(one, Failure))
    return {
        "num_documents": len(predictions),
        "quarantined": dict(sorted(reasons.items())),
        **{name: sum(getattr(one, name) for one in coverage) for name in names},
        "num_tokens_skipped": sum(round(one.num_tokens * (1 - one.fraction)) for one in coverage),
        "entities": dict(sorted(entities.items())),
    }


def _build_labelled(table: pa.Table, outcomes: Sequence[Outcome], keep: Sequence[str]) -> pa.Table:
    predictions = [one for one in outcomes if isinstance(one, Prediction)]
    rows = table.filter(pa.array([isinstance(one, Prediction) for one in outcomes], pa.bool_()))
    entities = pa.array([[to_row(entity) for entity in one.entities] for one in predictions], ENTITIES_TYPE)
    coverage = pa.array([to_row(one.coverage) for one in predictions], COVERAGE_TYPE)
    columns = {"doc_id": rows["doc_id"], "entities": entities, "coverage": coverage}
    return pa.table(columns | {name: _find_kept(rows, name) for name in keep})


def _find_kept(rows: pa.Table, name: str) -> Any:
    """A column of the input; the text or the place of each document, where the input has no column of that name."""
    if f"{KEPT_PREFIX}{name}" in rows.column_names:
        return rows[f"{KEPT_PREFIX}{name}"]
    return pa.array(_list_texts(rows), pa.string()) if name == "text" else rows[name]


def _list_texts(rows: pa.Table) -> list[str | None]:
    """The text of each row, or its words joined by single spaces."""
    pairs = zip(rows["text"].to_pylist(), rows["words"].to_pylist(), strict=True)
    return [text if text is not None or words is None else " ".join(words) for text, words in pairs]


def _build_quarantine(table: pa.Table, outcomes: Sequence[Outcome]) -> pa.Table:
    """The rows without a prediction, with `QUARANTINE_SCHEMA`."""
    rows = []
    for index, outcome in enumerate(outcomes):
        if isinstance(outcome, Failure):
            [row], [text] = table.slice(index, 1).to_pylist(), _list_texts(table.slice(index, 1))
            facts = {
                "stage": "label" if row["reason"] is None else "read",
                "reason": outcome.reason,
                "detail": outcome.detail,
                "text": text if text is not None and len(text) <= QUARANTINE_TEXT_LIMIT else None,
            }
            rows.append({name: row[name] for name in ("doc_id", "record_id", "source")} | facts)
    return pa.Table.from_pylist(rows, schema=QUARANTINE_SCHEMA)
