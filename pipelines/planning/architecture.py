"""The shape of an encoder, from which costs are counted: read from its `config.json`, without its weights."""

from dataclasses import dataclass


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
    """Width of the embeddings, below the hidden size where they are projected (ALBERT, ELECTRA)."""
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
    local_window: int = 0
    """Sub-tokens that local attention sees (ModernBERT); 0 for full attention everywhere."""
    num_global_layers: int = 0
    """Layers with full attention where others are local."""
    num_relative_positions: int = 0
    """Rows of the table of relative positions (DeBERTa); 0 for none."""
    relative_terms: int = 0
    """Products of content with relative positions in an attention (DeBERTa: up to 2)."""
    shares_relative_keys: bool = False
    """Whether relative positions are projected by the keys' and queries' own weights."""
    num_other_parameters: int = 0
    """Parameters that the shape does not explain, counted of the network's outline."""
    is_packed: bool = False
    """Whether training and inference compute it without padding on a CPU, and by the fast runtime on a GPU."""
    is_known: bool = True
    """Whether the family is one whose costs are tested; others are counted as if they were BERTs."""


def read_architecture(model: str) -> Architecture:
    """The architecture of a folder with a `config.json`, or a hub id. Raises PlanError, EncoderError."""
    raise NotImplementedError
