"""How fast this machine multiplies and copies: what a calibration measures by itself."""

import time
from collections.abc import Callable

import torch
from torch import Tensor

from pipelines.ner.machine import read_memory_bytes
from pipelines.ner.runtimes.runtime import has_fast_bf16
from pipelines.planning.rates import GIB

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
PRODUCT_S = 0.3
"""Seconds that each product is repeated for."""
COPIED_BYTES = 256 * 2**20


def list_precisions(device: torch.device) -> list[str]:
    """Those with instructions of their own; others are emulated, for minutes."""
    if device.type == "cuda":
        return ["fp32", "fp16", *(["bf16"] if torch.cuda.is_bf16_supported(including_emulation=False) else [])]
    return ["fp32", *(["bf16"] if choose_precision(device) == "bf16" else []), "int8"]


def choose_precision(device: torch.device) -> str:
    """bf16 where the hardware computes it, else fp32: what `auto` means in training."""
    return "bf16" if has_fast_bf16(device) else "fp32"


def measure_products(precision: str, device: torch.device) -> float:
    """Operations per second of products of an encoder's size: the best of several."""
    rows, width, inner = (1024, 768, 3072) if device.type == "cpu" else (16384, 1024, 4096)
    if precision == "int8":
        a, b = (torch.randint(-9, 9, size, dtype=torch.int8, device=device) for size in ((rows, width), (width, inner)))

        def multiply() -> Tensor:
            return torch._int_mm(a, b)
    else:
        x, w = (torch.randn(size, device=device).to(DTYPES[precision]) for size in ((rows, width), (inner, width)))

        def multiply() -> Tensor:
            return torch.nn.functional.linear(x, w)

    return 2 * rows * width * inner / _time(multiply, device)


def measure_bandwidth(device: torch.device) -> float:
    """Bytes per second that a copy reads and writes, beyond what caches hold."""
    source = torch.zeros(COPIED_BYTES // 4, device=device)
    target = torch.ones_like(source)
    return 2 * COPIED_BYTES / _time(lambda: target.copy_(source), device)


def _time(run: Callable[[], object], device: torch.device) -> float:
    """The best of the runs within `PRODUCT_S`: others take time from them, never give it."""
    best, until = float("inf"), time.perf_counter() + PRODUCT_S
    while True:
        started = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - started)
        if time.perf_counter() > until:
            return best


def count_memory(device: torch.device) -> float:
    """Bytes of the GPU's memory, or of the machine's."""
    if device.type == "cuda":
        return float(torch.cuda.get_device_properties(device).total_memory)
    try:
        return float(read_memory_bytes())
    except (ValueError, OSError):
        return 16 * GIB
