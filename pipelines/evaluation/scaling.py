"""What more workers bring: speed-up, efficiency, cost, memory and exchange of each way of training, and which to take.

All from the rows of `metrics.jsonl` (kinds `start`, `step`, `epoch`) of short runs on the same windows.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

ALONE = "none"
"""Strategy of one worker."""
WARMUP_STEPS = 5
"""Steps that do not count: kernels are made, memory is taken."""
LOSS_TOLERANCE = 0.05
"""Nats a word; strategies whose losses differ by more train otherwise, and are not advised."""
NEAR = 0.95
"""Share of the fastest rate that counts as equally fast."""

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Case:
    """A way of training that is measured."""

    strategy: str
    num_workers: int
    growth: int = 1
    """Batch and corpus are so many times those of one worker."""

    def describe(self) -> str:
        """`ddp on 2 workers, batch × 2`."""
        workers = "one worker" if self.num_workers == 1 else f"{self.num_workers} workers"
        name = workers if self.strategy == ALONE else f"{self.strategy} on {workers}"
        return name if self.growth == 1 else f"{name}, batch × {self.growth}"


def measure_case(rows: Sequence[Row]) -> dict[str, Any]:
    """Figures of one run; None for what was not measured.

    Rates and times are medians over the steps that count, so that a step which something else held up changes nothing:
    over rounds, where workers exchange what they know once in several steps.
    """
    start = next(row for row in reversed(rows) if row["kind"] == "start")
    steps = [row for row in rows if row["kind"] == "step"]
    measured = next((row for row in reversed(steps) if "state_mib" in row), {})
    rounds = list_rounds([start, *(row for row in steps[WARMUP_STEPS:] if "state_mib" not in row)])
    timed = [row for one in rounds for row in one]
    names = dict.fromkeys(name for row in timed for name in row["parts_s"])
    ratios = [max(times) / statistics.median(times) for row in timed if all(times := row.get("worker_s", [0.0]))]
    epochs = [row for row in rows if row["kind"] == "epoch"]
    on_gpu = any(row["gpu_peak_memory_mib"] for row in epochs)
    peak = "gpu_peak_memory_mib" if on_gpu else "peak_memory_mib"
    return {
        "num_steps": len(steps),
        "tokens_per_s": statistics.median(_average(one, "num_tokens") / _average(one, "seconds") for one in rounds),
        "step_s": statistics.median(_average(one, "seconds") for one in rounds),
        "parts_s": {
            name: statistics.median(_average([row["parts_s"] for row in one], name) for one in rounds) for name in names
        },
        "slowest_to_median_worker": statistics.median(ratios) if ratios else None,
        "state_mib": measured.get("state_mib"),
        "sent_mib": measured.get("sent_mib", {}),
        "peak_memory_mib": max((row[peak] for row in epochs), default=None),
        **{name: start[name] for name in ("device", "precision", "threads")},
    }


def list_rounds(rows: Sequence[Row]) -> list[list[Row]]:
    """The steps among the rows, round by round: a whole round ends with an exchange between workers (`sync_every`)."""
    every = next((row.get("sync_every", 1) for row in reversed(rows) if row["kind"] == "start"), 1)
    rounds: dict[int, list[Row]] = {}
    for row in rows:
        if row["kind"] == "step":
            rounds.setdefault((row["step"] - 1) // every, []).append(row)
    return [one for one in rounds.values() if len(one) == every]


def _average(rows: Sequence[Row], name: str) -> float:
    return statistics.fmean(row.get(name, 0.0) for row in rows)


def compare_cases(runs: Mapping[Case, Sequence[Row]], price_per_hour: float | None = None) -> list[dict[str, Any]]:
    """Figures of every case against the one with the fewest workers, whose workers count as fully used.

    Args:
        runs: case → rows of its run; not empty, and at least one without growth.
        price_per_hour: of one worker, in whatever currency.
    """
    figures = {case: measure_case(rows) for case, rows in runs.items()}
    reference = min((case for case in runs if case.growth == 1), key=lambda case: case.num_workers)
    per_worker = figures[reference]["tokens_per_s"] / reference.num_workers
    results = []
    for case, found in figures.items():
        peer = next(other for other in (reference, *runs) if other.growth == case.growth)
        speed_up = found["tokens_per_s"] / per_worker
        cost = price_per_hour and price_per_hour * case.num_workers / 3600 / found["tokens_per_s"] * 1e6
        results.append(
            {
                "name": case.describe(),
                **vars(case),
                **found,
                "speed_up": speed_up,
                "efficiency": speed_up / case.num_workers,
                "time_factor": case.num_workers / speed_up,
                "cost_per_million_tokens": cost,
                "loss_difference": None if peer == case else _compare_losses(runs[case], runs[peer]),
            }
        )
    return results


def _compare_losses(rows: Sequence[Row], others: Sequence[Row]) -> float:
    """The largest difference of the same step's loss, in nats a word."""
    losses, expected = ({row["step"]: row["loss"] for row in run if row["kind"] == "step"} for run in (rows, others))
    largest: float = max(abs(losses[step] - expected[step]) for step in losses.keys() & expected.keys())
    return largest


