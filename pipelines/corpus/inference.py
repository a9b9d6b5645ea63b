"""A model over many records: actors that hold one engine each."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import ray
import ray.data

from pipelines.corpus.records import SPAN_TYPE, CorpusError
from pipelines.ner.bundle import Bundle, knows_scheme
from pipelines.ner.engine import DEVICE, DEVICE_RULE, NerEngine
from pipelines.ner.entities import Coverage, Entity, Prediction, Span
from pipelines.ner.errors import UserError
from pipelines.ner.labels import SCHEMES
from pipelines.ner.runtimes.calibration import RUNTIMES
from pipelines.ner.runtimes.runtime import PRECISIONS

_OFFSETS = [("start", pa.int32()), ("end", pa.int32())]
ENTITIES_TYPE = pa.list_(pa.struct([("text", pa.string()), ("label", pa.string()), *_OFFSETS, ("score", pa.float64())]))
_COUNTS = [(name, pa.int32()) for name in ("num_characters", "num_words", "num_tokens", "num_windows")]
COVERAGE_TYPE = pa.struct([*_COUNTS, ("fraction", pa.float64())])
PREDICTED_TYPE = pa.list_(pa.struct([*SPAN_TYPE, ("score", pa.float64())]))
BATCH_RECORDS = 512
FEW_BYTES = 50_000
"""Of text: some seconds of work. An actor starts in as many, and in ten on slow cores."""


@dataclass(frozen=True)
class InferenceConfig:
    """How a model computes."""

    runtime: str = "auto"
    """torch, packed, torch-compiled, openvino, or auto: the fastest, measured once on the machine."""
    precision: str = "auto"
    """fp32, bf16, fp16, int8 (of a bundle that has it), or auto: as the hardware is good at it. fp32 gives the same
    entities on every machine."""
    device: str = "auto"
    """cpu, cuda, cuda:1 …, or auto: a GPU where the actor has one."""
    max_batch_tokens: int | None = None
    """Padded sub-tokens in one forward pass; default: as the engine finds best."""
    scheme: str | None = None
    """Tag scheme of a checkpoint that others have made, where its tags do not tell: `IOB1` for one in which entities
    begin with `I-`. A bundle knows its own."""

    def find_problems(self) -> list[UserError]:
        """Every mistake in these settings."""
        problems: list[UserError] = []
        for name, choices in (("runtime", RUNTIMES), ("precision", ("auto", *PRECISIONS))):
            value = getattr(self, name)
            if value not in choices:
                where, rule = f"`inference.{name}`", "one of " + ", ".join(choices)
                problems.append(CorpusError(f"no such {name}", where=where, rule=rule, value=value))
        if not DEVICE.fullmatch(self.device):
            where, value = "`inference.device`", self.device
            problems.append(CorpusError("no such device", where=where, rule=DEVICE_RULE, value=value))
        if self.scheme is not None and self.scheme not in SCHEMES:
            where, rule = "`inference.scheme`", "one of " + ", ".join(SCHEMES)
            problems.append(CorpusError("no such tag scheme", where=where, rule=rule, value=self.scheme))
        if self.max_batch_tokens is not None and self.max_batch_tokens < 1:
            where, value = "`inference.max_batch_tokens`", self.max_batch_tokens
            problems.append(CorpusError("a number out of range", where=where, rule="at least 1", value=value))
        return problems

    def find_idle(self, *models: str) -> list[str]:
        """Settings given that change nothing for these models, or without any for the bundle that a run makes."""
        if self.scheme is None or not all(map(knows_scheme, models)):
            return []
        return ["`inference.scheme` has no effect: a bundle knows its own"]


@dataclass(frozen=True)
class ActorResources:
    """What labelling takes of the cluster."""

    num_actors: int | None = None
    """Actors, each with a copy of the model; default: as many as there is room and some seconds of work
    for, also while the cluster grows."""
    cpus_per_actor: int | None = None
    """CPUs, and threads, of an actor; default: 4, or the machine's cores if fewer."""
    gpus_per_actor: float | None = None
    """GPUs of an actor, fractions too; default: as planned, else 1 if the cluster has GPUs, and 0 if not."""
    auto: bool = True
    """Plan what is left out above by what the model needs and the nodes have. false: the defaults, unplanned."""

    def find_problems(self) -> list[UserError]:
        """Every mistake in these settings."""
        checks = [
            ("num_actors", "at least 1", lambda value: value >= 1),
            ("cpus_per_actor", "at least 1", lambda value: value >= 1),
            (
                "gpus_per_actor",
                "a fraction up to 1, or a whole number",
                lambda value: 0 <= value <= 1 or value % 1 == 0,
            ),
        ]
        given = [(name, rule, fits, getattr(self, name)) for name, rule, fits in checks]
        return [
            CorpusError("a number out of range", where=f"`resources.{name}`", rule=rule, value=value)
            for name, rule, fits, value in given
            if value is not None and not fits(value)
        ]


