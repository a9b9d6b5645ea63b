"""What a model computes: parameters, and floating-point operations."""

from dataclasses import dataclass

import numpy as np

from pipelines.ner.runtimes.packed import LEAST_ROW_STEP, MOST_ROW_STEP
from pipelines.planning.architecture import Architecture

SHORT_WINDOW, LENGTH_STEP = 64, 16
"""Where there is no padding, windows below the first have their attention in fp32, and others are filled up in it to a
multiple of the second, in 16-bit floats (`pipelines.training.forward`)."""


@dataclass(frozen=True)
class TrainingSetup:
    """How a model is trained, as far as it costs."""

    batch_tokens: int = 1024
    """Sub-tokens of one forward pass on one worker, at most."""
    accumulation: int = 1
    """Passes of a worker in one optimizer step."""
    precision: str = "fp32"
    """fp32, bf16 or fp16: of products and activations; weights and moments are fp32."""
    device: str = "cpu"
    """cpu or cuda."""
    strategy: str = "ddp"
    """As `--parallel.strategy`: ddp, fsdp, tensor, pipeline, hybrid, local_sgd."""
    num_workers: int = 1
    inside: str = "shard"
    """What hybrid does within a group: shard or tensor."""
    inside_size: int = 2
    """Workers of a group of hybrid."""
    sync_every: int = 8
    """Steps between local_sgd's averages."""
    micro_batches: int = 4
    """Parts of a batch that are in a pipeline at once."""
    gradient_compression: str = "none"
    """none, bf16 or powersgd: what ddp sends."""
    gradient_checkpointing: bool = False
    cpu_offload: bool = False
    """Whether fsdp's slices are kept in the memory of the CPU."""
    head: str = "linear"
    num_tags: int = 9
    sparse_embeddings: bool = True
    num_passes: int = 1
    """Forward and backward passes for one gradient: 2 with fgm or awp, 1 + steps with pgd."""
    num_copies: int = 1
    """Times that each window is in a pass: 2 with R-Drop."""
    dropout_samples: int = 1
    has_average: bool = False
    """Whether averaged weights (ema, swa) are kept."""
    num_epochs: int = 4

    @property
    def is_alone(self) -> bool:
        """Whether no strategy is needed."""
        return self.num_workers == 1

    @property
    def num_shares(self) -> int:
        """Workers that read different parts of a batch."""
        if self.is_alone or self.strategy in ("tensor", "pipeline"):
            return 1
        if self.strategy != "hybrid" or not self.slices_products:
            return self.num_workers
        return max(1, self.num_workers // self.inside_size)

    @property
    def slices_products(self) -> bool:
        """Whether workers compute slices of the same products."""
        inside = self.strategy == "hybrid" and self.inside == "tensor"
        return not self.is_alone and (self.strategy == "tensor" or inside)

    @property
    def slices_weights(self) -> bool:
        """Whether weights, gradients and moments lie in slices that are gathered where they are needed."""
        inside = self.strategy == "hybrid" and self.inside == "shard"
        return not self.is_alone and (self.strategy == "fsdp" or inside)

    @property
    def num_slices(self) -> int:
        """Workers that together hold one model."""
        if self.is_alone or self.strategy in ("ddp", "local_sgd"):
            return 1
        return self.inside_size if self.strategy == "hybrid" else self.num_workers

    @property
    def step_tokens(self) -> int:
        """Sub-tokens of an optimizer step over all workers, at most: `--training.batch_tokens`."""
        return self.batch_tokens * self.accumulation * self.num_shares

    def is_packed(self, architecture: Architecture) -> bool:
        """Whether only real sub-tokens are computed (`pipelines.training.forward`)."""
        divided = self.slices_products or self.slices_weights or (self.strategy == "pipeline" and not self.is_alone)
        return self.device == "cpu" and architecture.is_packed and not divided

    def is_sparse(self, architecture: Architecture) -> bool:
        """Whether the embeddings of words have sparse gradients."""
        return self.is_packed(architecture) and self.sparse_embeddings and self.gradient_compression == "none"


@dataclass(frozen=True)
class Load:
    """What one pass computes: windows by count, sub-tokens (with padding where there is any) and squared lengths."""

    num_tokens: float
    num_windows: float
    sum_of_squares: float
    num_groups: float
    """Different lengths."""
    longest: float
    num_words: float
    largest_group: float = 0.0
    """Squared lengths of the windows whose attention is computed together."""
    short_tokens: float = 0.0
    """Sub-tokens of windows whose attention is in fp32 whatever the precision."""
    short_squares: float = 0.0
    """Squared lengths of those."""
    filled_tokens: float = 0.0
    """Sub-tokens of the other windows, as their attention in 16-bit floats fills them up."""
    filled_squares: float = 0.0
    """Squared lengths of those."""

    @classmethod
    def of(cls, lengths: np.ndarray, words_per_token: float, is_packed: bool, copies: int = 1) -> "Load":
        """Of windows of these lengths, one or more times."""
        windows, longest, real = len(lengths) * copies, int(lengths.max()), int(lengths.sum()) * copies
        words = real * words_per_token
        if is_packed:
            each, counts = np.unique(lengths, return_counts=True)
            pairs = each.astype(np.int64) ** 2 * counts * copies
            is_short = each < SHORT_WINDOW
            filled = (-(-each // LENGTH_STEP) * LENGTH_STEP)[~is_short]
            return cls(
                num_tokens=_fill(real),
                num_windows=windows,
                sum_of_squares=int(pairs.sum()),
                num_groups=len(each),
                longest=longest,
                num_words=_fill(round(words)),
                largest_group=int(pairs.max()),
                short_tokens=int((each * counts)[is_short].sum()) * copies,
                short_squares=int(pairs[is_short].sum()),
                filled_tokens=int((filled * counts[~is_short]).sum()) * copies,
                filled_squares=int((filled.astype(np.int64) ** 2 * counts[~is_short]).sum()) * copies,
            )
        squares = windows * longest**2
        return cls(windows * longest, windows, squares, 1, longest, words, squares)


@dataclass(frozen=True)
class Operations:
    """Floating-point operations; a multiply-add is two."""

    linear: float
    """Of products with weights."""
    attention: float
    """Of products between sub-tokens."""

    @property
    def total(self) -> float:
        """All of them."""
        return self.linear + self.attention


def count_parameters(architecture: Architecture, num_tags: int, head: str = "linear") -> int:
    """Parameters of the encoder and its head."""
    crf = num_tags * (num_tags + 2) if head == "crf" else 0
    return architecture.num_encoder_parameters + (architecture.hidden_size + 1) * num_tags + crf


def count_operations(architecture: Architecture, load: Load, num_tags: int = 9, words_only: bool = False) -> Operations:
    """Of one forward pass; with `words_only` the last layer's are left out where no word begins."""
    hidden, inner, tokens = architecture.hidden_size, architecture.intermediate_size, load.num_tokens
    around = 2 * (hidden**2 + (3 if architecture.is_gated else 2) * hidden * inner)
    linear = architecture.num_layers * tokens * (6 * hidden**2 + around)
    ends = load.num_words if words_only else tokens
    linear -= (tokens - ends) * around
    if architecture.embedding_size != hidden or architecture.family == "albert":
        linear += 2 * tokens * architecture.embedding_size * hidden
    linear += 2 * ends * hidden * num_tags
    if architecture.family == "modernbert":
        linear += 2 * ends * hidden**2  # its head has a layer
    linear += 2 * tokens * architecture.conv_kernel * hidden**2
    attention = 4.0 * hidden * load.sum_of_squares
    if architecture.relative_terms:
        span = min(architecture.relative_span, load.longest) if architecture.clips_span else architecture.relative_span
        attention += architecture.relative_terms * 4 * hidden * span * tokens
        linear += architecture.num_layers * architecture.relative_terms * 4 * span * hidden**2
    return Operations(linear, architecture.num_layers * attention)


def _fill(rows: int) -> int:
    """Rows as they are filled up without padding (`fill_rows` of `pipelines.ner.runtimes.packed`)."""
    step = 1 << (min(max(rows // 8, LEAST_ROW_STEP), MOST_ROW_STEP).bit_length() - 1)
    return -(-rows // step) * step
