"""A model's weights under common names, whatever transformers calls them: for the packed runtime."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

Parameters = tuple[Tensor, Tensor]
_ACTIVATIONS = {"gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "relu": "relu"}
_BODIES = {
    "bert": "bert",
    "roberta": "roberta",
    "xlm-roberta": "roberta",
    "camembert": "roberta",
    "electra": "electra",
    "distilbert": "distilbert",
}


@dataclass(frozen=True)
class Layer:
    """One block: attention, add, norm, feed-forward, add, norm."""

    query_key_value: tuple[Parameters, Parameters, Parameters]
    attention_out: Parameters
    attention_norm: nn.LayerNorm
    feed_in: Parameters
    feed_out: Parameters
    feed_norm: nn.LayerNorm


@dataclass(frozen=True)
class Architecture:
    """An encoder with absolute positions and norms after each block, and a linear classifier on it."""

    word_table: Tensor
    position_table: Tensor
    """Embeddings of positions, that of the only token type added."""
    first_position: int
    norm: nn.LayerNorm
    projection: Parameters | None
    layers: list[Layer]
    classifier: Parameters
    num_heads: int
    activation: str


def read_architecture(network: Any) -> Architecture | None:
    """The architecture of a Hugging Face token classifier; None if it is of another kind."""
    config = network.config
    body = getattr(network, _BODIES.get(config.model_type, ""), None)
    activation = _ACTIVATIONS.get(str(getattr(config, "hidden_act", getattr(config, "activation", None))))
    classifier = getattr(network, "classifier", None)
    relative = getattr(config, "position_embedding_type", None) not in (None, "absolute")
    if body is None or activation is None or relative or type(classifier) is not nn.Linear:
        return None
    if getattr(config, "is_decoder", False):
        return None
    embeddings = body.embeddings
    positions = embeddings.position_embeddings.weight.detach().float()
    if hasattr(embeddings, "token_type_embeddings"):
        positions = positions + embeddings.token_type_embeddings.weight[0].detach().float()
    projection = getattr(body, "embeddings_project", None)
    distilled = config.model_type == "distilbert"
    layers = map(_read_distilbert_layer, body.transformer.layer) if distilled else map(_read_layer, body.encoder.layer)
    return Architecture(
        word_table=embeddings.word_embeddings.weight.detach(),
        position_table=positions,
        first_position=config.pad_token_id + 1 if _BODIES[config.model_type] == "roberta" else 0,
        norm=embeddings.LayerNorm,
        projection=_read(projection) if projection is not None else None,
        layers=list(layers),
        classifier=(classifier.weight.detach().float(), _read(classifier)[1].float()),
        num_heads=config.num_attention_heads,
        activation=activation,
    )


def _read_layer(layer: Any) -> Layer:
    attention = layer.attention
    heads = attention.self
    return Layer(
        (_read(heads.query), _read(heads.key), _read(heads.value)),
        _read(attention.output.dense),
        attention.output.LayerNorm,
        _read(layer.intermediate.dense),
        _read(layer.output.dense),
        layer.output.LayerNorm,
    )


def _read_distilbert_layer(layer: Any) -> Layer:
    heads = layer.attention
    return Layer(
        (_read(heads.q_lin), _read(heads.k_lin), _read(heads.v_lin)),
        _read(heads.out_lin),
        layer.sa_layer_norm,
        _read(layer.ffn.lin1),
        _read(layer.ffn.lin2),
        layer.output_layer_norm,
    )


def _read(linear: nn.Linear) -> Parameters:
    bias = linear.bias if linear.bias is not None else torch.zeros(linear.out_features)
    return linear.weight.detach(), bias.detach()
