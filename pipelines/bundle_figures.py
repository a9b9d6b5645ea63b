"""What bundles take where they compute: speed, memory, size and cost, each measured in a process of its own."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray

from pipelines.compression.speed import compare_speeds, count_tokens, repeat_documents
from pipelines.corpus.inference import ActorPlan, InferenceConfig, load_engine
from pipelines.ner.bundle import load_bundle
from pipelines.ner.machine import read_peak_memory_mib
from pipelines.ner.runtimes.runtime import ONEDNN_KERNELS, set_up_process

SPEED_TOKENS = 20_000
SPEED_ROUNDS = 3


def measure_bundles(
    bundles: Sequence[Path],
    inference: InferenceConfig,
    plan: ActorPlan,
    documents: Sequence[Any],
    price_per_hour: float | None,
) -> list[dict[str, Any]]:
    """Speed in turns, by which runtime and precision, memory, size and cost of bundles."""
    names = [str(bundle) for bundle in bundles]
    # speeds first: each model's runtime is chosen there, by trying some, which takes memory of its own
    speeds, runtimes, tokens = run_in_actor(plan, _measure_speeds, names, inference, plan, documents)
    memory = [run_in_actor(plan, _measure_memory, name, inference, plan, documents) for name in names]
    return [
        {
            "tokens_per_s": speed,
            "runtime": runtime,
            "precision": precision,
            "peak_memory_mib": peak,
            "num_parameters": sum(one.numel() for one in load_bundle(bundle).model.parameters()),
            "size_mib": sum(file.stat().st_size for file in bundle.rglob("*") if file.is_file()) / 2**20,
            "cost_per_million_documents": price_per_hour and price_per_hour / 3600 * 1e6 * tokens / speed,
        }
        for bundle, speed, (runtime, precision), peak in zip(bundles, speeds, runtimes, memory, strict=True)
    ]


def run_in_actor(plan: ActorPlan, function: Any, *arguments: Any) -> Any:
    """What a function returns in a process of its own."""
    kind = ray.remote(num_cpus=plan.num_cpus, num_gpus=plan.num_gpus)(_Process)
    actor = kind.remote()
    try:
        return ray.get(actor.call.remote(function, *arguments))
    finally:
        ray.kill(actor)


class _Process:
    """An actor that calls a function."""

    def call(self, function: Any, *arguments: Any) -> Any:
        """What it returns."""
        return function(*arguments)


def _measure_memory(model: str, inference: InferenceConfig, plan: ActorPlan, documents: Sequence[Any]) -> int:
    """Peak memory in MiB of a process that labels."""
    set_up_process()
    engine = load_engine(model, inference, plan)
    engine.predict_documents(documents)
    return read_peak_memory_mib()


def _measure_speeds(
    models: Sequence[str], inference: InferenceConfig, plan: ActorPlan, documents: Sequence[Any]
) -> tuple[list[float], list[tuple[str, str]], float]:
    """Sub-tokens a second of each model, the runtime and precision that it takes, and sub-tokens of a mean document."""
    set_up_process(ONEDNN_KERNELS * len(models))
    engines = [load_engine(model, inference, plan) for model in models]
    many = repeat_documents(documents, engines[0], SPEED_TOKENS)
    speeds = compare_speeds(engines, many, num_rounds=SPEED_ROUNDS)
    num_tokens = count_tokens(engines[0], documents)
    runtimes = [(engine.runtime.name, engine.runtime.precision) for engine in engines]
    return speeds, runtimes, num_tokens / max(1, len(documents))
