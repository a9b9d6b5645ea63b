"""Where a training run is, and who is told of it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor


@dataclass
class TrainingState:
    """Where a run is, and all that it needs to go on."""

    step: int = 0
    epoch: int = 0
    """Epochs completed."""
    epoch_step: int = 0
    """Steps done in the epoch under way."""
    best_f1: float = -1.0
    best_epoch: int = 0
    done: bool = False
    model: dict[str, Tensor] = field(default_factory=dict)
    optimizer: dict[str, Any] = field(default_factory=dict)
    average: dict[str, Any] = field(default_factory=dict)
    """Averaged weights, as `Average` has them."""
    best_model: dict[str, Tensor] = field(default_factory=dict)


class Listener(Protocol):
    """Who is told what happens; every worker calls it at the same moments."""

    def on_start(self, metrics: dict[str, Any]) -> None:
        """Training begins or resumes."""

    def on_step(self, metrics: dict[str, Any]) -> bool | None:
        """A step was taken; whether the state is to be kept at once."""

    def on_checkpoint(self, metrics: dict[str, Any] | None, get_state: Callable[[], TrainingState]) -> None:
        """The state is worth keeping; `metrics` is that of an epoch just finished, or None within an epoch."""
