"""What a device computes with, and the time it takes."""

import time

import torch

from pipelines.ner.runtimes.runtime import has_fast_bf16


def resolve_precision(precision: str, device: torch.device) -> str:
    """fp32 or bf16: what `auto` means on this device."""
    if precision != "auto":
        return precision
    return "bf16" if has_fast_bf16(device) else "fp32"


def describe_device(device: torch.device) -> str:
    """A GPU's name, or what vector instructions a CPU has: `CPU, AVX512`."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {torch.backends.cpu.get_cpu_capability()}"


def settle_vector_math() -> None:
    """Have MKL's vector functions choose their code now, in one thread.

    Two threads that are the first to call one can get other last bits than later calls do: of one seed, one run in ten
    took another course.
    """
    for function in (torch.sqrt, torch.exp, torch.log):
        function(torch.ones(64))


class Stopwatch:
    """The seconds of a step, and on a CPU of its parts: a GPU works on after a call has returned."""

    def __init__(self, device: torch.device) -> None:
        self.has_parts = device.type == "cpu"
        self.parts: dict[str, float] = {}
        self.started = self.lapped = time.monotonic()

    @property
    def total(self) -> float:
        """Seconds up to now."""
        return time.monotonic() - self.started

    def lap(self, name: str) -> None:
        """The time since the last lap went into this part."""
        now = time.monotonic()
        if self.has_parts:
            self.parts[name] = self.parts.get(name, 0.0) + now - self.lapped
        self.lapped = now
