"""What a forward pass keeps for the backward pass, layer by layer.

Counted operator by operator: what each saves (`pipelines.training.forward` without padding, transformers' modules with
it), in bytes. Of a sub-token and a unit of the hidden size a layer without padding keeps the query, key and value, the
attention's context, and input and output of two norms; of a sub-token and a unit between, what is before and after the
activation; of a pair of sub-tokens and a head, its weight before and after dropout. The attention of short windows is
in fp32, and masks of dropout are 16-bit floats.
"""

from dataclasses import dataclass

from pipelines.planning.architecture import Architecture
from pipelines.planning.cost import SHORT_WINDOW, Load, TrainingSetup

WIDTHS = {"fp32": 4, "bf16": 2, "fp16": 2, "int8": 1}
"""Bytes of a number."""


@dataclass(frozen=True)
class Activations:
    """Bytes that the backward pass reads."""

    embeddings: float
    layers: tuple[float, ...]
    """Of each layer, the first one first."""
    head: float
    attention: float
    """Of a layer, what its attention reads, which goes last."""
    scratch: float
    """What the backward pass of a layer makes and drops above its attention."""
    attention_scratch: float
    """The same within its attention."""

    @property
    def total(self) -> float:
        """At the end of the forward pass."""
        return self.embeddings + sum(self.layers) + self.head


def count_activations(architecture: Architecture, setup: TrainingSetup, load: Load) -> Activations:
    """Of one pass over a load, with the whole model on one worker."""
    is_packed = setup.is_packed(architecture)
    hidden, inner, width = architecture.hidden_size, architecture.intermediate_size, WIDTHS[setup.precision]
    tokens, words = load.num_tokens, (load.num_words if is_packed else load.num_tokens)
    every = _count_layer(architecture, setup, load, tokens, is_packed)
    last = _count_layer(architecture, setup, load, words, is_packed)
    inputs = tokens * hidden * (width if is_packed else 4)
    scratch = tokens * width * (inner * (2 if architecture.is_gated else 1) + 3 * hidden)
    attended = 4 * load.short_tokens + width * (tokens - load.short_tokens) if is_packed else tokens * width
    pairs = architecture.num_heads * load.largest_group * (4 if is_packed and load.longest < SHORT_WINDOW else width)
    writes_pairs = (setup.device == "cpu" and (architecture.drops_weights or is_packed)) or architecture.relative_terms
    attention = 3 * attended * hidden + (2 * pairs if writes_pairs else 0)
    within = 12 * attended * hidden + (3 * pairs if writes_pairs else 0)
    layers: tuple[float, ...] = (*(every,) * (architecture.num_layers - 1), last)
    if setup.gradient_checkpointing:
        layers = (0.0, *(inputs,) * (architecture.num_layers - 1))  # the first layer's input is the embeddings
        scratch, within = scratch + every, within + attention
    embedding = architecture.embedding_size
    masks = architecture.drops_hidden * (2 if is_packed else 1 if setup.device == "cuda" else 4)
    embedded = tokens * embedding * (4 + masks) + inputs
    if embedding != hidden or (is_packed and width < 4):
        embedded += 4 * tokens * embedding
    head = setup.dropout_samples * words * (5 * hidden + 16 * setup.num_tags)
    if setup.head == "crf":
        head += 12 * words * setup.num_tags**2
    return Activations(embedded, layers, head, attention, scratch, within)


def _count_layer(architecture: Architecture, setup: TrainingSetup, load: Load, ends: float, is_packed: bool) -> float:
    """Of one layer that goes on with `ends` sub-tokens after its attention."""
    hidden, inner, width = architecture.hidden_size, architecture.intermediate_size, WIDTHS[setup.precision]
    masks = architecture.drops_hidden * (1 + architecture.has_attention_dropout)
    in_between = (1 + architecture.activation_products) * width
    if is_packed:
        weights = 12 * hidden**2 if width == 4 else 2 * (4 * hidden**2 + 2 * hidden * inner)
        kept = ends * (hidden * (5 * width + 2 * masks) + 16 + 2 * inner * width) + weights
        long = load.filled_tokens, load.filled_squares
        if width == 4:
            long = load.num_tokens - load.short_tokens, load.sum_of_squares - load.short_squares
        for (tokens, squares), each in (((load.short_tokens, load.short_squares), 4), (long, width)):
            pairs = 2 * each + 2 if architecture.drops_weights else each
            kept += 3 * each * hidden * tokens + architecture.num_heads * pairs * squares
        return kept
    on_gpu, is_reduced = setup.device == "cuda", width < 4
    is_projected = architecture.embedding_size != hidden or architecture.family == "albert"
    of_hidden = 32
    if is_reduced:  # norms give fp32, but on a CPU not where a projection has made their input bf16
        of_hidden = 24 if on_gpu or architecture.relative_terms else 20 if is_projected else 30
    of_hidden += masks * (1 if on_gpu else width)
    of_inner: float = in_between
    if architecture.is_gated:  # norms come first, positions turn queries and keys, two projections are multiplied
        of_hidden, of_inner = (42 if not is_reduced else 32), 4 * width
    kept = load.num_tokens * (hidden * of_hidden + inner * of_inner)
    if architecture.relative_terms:
        kept += _count_relative(architecture, load, width)
    elif on_gpu:
        kept += load.sum_of_squares * width + 4 * architecture.num_heads * load.num_tokens  # the mask; a sum a row
    elif architecture.drops_weights:
        kept += 12 * architecture.num_heads * load.sum_of_squares
    shared = architecture.num_distinct_layers / architecture.num_layers if architecture.num_distinct_layers else 1
    matrices = 4 * hidden**2 + (3 if architecture.is_gated else 2) * hidden * inner
    return kept + (2 * shared * matrices if is_reduced else 0)


def _count_relative(architecture: Architecture, load: Load, width: int) -> float:
    """Of DeBERTa's attention: weights, and products with relative positions before they are put in place."""
    span = min(architecture.relative_span, load.longest) if architecture.clips_span else architecture.relative_span
    terms, hidden, heads = architecture.relative_terms, architecture.hidden_size, architecture.num_heads
    pairs = 3 * width * heads * load.sum_of_squares
    placed = 2 * terms * width * heads * load.num_tokens * span
    repeated = 2 * terms * width * hidden * load.num_windows * span
    table = 4 * architecture.relative_span * hidden * width * architecture.drops_hidden
    return pairs + placed + repeated + table + 3 * width * load.num_tokens * hidden
