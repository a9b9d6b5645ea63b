"""The shape of an encoder, from which costs are counted: read from its `config.json`, without its weights."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForTokenClassification, BertConfig

from pipelines.ner.encoders import SCRATCH, SCRATCH_SHAPE, SCRATCH_VOCABULARY, find_encoder
from pipelines.ner.errors import tell_first_line
from pipelines.ner.runtimes.architectures import may_pack
from pipelines.planning.errors import PlanError

_BERTS = ("bert", "roberta", "xlm-roberta", "camembert", "electra")
_FIRST_POSITIONS = {"roberta": 2, "xlm-roberta": 2, "camembert": 2}
"""Rows of the table of positions that no sub-token takes."""


@dataclass(frozen=True)
class Architecture:
    """An encoder of transformer layers with a classifier of tags on it."""

    family: str
    """transformers' `model_type`."""
    num_layers: int
    hidden_size: int
    num_heads: int
    intermediate_size: int
    vocab_size: int
    embedding_size: int
    """Width of the embeddings; below the hidden size where they are projected (ALBERT, ELECTRA)."""
    num_positions: int
    """Rows of the table of absolute positions; 0 for none."""
    max_window: int
    """Sub-tokens of the longest input."""
    num_types: int = 0
    """Token types; 0 for none."""
    num_distinct_layers: int = 0
    """Layers with weights of their own; fewer than `num_layers` where layers share them (ALBERT: 1)."""
    is_gated: bool = False
    """Whether the feed-forward multiplies two projections (GeGLU, ModernBERT)."""
    has_biases: bool = True
    """Whether products and norms have biases, and the embeddings' norm and the head are a BERT's."""
    relative_terms: int = 0
    """Products of contents with relative positions in an attention (DeBERTa: up to 2)."""
    relative_span: int = 0
    """Relative positions to each side (DeBERTa); the table has twice as many rows."""
    clips_span: bool = False
    """Whether a short window uses only a part of the span (DeBERTa, but not its second version)."""
    shares_relative_keys: bool = False
    """Whether relative positions are projected by the keys' and queries' own weights (DeBERTa v3)."""
    conv_kernel: int = 0
    """Sub-tokens that a convolution beside the first layer sees (the largest of DeBERTa's second version)."""
    activation_products: int = 1
    """Operators of the feed-forward's activation: 1, or 4 where transformers computes it step by step."""
    drops_hidden: bool = True
    """Whether activations are dropped out in training."""
    drops_weights: bool = True
    """Whether attention weights are."""
    has_attention_dropout: bool = True
    """Whether what attention gives is dropped out (not in DistilBERT)."""
    num_other_parameters: int = 0
    """Parameters that the shape does not tell."""
    is_packed: bool = False
    """Whether training on a CPU and fast inference compute it without padding."""
    is_known: bool = True
    """Whether the costs of its family are tested; others are counted as if they were BERTs."""

    @property
    def num_word_parameters(self) -> int:
        """Of the table of words."""
        return self.vocab_size * self.embedding_size

    @property
    def num_embedding_parameters(self) -> int:
        """Of all tables below the layers, with their norm and projection."""
        width, hidden = self.embedding_size, self.hidden_size
        tables = self.num_word_parameters + (self.num_positions + self.num_types) * width
        norm = width * (2 if self.has_biases else 1)
        is_projected = width != hidden or self.family == "albert"
        bias = 0 if self.family == "deberta-v2" or self.family == "deberta" else hidden
        return tables + norm + (width * hidden + bias if is_projected else 0)

    @property
    def num_layer_parameters(self) -> int:
        """Of one layer."""
        hidden, inner = self.hidden_size, self.intermediate_size
        matrices = 4 * hidden**2 + (3 if self.is_gated else 2) * hidden * inner
        vectors = 9 * hidden + inner if self.has_biases else 2 * hidden
        if self.family == "deberta":
            vectors -= hidden  # keys have no bias
        own = 0 if self.shares_relative_keys else self.relative_terms * hidden**2
        own_biases = hidden * max(0, self.relative_terms - 1) if self.family == "deberta" else hidden * bool(own) * 2
        return matrices + vectors + own + (own_biases if own else 0)

    @property
    def num_encoder_parameters(self) -> int:
        """Of all but the head."""
        layers = (self.num_distinct_layers or self.num_layers) * self.num_layer_parameters
        relative = 2 * self.relative_span * self.hidden_size
        return self.num_embedding_parameters + layers + relative + self.num_other_parameters


def read_architecture(model: str) -> Architecture:
    """Of a folder with a `config.json`, a hub id, or `scratch`. Raises PlanError, EncoderError."""
    if model == SCRATCH:
        return convert_config(BertConfig(vocab_size=SCRATCH_VOCABULARY, **SCRATCH_SHAPE))
    path = find_encoder(model)
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise _refuse(model, error) from error
    return convert_config(config)


