"""Which runtime is fastest for this model on this machine: measured in seconds, once, and remembered.

Remembered in the user's cache folder (`XDG_CACHE_HOME`, else `~/.cache`), by a hash of the weights, the machine, the
threads and the versions. A runtime whose emissions are not those of fp32 PyTorch, within `MAX_ERROR`, is never chosen.
"""

import hashlib
import importlib.metadata
import json
import logging
import os
import platform
import random
import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from torch import Tensor

from pipelines.ner.encoding import Encoder, Window, plan_batches
from pipelines.ner.errors import UserError, tell_first_line
from pipelines.ner.model import TokenClassifier
from pipelines.ner.runtimes.exported import OpenVinoRuntime
from pipelines.ner.runtimes.int8 import explain_no_int8, find_int8_runtime
from pipelines.ner.runtimes.packed import PackedRuntime
from pipelines.ner.runtimes.padded import CompiledRuntime, TorchRuntime
from pipelines.ner.runtimes.products import read_products
from pipelines.ner.runtimes.runtime import Runtime, RuntimeUnavailable, has_fast_bf16

RUNTIMES = ("auto", "torch", "packed", "torch-compiled", "openvino")
MAX_ERROR = {"fp32": 1e-3, "bf16": 0.1, "fp16": 0.02, "int8": 0.3}
"""Largest root-mean-square difference of emissions from fp32 PyTorch, as a share of their deviation. That of int8 only
tells a machine that computes it wrongly: on real text it was gated by F1 when it was made, and this sample is random
sub-tokens, unlike any text that its ranges were set for."""
MIN_GAIN = {"fp32": 0.0, "bf16": 1.2, "fp16": 1.2, "int8": 1.0}
"""How much faster a reduced precision must be than fp32 to be worth its rounding; int8 has been found worth it."""
PASSING = (MemoryError, torch.OutOfMemoryError, OSError)
"""What a candidate may fail with today and not tomorrow."""
SAMPLE_TOKENS = 4096
FINALISTS = 3
"""Candidates that are measured in turns at the end, and lie in memory together; the fastest in fp32 besides."""
CLOSE = 0.5
"""Share of the fastest one's speed with which a candidate is one of them."""
TURNS = 2
VERSION = 4

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Figure:
    """What a candidate showed on this machine."""

    runtime: str
    precision: str
    tokens_per_s: float = 0.0
    error: float = 0.0
    """Root-mean-square difference of emissions from fp32 PyTorch, as a share of their deviation."""
    problem: str = ""
    """Why it cannot be chosen."""
    may_pass: bool = False
    """Whether that may be otherwise the next time: memory was short, or a compiler was not there."""


@dataclass(frozen=True)
class Place:
    """What a runtime is opened for."""

    model: TokenClassifier
    encoder: Encoder
    device: torch.device
    num_threads: int
    cache: Path | None
    """Folder for exported models."""
    int8: Path | None = None
    """The first file of the model's int8 form."""


def open_runtime(name: str, precision: str, place: Place) -> Runtime:
    """One runtime by name. Raises RuntimeUnavailable."""
    pad_id = place.encoder.pad_id
    if precision == "int8" and (problem := explain_no_int8(place.int8, place.device, name)):
        raise problem
    if name == "packed" and precision == "int8" and place.int8 is not None:
        products = read_products(place.int8)
        return PackedRuntime(place.model, device=place.device, precision=precision, pad_id=pad_id, products=products)
    if name == "openvino":
        if place.device.type != "cpu":
            raise RuntimeUnavailable("OpenVINO is used for CPUs only", where="runtime `openvino`", value=place.device)
        return OpenVinoRuntime(
            place.model,
            precision=precision,
            pad_id=pad_id,
            num_threads=place.num_threads,
            cache=place.cache,
            graph=place.int8 if precision == "int8" else None,
        )
    kinds: dict[str, Callable[..., Runtime]] = {
        "torch": TorchRuntime,
        "packed": PackedRuntime,
        "torch-compiled": CompiledRuntime,
    }
    return kinds[name](place.model, device=place.device, precision=precision, pad_id=pad_id)