def choose_case(results: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The fastest case; of those about as fast, the one with the fewest workers, then the least memory.

    Judged on the cases that train on the same batches with the same losses.
    """
    alike = _list_alike(results)
    best = max(map(_rate, alike))
    near = [result for result in alike if _rate(result) >= NEAR * best]
    return min(near, key=lambda result: (result["num_workers"], _sum_state(result), -_rate(result)))


def advise(results: Sequence[Mapping[str, Any]]) -> str:
    """Which strategy to take, and why, in one sentence."""
    alike = _list_alike(results)
    first = min(alike, key=lambda result: result["num_workers"])
    chosen = choose_case(results)
    lean = min((result for result in alike if result["state_mib"]), key=_sum_state, default=chosen)
    others = [result for result in alike if result is not chosen]
    if not others:
        return f"Take {chosen['name']}: no other case could be measured on the same batches with the same losses."
    told = f"Take {chosen['name']}: {_rate(chosen):,.0f} sub-tokens a second, "
    if chosen is first:
        rival = max(others, key=_rate)
        share = f"{_rate(rival) / _rate(chosen):.2f}"
        told += f"of which {rival['name']}, the fastest of the others, reads {share} times as many"
    else:
        told += f"{_rate(chosen) / _rate(first):.2f} times those of {first['name']}, with the same losses"
    if _sum_state(lean) < NEAR * _sum_state(chosen):
        told += (
            f"; where memory is short, {lean['name']}, whose workers hold {_sum_state(lean):,.1f} MiB of weights, "
            f"gradients and moments instead of {_sum_state(chosen):,.1f}, at {_rate(lean) / _rate(chosen):.2f} times "
            "the speed"
        )
    return f"{told}."


def list_notes(results: Sequence[Mapping[str, Any]], num_cores: int, *, is_dense: bool) -> list[str]:
    """What a reader of the figures should know, with what follows for a corpus that grows with the workers.

    Args:
        is_dense: whether the embeddings had dense gradients.
    """
    dense = ", and with dense gradients of the embeddings, which all strategies can do" if is_dense else ""
    notes = [
        "Every case trains on the same windows from the same weights, without dropout, whose masks would differ from "
        f"worker to worker{dense}: so losses have to agree, up to rounding. Medians over steps, of local_sgd over "
        f"rounds from one exchange to the next; the first {WARMUP_STEPS} steps do not count."
    ]
    for result in results:
        if result["growth"] > 1:
            notes.append(
                f"{result['name']}: a corpus {result['growth']} times as large takes {result['time_factor']:.2f} "
                "times as long as the plain one takes one worker."
            )
        if (result["loss_difference"] or 0.0) > LOSS_TOLERANCE:
            difference = f"{result['loss_difference']:.3f}"
            notes.append(f"{result['name']} trains otherwise: its losses differ by up to {difference} nats a word.")
        num_threads = result["threads"] * result["num_workers"]
        if result["device"].startswith("CPU") and num_threads > num_cores:
            notes.append(
                f"{result['name']}: {num_threads} threads on {num_cores} cores. This measures how workers share cores, "
                "not how they scale."
            )
    return notes


def _list_alike(results: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    same = [result for result in results if result["growth"] == 1]
    return [result for result in same if (result["loss_difference"] or 0.0) <= LOSS_TOLERANCE]


def _rate(result: Mapping[str, Any]) -> float:
    rate: float = result["tokens_per_s"]
    return rate


def _sum_state(result: Mapping[str, Any]) -> float:
    total: float = sum((result["state_mib"] or {}).values())
    return total
