"""A network's weights as a bundle's folder holds them: fp32, fp16, or tables of bytes with a scale for each row.

fp32 and fp16 are files of transformers (`model.safetensors`). Bytes are a file of ours, for transformers would take
them for the numbers themselves: `model.int8.safetensors`, with `<name>` and `<name>.scale` of each table (a weight of
two dimensions), and fp16 of all else.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipelines.ner.runtimes.runtime import PRECISIONS

STORED = ("fp32", "fp16", "int8")
INT8_WEIGHTS = "model.int8.safetensors"
LARGEST = 127
_SCALE = ".scale"


def round_weights(network: Any, stored: str) -> None:
    """Give a network the weights that are read back after it was stored."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(_unpack(*_pack(parameter, stored)).to(parameter.dtype))


def save_weights(network: Any, folder: Path, stored: str) -> None:
    """Write a network's configuration and weights. `config.json` says float32: so all tools compute in it."""
    state = network.state_dict()
    if stored == "fp32":
        network.save_pretrained(folder)
    elif stored == "fp16":
        network.save_pretrained(folder, state_dict={name: one.to(PRECISIONS[stored]) for name, one in state.items()})
    else:
        network.config.save_pretrained(folder)
        tensors = {}
        for name, tensor in state.items():
            tensors[name], scale = _pack(tensor, stored)
            if scale is not None:
                tensors[name + _SCALE] = scale
        save_file(tensors, folder / INT8_WEIGHTS)


def read_int8_weights(folder: Path) -> dict[str, Tensor] | None:
    """The weights in float32, of a folder that holds them as bytes; None of another."""
    path = folder / INT8_WEIGHTS
    if not path.is_file():
        return None
    tensors = load_file(path)
    return {
        name: _unpack(tensor, tensors.get(name + _SCALE))
        for name, tensor in tensors.items()
        if not (name.endswith(_SCALE) and name.removesuffix(_SCALE) in tensors)
    }


def find_unfit(weights: Mapping[str, Tensor], stored: str) -> str | None:
    """The name of a weight that is too large to be stored so; None if there is none."""
    if stored == "fp32":
        return None
    return next((name for name, one in weights.items() if not torch.isfinite(_unpack(*_pack(one, stored))).all()), None)


def _pack(tensor: Tensor, stored: str) -> tuple[Tensor, Tensor | None]:
    if not tensor.is_floating_point() or stored == "fp32":
        return tensor.detach().contiguous(), None
    if stored == "fp16" or tensor.ndim != 2:
        return tensor.detach().to(torch.float16).contiguous(), None
    scale_R = tensor.detach().float().abs().amax(dim=1).clamp(min=1e-12) / LARGEST
    scale_R = scale_R.bfloat16().float()  # so few digits that what is read back is stored as the same bytes again
    return (tensor.detach() / scale_R[:, None]).round().to(torch.int8), scale_R


def _unpack(tensor: Tensor, scale_R: Tensor | None) -> Tensor:
    if scale_R is not None:
        return tensor.float() * scale_R[:, None]
    return tensor.float() if tensor.is_floating_point() else tensor
