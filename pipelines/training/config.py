"""The settings of training, and their rules."""

import math
from dataclasses import dataclass, field

from pipelines.ner.errors import UserError
from pipelines.training.optimizer import SCHEDULES, OptimizerConfig

PRECISIONS = ("auto", "fp32", "bf16", "fp16")


class TrainingError(UserError):
    """Training that cannot go on."""


@dataclass(frozen=True)
class TrainingConfig:
    """How long, in what steps, at what precision."""

    num_epochs: int = 3
    """Passes over the training corpus."""
    batch_tokens: int = 1024
    """Sub-tokens of one optimizer step over all workers; gradients are accumulated where a device takes less."""
    device_batch_tokens: int = 4096
    """Padded sub-tokens of one forward pass on one worker."""
    precision: str = "auto"
    """bf16, fp16 (with scaled gradients), fp32, or auto: bf16 where the hardware computes it faster. Weights stay in
    fp32."""
    patience: int | None = None
    """Stop after so many epochs without a better dev F1; default: never."""
    checkpoint_every_steps: int = 200
    """A checkpoint every so many steps, besides one after every epoch."""
    label_smoothing: float = 0.0
    """Share of a word's weight that is spread over all tags; not with a CRF."""
    seed: int = 1
    """Seeds the new head, the order of the batches, and dropout."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)

    def find_problems(self) -> list[UserError]:
        """Every mistake in these settings."""
        optimizer = self.optimizer
        checks = [
            ("num_epochs", self.num_epochs, "at least 1", self.num_epochs >= 1),
            ("batch_tokens", self.batch_tokens, "at least 1", self.batch_tokens >= 1),
            ("device_batch_tokens", self.device_batch_tokens, "at least 1", self.device_batch_tokens >= 1),
            ("precision", self.precision, "one of " + ", ".join(PRECISIONS), self.precision in PRECISIONS),
            ("patience", self.patience, "at least 1", self.patience is None or self.patience >= 1),
            ("checkpoint_every_steps", self.checkpoint_every_steps, "at least 1", self.checkpoint_every_steps >= 1),
            ("label_smoothing", self.label_smoothing, "0 ≤ share < 1", 0 <= self.label_smoothing < 1),
            ("seed", self.seed, "0 ≤ seed < 2³²", 0 <= self.seed < 2**32),
            *(
                (f"optimizer.{name}", rate, "0 < rate ≤ 1", rate is None or 0 < rate <= 1)
                for name, rate in (
                    ("learning_rate", optimizer.learning_rate),
                    ("head_learning_rate", optimizer.head_learning_rate),
                )
            ),
            ("optimizer.layer_decay", optimizer.layer_decay, "0 < factor ≤ 1", 0 < optimizer.layer_decay <= 1),
            (
                "optimizer.schedule",
                optimizer.schedule,
                "one of " + ", ".join(SCHEDULES),
                optimizer.schedule in SCHEDULES,
            ),
            ("optimizer.weight_decay", optimizer.weight_decay, "0 ≤ decay < ∞", 0 <= optimizer.weight_decay < math.inf),
            ("optimizer.warmup_fraction", optimizer.warmup_fraction, "0 to 1", 0 <= optimizer.warmup_fraction <= 1),
            ("optimizer.max_grad_norm", optimizer.max_grad_norm, "above 0", optimizer.max_grad_norm > 0),
        ]
        return [
            TrainingError("a value out of range", where=f"`training.{name}`", rule=rule, value=value)
            for name, value, rule, holds in checks
            if not holds
        ]
