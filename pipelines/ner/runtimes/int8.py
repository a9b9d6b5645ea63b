"""Where a model's int8 form can be computed, and why not elsewhere.

The form itself is made by `pipelines.compression.quantization`, for the runtime `packed` or, of architectures that it
does not know, as a graph of OpenVINO. It lies in the bundle (`BundleInfo.int8`), beside the
weights from which every other precision is computed: a machine without int8 products loses speed, never the model.
"""

import importlib.util
import platform
from pathlib import Path

import torch

from pipelines.ner.runtimes.products import KERNELS_RULE, has_int8_kernels, read_weight_bits
from pipelines.ner.runtimes.runtime import RuntimeUnavailable

FLAGS = {"avx512_vnni", "avx_vnni", "avx_vnni_int8", "amx_int8", "asimddp", "i8mm"}
"""As `/proc/cpuinfo` calls what multiplies bytes into 32-bit sums (x86: VNNI, AMX; ARM: dot products)."""
_CPU_FLAGS = Path("/proc/cpuinfo")


def count_weight_bits(device: torch.device) -> int:
    """Bits of weights that int8 products of this hardware are exact with: 8, 7, or 0 where there are no fast ones.

    It is 7 on x86 with AVX2 alone, where pairs of products are added up in 16 bits: with larger weights these overflow,
    and the entities are others.
    """
    if device.type != "cpu":
        return 0
    if torch.cpu._is_vnni_supported() or torch.cpu._is_amx_tile_supported() or FLAGS & _read_flags():
        return 8
    return 7 if torch.cpu._is_avx2_supported() else 0


def _read_flags() -> set[str]:
    try:
        lines = _CPU_FLAGS.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # not Linux: Apple's chips, on which OpenVINO computes f16
        return set()
    names = next((line.partition(":")[2] for line in lines if line.lower().startswith(("flags", "features"))), "")
    return set(names.split())


def find_int8_runtime(form: Path) -> str:
    """What computes an int8 form, by its first file."""
    return "openvino" if form.suffix == ".xml" else "packed"


def explain_no_int8(form: Path | None, device: torch.device, runtime: str = "auto") -> RuntimeUnavailable | None:
    """Why `precision: int8` cannot be had here; None where it can.

    Args:
        form: the model's int8 form, as the bundle has it.
    """
    where = "precision `int8`"
    if form is None:
        return RuntimeUnavailable(
            "the model has no int8 form",
            where=where,
            rule="a bundle that `rayner compress` made with the step `int8`: it is measured and gated then",
            remedy="make one: `rayner compress --steps int8`; or use the precision `auto`",
        )
    if device.type != "cpu":
        rule, value = "a CPU", str(device)
        return RuntimeUnavailable(
            "int8 is computed on CPUs only", where=where, rule=rule, value=value, remedy="use bf16, fp16 or `auto`"
        )
    of_form = find_int8_runtime(form)
    if runtime not in ("auto", of_form):
        return RuntimeUnavailable(
            f"this model's int8 form is computed by the runtime `{of_form}` only",
            where=where,
            rule=f"the runtime `{of_form}` or `auto`",
            value=f"runtime `{runtime}`",
            remedy="use that, or another precision: the bundle has the weights of all",
        )
    if of_form == "openvino" and importlib.util.find_spec("openvino") is None:
        return RuntimeUnavailable(
            "OpenVINO is not installed",
            where=where,
            rule="the package `openvino`",
            remedy="pip install 'rayner[cpu]', or use another precision: the bundle has the weights of all",
        )
    if of_form == "packed" and not has_int8_kernels():
        return RuntimeUnavailable(
            "this PyTorch has no int8 products",
            where=where,
            rule=KERNELS_RULE,
            value=platform.machine(),
            remedy="use another precision: the bundle has the weights of all",
        )
    bits = read_weight_bits(form) if of_form == "packed" else 8
    if count_weight_bits(device) < bits:
        return RuntimeUnavailable(
            f"this CPU has no int8 products with weights of {bits} bits",
            where=where,
            rule=describe_instructions(bits),
            value=describe_cpu(),
            remedy="use the precision `auto`, which takes the bundle's other weights",
        )
    return None


def describe_instructions(weight_bits: int) -> str:
    """What a CPU must have for weights of so many bits."""
    one_of = "VNNI or AMX (x86), dot products (ARM): one of " + ", ".join(sorted(FLAGS))
    return one_of if weight_bits == 8 else f"AVX2, or {one_of}"


def describe_cpu() -> str:
    """This machine's processor, by what it computes with."""
    return f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}"
