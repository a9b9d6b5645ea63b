"""Students that keep some of their teacher's layers (as Sanh et al. 2019)."""

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import nn

from pipelines.compression.config import CompressionError
from pipelines.ner.model import TokenClassifier


def choose_layers(num_layers: int, num_kept: int) -> list[int]:
    """Layers to keep, evenly spread, the first and the last among them. Raises CompressionError."""
    if not 1 <= num_kept < num_layers:
        raise CompressionError(
            "a student that is not smaller than its teacher",
            where="`distillation.layers`",
            rule=f"1 to {num_layers - 1} layers, for the teacher has {num_layers}",
            value=num_kept,
        )
    kept: list[int] = np.linspace(0, num_layers - 1, num_kept).round().astype(int).tolist()
    return kept if num_kept > 1 else [num_layers - 1]


def keep_layers(model: TokenClassifier, kept: Sequence[int]) -> TokenClassifier:
    """A copy of a model with these of its encoder's layers. Raises CompressionError if it has none to choose from."""
    student = copy.deepcopy(model)
    config: Any = student.network.config
    stack = find_stack(student.network)
    for position in reversed(range(len(stack))):
        if position not in kept:
            del stack[position]
    config.num_hidden_layers = len(kept)
    widths = getattr(config, "attention_widths", None)
    if widths is not None:
        config.attention_widths = [widths[position] for position in kept]
    return student


def find_stack(network: Any) -> nn.ModuleList:
    """The encoder's layers. Raises CompressionError for an architecture without a list of them."""
    num_layers = network.config.num_hidden_layers
    for module in network.base_model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == num_layers:
            return module
    raise CompressionError(
        "an encoder whose layers cannot be taken out",
        rule="a list of layers, each with weights of its own",
        value=network.config.model_type,
        remedy="leave `distill` out of `--steps`, or give a student by `--distillation.encoder`",
    )
