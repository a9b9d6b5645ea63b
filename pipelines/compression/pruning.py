"""Attention heads and feed-forward columns, taken out by importance.

What a part is worth is the first-order change of the loss without it: activation times gradient, summed over a part
and a window's rows (Michel et al. 2019 for heads; Molchanov et al. 2017 for units), and over windows by its size.

Shapes: N rows (sub-tokens), H heads of a layer, d size of a head, I columns of a feed-forward part.
"""

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pipelines.compression.config import CompressionError, PruningConfig
from pipelines.ner.model import TokenClassifier
from pipelines.ner.runtimes.architectures import Architecture, read_architecture
from pipelines.ner.shapes import FIELD, set_weights
from pipelines.training.batches import Batch
from pipelines.training.objective import sum_loss

LEAST_COLUMNS = 8
"""A feed-forward part keeps a multiple of so many columns, which vector units like."""


@dataclass(frozen=True)
class Importance:
    """What each part of each layer is worth."""

    heads: list[Tensor]
    """A layer's heads `[H]`, as shares of the layer's length (so that layers can be compared)."""
    columns: list[Tensor]
    """A layer's feed-forward columns `[I]`."""


def measure_importance(model: TokenClassifier, batches: Iterable[Batch]) -> Importance:
    """The importance of a model's parts on some batches. Raises CompressionError for an unknown architecture."""
    found = find_parts(model.network)
    model.eval()
    inputs: dict[nn.Module, Tensor] = {}
    sums: dict[nn.Module, Tensor] = {}

    def keep(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        """Remember what goes into a linear layer, with its gradient."""
        arguments[0].retain_grad()
        inputs[module] = arguments[0]

    watched = [part for layer in found.layers for part in (layer.attention_out, layer.feed_out)]
    hooks = [part.register_forward_pre_hook(keep) for part in watched]
    try:
        for batch in batches:
            emissions_BWK = model(batch.input_ids_BT, batch.attention_mask_BT, batch.word_starts_BW)
            sum_loss(model, emissions_BWK, batch).backward()
            for part, value_BTX in inputs.items():
                effect_BX = (value_BTX.detach() * value_BTX.grad).sum(dim=1)  # type: ignore[operator]
                if part in {layer.attention_out for layer in found.layers}:
                    effect_BX = effect_BX.unflatten(1, (-1, found.head_size)).sum(dim=2)
                sums[part] = sums.get(part, 0) + effect_BX.abs().sum(dim=0)
            model.zero_grad()
    finally:
        for hook in hooks:
            hook.remove()
    heads = [sums[layer.attention_out] for layer in found.layers]
    return Importance(
        [one / one.norm().clamp_min(1e-12) for one in heads], [sums[one.feed_out] for one in found.layers]
    )


def prune(model: TokenClassifier, importance: Importance, config: PruningConfig) -> TokenClassifier:
    """A copy of a model without its least important heads (over all layers) and columns (of each layer)."""
    pruned = copy.deepcopy(model)
    found = find_parts(pruned.network)
    network: Any = pruned.network
    if config.heads:
        kept = choose_heads(importance.heads, config.heads)
        for layer, heads in zip(found.layers, kept, strict=True):
            rows = (heads[:, None] * found.head_size + torch.arange(found.head_size)).flatten()
            for part in (layer.query, layer.key, layer.value):
                set_weights(part, part.weight[rows], None if part.bias is None else part.bias[rows])
            set_weights(layer.attention_out, layer.attention_out.weight[:, rows], layer.attention_out.bias)
        setattr(network.config, FIELD, [len(heads) * found.head_size for heads in kept])
    if config.feed_forward:
        for layer, scores_I in zip(found.layers, importance.columns, strict=True):
            count = max(LEAST_COLUMNS, round(len(scores_I) * (1 - config.feed_forward) / LEAST_COLUMNS) * LEAST_COLUMNS)
            rows = scores_I.topk(min(count, len(scores_I))).indices.sort().values
            set_weights(
                layer.feed_in,
                layer.feed_in.weight[rows],
                None if layer.feed_in.bias is None else layer.feed_in.bias[rows],
            )
            set_weights(layer.feed_out, layer.feed_out.weight[:, rows], layer.feed_out.bias)
        name = "hidden_dim" if network.config.model_type == "distilbert" else "intermediate_size"
        setattr(network.config, name, found.layers[0].feed_in.out_features)
    return pruned


def choose_heads(scores: list[Tensor], share: float) -> list[Tensor]:
    """The heads that each layer keeps, in their order: the best over all layers, and each layer's best."""
    ranked = sorted(
        ((float(score), layer, head) for layer, heads_H in enumerate(scores) for head, score in enumerate(heads_H)),
        reverse=True,
    )
    num_kept = max(1, round(len(ranked) * (1 - share)))
    kept = [{int(heads_H.argmax())} for heads_H in scores]
    for _, layer, head in ranked[:num_kept]:
        kept[layer].add(head)
    return [torch.tensor(sorted(heads)) for heads in kept]


def find_parts(network: Any) -> Architecture:
    """The parts of a token classifier. Raises CompressionError if they are not known."""
    found = read_architecture(network)
    if found is None:
        raise CompressionError(
            "an encoder whose parts cannot be taken out",
            rule="an encoder built like BERT, RoBERTa, ELECTRA or DistilBERT",
            value=network.config.model_type,
            remedy="leave `prune` out of `--steps`",
        )
    return found
