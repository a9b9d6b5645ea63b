"""How fast machines are: published figures of common GPUs, and what a calibration has measured."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches

from pipelines.planning.errors import PlanError

TERA, GIGA, GIB = 1e12, 1e9, 2**30
ENCODER_EFFICIENCY = 0.4
"""Share of a GPU's published peak that the products of an encoder reach in training: 0.3 to 0.5 is what public reports
of BERT and GPT training give for A100 and H100. An assumption until a machine is calibrated."""
GPU_OPERATOR_S = 8e-6
"""Time for PyTorch to start one operator in eager mode, about."""
CPU_FLOPS_PER_CORE = {"fp32": 60 * GIGA, "bf16": 120 * GIGA, "fp16": 30 * GIGA, "int8": 150 * GIGA}
"""Of a server core with AVX-512, about, in products of an encoder's size. An assumption until calibrated."""
CPU_BYTES_PER_CORE = 5 * GIGA


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
    """Share of `flops` that products with weights reach in real steps."""
    attention_efficiency: float = 0.5
    """The same of products between sub-tokens, which are small."""
    element_s: Mapping[str, float] = field(default_factory=dict)
    """Seconds of all that is done, forward and backward, to a number of the hidden size (`hidden`), of the feed-forward
    (`inner`), and to an attention weight (`pair`); where it is empty, bytes and bandwidth tell."""
    parameter_s: float | None = None
    """Seconds of the optimizer for a parameter; None: bytes and bandwidth tell."""
    operator_s: float = 0.0
    """Time to start an operator."""
    price_per_hour: float | None = None
    source: str = "table"
    """table, calibration or estimate."""


def _gpu(
    name: str, fp32: float, half: float, bf16: float, int8: float, gib: float, gb_per_s: float, link_gb_per_s: float
) -> Rates:
    """Of published peaks: dense TFLOP/s by precision (fp32 as PyTorch computes it, without TF32), and GB/s.

    GiB are those that PyTorch finds: error correction and the driver take some of what the card is sold by.
    """
    flops = {"fp32": fp32 * TERA, "fp16": half * TERA, "bf16": bf16 * TERA, "int8": int8 * TERA}
    return Rates(
        name=name,
        device="cuda",
        flops=flops,
        memory_bytes_per_s=gb_per_s * GIGA,
        memory_bytes=gib * GIB,
        network_bytes_per_s=link_gb_per_s * GIGA,
        efficiency=ENCODER_EFFICIENCY,
        operator_s=GPU_OPERATOR_S,
    )


# Peaks without sparsity, from NVIDIA's data sheets: "Tesla T4" (2019), "L4" (2023), "A10" (2021; AWS's A10G has its
# memory and, by AWS, 70 TFLOP/s), "V100" (2020), "A30" (2022), "A40" (2021), "A100" (2021), "L40S" (2023), "RTX 6000
# Ada" (2023), "GeForce RTX 3090" and "4090" (Ampere and Ada architecture papers), "H100" (2023), "H200" (2024),
# "DGX B200" (2024, an eighth each). Halves of figures that a sheet gives with sparsity alone. T4 and V100 have no bf16:
# it is emulated in fp32. The last column is what one GPU sends to others in its node: NVLink one way where there is
# one, else PCI Express.
GPUS = {
    gpu.name: gpu
    for gpu in (
        _gpu("T4", 8.1, 65, 8.1, 130, 14.7, 320, 16),
        _gpu("L4", 30.3, 121, 121, 242, 22.0, 300, 32),
        _gpu("A10", 31.2, 125, 125, 250, 22.0, 600, 32),
        _gpu("A10G", 31.5, 70, 70, 140, 22.0, 600, 32),
        _gpu("V100", 15.7, 125, 15.7, 62, 15.7, 900, 150),
        _gpu("A30", 10.3, 165, 165, 330, 23.5, 933, 100),
        _gpu("A40", 37.4, 149.7, 149.7, 299, 44.3, 696, 56),
        _gpu("A100-40G", 19.5, 312, 312, 624, 39.4, 1555, 300),
        _gpu("A100-80G", 19.5, 312, 312, 624, 79.1, 2039, 300),
        _gpu("L40S", 91.6, 362, 362, 733, 44.3, 864, 32),
        _gpu("RTX-6000-Ada", 91.1, 364, 364, 728, 47.4, 960, 32),
        _gpu("RTX-3090", 35.6, 71, 71, 284, 23.6, 936, 32),
        _gpu("RTX-4090", 82.6, 165, 165, 660, 23.6, 1008, 32),
        _gpu("H100", 67, 989, 989, 1979, 79.1, 3350, 450),
        _gpu("H200", 67, 989, 989, 1979, 139.7, 4800, 450),
        _gpu("B200", 75, 2250, 2250, 4500, 178.3, 8000, 900),
    )
}
_ALIASES = {"A100": "A100-40G", "RTX3090": "RTX-3090", "RTX4090": "RTX-4090"}


def find_rates(accelerator: str) -> Rates:
    """A GPU of the table, by Ray's accelerator type or its usual name. Raises PlanError, with near names."""
    name = accelerator.upper().replace(" ", "-").replace("_", "-")
    for maker in ("NVIDIA-", "GEFORCE-", "TESLA-"):
        name = name.removeprefix(maker)
    known = {one.upper(): one for one in GPUS} | _ALIASES
    if name in known:
        return GPUS[known[name]]
    for one in sorted(GPUS, key=len, reverse=True):  # `NVIDIA H100 80GB HBM3`, `A100-SXM4-80GB`
        if one.startswith("RTX-"):  # a family of many cards, which their numbers tell apart
            if name.startswith(f"{one.upper()}-"):
                return GPUS[one]
        elif name.startswith(one.upper().partition("-")[0] + "-"):
            family = [gpu for gpu in GPUS if gpu.partition("-")[0] == one.partition("-")[0]]
            return GPUS[max(family) if "80G" in name else min(family)]
    near = get_close_matches(name, known, n=3, cutoff=0.3)
    raise PlanError(
        f"an unknown accelerator `{accelerator}`",
        rule="one of " + ", ".join(GPUS),
        value=accelerator,
        remedy=f"did you mean {', '.join(near)}?" if near else "take one of the list that is like it",
    )


def estimate_cpu_rates(num_cores: int, memory_bytes: float = 16 * GIB) -> Rates:
    """Of a server CPU's cores that nobody has measured."""
    return Rates(
        name=f"{num_cores} CPU cores",
        device="cpu",
        flops={precision: rate * num_cores for precision, rate in CPU_FLOPS_PER_CORE.items()},
        memory_bytes_per_s=CPU_BYTES_PER_CORE * num_cores,
        memory_bytes=memory_bytes,
        network_bytes_per_s=1.25 * GIGA,  # 10 Gbit/s
        operator_s=10e-6,
        source="estimate",
    )