@dataclass(frozen=True)
class ActorPlan:
    """A pool of actors."""

    num_actors: int
    """At the start."""
    num_cpus: int
    num_gpus: float
    is_elastic: bool = False
    """Whether the pool may shrink and grow with its cluster."""
    max_actors: int | None = None
    """The most that an elastic pool grows to; None: whatever there is room for."""


def plan_actors(
    resources: ActorResources, node_cpus: Sequence[int], num_gpus: float, *, is_elastic: bool = False
) -> ActorPlan:
    """The pool for a cluster whose nodes have these CPUs: one of each node is left to those who read and write.

    Raises CorpusError for an actor that has no room in a cluster that does not grow.
    """
    largest = max(node_cpus, default=1)
    cpus = resources.cpus_per_actor or max(1, min(4, largest - 1))
    gpus = resources.gpus_per_actor if resources.gpus_per_actor is not None else float(num_gpus > 0)
    if not is_elastic and (cpus > largest or gpus > num_gpus):
        raise CorpusError(
            "no room for an actor",
            rule=f"the cluster has {num_gpus:g} GPUs, and its largest node {largest} CPUs",
            value=f"an actor with {cpus} CPUs and {gpus:g} GPUs",
            remedy="lower `--resources.cpus_per_actor` or `--resources.gpus_per_actor`",
        )
    room = sum((one - 1) // cpus for one in node_cpus)
    if gpus:
        room = min(room, int(num_gpus / gpus))
    return ActorPlan(resources.num_actors or max(1, room), cpus, gpus, is_elastic, resources.num_actors)


def find_device(config: InferenceConfig, plan: ActorPlan) -> str:
    """Where an actor computes: its machine may have a GPU that it was not given."""
    return "cpu" if config.device == "auto" and not plan.num_gpus else config.device


def load_engine(model: str, config: InferenceConfig, plan: ActorPlan) -> NerEngine:
    """An engine for an actor of this plan."""
    return NerEngine.load(model, scheme=config.scheme, **_list_choices(config, plan))


def open_engine(bundle: Bundle, config: InferenceConfig, plan: ActorPlan) -> NerEngine:
    """An engine on a loaded bundle, for an actor of this plan."""
    return NerEngine(bundle, **_list_choices(config, plan))


def _list_choices(config: InferenceConfig, plan: ActorPlan) -> dict[str, Any]:
    return {
        "device": find_device(config, plan),
        "runtime": config.runtime,
        "precision": config.precision,
        "max_batch_tokens": config.max_batch_tokens,
        "num_threads": plan.num_cpus,
        "gpu_memory_fraction": plan.num_gpus if 0 < plan.num_gpus < 1 else None,
    }


def predict_table(records: pa.Table, model: str, config: InferenceConfig, plan: ActorPlan) -> pa.Table:
    """As `predict_records`. A few records on CPUs are computed in this process, sooner than an actor would start."""
    size = pc.sum(pc.binary_length(records["text"])).as_py() or 0
    size += sum(len(word) for words in records["words"].to_pylist() for word in words or ())
    if size > FEW_BYTES or plan.num_gpus:
        predicted = predict_records(ray.data.from_arrow(records), model, config, plan)
        return pa.concat_tables(predicted.iter_batches(batch_size=None, batch_format="pyarrow"))
    return _predict(load_engine(model, config, plan), records)


def predict_records(
    records: ray.data.Dataset, model: str, config: InferenceConfig, plan: ActorPlan
) -> ray.data.Dataset:
    """Records (columns `text` and `words`, one of them null) with a column `predicted`.

    It holds the spans that the model predicts, over the record's words or characters.
    """
    return records.map_batches(
        _Predictor,
        fn_constructor_args=(model, config, plan),
        compute=ray.data.ActorPoolStrategy(size=plan.num_actors),
        num_cpus=plan.num_cpus,
        num_gpus=plan.num_gpus or None,
        batch_size=BATCH_RECORDS,
        batch_format="pyarrow",
    )


class _Predictor:
    """One engine in one actor."""

    def __init__(self, model: str, config: InferenceConfig, plan: ActorPlan) -> None:
        import torch

        self.engine = load_engine(model, config, plan)
        torch.set_num_interop_threads(1)

    def __call__(self, table: pa.Table) -> pa.Table:
        """The records with a column of their spans, in words or characters as the record has them."""
        return _predict(self.engine, table)


def _predict(engine: NerEngine, table: pa.Table) -> pa.Table:
    texts, words = table["text"].to_pylist(), table["words"].to_pylist()
    documents = [text if text is not None else one for text, one in zip(texts, words, strict=True)]
    rows = [[to_row(span) for span in found] for found in engine.predict_documents(documents)]
    return table.append_column("predicted", pa.array(rows, PREDICTED_TYPE))


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


def to_row(value: Span | Entity | Coverage) -> dict[str, Any]:
    """A value as Arrow takes it."""
    return {name: getattr(value, name) for name in value.__slots__}