def convert_config(config: Any) -> Architecture:
    """The architecture that a configuration of transformers describes. Raises PlanError."""
    readers = {"distilbert": _read_distilbert, "albert": _read_albert, "modernbert": _read_modernbert}
    readers |= dict.fromkeys(_BERTS, _read_bert) | dict.fromkeys(("deberta", "deberta-v2"), _read_deberta)
    if config.model_type in readers:
        return readers[config.model_type](config)
    try:
        with torch.device("meta"):
            outline = AutoModelForTokenClassification.from_config(config, trust_remote_code=False)
        guess = replace(_read_bert(config), is_packed=False, is_known=False)
    except (AttributeError, TypeError, ValueError) as error:
        raise _refuse(config.model_type, error) from error
    head = (guess.hidden_size + 1) * config.num_labels
    found = sum(parameter.numel() for parameter in outline.parameters())
    return replace(guess, num_other_parameters=found - guess.num_encoder_parameters - head)


def _refuse(model: str, error: Exception) -> PlanError:
    return PlanError(
        f"nothing can be counted of `{model}`",
        rule="an encoder of transformer layers whose config.json transformers can read",
        value=tell_first_line(error),
        remedy="give the folder of another encoder",
    )


def _read_bert(config: Any) -> Architecture:
    positions = config.max_position_embeddings
    return Architecture(
        family=config.model_type,
        num_layers=config.num_hidden_layers,
        hidden_size=config.hidden_size,
        num_heads=config.num_attention_heads,
        intermediate_size=config.intermediate_size,
        vocab_size=config.vocab_size,
        embedding_size=getattr(config, "embedding_size", config.hidden_size),
        num_positions=positions,
        max_window=positions - _FIRST_POSITIONS.get(config.model_type, 0),
        num_types=getattr(config, "type_vocab_size", 0),
        activation_products=4 if getattr(config, "hidden_act", "") in ("gelu_new", "gelu_fast") else 1,
        drops_hidden=getattr(config, "hidden_dropout_prob", 0.1) > 0,
        drops_weights=getattr(config, "attention_probs_dropout_prob", 0.1) > 0,
        is_packed=may_pack(config),
    )


def _read_distilbert(config: Any) -> Architecture:
    return Architecture(
        family=config.model_type,
        num_layers=config.n_layers,
        hidden_size=config.dim,
        num_heads=config.n_heads,
        intermediate_size=config.hidden_dim,
        vocab_size=config.vocab_size,
        embedding_size=config.dim,
        num_positions=config.max_position_embeddings,
        max_window=config.max_position_embeddings,
        drops_hidden=config.dropout > 0,
        drops_weights=config.attention_dropout > 0,
        has_attention_dropout=False,
        is_packed=may_pack(config),
    )


def _read_albert(config: Any) -> Architecture:
    own = config.num_hidden_groups * config.inner_group_num
    return replace(_read_bert(config), num_distinct_layers=own, num_layers=config.num_hidden_layers)


def _read_deberta(config: Any) -> Architecture:
    terms = [term for term in config.pos_att_type or [] if term in ("c2p", "p2c")] if config.relative_attention else []
    longest = config.max_relative_positions
    longest = longest if longest >= 1 else config.max_position_embeddings
    is_second = config.model_type == "deberta-v2"
    buckets = getattr(config, "position_buckets", -1) if is_second else -1
    normed = is_second and "layer_norm" in getattr(config, "norm_rel_ebd", "none")
    kernel = getattr(config, "conv_kernel_size", 0) if is_second else 0
    hidden = config.hidden_size
    return replace(
        _read_bert(config),
        num_positions=config.max_position_embeddings if config.position_biased_input else 0,
        relative_terms=len(terms),
        relative_span=(buckets if buckets > 0 else longest) if config.relative_attention else 0,
        clips_span=not is_second,
        shares_relative_keys=is_second and bool(getattr(config, "share_att_key", False)),
        conv_kernel=kernel,
        num_other_parameters=2 * hidden * normed + (kernel * hidden**2 + 3 * hidden if kernel else 0),
        is_packed=False,
    )


def _read_modernbert(config: Any) -> Architecture:
    hidden = config.hidden_size
    return Architecture(
        family=config.model_type,
        num_layers=config.num_hidden_layers,
        hidden_size=hidden,
        num_heads=config.num_attention_heads,
        intermediate_size=config.intermediate_size,
        vocab_size=config.vocab_size,
        embedding_size=hidden,
        num_positions=0,
        max_window=config.max_position_embeddings,
        is_gated=True,
        has_biases=False,
        drops_hidden=config.mlp_dropout > 0,
        drops_weights=config.attention_dropout > 0,
        has_attention_dropout=config.attention_dropout > 0,
        num_other_parameters=hidden**2 + hidden,  # the last norm and the head's; the first layer has one norm less
    )
