"""How long a step and a document take."""

from dataclasses import dataclass

from pipelines.planning.architecture import Architecture
from pipelines.planning.cost import Lengths, TrainingSetup
from pipelines.planning.rates import Rates


@dataclass(frozen=True)
class StepTime:
    """Seconds of an average optimizer step."""

    compute: float
    """Products."""
    memory: float
    """What passes through memory besides."""
    optimizer: float
    communication: float
    overhead: float
    """Starting operators, making batches, waiting for a pipeline to fill."""

    @property
    def total(self) -> float:
        """All of it."""
        return self.compute + self.memory + self.optimizer + self.communication + self.overhead


def count_steps(lengths: Lengths, setup: TrainingSetup) -> int:
    """Optimizer steps of an epoch."""
    raise NotImplementedError


def estimate_step_s(architecture: Architecture, setup: TrainingSetup, lengths: Lengths, rates: Rates) -> StepTime:
    """Of a worker group that trains."""
    raise NotImplementedError


def estimate_inference_tokens_per_s(
    architecture: Architecture, precision: str, lengths: Lengths, rates: Rates, num_tags: int = 9
) -> float:
    """Sub-tokens per second of one process that predicts."""
    raise NotImplementedError
