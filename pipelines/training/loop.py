"""The training loop: steps, epochs, evaluation on dev, early stopping, state to resume from. Needs no Ray.

All randomness of a step comes from (seed, step, worker), and batches from (seed, epoch): a run that resumes at a step
repeats what an undisturbed run does there.
"""

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pipelines.ner.errors import UserError
from pipelines.ner.model import TokenClassifier
from pipelines.training.batches import BatchPlan, TrainingWindows
from pipelines.training.forward import build_forward
from pipelines.training.objective import sum_loss
from pipelines.training.optimizer import SCHEDULES, Optimizer, OptimizerConfig

logger = logging.getLogger(__name__)

PRECISIONS = ("auto", "fp32", "bf16")


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
    """bf16, fp32, or auto: bf16 where the hardware computes it faster. Weights stay in fp32."""
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
    best_model: dict[str, Tensor] = field(default_factory=dict)


class Stopwatch:
    """The seconds of a step, and on a CPU of its parts: a GPU works on after a call has returned."""

    def __init__(self, device: torch.device) -> None:
        self.has_parts = device.type == "cpu"
        self.parts: dict[str, float] = {}
        self.started = self.lapped = time.monotonic()

    @property
    def total(self) -> float:
        """Seconds up to now."""
        return time.monotonic() - self.started

    def lap(self, name: str) -> None:
        """The time since the last lap went into this part."""
        now = time.monotonic()
        if self.has_parts:
            self.parts[name] = self.parts.get(name, 0.0) + now - self.lapped
        self.lapped = now


class Listener(Protocol):
    """Who is told what happens; every worker calls it at the same moments."""

    def on_start(self, metrics: dict[str, Any]) -> None:
        """Training begins or resumes."""

    def on_step(self, metrics: dict[str, Any]) -> None:
        """A step was taken."""

    def on_checkpoint(self, metrics: dict[str, Any] | None, get_state: Callable[[], TrainingState]) -> None:
        """The state is worth keeping; `metrics` is that of an epoch just finished, or None within an epoch."""


def resolve_precision(precision: str, device: torch.device) -> str:
    """fp32 or bf16: what `auto` means on this device."""
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return "bf16" if torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported() else "fp32"


def train(
    model: TokenClassifier,
    windows: TrainingWindows,
    config: TrainingConfig,
    *,
    pad_id: int,
    device: torch.device,
    evaluate: Callable[[], float],
    listener: Listener,
    state: TrainingState | None = None,
) -> TrainingState:
    """Fine-tune `model` in place, on as many workers as the default process group has.

    Args:
        evaluate: scores the model as it is on dev and returns the F1 of all workers together, in [0, 1].
        state: resume from here.

    Returns:
        The final state, with the best epoch's weights in `best_model`.

    Raises:
        TrainingError: nothing to train on, or a loss that is not a number.
    """
    run = _Run(model, windows, config, pad_id, device, listener, state or TrainingState())
    if not run.state.done:
        run.train_all(evaluate)
    return run.state