def calibrate(runtime: str, precision: str, place: Place) -> tuple[str, str, list[Figure]]:
    """The fastest runtime and precision among those that `auto` leaves open, and every candidate's figures."""
    path = find_cache() / "calibration" / f"{_hash_question(runtime, precision, place)}.json"
    figures = _read_figures(path)
    if not figures:
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(path.with_suffix(".lock")):  # two actors would disturb each other's figures
                figures = _read_figures(path) or _measure_all(runtime, precision, place)
                if not any(figure.may_pass for figure in figures):
                    staging = path.with_suffix(f".{os.getpid()}.partial")
                    staging.write_text(json.dumps([asdict(figure) for figure in figures], indent=2), encoding="utf-8")
                    staging.replace(path)
        except OSError:  # a cache that cannot be written is no reason to fail
            figures = figures or _measure_all(runtime, precision, place)
    best = _choose(figures)
    logger.info("runtime %s in %s, of %s", best.runtime, best.precision, figures)
    for figure in figures:
        if figure.precision == "int8" and figure.problem:
            logger.warning("the model's int8 form is not used: %s", figure.problem)
    return best.runtime, best.precision, figures


def find_cache() -> Path:
    """The folder of what may be computed again."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rayner"


def fingerprint_weights(model: TokenClassifier) -> str:
    """A hash of a model's architecture and weights, whatever else its bundle says: scores are added after training."""
    digest = hashlib.sha256(model.network.config.to_json_string().encode())
    if model.exits is not None:
        digest.update(json.dumps([model.exits.layers, model.exits.threshold]).encode())
    for name, tensor in sorted(model.network.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:32]


def _measure_all(runtime: str, precision: str, place: Place) -> list[Figure]:
    windows = _build_sample(place)
    reference = TorchRuntime(place.model, device=place.device, precision="fp32", pad_id=place.encoder.pad_id)
    expected_WK = _run(reference, windows, place.num_threads)
    candidates = _list_candidates(runtime, precision, place)
    figures = [_measure(*candidate, place, windows, expected_WK) for candidate in candidates]
    return _measure_in_turns(figures, place, windows)


def _measure_in_turns(figures: Sequence[Figure], place: Place, windows: Sequence[Window]) -> list[Figure]:
    """The fastest measured again, in turns, and each by its best: other work may have slowed one and not another."""
    usable = sorted((one for one in figures if not one.problem), key=lambda one: -one.tokens_per_s)
    close = [one for one in usable if one.tokens_per_s >= CLOSE * usable[0].tokens_per_s]
    exact = [one for one in close if one.precision == "fp32"]  # what the others must be faster than
    close = list(dict.fromkeys([*close[:FINALISTS], *exact[:1]]))
    if len(close) < 2:
        return list(figures)
    num_tokens = sum(len(window.input_ids) for window in windows)
    rates = {figure: figure.tokens_per_s for figure in close}
    try:
        opened = [(figure, open_runtime(figure.runtime, figure.precision, place)) for figure in close]
        for _, runtime in opened:
            _run(runtime, windows, place.num_threads)
        for _ in range(TURNS):
            for figure, runtime in opened:
                rates[figure] = max(rates[figure], num_tokens / _time(runtime, windows, place.num_threads))
    except Exception as error:  # whatever a back end may raise, as for want of memory beside the others
        logger.info("candidates could not be measured in turns: %s", tell_first_line(error))
    return [replace(figure, tokens_per_s=round(rates.get(figure, figure.tokens_per_s), 1)) for figure in figures]


def _list_candidates(runtime: str, precision: str, place: Place) -> list[tuple[str, str]]:
    """`auto` leaves out what takes longer to try than most jobs: compiling, and bf16 where the CPU only emulates it."""
    names = [runtime] if runtime != "auto" else ["torch", "packed"]
    if runtime == "auto" and place.device.type == "cpu" and _is_installed("openvino"):
        names.append("openvino")
    of_int8 = find_int8_runtime(place.int8) if place.int8 else None
    with_int8 = [(of_int8, "int8")] if of_int8 and runtime in ("auto", of_int8) else []
    if precision == "int8":
        return with_int8
    if precision != "auto":
        kinds, with_int8 = [precision], []
    else:
        reduced = ["bf16"] if has_fast_bf16(place.device) else ["fp16"] if place.device.type == "cuda" else []
        kinds = ["fp32", *reduced]
    return [(name, kind) for kind in kinds for name in names] + with_int8


