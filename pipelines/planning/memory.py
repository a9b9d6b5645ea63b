"""What a worker holds in memory at its peak."""

from dataclasses import dataclass

from pipelines.planning.architecture import Architecture
from pipelines.planning.cost import Lengths, TrainingSetup


@dataclass(frozen=True)
class Memory:
    """Bytes of one worker at its peak, on its GPU or, without one, in its process."""

    weights: float
    """Weights, and copies of them: the best epoch's, averaged ones, what a checkpoint gathers."""
    gradients: float
    optimizer: float
    activations: float
    """What the backward pass needs, and scratch."""
    context: float
    """The process or the GPU's context before there is a model."""

    @property
    def total(self) -> float:
        """All of it."""
        return self.weights + self.gradients + self.optimizer + self.activations + self.context


def estimate_training_memory(architecture: Architecture, setup: TrainingSetup, lengths: Lengths) -> Memory:
    """Of one worker that trains."""
    raise NotImplementedError


def estimate_inference_memory(
    architecture: Architecture, precision: str, batch_tokens: int, window: int, device: str = "cpu", num_tags: int = 9
) -> Memory:
    """Of one process that predicts."""
    raise NotImplementedError
