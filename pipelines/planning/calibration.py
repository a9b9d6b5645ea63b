"""Rates measured on this machine in seconds, kept in the user's cache; and what past runs correct in predictions.

Products at each precision and memory's bandwidth are measured by themselves. What they do not tell, activations and
norms, dropout, small products, starting operators, is found from real training steps of small random encoders, as the
seconds of each that together explain the steps best (least squares of relative errors, none negative).

What a calibration found and what runs have shown is kept by machine, precision and version of torch.
"""

import json
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path
from statistics import mean, median
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig

from pipelines.ner.runtimes.calibration import find_cache
from pipelines.planning.architecture import convert_config
from pipelines.planning.cost import TrainingSetup
from pipelines.planning.errors import PlanError
from pipelines.planning.lengths import Lengths
from pipelines.planning.measurements import (
    choose_precision,
    count_memory,
    list_precisions,
    measure_bandwidth,
    measure_products,
)
from pipelines.planning.rates import Rates
from pipelines.planning.timing import count_parameters_moved, count_step_work

Rows = list[dict[str, Any]]
TrainProbe = Callable[..., Rows]
"""Trains a random encoder for some steps: `train_probe` of `pipelines.training.probes`."""

WARMUP_STEPS = 4
PROBE_STEPS = 20
SLOWEST = 0.1
"""Share of a probe's steps that do not count: something else took time from them."""
NETWORK_BYTES_PER_S = 1.25e9
"""Assumed between machines: 10 Gbit/s."""
FEATURES = ("linear", "attention", "hidden", "inner", "pair", "operators")
MOST_OUTCOMES = 50
BOUNDS = (0.5, 2.0)
"""Of a correction: what is further off is another mistake."""
PRIOR_OUTCOMES = 1
"""Runs that were predicted well, assumed before there are any: one odd run moves little."""


@dataclass(frozen=True)
class Probe:
    """A small training run: a shape and the lengths of a step's windows."""

    num_layers: int
    hidden_size: int
    head_size: int
    inner_factor: int
    lengths: tuple[int, ...]

    @property
    def shape(self) -> dict[str, Any]:
        """Settings of a BERT's configuration."""
        return {
            "num_hidden_layers": self.num_layers,
            "hidden_size": self.hidden_size,
            "num_attention_heads": self.hidden_size // self.head_size,
            "intermediate_size": self.hidden_size * self.inner_factor,
            "vocab_size": 2000,
        }


CPU_PROBES = (
    Probe(2, 128, 32, 4, (32,) * 32),
    Probe(4, 128, 32, 4, (24, 20, 16, 12) * 4),
    Probe(2, 256, 64, 4, (64,) * 16),
    Probe(2, 256, 32, 2, (256,) * 4),
    Probe(2, 384, 32, 4, (*(30,) * 10, *(29,) * 10, *(28,) * 12)),
    Probe(2, 384, 32, 4, (256,) * 8),
    Probe(1, 384, 32, 4, (128, 127, 126, 125, 124, 123, 122, 121)),
    Probe(2, 512, 64, 4, (40,) * 12),
    Probe(1, 768, 64, 4, (64,) * 16),
    Probe(2, 768, 64, 4, (250, 240, 230, 220)),
    Probe(1, 768, 64, 2, (512, 500)),
)
WORDS_PER_TOKEN = 0.75


def calibrate(
    train_probe: TrainProbe | None = None,
    *,
    precision: str = "auto",
    device: str = "cpu",
    probes: Sequence[Probe] = CPU_PROBES,
    folder: Path | None = None,
) -> Rates:
    """Measure this machine, and keep what was found; about half a minute.

    Args:
        train_probe: makes real steps; without it only products and bandwidth are measured.
        precision: of the steps; the rates are kept for the one that they had.

    Raises:
        PlanError: a precision that the machine has no fast products in.
    """
    target = torch.device(device)
    measured = list_precisions(target)
    resolved = choose_precision(target) if precision == "auto" else precision
    if resolved not in measured:
        raise PlanError(
            "a precision in which this machine computes no faster",
            where="`training.precision`",
            rule="auto, or one of " + ", ".join(measured),
            value=precision,
            remedy="calibrate the one that training takes by itself: `auto`",
        )
    flops = {name: measure_products(name, target) for name in measured}
    rates = Rates(
        name=describe_machine(target),
        device=target.type,
        flops=flops,
        memory_bytes_per_s=measure_bandwidth(target),
        memory_bytes=count_memory(target),
        network_bytes_per_s=NETWORK_BYTES_PER_S,
        source="calibration",
    )
    if train_probe is not None:
        runs = []
        for probe in probes:
            runs.append(
                train_probe(
                    "bert",
                    probe.shape,
                    probe.lengths,
                    WARMUP_STEPS + PROBE_STEPS,
                    words_per_token=WORDS_PER_TOKEN,
                    precision=precision,
                    device=device,
                )
            )
        rates = explain_steps(rates, probes, runs, resolved)
    save_rates(rates, resolved, folder)
    return rates


