"""An average of the weights on the way, which is scored and kept while training goes on from the weights themselves."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn, get_swa_multi_avg_fn

from pipelines.training.optimizer import get_local
from pipelines.training.parallel import Strategy

METHODS = ("none", "ema", "swa")


@dataclass(frozen=True)
class AveragingConfig:
    """Averaging of the weights over training."""

    method: str = "none"
    """none; ema: old weights fade (Polyak and Juditsky 1992; Tarvainen and Valpola 2017); swa: equal shares of the
    weights of the last part of training (Izmailov et al. 2018)."""
    decay: float = 0.999
    """Of ema, in one step; less in the first steps: at most (1 + step) / (10 + step)."""
    start_fraction: float = 0.5
    """Share of all steps after which swa begins."""
    every_steps: int | None = None
    """Steps from one average to the next; default: 1 for ema, an epoch for swa."""


class Average:
    """The averaged weights that this worker holds."""

    def __init__(self, strategy: Strategy, config: AveragingConfig) -> None:
        self.strategy, self.config = strategy, config
        self.parameters = {name: one for name, one in strategy.model.named_parameters() if not one.is_meta}
        self.every = config.every_steps or (1 if config.method == "ema" else None)
        self.count = 0
        self.weights: dict[str, Tensor] = {}

    def end_step(self, step: int, num_steps: int) -> None:
        """After the weights have moved; `step` counts from 1."""
        if self.every is not None and step % self.every == 0:
            self._take_in(step, num_steps)

    def end_epoch(self, step: int, num_steps: int) -> None:
        """After an epoch, with all workers in one state."""
        if self.every is None:
            self._take_in(step, num_steps)

    def _take_in(self, step: int, num_steps: int) -> None:
        """Add the present weights; those that do not train equal their average."""
        method = self.config.method
        if method == "none" or (method == "swa" and step < self.config.start_fraction * num_steps):
            return
        if not self.count:
            self.weights = {name: one.detach().clone() for name, one in self.parameters.items()}
        else:
            moving = [name for name, one in self.parameters.items() if one.requires_grad]
            averages = [get_local(self.weights[name]) for name in moving]
            present = [get_local(self.parameters[name].detach()) for name in moving]
            if method == "ema":
                steps = self.count * (self.every or 1)
                decay = min(self.config.decay, (1 + steps) / (10 + steps)) ** (self.every or 1)
                get_ema_multi_avg_fn(decay)(averages, present, None)
            else:
                get_swa_multi_avg_fn()(averages, present, self.count)
        self.count += 1

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The model has the averaged weights within the block, if there are any yet, and its own again after it."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, average in self.weights.items():
            one, other = get_local(self.parameters[name].detach()), get_local(average)
            kept = one.clone()
            one.copy_(other)
            other.copy_(kept)

    def state_dict(self) -> dict[str, Any]:
        """Whole averages by name, and how many weights are in them; empty before the first. Every worker takes part."""
        return {"weights": self.strategy.gather(self.weights.items()), "count": self.count} if self.count else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`, of any strategy."""
        self.count = state.get("count", 0)
        self.weights = {
            name: self.strategy.take_part(whole, self.parameters[name]).clone()
            for name, whole in state.get("weights", {}).items()
            if name in self.parameters
        }
