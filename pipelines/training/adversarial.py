"""Adversarial training: gradients at weights that are moved to raise the loss are added to the plain ones.

| method | what is moved | how far |
|---|---|---|
| fgm | embeddings of words (Miyato et al. 2017) | ε along their gradient |
| pgd | the same, in several steps (Madry et al. 2018) | 2.5 ε / steps each time, within ε of where they were |
| awp | matrices of the encoder, embeddings aside (Wu et al. 2020) | ε times its own norm, along its gradient |

A gradient is that of the whole global batch, so that workers move alike; with local_sgd each follows its own share's.
Embeddings with sparse gradients are moved where the batch has words.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from pipelines.ner.model import TokenClassifier

METHODS = ("none", "fgm", "pgd", "awp")
EPSILONS = {"fgm": 1.0, "pgd": 1.0, "awp": 0.005}


@dataclass(frozen=True)
class AdversarialConfig:
    """Training against small changes of the weights that raise the loss most."""

    method: str = "none"
    """none; fgm or pgd: move the embeddings of words, once or in steps; awp: move the encoder's matrices. fgm and awp
    double the time of a step."""
    epsilon: float | None = None
    """How far to move: for fgm and pgd the norm of the change of all embeddings of a batch together, default 1; for awp
    a share of each matrix's norm, default 0.005."""
    steps: int = 3
    """Steps of pgd; each takes as long as a plain one."""
    first_epoch: int = 1
    """The epoch, from 1, with which it begins."""


class Adversary:
    """Finds where to move the weights of one model."""

    def __init__(self, model: TokenClassifier, config: AdversarialConfig) -> None:
        self.parameters = list(model.parameters())
        self.is_relative = config.method == "awp"
        self.targets = _list_matrices(model) if self.is_relative else [model.network.get_input_embeddings().weight]
        self.steps = config.steps if config.method == "pgd" else 1
        self.epsilon = EPSILONS[config.method] if config.epsilon is None else config.epsilon

    def add_gradients(self, compute: Callable[[], object]) -> None:
        """Add the gradients at the moved weights to those that are there; the weights are as before, bit for bit.

        Args:
            compute: adds the gradients of the loss at the present weights.
        """
        climbs = [_Climb(target) for target in self.targets if target.grad is not None]
        # copies: data-parallel training writes the next gradients to the same places
        plain = [None if parameter.grad is None else parameter.grad.clone() for parameter in self.parameters]
        try:
            for _ in range(self.steps):
                for climb in climbs:
                    radius = self.epsilon * (climb.start.norm() if self.is_relative else 1.0)
                    climb.move(radius * min(1.0, 2.5 / self.steps), radius)
                for parameter in self.parameters:
                    parameter.grad = None
                compute()
        finally:
            for climb in climbs:
                climb.write(climb.start)
        for parameter, gradient in zip(self.parameters, plain, strict=True):
            if gradient is not None and parameter.grad is not None:
                parameter.grad = gradient.add_(parameter.grad)


class _Climb:
    """A parameter on its way up the loss: all of it, or the rows that have a gradient."""

    def __init__(self, parameter: nn.Parameter) -> None:
        self.parameter = parameter
        assert parameter.grad is not None
        self.rows = parameter.grad.coalesce().indices()[0] if parameter.grad.is_sparse else None
        self.start = self.read().clone()

    def read(self) -> Tensor:
        """The present values of what climbs; of rows a copy, of a whole parameter a view."""
        values = self.parameter.detach()
        return values if self.rows is None else values[self.rows]

    def write(self, values: Tensor) -> None:
        """Put values, shaped as `read` gives them, into the parameter."""
        if self.rows is None:
            self.parameter.data.copy_(values)
        else:
            self.parameter.data.index_copy_(0, self.rows, values)

    def move(self, size: Tensor | float, radius: Tensor | float) -> None:
        """By `size` along the gradient, but within `radius` of the start."""
        gradient = self.parameter.grad
        assert gradient is not None
        uphill = gradient if self.rows is None else gradient.coalesce().values()
        change = self.read() + uphill * (size / uphill.norm().clamp(min=1e-30)) - self.start
        change *= (radius / change.norm().clamp(min=1e-30)).clamp(max=1.0)
        self.write(self.start + change)


def _list_matrices(model: TokenClassifier) -> list[nn.Parameter]:
    modules = [one for one in model.network.base_model.modules() if not isinstance(one, nn.Embedding)]
    return [one for module in modules for one in module.parameters(recurse=False) if one.ndim > 1]
