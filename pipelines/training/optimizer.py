"""AdamW in parameter groups, and the learning rate as a function of the step."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
from torch import Tensor, nn

from pipelines.ner.errors import UserError
from pipelines.ner.model import TokenClassifier
from pipelines.training.depths import find_depths, has_own_layers
from pipelines.training.parallel import Strategy

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


class OptimizerError(UserError):
    """Rates that an encoder's layers cannot have."""


MOMENTS = ("exp_avg", "exp_avg_sq")
LEAST_SCALE = 2.0**-16
"""A loss scale far below any that gradients need, and far above what they cannot be divided by."""
SCHEDULES = ("linear", "cosine", "constant")


@dataclass(frozen=True)
class OptimizerConfig:
    """How weights move."""

    learning_rate: float | None = None
    """Peak learning rate of the encoder; default by its hidden size: 1e-3 up to 256, 2e-4 up to 512, 5e-5 up to 768,
    2e-5 above."""
    head_learning_rate: float | None = None
    """Peak learning rate of the head, which begins at nothing; default: 10 times the encoder's, up to 2e-3. What of it
    comes with the encoder, as ModernBERT's last dense layer, has the encoder's."""
    sparse_embeddings: bool = True
    """Move only the embeddings of words that a batch has, where the way of training allows: less time and memory.
    False moves all, by their running means."""
    layer_decay: float = 1.0
    """Factor of the learning rate from each layer of the encoder to the one below, the embeddings last (Clark et al.
    2020, ELECTRA); 1 for none."""
    schedule: str = "linear"
    """The learning rate after the warm-up: linear or cosine to zero (Loshchilov and Hutter 2017), or constant."""
    weight_decay: float = 0.01
    """AdamW's decay; not applied to biases, norms and a CRF, nor to embeddings of words with sparse gradients."""
    warmup_fraction: float = 0.1
    """Share of all steps in which the learning rate rises from zero."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this norm."""


def choose_learning_rate(hidden_size: int) -> float:
    """The default peak learning rate for an encoder of this hidden size."""
    for limit, rate in ((256, 1e-3), (512, 2e-4), (768, 5e-5)):
        if hidden_size <= limit:
            return rate
    return 2e-5


@dataclass
class LossScale:
    """What keeps fp16's small gradients from vanishing (Micikevicius et al. 2018); 1 where none is needed."""

    value: float = 2.0**16
    grows_after: int = 1000
    """Steps without overflow after which it doubles; 0: never."""
    good_steps: int = 0

    def adapt(self, fits: bool) -> None:
        """After a step: halve it where gradients overflowed."""
        if not self.grows_after:
            return
        self.good_steps = self.good_steps + 1 if fits else 0
        if not fits:
            self.value = max(self.value / 2, LEAST_SCALE)
        elif self.good_steps == self.grows_after:
            self.value, self.good_steps = self.value * 2, 0


