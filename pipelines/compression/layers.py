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
    check_first(model.network, kept)
    student = copy.deepcopy(model)
    config: Any = student.network.config
    stack = find_stack(student.network)
    for position in reversed(range(len(stack))):
        if position not in kept:
            del stack[position]
    config.num_hidden_layers = len(kept)
    for name in ("attention_widths", "attention_window", "layer_types"):  # what a configuration tells of each layer
        each = getattr(config, name, None)
        if isinstance(each, list | tuple):
            setattr(config, name, [each[position] for position in kept])
    return student


def check_first(network: Any, kept: Sequence[int]) -> None:
    """Raise CompressionError where another layer would become the first of a network whose first one is special."""
    if network.config.model_type == "modernbert" and 0 not in kept:
        raise CompressionError(
            "a student without its teacher's first layer",
            where="`distillation.layers`",
            rule="at least 2 for ModernBERT, whose first layer has no norm before its attention",
            value=len(kept),
        )


def find_stack(network: Any) -> nn.ModuleList:
    """The encoder's layers. Raises CompressionError for an architecture without a list of them."""
    num_layers = network.config.num_hidden_layers
    lists = [one for one in network.base_model.modules() if isinstance(one, nn.ModuleList) and len(one) == num_layers]
    if len(lists) == 1:  # XLM has parts of its layers in several
        return lists[0]
    raise CompressionError(
        "an encoder whose layers cannot be taken out",
        rule="a list of layers, each with weights of its own",
        value=network.config.model_type,
        remedy="leave `distill` out of `--steps`, or give a student by `--distillation.encoder`",
    )
