"""What was predicted of a run next to what was measured, and what later predictions learn from it."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from statistics import fmean, median
from typing import Any

from pipelines.evaluation.scaling import list_rounds
from pipelines.planning.errors import PlanError
from pipelines.planning.plans import Plan, render_seconds
from pipelines.planning.speeds import is_here, record_run

MIB = 2**20


def compare_training(
    plan: Plan, usage: Mapping[str, Any], history: Sequence[Mapping[str, Any]]
) -> dict[str, dict[str, float]]:
    """Predicted against measured: seconds of the median step (or round of steps) and of all, memory of a worker in MiB.

    On a GPU that is what PyTorch's allocator holds, which is without CUDA's context.
    """
    steps = [fmean(row["seconds"] for row in one) for one in list_rounds(history)]
    on_gpu = plan.settings["use_gpu"]
    memory = plan.memory and plan.memory.total - (plan.memory.context if on_gpu else 0.0)
    pairs = {
        "step_s": (plan.predicted.get("step_s"), median(steps) if steps else None),
        "memory_mib": (
            memory and memory / MIB,
            usage["gpu_peak_memory_mib" if on_gpu else "worker_peak_memory_mib"],
        ),
        "steps_s": (plan.predicted.get("total_s"), usage["step_s"]),
    }
    return {
        name: {
            "predicted": float(f"{predicted:.5g}"),
            "measured": float(f"{measured:.5g}"),
            "ratio": round(measured / predicted, 3),
        }
        for name, (predicted, measured) in pairs.items()
        if predicted and measured
    }


def learn_from_run(plan: Plan, compared: Mapping[str, Mapping[str, float]]) -> None:
    """Let what a run on this machine alone has shown correct later predictions."""
    if plan.inventory is None or not all(map(is_here, plan.inventory.nodes)):
        return
    pairs: dict[str, tuple[float, float]] = {}
    for key, kind, unit in (("memory_mib", "memory", MIB), ("step_s", "step", 1)):
        if key in compared:
            correction = plan.predicted.get(f"{kind}_correction") or 1.0
            pairs[kind] = (compared[key]["predicted"] * unit / correction, compared[key]["measured"] * unit)
    device = "cuda" if plan.settings["use_gpu"] else "cpu"
    with suppress(PlanError):  # a cache that cannot be written
        record_run(device, plan.settings["precision"], pairs.get("memory"), pairs.get("step"))


def describe_comparison(compared: Mapping[str, Mapping[str, float]]) -> dict[str, str]:
    """The comparison as facts of a report."""
    names = {"step_s": "a step", "memory_mib": "memory of a worker", "steps_s": "all steps"}
    return {
        names[key]: f"predicted {_render(key, one['predicted'])}, measured {_render(key, one['measured'])}"
        for key, one in compared.items()
    }


def _render(key: str, value: float) -> str:
    return f"{value:,.0f} MiB" if key == "memory_mib" else render_seconds(value)