def _measure(name: str, precision: str, place: Place, windows: Sequence[Window], expected_WK: Tensor) -> Figure:
    num_tokens = sum(len(window.input_ids) for window in windows)
    try:
        candidate = open_runtime(name, precision, place)
        found_WK = _run(candidate, windows, place.num_threads)  # also warms it up
        seconds = _time(candidate, windows, place.num_threads)
    except UserError as error:
        remedy = error.remedy if "`auto`" not in (error.remedy or "") else None  # which it is that asks
        problem = "; ".join(filter(None, (str(error.what), remedy)))
        return Figure(name, precision, problem=problem, may_pass=name == "torch-compiled")
    except Exception as error:  # whatever a back end may raise: it is only a candidate
        problem = tell_first_line(error)
        return Figure(name, precision, problem=problem, may_pass=isinstance(error, PASSING))
    distance = float((found_WK - expected_WK).square().mean().sqrt() / expected_WK.std().clamp(min=1e-9))
    rate = round(num_tokens / seconds, 1)
    problem = "" if distance <= MAX_ERROR[precision] else f"its emissions differ too much from fp32 ({distance:.3g})"
    return Figure(name, precision, rate, round(distance, 6), problem)


def _choose(figures: Sequence[Figure]) -> Figure:
    usable = [figure for figure in figures if not figure.problem]
    if not usable:
        raise RuntimeUnavailable(
            "no runtime can be used",
            value="; ".join(f"{figure.runtime} in {figure.precision}: {figure.problem}" for figure in figures),
            remedy="use `torch` in fp32",
        )
    exact = max((one.tokens_per_s for one in usable if one.precision == "fp32"), default=0.0)
    worth = [one for one in usable if one.tokens_per_s >= MIN_GAIN[one.precision] * exact]
    return max(worth, key=lambda one: one.tokens_per_s)


def _time(runtime: Runtime, windows: Sequence[Window], num_threads: int) -> float:
    started = time.perf_counter()
    _run(runtime, windows, num_threads)
    return time.perf_counter() - started


def _run(runtime: Runtime, windows: Sequence[Window], num_threads: int) -> Tensor:
    """Emissions of the windows, computed as the engine does: a thread a batch."""
    batches = plan_batches([len(window.input_ids) for window in windows], runtime.batch_tokens)
    with ThreadPoolExecutor(num_threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        return torch.cat(list(pool.map(lambda batch: runtime.compute([windows[i] for i in batch]), batches)))


def _build_sample(place: Place) -> list[Window]:
    """Windows of random sub-tokens, mostly as long as sentences, some as long as the window."""
    encoder = place.encoder
    dice = random.Random(0)
    number, special = _list_tokens(place)
    windows: list[Window] = []
    budget = SAMPLE_TOKENS * max(1, place.num_threads // 2)
    while budget > 0:
        room = encoder.capacity if len(windows) % 16 == 0 else min(encoder.capacity, 8 + int(dice.expovariate(1 / 24)))
        inner = [_draw_token(dice, number, special) for _ in range(room)]
        ids = [*encoder.prefix, *inner, *encoder.suffix]
        windows.append(Window(ids, list(range(len(encoder.prefix), len(encoder.prefix) + room)), True, True))
        budget -= len(ids)
    return windows


def _list_tokens(place: Place) -> tuple[int, Collection[int]]:
    """How many sub-tokens there are, and those that no text has: RoBERTa's kind gives padding no position."""
    tokenizer = place.encoder.tokenizer
    number = min(len(tokenizer), getattr(place.model.network.config, "vocab_size", None) or len(tokenizer))
    special = {one for one in tokenizer.all_special_ids if one < number}
    return number, special if len(special) < number else ()


def _draw_token(dice: random.Random, number: int, special: Collection[int]) -> int:
    while (drawn := dice.randrange(number)) in special:
        pass
    return drawn


def _hash_question(runtime: str, precision: str, place: Place) -> str:
    packages = {name: importlib.metadata.version(name) for name in ("torch", "openvino") if _is_installed(name)}
    facts = [
        VERSION,
        runtime,
        precision,
        fingerprint_weights(place.model),
        str(place.device),
        place.num_threads,
        packages,
    ]
    if place.int8 is not None:
        parts = (place.int8, place.int8.with_suffix(".bin"))
        facts.append([hashlib.sha256(part.read_bytes()).hexdigest() for part in parts if part.is_file()])
    machine = [platform.machine(), platform.node(), os.cpu_count(), torch.backends.cpu.get_cpu_capability()]
    if place.device.type == "cuda":
        machine.append(torch.cuda.get_device_name(place.device))
    return hashlib.sha256(json.dumps([facts, machine]).encode()).hexdigest()[:24]


def _read_figures(path: Path) -> list[Figure]:
    try:
        rows: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
        return [Figure(**row) for row in rows]
    except (OSError, ValueError, TypeError):
        return []


def _is_installed(package: str) -> bool:
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
