"""AdamW in parameter groups, and the learning rate as a function of the step."""

from dataclasses import dataclass

import torch

from pipelines.ner.model import TokenClassifier


@dataclass(frozen=True)
class OptimizerConfig:
    """How weights move."""

    learning_rate: float | None = None
    """Peak learning rate of the encoder; default by its hidden size: 1e-3 up to 256, 3e-4 up to 512, 5e-5 up to 768,
    2e-5 above."""
    head_learning_rate: float | None = None
    """Peak learning rate of the head; default: the encoder's for a linear head, 10 times the encoder's with a CRF."""
    weight_decay: float = 0.01
    """AdamW's decay; not applied to biases and norms."""
    warmup_fraction: float = 0.1
    """Share of all steps in which the learning rate rises from zero; then it falls linearly to zero."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this norm."""


def choose_learning_rate(hidden_size: int) -> float:
    """The default peak learning rate for an encoder of this hidden size."""
    for limit, rate in ((256, 1e-3), (512, 3e-4), (768, 5e-5)):
        if hidden_size <= limit:
            return rate
    return 2e-5


def build_optimizer(model: TokenClassifier, config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW whose groups keep their peak learning rate as `peak_lr`."""
    rate = config.learning_rate or choose_learning_rate(model.network.config.hidden_size)
    head_rate = config.head_learning_rate or (rate * 10 if model.crf is not None else rate)
    encoder_prefix = f"network.{model.network.base_model_prefix}."
    groups: dict[tuple[float, float], list[torch.nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            peak = rate if name.startswith(encoder_prefix) else head_rate
            decay = config.weight_decay if parameter.ndim > 1 and not name.startswith("crf.") else 0.0
            groups.setdefault((peak, decay), []).append(parameter)
    return torch.optim.AdamW(
        [
            {"params": parameters, "lr": peak, "peak_lr": peak, "weight_decay": decay}
            for (peak, decay), parameters in groups.items()
        ],
        fused=True,
    )


def set_learning_rate(optimizer: torch.optim.Optimizer, step: int, num_steps: int, warmup_fraction: float) -> float:
    """Set every group's learning rate for a step (from 0); returns the largest."""
    warmup = max(1, round(num_steps * warmup_fraction))
    factor = min((step + 1) / warmup, (num_steps - step) / max(1, num_steps - warmup))
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * max(0.0, factor)
    rates: list[float] = [group["lr"] for group in optimizer.param_groups]
    return max(rates)
