"""What a student learns of a teacher: windows of records with the teacher's view of their tags, and its states.

The teacher sees each record's words by its own tokenizer, the student by its own; they meet in the words.

Shapes: W words, K tags, H the teacher's hidden size.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as pds
import ray.data
import torch
from torch import nn

from pipelines.corpus.inference import ActorPlan, InferenceConfig, load_engine, open_engine
from pipelines.corpus.records import CorpusError
from pipelines.corpus.windows import split_record
from pipelines.ner.bundle import Bundle, load_bundle
from pipelines.ner.entities import Span
from pipelines.ner.labels import LabelScheme, parse_tag

BATCH_RECORDS = 512
_INTEGERS = pa.list_(pa.int32())
SCHEMA = pa.schema(
    [
        ("record_id", pa.string()),
        ("input_ids", _INTEGERS),
        ("word_starts", _INTEGERS),
        ("tag_ids", _INTEGERS),
        ("targets", pa.large_list(pa.float32())),
        ("starts_document", pa.bool_()),
        ("ends_document", pa.bool_()),
        ("states", pa.large_list(pa.float16())),
    ]
)
"""A word's targets and states follow those of the word before (large lists, for they are many); states are null where
none are to be followed."""


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
    has_states: bool = False
    """Whether the hidden states are told that the teacher's classifier reads: 2 H bytes a word."""


def write_targets(
    records: ray.data.Dataset, lesson: Lesson, inference: InferenceConfig, plan: ActorPlan, folder: Path
) -> None:
    """Write the windows of records (columns `record_id`, `text`, `words`, `spans`) for a student.

    Spans may be null where the teacher's share is 1.
    """
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


def read_targets(folder: Path, *, has_states: bool = False) -> pa.Table:
    """What `write_targets` has written to a folder or to those in it, a window a row; with the states if asked."""
    names = [name for name in SCHEMA.names if has_states or name != "states"]
    return pds.dataset(folder, format="parquet", schema=SCHEMA).to_table(columns=names)


class _Teacher:
    """One teacher's engine, and the student's encoder, in one actor."""

    def __init__(self, lesson: Lesson, inference: InferenceConfig, plan: ActorPlan) -> None:
        self.lesson = lesson
        self.classifier: nn.Linear | None = None
        if lesson.has_states:
            bundle, self.classifier = split_classifier(load_bundle(lesson.teacher))
            self.engine = open_engine(bundle, inference, plan)
        else:
            self.engine = load_engine(lesson.teacher, inference, plan)
        student = load_bundle(lesson.student)
        self.encoder, self.scheme = student.encoder, student.model.scheme
        self.order = match_tags(self.engine.scheme, self.scheme)

    def __call__(self, table: pa.Table) -> pa.Table:
        """The windows of records, a row each."""
        rows = table.select(["record_id", "text", "words", "spans"]).to_pylist()
        split = [split_record(row["text"], row["words"], row["spans"] or (), self.encoder.splitter) for row in rows]
        read = [self.engine.encoder.encode_pieces(pieces) for pieces, _ in split]
        emissions = self.engine.compute_emissions(read)
        states: Sequence[np.ndarray | None] = [None] * len(rows)
        if self.classifier is not None:
            width = self.classifier.in_features
            found = [states_WH.reshape(-1, width) for states_WH in emissions]  # of a document without words, too
            states = [states_WH.half().numpy() for states_WH in found]
            with torch.no_grad():
                emissions = [self.classifier(states_WH) for states_WH in found]
        marginals = self.engine.decoder.find_marginals(emissions)
        windows: list[dict[str, Any]] = []
        for row, (pieces, spans), found_WK, states_WH in zip(rows, split, marginals, states, strict=True):
            tag_ids = find_tag_ids(self.scheme, spans, len(pieces))
            targets_WK = mix_targets(found_WK[:, self.order], tag_ids, self.lesson)
            windows += self._cut(row, pieces, tag_ids, targets_WK, states_WH)
        return pa.Table.from_pylist(windows, SCHEMA)

    def _cut(
        self,
        row: Mapping[str, Any],
        pieces: list[str],
        tag_ids: list[int],
        targets_WK: np.ndarray,
        states_WH: np.ndarray | None,
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
                    "states": None if states_WH is None else states_WH[words].ravel(),
                }
            )
            at = words.stop
        return windows


def split_classifier(bundle: Bundle) -> tuple[Bundle, nn.Linear]:
    """A bundle whose emissions are the states that its classifier reads, and that classifier."""
    model = bundle.model
    classifier: nn.Linear = model.network.classifier
    width = classifier.in_features
    model.network.classifier = nn.Linear(width, width)
    with torch.no_grad():
        model.network.classifier.weight.copy_(torch.eye(width))
        model.network.classifier.bias.zero_()
    model.exits = None  # all layers are read
    return replace(bundle, info=replace(bundle.info, exits={}), int8=None), classifier


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


def find_tag_ids(scheme: LabelScheme, spans: Sequence[Span], num_words: int) -> list[int]:
    """As the scheme's `to_tag_ids`, for others' models that lack some tags: the nearest one of the label stands in.

    Without `B-PER` (IOB1), two persons side by side are one to such a model.
    """
    found = []
    for tag in scheme.to_tags(spans, num_words):
        label = parse_tag(tag, scheme.name)[1]
        others = [index for index, (_, own) in enumerate(scheme.parsed) if own == label]
        found.append(scheme.ids.get(tag, others[-1] if others else 0))
    return found


def mix_targets(teacher_WK: np.ndarray, tag_ids: list[int], lesson: Lesson) -> np.ndarray:
    """Probabilities `[W, K]` to learn: the teacher's, softened by the temperature, and the gold tags'."""
    softened_WK = teacher_WK ** (1 / lesson.temperature)
    targets_WK: np.ndarray = (lesson.share * softened_WK / softened_WK.sum(axis=1, keepdims=True)).astype(np.float32)
    targets_WK[np.arange(len(tag_ids)), tag_ids] += 1 - lesson.share
    return targets_WK
