"""What a device computes with, and the time it takes."""

import time
from collections.abc import Sequence

import numpy as np
import torch

from pipelines.ner.runtimes.runtime import has_fast_bf16
from pipelines.training.config import TrainingConfig, TrainingError


class DeviceMemoryError(TrainingError):
    """Passes that a device has no memory for: one worker meets it alone, while the others wait for it."""


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


def build_memory_error(
    where: str, passes: Sequence[np.ndarray], copies: int, saves_activations: bool, error: torch.OutOfMemoryError
) -> DeviceMemoryError:
    """What to tell of passes that a device has no memory for, with a size to try.

    Args:
        passes: the lengths of the windows of each.
        copies: how often a pass computes a window.
        saves_activations: whether they are computed again in the backward pass already.
    """
    longest = max(int(lengths.max()) for lengths in passes)
    largest = max(len(lengths) * int(lengths.max()) for lengths in passes)
    tokens = max(longest, largest // 2) * copies
    if tokens == TrainingConfig.device_batch_tokens:
        tokens -= 1  # the planner takes the default for left out, and would choose as before
    fewer = f"`--training.device_batch_tokens {tokens}` (the steps stay the same)"
    again = "`--parallel.gradient_checkpointing true`"
    remedies = [fewer] * (largest > longest) + [again] * (not saves_activations)
    return DeviceMemoryError(
        "the device has no memory for a pass of training",
        where=where,
        rule="weights, moments, and what a pass keeps for its gradients fit into the device's memory",
        value=f"{largest * copies:,} sub-tokens in a pass; {str(error).strip().splitlines()[0]}",
        remedy="set " + " or ".join(remedies) if remedies else "take a smaller `--encoding.window`, or a larger device",
    )


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