class _Run:
    def __init__(
        self,
        model: TokenClassifier,
        windows: TrainingWindows,
        config: TrainingConfig,
        pad_id: int,
        device: torch.device,
        listener: Listener,
        state: TrainingState,
    ) -> None:
        if not len(windows.usable):
            raise TrainingError("the training corpus has no words", remedy="check the files given as `--corpus.train`")
        self.windows, self.config, self.pad_id, self.device = windows, config, pad_id, device
        self.listener, self.state = listener, state
        self.world_size = dist.get_world_size() if dist.is_initialized() else 1
        self.rank = dist.get_rank() if dist.is_initialized() else 0
        self.precision = resolve_precision(config.precision, device)
        self.plan = BatchPlan(
            windows.num_tokens,
            windows.usable,
            batch_tokens=config.batch_tokens,
            device_batch_tokens=config.device_batch_tokens,
            seed=config.seed,
        )
        self.model = model.to(device)
        if state.model:
            self.model.load_state_dict(state.model)
        forward = build_forward(self.model, self.precision, device)
        self.forward: nn.Module = forward
        self.optimizer = Optimizer(self.model, config.optimizer, forward.sparse_table)
        if state.optimizer:
            self.optimizer.load_state_dict(state.optimizer)
        if self.world_size > 1:
            self.forward = nn.parallel.DistributedDataParallel(self.forward)

    def train_all(self, evaluate: Callable[[], float]) -> None:
        """Train and score epoch by epoch until the last one, or until patience ends."""
        state, config = self.state, self.config
        self.num_steps = sum(len(self.plan.plan_epoch(epoch)) for epoch in range(config.num_epochs))
        self.listener.on_start(
            {
                "step": state.step,
                "num_steps": self.num_steps,
                "num_epochs": config.num_epochs,
                "num_workers": self.world_size,
                "precision": self.precision,
                "threads": torch.get_num_threads(),
            }
        )
        while not state.done:
            self.train_epoch()
            started = time.monotonic()
            f1 = evaluate()
            self.model.train()
            state.epoch, state.epoch_step = state.epoch + 1, 0
            if f1 > state.best_f1:
                state.best_f1, state.best_epoch = f1, state.epoch
                weights = self.model.state_dict()
                state.best_model = {name: value.detach().cpu().clone() for name, value in weights.items()}
            waited = state.epoch - state.best_epoch
            state.done = state.epoch == config.num_epochs or (config.patience is not None and waited >= config.patience)
            metrics = {
                "step": state.step,
                "epoch": state.epoch,
                "dev_f1": f1,
                "best_dev_f1": state.best_f1,
                "evaluation_s": time.monotonic() - started,
            }
            self.listener.on_checkpoint(metrics, self.capture_state)

    def train_epoch(self) -> None:
        """Take the steps of the present epoch that are not yet done."""
        state = self.state
        self.model.train()
        steps = self.plan.plan_epoch(state.epoch)
        for step in steps[state.epoch_step :]:
            self.watch = Stopwatch(self.device)
            torch.manual_seed(hash((self.config.seed, state.step, self.rank)))
            num_words = int(self.windows.num_words[step].sum())
            loss = self.compute_gradients(step, num_words)
            rate, norm = self.optimizer.step(state.step, self.num_steps)
            self.check_finite(norm, step)
            self.watch.lap("optimizer")
            state.step, state.epoch_step = state.step + 1, state.epoch_step + 1
            self.listener.on_step(
                {
                    "step": state.step,
                    "epoch": state.epoch,
                    "loss": loss,
                    "learning_rate": rate,
                    "gradient_norm": float(norm),
                    "num_tokens": int(self.windows.num_tokens[step].sum()),
                    "num_words": num_words,
                    "seconds": self.watch.total,
                    "parts_s": self.watch.parts,
                }
            )
            if state.step % self.config.checkpoint_every_steps == 0 and state.epoch_step < len(steps):
                self.listener.on_checkpoint(None, self.capture_state)

    def compute_gradients(self, step: Any, num_words: int) -> float:
        """Leave the gradient of the mean loss over the global batch's words; returns that loss, in nats a word."""
        shares = self.plan.share(step, self.rank, self.world_size)
        total = torch.zeros((), device=self.device)
        for index, indices in enumerate(shares):
            weight = 1.0 if indices else 0.0  # an idle worker computes something and counts it as nothing
            batch = self.windows.collate(indices or [int(step[0])], self.pad_id).to(self.device)
            self.watch.lap("batch")
            last = index == len(shares) - 1
            if isinstance(self.forward, nn.parallel.DistributedDataParallel):
                self.forward.require_backward_grad_sync = last
            emissions_BWK = self.forward(batch)
            loss = sum_loss(self.model, emissions_BWK, batch, self.config.label_smoothing) * weight
            self.watch.lap("forward")
            (loss * (self.world_size / num_words)).backward()  # DDP averages over workers: undo it
            self.watch.lap("backward")
            total += loss.detach()
        if self.world_size > 1:
            dist.all_reduce(total)
            self.watch.lap("waiting")
        self.check_finite(total, step)
        return total.item() / num_words

    def check_finite(self, value: torch.Tensor, step: Any) -> None:
        """Raise TrainingError, with the records of the step, for a loss or a gradient that is not a number."""
        if not torch.isfinite(value):
            raise TrainingError(
                "the loss is not a number",
                where=f"step {self.state.step + 1}, epoch {self.state.epoch + 1}",
                value=f"records {', '.join(self.windows.record_ids[int(i)].as_py() for i in step[:10])}",
                remedy="lower `--training.optimizer.learning_rate`, or set `--training.precision fp32`",
            )

    def capture_state(self) -> TrainingState:
        """The state with the present weights; tensors are shared with the running model."""
        self.state.model = self.model.state_dict()
        self.state.optimizer = self.optimizer.state_dict()
        return self.state
