"""Products of bytes: linear layers whose weights and inputs are int8, for what computes without padding on a CPU.

A model's int8 form of this kind is a file of `Int8Product`s, named by layer and place (`layer.0.feed_in`); layers that
are not in it are computed in floating point. It is made by `pipelines.compression.int8_packed`.

Shapes: N rows, I inputs, O outputs.
"""

import json
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

PARTS = ("attention_in", "attention_out", "feed_in", "feed_out")
"""The products of a layer; `attention_in` is query, key and value, one below the other."""
LARGEST_BYTE = 255
WEIGHT_BITS = (7, 8)
"""Of products' weights; only those of 7 are exact where pairs are added up in 16 bits (x86 before VNNI)."""
KERNELS_RULE = "a PyTorch for x86 with oneDNN"
_ROUND = 1.5 * 2.0**23
"""Added to a number it leaves the nearest whole one in the lowest bits: float32 has 23 of them behind the first."""
_TENSORS = ("weight_OI", "scale_O", "bias_O", "smooth_I")


class Int8Product(NamedTuple):
    """A linear layer `x W + b` as `scale_O * input_scale * (q(x) - zero_point) weight_OI + bias_O`, where q(x) is
    `x * smooth_I / input_scale + zero_point`, rounded, between 0 and 255."""

    weight_OI: Tensor
    """int8, within plus and minus `find_largest_weight`; the weights divided by `smooth_I`."""
    scale_O: Tensor
    bias_O: Tensor
    smooth_I: Tensor
    """What inputs are multiplied by, so that their outliers lie in the weights (SmoothQuant, Xiao et al. 2023)."""
    input_scale: float
    zero_point: int


class Int8Linear:
    """A product by oneDNN's kernels, exact where `count_weight_bits` tells as many as its weights have.

    Args:
        activation: the name of an activation and its form, as oneDNN has them.
        dtype: of what comes out.
        following: the product that reads what comes out, if nothing else does: then it comes as that one's bytes.
    """

    def __init__(
        self,
        product: Int8Product,
        activation: tuple[str, str],
        dtype: torch.dtype,
        following: Int8Product | None = None,
    ) -> None:
        self.activation = activation
        packed = torch.ops.onednn.qlinear_prepack(product.weight_OI.contiguous(), None)
        zeros_O = torch.zeros(len(product.scale_O), dtype=torch.long)
        self.factors = (product.input_scale, product.zero_point, packed, product.scale_O.float(), zeros_O)
        """The inputs' scale and zero point, and the weights with theirs."""
        self.bias_O = product.bias_O.float()
        self.factor_I = product.smooth_I.float() / product.input_scale
        self.offset_I = torch.full_like(self.factor_I, _ROUND + product.zero_point)
        self.output = (1.0, 0, dtype)
        if following is not None:
            self.output = (following.input_scale, following.zero_point, torch.uint8)

    def __call__(self, x_NI: Tensor) -> Tensor:
        """`activation(x W + b)`, `[N, O]`."""
        name, form = self.activation
        y_NO: Tensor = torch.ops.onednn.qlinear_pointwise(
            self._read(x_NI), *self.factors, self.bias_O, *self.output, name, [], form
        )
        return y_NO

    def add(self, x_NI: Tensor, residual_NO: Tensor) -> Tensor:
        """`x W + b + residual`, `[N, O]`, in the residual's place."""
        output, residual = (1.0, 0, residual_NO.dtype), (1.0, 0)
        y_NO: Tensor = torch.ops.onednn.qlinear_pointwise.binary(
            self._read(x_NI), *self.factors, residual_NO, self.bias_O, *output, *residual, "sum", 1.0, "none", [], ""
        )
        return y_NO

    def _read(self, x_NI: Tensor) -> Tensor:
        """Inputs as bytes; they may be so already. No number becomes a byte too: the residuals pass it on."""
        if x_NI.dtype == torch.uint8:
            return x_NI
        rounded_NI = torch.addcmul(self.offset_I, x_NI.float(), self.factor_I)
        return rounded_NI.clamp_(_ROUND, _ROUND + LARGEST_BYTE).view(torch.int32).to(torch.uint8)  # the lowest byte


def has_int8_kernels() -> bool:
    """Whether this build of PyTorch has oneDNN's int8 products; on other processors they are not known to be fast."""
    is_x86 = platform.machine().lower() in ("x86_64", "amd64")
    return is_x86 and torch.backends.mkldnn.is_available() and hasattr(torch.ops.onednn, "qlinear_pointwise")


def find_largest_weight(bits: int) -> int:
    """The largest weight of so many bits: 127, or 63, of which 2 · 63 · 255 is less than 2^15."""
    return int(2 ** (bits - 1)) - 1


def write_products(path: Path, products: Mapping[str, Int8Product], weight_bits: int) -> None:
    """Write a form's products to a file."""
    tensors = {
        f"{name}.{part}": getattr(product, part).contiguous() for name, product in products.items() for part in _TENSORS
    }
    inputs = {name: [product.input_scale, product.zero_point] for name, product in products.items()}
    save_file(tensors, path, metadata={"inputs": json.dumps(inputs), "weight_bits": str(weight_bits)})


def read_weight_bits(path: Path) -> int:
    """Bits of the weights of a form."""
    with safe_open(path, framework="pt") as file:
        return int((file.metadata() or {}).get("weight_bits", max(WEIGHT_BITS)))  # files had no others at first


def read_products(path: Path) -> dict[str, Int8Product]:
    """A form's products by name."""
    with safe_open(path, framework="pt") as file:
        inputs: dict[str, list[float]] = json.loads((file.metadata() or {})["inputs"])
        found = {}
        for name, (scale, zero) in inputs.items():
            weight_OI, scale_O, bias_O, smooth_I = (file.get_tensor(f"{name}.{part}") for part in _TENSORS)
            found[name] = Int8Product(weight_OI, scale_O, bias_O, smooth_I, scale, int(zero))
        return found
