"""A model's parts under common names, whatever transformers calls them: for what computes them without padding."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from pipelines.ner.casing import has_cases

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

    query: nn.Linear
    key: nn.Linear
    value: nn.Linear
    attention_out: nn.Linear
    attention_norm: nn.LayerNorm
    feed_in: nn.Linear
    feed_out: nn.Linear
    feed_norm: nn.LayerNorm
    weights_dropout: float
    """Of the attention weights."""
    attention_dropout: float
    """Of what attention gives."""
    feed_dropout: float


@dataclass(frozen=True)
class Architecture:
    """An encoder with absolute positions and norms after each block, and a linear classifier on it."""

    words: nn.Embedding
    positions: nn.Embedding
    first_position: int
    types: nn.Embedding | None
    """Of which only the first is used, unless they tell cases."""
    casing: bool
    norm: nn.LayerNorm
    dropout: float
    projection: nn.Linear | None
    layers: list[Layer]
    classifier: nn.Linear
    classifier_dropout: float
    num_heads: int
    """Before any were pruned."""
    head_size: int
    activation: str


def may_pack(config: Any) -> bool:
    """Whether a network of this configuration is of the kind that `read_architecture` reads."""
    relative = getattr(config, "position_embedding_type", None) not in (None, "absolute")
    is_decoder = getattr(config, "is_decoder", False)
    return config.model_type in _BODIES and _find_activation(config) is not None and not relative and not is_decoder


def read_architecture(network: Any) -> Architecture | None:
    """The architecture of a Hugging Face token classifier; None if it is of another kind."""
    config = network.config
    body = getattr(network, _BODIES.get(config.model_type, ""), None)
    activation = _find_activation(config)
    classifier = getattr(network, "classifier", None)
    if body is None or activation is None or type(classifier) is not nn.Linear or not may_pack(config):
        return None
    embeddings = body.embeddings
    return Architecture(
        words=embeddings.word_embeddings,
        positions=embeddings.position_embeddings,
        first_position=config.pad_token_id + 1 if _BODIES[config.model_type] == "roberta" else 0,
        types=getattr(embeddings, "token_type_embeddings", None),
        casing=has_cases(network),
        norm=embeddings.LayerNorm,
        dropout=embeddings.dropout.p,
        projection=getattr(body, "embeddings_project", None),
        layers=list(_read_distilbert(body) if config.model_type == "distilbert" else _read_bert(body)),
        classifier=classifier,
        classifier_dropout=network.dropout.p,
        num_heads=config.num_attention_heads,
        head_size=config.hidden_size // config.num_attention_heads,
        activation=activation,
    )


def read_layers(network: Any) -> list[Layer] | None:
    """The layers of a network of transformers, whatever head it has; None if it is of another kind."""
    body = getattr(network, _BODIES.get(network.config.model_type, ""), None)
    if body is None or not may_pack(network.config):
        return None
    return list(_read_distilbert(body) if network.config.model_type == "distilbert" else _read_bert(body))


def _find_activation(config: Any) -> str | None:
    return _ACTIVATIONS.get(str(getattr(config, "hidden_act", getattr(config, "activation", None))))


def _read_bert(body: Any) -> Iterator[Layer]:
    for layer in body.encoder.layer:
        attention = layer.attention
        yield Layer(
            query=attention.self.query,
            key=attention.self.key,
            value=attention.self.value,
            attention_out=attention.output.dense,
            attention_norm=attention.output.LayerNorm,
            feed_in=layer.intermediate.dense,
            feed_out=layer.output.dense,
            feed_norm=layer.output.LayerNorm,
            weights_dropout=attention.self.dropout.p,
            attention_dropout=attention.output.dropout.p,
            feed_dropout=layer.output.dropout.p,
        )


def _read_distilbert(body: Any) -> Iterator[Layer]:
    for layer in body.transformer.layer:
        attention = layer.attention
        yield Layer(
            query=attention.q_lin,
            key=attention.k_lin,
            value=attention.v_lin,
            attention_out=attention.out_lin,
            attention_norm=layer.sa_layer_norm,
            feed_in=layer.ffn.lin1,
            feed_out=layer.ffn.lin2,
            feed_norm=layer.output_layer_norm,
            weights_dropout=attention.dropout.p,
            attention_dropout=0.0,
            feed_dropout=layer.ffn.dropout.p,
        )
