"""A model over many records: actors that hold one engine each."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from typing import Any

import pyarrow as pa
import ray
import ray.data

from pipelines.corpus.records import SPAN_TYPE, CorpusError
from pipelines.ner.engine import PRECISIONS, NerEngine
from pipelines.ner.entities import Coverage, Entity, Prediction, Span
from pipelines.ner.errors import UserError

_OFFSETS = [("start", pa.int32()), ("end", pa.int32())]
ENTITIES_TYPE = pa.list_(pa.struct([("text", pa.string()), ("label", pa.string()), *_OFFSETS, ("score", pa.float64())]))
_COUNTS = [(name, pa.int32()) for name in ("num_characters", "num_words", "num_tokens", "num_windows")]
COVERAGE_TYPE = pa.struct([*_COUNTS, ("fraction", pa.float64())])
PREDICTED_TYPE = pa.list_(pa.struct([*SPAN_TYPE, ("score", pa.float64())]))
BATCH_RECORDS = 512


@dataclass(frozen=True)
class InferenceConfig:
    """What labelling takes of the cluster, and how it computes."""

    num_actors: int | None = None
    """Actors, each with a copy of the model; default: as many as the cluster has room for."""
    cpus_per_actor: int | None = None
    """CPUs, and threads, of an actor; default: 4, or the machine's cores if fewer."""
    gpus_per_actor: float | None = None
    """GPUs of an actor, fractions too; default: 1 if the cluster has GPUs, else 0."""
    precision: str = "fp32"
    """fp32, bf16 or fp16. fp32 gives the same entities on every machine."""
    max_batch_tokens: int = 8192
    """Padded sub-tokens in one forward pass."""

    def find_problems(self) -> list[UserError]:
        """Every mistake in these settings."""
        problems: list[UserError] = []
        if self.precision not in PRECISIONS:
            rule = "one of " + ", ".join(PRECISIONS)
            problems.append(CorpusError("no such precision", where="`precision`", rule=rule, value=self.precision))
        for name in ("num_actors", "cpus_per_actor", "max_batch_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                problems.append(CorpusError("a number out of range", where=f"`{name}`", rule="at least 1", value=value))
        return problems


@dataclass(frozen=True)
class ActorPlan:
    """A fixed pool of actors."""

    num_actors: int
    num_cpus: int
    num_gpus: float


def plan_actors(config: InferenceConfig, node_cpus: Sequence[int], num_gpus: float) -> ActorPlan:
    """The pool for a cluster whose nodes have these CPUs."""
    largest = max(node_cpus, default=1)
    cpus = config.cpus_per_actor or max(1, min(4, largest - 1))
    gpus = config.gpus_per_actor if config.gpus_per_actor is not None else float(num_gpus > 0)
    room = sum((one - 1) // cpus for one in node_cpus)
    if gpus:
        room = min(room, int(num_gpus / gpus))
    return ActorPlan(config.num_actors or max(1, room), cpus, gpus)


def predict_records(
    records: ray.data.Dataset, model: str, config: InferenceConfig, plan: ActorPlan, keep: Sequence[str] | None = None
) -> ray.data.Dataset:
    """Records (columns `text` and `words`, one of them null) with what a model predicts for them.

    With `keep` None, a column `predicted` of spans over the record's words or characters is added; otherwise the result
    has `doc_id`, `entities`, `coverage`, and the columns named by `keep`.
    """
    return records.map_batches(
        _Labeller,
        fn_constructor_kwargs={"model": model, "config": asdict(config), "keep": keep},
        compute=ray.data.ActorPoolStrategy(size=plan.num_actors),
        num_cpus=plan.num_cpus,
        num_gpus=plan.num_gpus or None,
        batch_size=BATCH_RECORDS,
        batch_format="pyarrow",
    )


class _Labeller:
    """One engine in one actor."""

    def __init__(self, model: str, config: dict[str, Any], keep: Sequence[str] | None) -> None:
        import torch

        settings = InferenceConfig(**config)
        self.engine = NerEngine.load(model, precision=settings.precision, max_batch_tokens=settings.max_batch_tokens)
        self.keep = keep
        torch.set_num_interop_threads(1)

    def __call__(self, table: pa.Table) -> pa.Table:
        texts, words = table["text"].to_pylist(), table["words"].to_pylist()
        if self.keep is None:
            documents = [text if text is not None else one for text, one in zip(texts, words, strict=True)]
            spans = self.engine.predict_documents(documents)
            rows = [[_to_row(span) for span in found] for found in spans]
            return table.append_column("predicted", pa.array(rows, PREDICTED_TYPE))
        predictions = label_documents(self.engine, texts, words)
        entities = pa.array([[_to_row(entity) for entity in one.entities] for one in predictions], ENTITIES_TYPE)
        coverage = pa.array([_to_row(one.coverage) for one in predictions], COVERAGE_TYPE)
        columns = {"doc_id": table["doc_id"], "entities": entities, "coverage": coverage}
        return pa.table(columns | {name: table[name] for name in self.keep if name in table.column_names})


def label_documents(
    engine: NerEngine, texts: Sequence[str | None], words: Sequence[Sequence[str] | None]
) -> list[Prediction]:
    """Predictions for documents of which each is a text, or words (whose text is the words joined by single spaces)."""
    from_text = iter(engine.predict([text for text in texts if text is not None]))
    from_words = iter(
        engine.predict_words([one for one, text in zip(words, texts, strict=True) if text is None and one is not None])
    )
    return [
        next(from_text) if text is not None else _build_prediction(engine, one or (), next(from_words))
        for text, one in zip(texts, words, strict=True)
    ]


def _build_prediction(engine: NerEngine, words: Sequence[str], spans: Sequence[Span]) -> Prediction:
    starts = [0, *accumulate(len(word) + 1 for word in words)]
    text = " ".join(words)
    entities = []
    for span in spans:
        start, end = starts[span.start], starts[span.end] - 1
        entities.append(Entity(text[start:end], span.label, start, end, span.score))
    encoded = engine.encoder.encode_words(words)
    fraction = encoded.num_tokens_read / encoded.num_tokens if encoded.num_tokens else 1.0
    coverage = Coverage(len(text), len(words), encoded.num_tokens, len(encoded.windows), fraction)
    return Prediction(entities, coverage)


def _to_row(value: Span | Entity | Coverage) -> dict[str, Any]:
    return {name: getattr(value, name) for name in value.__slots__}
