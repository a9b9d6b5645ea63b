"""Quantization-aware training: linear layers compute with what int8 will leave of their weights and inputs.

As Jacob et al. 2018, with the gradient passed straight through the rounding. Weights have a range of their own for each
output, inputs one for each batch: near to what int8 forms then compute, which smooth and split outliers besides.
"""

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipelines.ner.runtimes.products import find_largest_weight

_MARK = "rounds_to_int8"
INPUT_RANGE = (0, 255)


def round_to_int8(network: Any, weight_bits: int) -> None:
    """Have the linear layers of a network's encoder round from now on; parameters keep their names and precision."""
    for module in network.base_model.modules():
        if isinstance(module, nn.Linear):
            module.forward = partial(_compute, module, find_largest_weight(weight_bits))  # type: ignore[method-assign]
    setattr(network, _MARK, True)


def rounds_to_int8(network: Any) -> bool:
    """Whether `round_to_int8` was called, so that its own `forward` has to be used."""
    return getattr(network, _MARK, False)


def round_weight(weight_OI: Tensor, largest: int) -> Tensor:
    """Weights as bytes hold them, symmetric around zero."""
    scale_O = weight_OI.detach().abs().amax(dim=1).clamp(min=1e-12) / largest
    zero_O = torch.zeros_like(scale_O, dtype=torch.int32)
    rounded: Tensor = torch.fake_quantize_per_channel_affine(weight_OI, scale_O, zero_O, 0, -largest, largest)
    return rounded


def round_input(x: Tensor) -> Tensor:
    """Inputs of a layer as bytes hold them, zero among them."""
    low, high = (float(edge) for edge in torch.aminmax(x.detach()))
    low, high = min(low, 0.0), max(high, 0.0)
    scale = max(high - low, 1e-12) / INPUT_RANGE[1]
    rounded: Tensor = torch.fake_quantize_per_tensor_affine(x, scale, round(-low / scale), *INPUT_RANGE)
    return rounded


def _compute(linear: nn.Linear, largest: int, x: Tensor) -> Tensor:
    return F.linear(round_input(x.float()), round_weight(linear.weight, largest), linear.bias)
