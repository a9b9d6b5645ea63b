"""How fast machines are: published figures of common GPUs, and what a calibration has measured."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Rates:
    """What one worker's device does in a second."""

    name: str
    device: str
    """cpu or cuda."""
    flops: Mapping[str, float]
    """Precision (fp32, bf16, fp16, int8) → operations per second of dense products."""
    memory_bytes_per_s: float
    memory_bytes: float
    """Memory of the GPU, or of the machine."""
    network_bytes_per_s: float
    """Between workers, as each sends."""
    efficiency: float = 1.0
    """Share of `flops` that products of an encoder reach; 1 where they were measured."""
    operator_s: float = 0.0
    """Time to start an operator."""
    price_per_hour: float | None = None
    source: str = "table"
    """table, calibration or estimate."""


def find_rates(accelerator: str) -> Rates:
    """A GPU of the table, by Ray's accelerator type or its usual name. Raises PlanError, with near names."""
    raise NotImplementedError


def estimate_cpu_rates(num_cores: int, memory_bytes: float = 16 * 2**30) -> Rates:
    """Of a server CPU's cores that nobody has measured."""
    raise NotImplementedError
