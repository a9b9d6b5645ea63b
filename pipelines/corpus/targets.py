"""What a student learns of a teacher: windows of the training records with the teacher's probabilities of their tags.

The teacher sees each record's words by its own tokenizer, the student by its own; they meet in the words.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as pds
import ray.data

from pipelines.corpus.inference import ActorPlan, InferenceConfig, load_engine
from pipelines.corpus.records import CorpusError
from pipelines.corpus.windows import split_record
from pipelines.ner.bundle import load_bundle
from pipelines.ner.labels import LabelScheme

BATCH_RECORDS = 512
_INTEGERS = pa.list_(pa.int32())
SCHEMA = pa.schema(
    [
        ("record_id", pa.string()),
        ("input_ids", _INTEGERS),
        ("word_starts", _INTEGERS),
        ("tag_ids", _INTEGERS),
        ("targets", pa.list_(pa.float32())),
        ("starts_document", pa.bool_()),
        ("ends_document", pa.bool_()),
    ]
)


@dataclass(frozen=True)
class Lesson:
    """Who teaches whom, and how much."""

    teacher: str
    """A bundle."""
    student: str
    """A bundle: its tokenizer, windows and tags."""
    share: float
    """Of a word's probability that is the teacher's; the rest is the gold tag's."""
    temperature: float = 1.0
    """By which the logarithms of the teacher's probabilities are divided."""


def write_targets(
    records: ray.data.Dataset, lesson: Lesson, inference: InferenceConfig, plan: ActorPlan, folder: Path
) -> None:
    """Write the windows of labelled records (columns `record_id`, `text`, `words`, `spans`) for a student."""
    taught = records.map_batches(
        _Teacher,
        fn_constructor_args=(lesson, inference, plan),
        compute=ray.data.ActorPoolStrategy(size=plan.num_actors),
        num_cpus=plan.num_cpus,
        num_gpus=plan.num_gpus or None,
        batch_size=BATCH_RECORDS,
        batch_format="pyarrow",
    )
    taught.write_parquet(str(folder))


def read_targets(folder: Path) -> pa.Table:
    """What `write_targets` has written, a window a row."""
    return pds.dataset(folder, format="parquet", schema=SCHEMA).to_table()


class _Teacher:
    """One teacher's engine, and the student's encoder, in one actor."""

    def __init__(self, lesson: Lesson, inference: InferenceConfig, plan: ActorPlan) -> None:
        self.lesson = lesson
        self.engine = load_engine(lesson.teacher, inference, plan)
        student = load_bundle(lesson.student)
        self.encoder, self.scheme = student.encoder, student.model.scheme
        self.order = match_tags(self.engine.scheme, self.scheme)

    def __call__(self, table: pa.Table) -> pa.Table:
        """The windows of records, a row each."""
        rows = table.select(["record_id", "text", "words", "spans"]).to_pylist()
        split = [split_record(row["text"], row["words"], row["spans"], self.encoder.splitter) for row in rows]
        read = [self.engine.encoder.encode_pieces(pieces) for pieces, _ in split]
        marginals = self.engine.decoder.find_marginals(self.engine.compute_emissions(read))
        windows: list[dict[str, Any]] = []
        for row, (pieces, spans), found_WK in zip(rows, split, marginals, strict=True):
            tag_ids = self.scheme.to_tag_ids(spans, len(pieces))
            windows += self._cut(row, pieces, tag_ids, mix_targets(found_WK[:, self.order], tag_ids, self.lesson))
        return pa.Table.from_pylist(windows, SCHEMA)

    def _cut(
        self, row: Mapping[str, Any], pieces: list[str], tag_ids: list[int], targets_WK: np.ndarray
    ) -> list[dict[str, Any]]:
        windows, at = [], 0
        for window in self.encoder.encode_pieces(pieces).windows:
            words = slice(at, at + len(window.word_starts))
            windows.append(
                {
                    "record_id": row["record_id"],
                    "input_ids": window.input_ids,
                    "word_starts": window.word_starts,
                    "tag_ids": tag_ids[words],
                    "targets": targets_WK[words].ravel(),
                    "starts_document": window.starts_document,
                    "ends_document": window.ends_document,
                }
            )
            at = words.stop
        return windows


def match_tags(teacher: LabelScheme, student: LabelScheme) -> list[int]:
    """Where each of the student's tags is among the teacher's. Raises CorpusError if they do not have the same."""
    if sorted(teacher.tags) != sorted(student.tags) or teacher.name != student.name:
        raise CorpusError(
            "the student's tags are not the teacher's",
            rule=f"{teacher.name}: " + ", ".join(sorted(teacher.tags)),
            value=f"{student.name}: " + ", ".join(sorted(student.tags)),
            remedy="give a corpus that has the teacher's labels",
        )
    return [teacher.tags.index(tag) for tag in student.tags]


def mix_targets(teacher_WK: np.ndarray, tag_ids: list[int], lesson: Lesson) -> np.ndarray:
    """Probabilities `[W, K]` to learn: the teacher's, softened by the temperature, and the gold tags'."""
    softened_WK = teacher_WK ** (1 / lesson.temperature)
    targets_WK: np.ndarray = (lesson.share * softened_WK / softened_WK.sum(axis=1, keepdims=True)).astype(np.float32)
    targets_WK[np.arange(len(tag_ids)), tag_ids] += 1 - lesson.share
    return targets_WK