class Optimizer:
    """AdamW (Loshchilov and Hutter 2019), and for a table of which a step touches few rows Adam on those rows alone.

    The latter, PyTorch's `SparseAdam`, leaves the other rows, their moments too, as they are; it has no weight decay.
    With fp16, gradients are scaled, and a step whose gradients overflow is left out (Micikevicius et al. 2018).
    """

    def __init__(self, strategy: Strategy, config: OptimizerConfig, precision: str = "fp32") -> None:
        self.strategy, self.config = strategy, config
        model, sparse = strategy.model, strategy.sparse_table
        self.names = {parameter: name for name, parameter in model.named_parameters() if not parameter.is_meta}
        groups = _group_parameters(model, config)
        tables = [group | {"params": [sparse]} for group in groups if any(one is sparse for one in group["params"])]
        for group in groups:
            group["params"] = [one for one in group["params"] if one is not sparse]
        self.parts: list[torch.optim.Optimizer] = [torch.optim.AdamW(groups, fused=True)]
        if tables:
            self.parts.append(torch.optim.SparseAdam(tables))
        self.groups: list[dict[str, Any]] = [group for part in self.parts for group in part.param_groups]
        self.scale = LossScale() if precision == "fp16" else LossScale(value=1.0, grows_after=0)

    def step(self, step: int, num_steps: int) -> tuple[float, Tensor]:
        """Move the weights by their gradients, and forget those; returns the largest learning rate and their norm.

        Raises nothing for gradients that are not finite: the norm tells, and the weights stay as they are.
        """
        factor = find_rate_factor(step, num_steps, self.config.warmup_fraction, self.config.schedule)
        for group in self.groups:
            group["lr"] = group["peak_lr"] * factor
        norm = self._clip(1 / self.scale.value)
        fits = bool(torch.isfinite(norm))
        self.scale.adapt(fits)
        for part in self.parts if fits else ():
            part.step()
        for part in self.parts:
            part.zero_grad(set_to_none=True)
        return max(group["lr"] for group in self.groups), norm

    def _clip(self, unscale: float) -> Tensor:
        """Undo the scale, and scale gradients down to the norm allowed; returns what it was."""
        moved = [one for group in self.groups for one in group["params"] if one.grad is not None]
        gradients = [_open_gradient(parameter) for parameter in moved]
        norm = self.strategy.measure_norm(gradients, moved) * unscale
        factor = float((self.config.max_grad_norm / (norm + 1e-6)).clamp(max=1.0)) * unscale
        if factor != 1.0:
            torch._foreach_mul_(gradients, factor)
        return norm

    def list_moments(self) -> list[Tensor]:
        """The running means that this worker holds, in an order that all workers share."""
        states = [part.state[one] for part in self.parts for group in part.param_groups for one in group["params"]]
        return [state[name] for state in states for name in MOMENTS if name in state]

    def state_dict(self) -> dict[str, Any]:
        """Whole moments and steps, by the names of the parameters. Every worker takes part."""
        held = {
            f"{self.names[one]}/{name}": value
            for part in self.parts
            for group in part.param_groups
            for one in group["params"]
            for name, value in part.state[one].items()
        }
        state: dict[str, Any] = {}
        for path, value in self.strategy.gather(held.items()).items():
            parameter, name = path.split("/")
            state.setdefault(parameter, {})[name] = value
        return {"moments": state, "scale": vars(self.scale).copy()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`, of any strategy."""
        for part in self.parts:
            for group in part.param_groups:
                for one in group["params"]:
                    for name, value in state["moments"].get(self.names[one], {}).items():
                        if name == "step":  # SparseAdam counts by a number, AdamW by a tensor
                            is_sparse = isinstance(part, torch.optim.SparseAdam)
                            value = int(value) if is_sparse else torch.tensor(float(value), device=one.device)
                        elif isinstance(value, Tensor):
                            value = self.strategy.take_part(value, one) if name in MOMENTS else value.to(one.device)
                        part.state[one][name] = value
        vars(self.scale).update(state["scale"])


def find_rate_factor(step: int, num_steps: int, warmup_fraction: float, schedule: str) -> float:
    """The share of the peak learning rate at a step (from 0): up in a line, then as the schedule has it."""
    warmup = max(1, round(num_steps * warmup_fraction))
    left = (num_steps - step) / max(1, num_steps - warmup)
    after = {"linear": left, "cosine": (1 - math.cos(math.pi * left)) / 2, "constant": 1.0}[schedule]
    return max(0.0, (step + 1) / warmup if step < warmup else after)


def check_layer_rates(network: Any, config: OptimizerConfig) -> None:
    """Raise OptimizerError for an encoder whose layers cannot have the rates that they are to have."""
    if config.layer_decay != 1 and not has_own_layers(network, find_depths(network)):
        raise OptimizerError(
            "layers that learn at rates of their own",
            where="`training.optimizer.layer_decay`",
            rule="an encoder whose layers have weights and numbers of their own",
            value=network.config.model_type,
            remedy="leave it at 1",
        )


def _group_parameters(model: TokenClassifier, config: OptimizerConfig) -> list[dict[str, Any]]:
    """Groups of parameters with one peak learning rate, kept as `peak_lr`, and one decay."""
    rate = config.learning_rate or choose_learning_rate(model.network.config.hidden_size)
    head_rate = config.head_learning_rate or max(rate, min(10 * rate, 2e-3))
    check_layer_rates(model.network, config)
    depths, num_layers = find_depths(model.network), model.network.config.num_hidden_layers
    prefix = f"network.{model.network.base_model_prefix}."
    pretrained_head = {f"network.{name}" for name in getattr(model, "pretrained_head", ())}
    groups: dict[tuple[float, float, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and not parameter.is_meta:
            num_above = num_layers - depths.get(parameter, num_layers)
            is_pretrained = name.startswith(prefix) or name in pretrained_head
            peak = rate * config.layer_decay**num_above if is_pretrained else head_rate
            decay = config.weight_decay if parameter.ndim > 1 and not name.startswith("crf.") else 0.0
            groups.setdefault((peak, decay, is_sliced(parameter)), []).append(parameter)
    return [
        {"params": parameters, "lr": peak, "peak_lr": peak, "weight_decay": decay}
        for (peak, decay, _), parameters in groups.items()
    ]


def is_sliced(tensor: Tensor) -> "TypeGuard[DTensor]":
    """Whether it is a DTensor, of which each worker holds a slice; told without importing them, which takes seconds."""
    return hasattr(tensor, "to_local")


def get_local(tensor: Tensor) -> Tensor:
    """What this worker holds of a tensor."""
    return tensor.to_local() if is_sliced(tensor) else tensor


def _open_gradient(parameter: nn.Parameter) -> Tensor:
    """The values of a gradient that this worker holds, sliced as the parameter is."""
    gradient = parameter.grad
    assert gradient is not None
    if gradient.is_sparse:
        parameter.grad = gradient.coalesce()
        return parameter.grad._values()
    if is_sliced(gradient) and is_sliced(parameter):
        parameter.grad = gradient = gradient.redistribute(placements=parameter.placements)
    return get_local(gradient)