def explain_steps(rates: Rates, probes: Sequence[Probe], runs: Sequence[Rows], precision: str) -> Rates:
    """Rates with the seconds of elements, operators and parameters that explain the steps of some probes."""
    work, seconds, moving, moved = [], [], [], []
    for probe, rows in zip(probes, runs, strict=True):
        counted = sorted(rows[WARMUP_STEPS:], key=lambda row: float(row["seconds"]))
        counted = counted[: len(counted) - max(1, int(SLOWEST * len(counted)))]
        optimizer = mean(row["parts_s"].get("optimizer", 0.0) for row in counted)
        architecture = convert_config(AutoConfig.for_model("bert", **probe.shape))
        setup = TrainingSetup(
            batch_tokens=sum(probe.lengths), precision=precision, device=rates.device, num_tags=9, num_epochs=1
        )
        counts = dict(zip(*np.unique(probe.lengths, return_counts=True), strict=True))
        lengths = Lengths.from_counts({int(k): int(v) for k, v in counts.items()}, WORDS_PER_TOKEN)
        done, _ = count_step_work(architecture, setup, lengths)
        work.append([getattr(done, name) for name in FEATURES])
        seconds.append(mean(row["seconds"] for row in counted) - optimizer)
        moving.append(optimizer)
        moved.append(count_parameters_moved(architecture, setup))
    found = dict(zip(FEATURES, solve(np.array(work), np.array(seconds)), strict=True))
    peak = rates.flops[precision]
    linear, attention = found["linear"] * peak, found["attention"] * peak
    return replace(
        rates,
        efficiency=1 / linear if linear else 1.0,
        attention_efficiency=linear / attention if attention and linear else 1.0,
        element_s={name: found[name] for name in ("hidden", "inner", "pair")},
        operator_s=found["operators"],
        parameter_s=float(np.dot(moving, moved) / np.dot(moved, moved)) if any(moving) else None,
    )


def solve(work: np.ndarray, seconds: np.ndarray) -> list[float]:
    """Non-negative seconds of each unit of work that explain the seconds of each row, by relative errors."""
    relative = work / seconds[:, None]
    scale = np.maximum(relative.max(axis=0), 1e-300)
    kept = list(range(work.shape[1]))
    while kept:
        solution, *_ = np.linalg.lstsq(relative[:, kept] / scale[kept], np.ones(len(work)), rcond=1e-6)
        if (solution >= 0).all():
            break
        kept.pop(int(solution.argmin()))
    found = np.zeros(work.shape[1])
    found[kept] = solution / scale[kept]
    return [float(value) for value in found]


def describe_machine(device: torch.device) -> str:
    """What rates are kept by: the processor, and for a CPU the threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    model = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        model = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    return f"{model}, {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads"


def save_rates(rates: Rates, precision: str, folder: Path | None = None) -> Path:
    """Keep rates for this machine, precision and torch. Raises PlanError where the cache cannot be written."""
    content = {"measured_at": round(time.time()), "torch": torch.__version__, "precision": precision}
    path = _find_file("rates", rates.name, precision, folder)
    _write(path, content | {"rates": asdict(rates)})
    return path


def load_rates(precision: str, folder: Path | None = None, device: str = "cpu") -> Rates | None:
    """What a calibration of this machine has kept; None if there is none, or of another torch."""
    content = _read(_find_file("rates", describe_machine(torch.device(device)), precision, folder))
    try:
        return Rates(**content["rates"]) if content else None
    except (KeyError, TypeError):
        return None  # of another version of rayner


def record_outcome(
    kind: str, machine: str, precision: str, predicted: float, measured: float, folder: Path | None = None
) -> None:
    """Keep what a run showed, so that it corrects later predictions; where the cache cannot be written, it is lost.

    Args:
        kind: `memory` or `step`.
        predicted: before any correction.
    """
    if predicted > 0 and measured > 0:
        path = _find_file(kind, machine, precision, folder)
        outcomes = [*_read(path).get("outcomes", []), [predicted, measured]]
        with suppress(PlanError):
            _write(path, {"outcomes": outcomes[-MOST_OUTCOMES:]})


def load_correction(kind: str, machine: str, precision: str, folder: Path | None = None) -> float:
    """By what predictions on this machine are to be multiplied: the median of measured by predicted, within bounds."""
    outcomes = _read(_find_file(kind, machine, precision, folder)).get("outcomes", [])
    ratios: list[float] = [measured / predicted for predicted, measured in outcomes] + [1.0] * PRIOR_OUTCOMES
    return min(max(median(ratios), BOUNDS[0]), BOUNDS[1])


def _find_file(kind: str, machine: str, precision: str, folder: Path | None) -> Path:
    key = sha256(f"{machine}|{precision}|{torch.__version__}".encode()).hexdigest()[:16]
    return (folder or find_cache() / "rates") / f"{kind}-{precision}-{key}.json"


def _read(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return content
    except (OSError, ValueError):
        return {}  # none, or torn


def _write(path: Path, content: Mapping[str, Any]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        staging = path.with_suffix(f".{os.getpid()}.partial")
        staging.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        staging.replace(path)
    except OSError as error:
        raise PlanError(
            "the calibration cannot be kept",
            where=str(path.parent),
            rule="a folder that can be written",
            value=error.strerror,
            remedy="set XDG_CACHE_HOME to another folder",
        ) from error
