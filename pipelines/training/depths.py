"""How deep each parameter of an encoder lies: what freezes first, and what learns slowest."""

import re
from collections.abc import Mapping
from typing import Any

from torch import nn

from pipelines.ner.casing import get_case_table

_LAYER = re.compile(r"\.(?:layers?|block)\.(\d+)\.")
_BESIDE_LAYERS = {"deberta-v2": {"encoder.LayerNorm.": 0, "encoder.conv.": 1}}
"""Depths by the architecture of what is listed after the layers and does not stand above them: DeBERTa's norm of the
relative positions, which all layers read, and its convolution, which is added to the lowest layer's output."""


def find_depths(network: Any) -> dict[nn.Parameter, int]:
    """0 for the parameters of the embeddings, 1 for those of the lowest layer, and so on.

    None for what is above the layers, nor for the embeddings of cases, which begin anew as the head does.
    """
    encoder, cases = network.base_model, get_case_table(network)
    tables = {one for module in encoder.modules() if isinstance(module, nn.Embedding) for one in module.parameters()}
    beside = _BESIDE_LAYERS.get(network.config.model_type, {})
    depths: dict[nn.Parameter, int] = {}
    for name, parameter in encoder.named_parameters():
        if parameter is cases:
            continue
        layer = _LAYER.search(f".{name}")
        told = [depth for prefix, depth in beside.items() if name.startswith(prefix)]
        if layer:
            depths[parameter] = int(layer[1]) + 1
        elif told:
            depths[parameter] = told[0]
        elif parameter in tables or not any(depths.values()):
            depths[parameter] = 0
    return depths


def has_own_layers(network: Any, depths: Mapping[nn.Parameter, int]) -> bool:
    """Whether the encoder's layers have weights and numbers of their own, by which they can be told apart."""
    return {*depths.values()} - {0} == {*range(1, network.config.num_hidden_layers + 1)}
