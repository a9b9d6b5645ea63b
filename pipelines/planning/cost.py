"""What a model computes: parameters, floating-point operations, and how a corpus falls into batches."""

from collections.abc import Mapping
from dataclasses import dataclass

from pipelines.planning.architecture import Architecture


@dataclass(frozen=True)
class Lengths:
    """Lengths of the windows of a corpus in sub-tokens, special ones included, as a histogram."""

    counts: tuple[tuple[int, int], ...]
    """(Length, number of windows), shortest first."""
    words_per_token: float = 0.75
    """Words by sub-tokens: 1 / fertility."""

    @classmethod
    def from_counts(cls, counts: Mapping[int, int], words_per_token: float = 0.75) -> "Lengths":
        """Of a mapping of length → windows."""
        return cls(tuple(sorted(counts.items())), words_per_token)

    @classmethod
    def from_records(
        cls, histogram: Mapping[str, int], *, window: int, stride: int, num_tokens: int | None = None
    ) -> "Lengths":
        """Of a `token_histogram` as `ShardsInfo` has it (lower edge of 16 → records), cut into windows."""
        raise NotImplementedError

    @property
    def num_windows(self) -> int:
        return sum(count for _, count in self.counts)

    @property
    def num_tokens(self) -> int:
        return sum(length * count for length, count in self.counts)

    @property
    def sum_of_squares(self) -> int:
        return sum(length * length * count for length, count in self.counts)

    @property
    def longest(self) -> int:
        return self.counts[-1][0]


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
    gradient_checkpointing: bool = False
    cpu_offload: bool = False
    head: str = "linear"
    num_tags: int = 9
    sparse_embeddings: bool = True
    num_passes: int = 1
    """Forward and backward passes for one gradient: 2 with fgm or awp, 1 + steps with pgd."""
    num_copies: int = 1
    """Times each window is in a pass: 2 with R-Drop."""
    dropout_samples: int = 1
    has_average: bool = False
    """Whether averaged weights (ema, swa) are kept."""
    num_epochs: int = 4


def count_parameters(architecture: Architecture, num_tags: int, head: str = "linear") -> int:
    """Parameters of the encoder and its head."""
    raise NotImplementedError


def count_forward_flops(architecture: Architecture, lengths: Lengths, num_tags: int = 9) -> float:
    """Floating-point operations (a multiply-add is two) of all windows, each once, without padding."""
    raise NotImplementedError


def divide_batch(lengths: Lengths, batch_tokens: int, device_batch_tokens: int, num_shares: int) -> tuple[int, int]:
    """(`batch_tokens` of a pass, `accumulation`) of a `TrainingSetup` for the settings of `--training`.

    Args:
        batch_tokens: sub-tokens of an optimizer step over all workers.
        device_batch_tokens: padded sub-tokens of a pass on one worker.
        num_shares: workers that read different parts of the batch.
    """
    raise NotImplementedError
