"""What a device computes with, and the time it takes."""

import time

import torch


def resolve_precision(precision: str, device: torch.device) -> str:
    """fp32 or bf16: what `auto` means on this device."""
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return "bf16" if torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported() else "fp32"


def describe_device(device: torch.device) -> str:
    """A GPU's name, or what vector instructions a CPU has: `CPU, AVX512`."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {torch.backends.cpu.get_cpu_capability()}"


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
