"""The training loop: steps, epochs, evaluation on dev, early stopping, state to resume from. Needs no Ray.

All randomness of a step comes from (seed, step, worker), and batches from (seed, epoch): a run that resumes at a step
repeats what an undisturbed run does there.
"""

import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from pipelines.ner.model import TokenClassifier
from pipelines.training.adversarial import Adversary
from pipelines.training.averaging import Average
from pipelines.training.batches import BatchPlan, Windows
from pipelines.training.config import TrainingConfig, TrainingError
from pipelines.training.devices import (
    Stopwatch,
    build_memory_error,
    describe_device,
    resolve_precision,
    settle_vector_math,
)
from pipelines.training.freezing import Freezing
from pipelines.training.objective import Imitation
from pipelines.training.optimizer import Optimizer
from pipelines.training.parallel import ParallelConfig
from pipelines.training.state import Listener, TrainingState
from pipelines.training.strategies import build_strategy
from pipelines.training.traffic import MIB, TrafficMeter, measure_state

MOST_OVERFLOWS = 50
"""Steps in a row that fp16 may leave out: halving the scale so often would have mended what it can mend."""
MEASURED_STEP = 5
"""Of each start: what workers hold and send is counted in it, or in the next that averages weights."""


def train(
    model: TokenClassifier,
    windows: Windows,
    config: TrainingConfig,
    *,
    pad_id: int,
    device: torch.device,
    evaluate: Callable[[TokenClassifier], float],
    listener: Listener,
    parallel: ParallelConfig | None = None,
    imitation: Imitation | None = None,
    state: TrainingState | None = None,
) -> TrainingState:
    """Fine-tune `model` in place, on as many workers as the default process group has.

    Args:
        evaluate: scores a model on dev and returns the F1 of all workers together, in [0, 1]; or another score of
            which more is better.
        parallel: how the workers share the work; default: data parallel.
        imitation: how the hidden states that `windows` has of a teacher are followed.
        state: resume from here.

    Returns:
        The final state, on the first worker with the best epoch's weights in `best_model`.

    Raises:
        TrainingError: nothing to train on, a loss or a gradient that is not a number, or gradients that never fit into
            fp16.
        DeviceMemoryError: a pass that the device has no memory for; in the worker alone that meets it.
    """
    parallel, state = parallel or ParallelConfig(), state or TrainingState()
    run = _Run(model, windows, config, parallel, imitation, pad_id, device, listener, state)
    if not run.state.done:
        run.train_all(evaluate)
    return run.state


class _Run:
    """One call of `train`: what it works with, and how far it is."""

    def __init__(
        self,
        model: TokenClassifier,
        windows: Windows,
        config: TrainingConfig,
        parallel: ParallelConfig,
        imitation: Imitation | None,
        pad_id: int,
        device: torch.device,
        listener: Listener,
        state: TrainingState,
    ) -> None:
        if not len(windows.usable):
            raise TrainingError("the training corpus has no words", remedy="check the files given as `--corpus.train`")
        settle_vector_math()
        self.windows, self.config, self.pad_id, self.device = windows, config, pad_id, device
        self.listener, self.state = listener, state
        self.precision = resolve_precision(config.precision, device)
        self.plan = BatchPlan(
            windows.num_tokens,
            windows.usable,
            batch_tokens=config.batch_tokens,
            device_batch_tokens=config.device_batch_tokens // (2 if config.r_drop else 1),
            seed=config.seed,
        )
        if state.model:
            model.load_state_dict(state.model)
        self.strategy = build_strategy(model, parallel, device)
        self.model = self.strategy.model
        self.strategy.prepare(
            self.precision,
            config.label_smoothing,
            r_drop=config.r_drop,
            dropout_samples=config.dropout_samples,
            sparse=config.optimizer.sparse_embeddings,
            imitation=imitation,
        )
        self.optimizer = Optimizer(self.strategy, config.optimizer, self.precision)
        if state.optimizer:
            self.optimizer.load_state_dict(state.optimizer)
        self.average = Average(self.strategy, config.averaging)
        self.average.load_state_dict(state.average)
        if self.strategy.rank:  # the first worker writes checkpoints
            state.model, state.optimizer, state.average, state.best_model = {}, {}, {}, {}
        self.freezing = Freezing(self.model, config.freezing)
        is_adversarial = config.adversarial.method != "none"
        self.adversary = Adversary(self.model, config.adversarial) if is_adversarial else None
        self.num_taken = self.num_overflows = 0
        self.is_measured = False
        self.untold: list[tuple[dict[str, Any], np.ndarray, Tensor]] = []
        self.keep_now = False

    def train_all(self, evaluate: Callable[[TokenClassifier], float]) -> None:
        """Train and score epoch by epoch until the last one, or until patience ends."""
        state, config = self.state, self.config
        self.num_steps = sum(len(self.plan.plan_epoch(epoch)) for epoch in range(config.num_epochs))
        self.listener.on_start(
            {
                "step": state.step,
                "epoch": state.epoch,
                "num_steps": self.num_steps,
                "num_epochs": config.num_epochs,
                "num_workers": self.strategy.world_size,
                "strategy": self.strategy.config.strategy if self.strategy.world_size > 1 else "none",
                "sync_every": self.strategy.sync_every,
                "precision": self.precision,
                "device": describe_device(self.device),
                "threads": torch.get_num_threads(),
            }
        )
        while not state.done:
            self.train_epoch()
            started = time.monotonic()
            self.settle()
            self.average.end_epoch(state.step, self.num_steps)
            state.epoch, state.epoch_step = state.epoch + 1, 0
            with self.average.in_place(), self.strategy.open_model() as scored:
                f1 = evaluate(scored)
                if f1 > state.best_f1 or f1 == state.best_f1 == 0:  # of those that find nothing, the last knows most
                    state.best_f1, state.best_epoch = f1, state.epoch
                    self.keep_best(scored)
            self.model.train()
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
        if self.freezing.begin_epoch(state.epoch):
            self.strategy.follow_freezing()
        steps = self.plan.plan_epoch(state.epoch)
        for step in steps[state.epoch_step :]:
            self.take_step(step)
            is_due = state.step % self.config.checkpoint_every_steps == 0 and state.epoch_step < len(steps)
            if is_due or self.keep_now:
                self.settle()
                self.listener.on_checkpoint(None, self.capture_state)
                self.keep_now = False

    def take_step(self, step: np.ndarray) -> None:
        """Move the weights once."""
        state, strategy = self.state, self.strategy
        self.watch = Stopwatch(self.device)
        torch.manual_seed(hash((self.config.seed, state.step, strategy.seed_index)))
        num_words = self.windows.count_words(step, state.epoch)
        self.num_taken += 1
        ends_round = (state.step + 1) % strategy.sync_every == 0
        is_measured = not self.is_measured and self.num_taken >= MEASURED_STEP and ends_round
        with TrafficMeter() if is_measured and strategy.world_size > 1 else nullcontext() as meter:
            try:
                loss = self.compute_gradients(step, num_words)
                own_s = sum(self.watch.parts.get(part, 0.0) for part in ("batch", "forward"))
                rate, norm = self.optimizer.step(state.step, self.num_steps)
            except torch.OutOfMemoryError as error:
                where = f"step {state.step + 1}, epoch {state.epoch + 1}"
                hands = strategy.plan_share(self.plan, step)
                passes = [self.windows.num_tokens[hand or step[:1]] for hand in hands]
                saves = strategy.config.gradient_checkpointing
                raise build_memory_error(where, passes, 2 if self.config.r_drop else 1, saves, error) from error
            self.watch.lap("optimizer")
            state.step, state.epoch_step = state.step + 1, state.epoch_step + 1
            strategy.end_step(state.step)
        self.average.end_step(state.step, self.num_steps)
        row = {
            "step": state.step,
            "epoch": state.epoch,
            "learning_rate": rate,
            "gradient_norm": float(norm),
            "num_tokens": int(self.windows.num_tokens[step].sum()),
            "num_words": num_words,
            "seconds": self.watch.total,
            "parts_s": self.watch.parts,
        }
        if meter is not None:
            a_step = MIB * strategy.sync_every
            row["sent_mib"] = {kind: round(sent / a_step, 3) for kind, sent in meter.sent.items()}
        if is_measured:
            row["state_mib"] = measure_state(self.model.parameters(), self.optimizer.list_moments())
            self.is_measured = True
        told = torch.zeros(2 + strategy.world_size, dtype=torch.float64)
        told[0], told[1], told[2 + strategy.rank] = float(loss) / strategy.copies, float(norm), own_s
        self.untold.append((row, step, told))
        if state.step % strategy.sync_every == 0:
            self.tell_steps()

    def tell_steps(self) -> None:
        """Share what every worker saw of the steps not yet told, check it, and hand it to the listener."""
        if not self.untold:
            return
        told_SX = torch.stack([told for _, _, told in self.untold])
        if self.strategy.world_size > 1:
            shared_SX = told_SX.to(self.device)
            dist.all_reduce(shared_SX)
            told_SX = shared_SX.cpu()
        for (row, step, _), (loss, norm, *worker_s) in zip(self.untold, told_SX.tolist(), strict=True):
            if not math.isfinite(loss):
                self.refuse_step("the loss is not a number", row, step)
            if not math.isfinite(norm) and self.precision != "fp16":
                self.refuse_step("the norm of the gradients is not a number, though the loss is one", row, step)
            self.num_overflows = 0 if math.isfinite(norm) else self.num_overflows + 1
            if self.num_overflows == MOST_OVERFLOWS:
                self.refuse_overflows(row)
            row["loss"] = loss / row["num_words"]
            if self.strategy.world_size > 1:
                row["worker_s"] = worker_s
            self.keep_now |= bool(self.listener.on_step(row))
        self.untold = []

    def compute_gradients(self, step: np.ndarray, num_words: int) -> Tensor:
        """Leave the gradient of the mean loss over the global batch's words; returns this worker's summed loss."""
        batches = []
        for indices in self.strategy.plan_share(self.plan, step):
            weight = 1.0 if indices else 0.0  # an idle worker computes something and counts it as nothing
            batch = self.windows.collate(indices or [int(step[0])], self.pad_id, self.state.epoch)
            batches.append((batch.to(self.device), weight))
        self.watch.lap("batch")
        # workers' gradients are averaged: undo it
        scale = self.strategy.num_shares / num_words * self.optimizer.scale.value

        def compute() -> Tensor:
            """Add the step's gradients with the present weights; an adversary calls it again with others."""
            return self.strategy.compute(batches, scale, self.watch.lap)

        loss = compute()
        if self.adversary is not None and self.state.epoch + 1 >= self.config.adversarial.first_epoch:
            self.adversary.add_gradients(compute)
        return loss

    def refuse_step(self, what: str, row: dict[str, Any], step: np.ndarray) -> None:
        """Raise TrainingError, with the records of the step, for a loss or a gradient that is not a number."""
        raise TrainingError(
            what,
            where=f"step {row['step']}, epoch {row['epoch'] + 1}",
            value=f"records {', '.join(self.windows.record_ids[int(i)].as_py() for i in step[:10])}",
            remedy="lower `--training.optimizer.learning_rate`, or set `--training.precision fp32`",
        )

    def refuse_overflows(self, row: dict[str, Any]) -> None:
        """Raise TrainingError for gradients that overflow at any scale: no step moves the weights any more."""
        raise TrainingError(
            "the gradients do not fit into fp16",
            where=f"step {row['step']}, epoch {row['epoch'] + 1}",
            rule=f"fewer than {MOST_OVERFLOWS} steps in a row that overflow and are left out",
            remedy="set `--training.precision bf16` or fp32, or lower `--training.optimizer.learning_rate`",
        )

    def settle(self) -> None:
        """All workers in one state, and all steps told."""
        self.tell_steps()
        self.strategy.settle([*self.optimizer.list_moments(), *self.average.weights.values()])

    def keep_best(self, scored: TokenClassifier) -> None:
        """Keep the weights of the best epoch, on the worker that writes checkpoints."""
        if self.strategy.rank == 0:
            weights = scored.state_dict()
            self.state.best_model = {name: value.detach().cpu().clone() for name, value in weights.items()}

    def capture_state(self) -> TrainingState:
        """The state with the present weights, whole on the first worker; tensors may be the running model's own."""
        self.state.model = self.strategy.gather_model()
        self.state.optimizer = self.optimizer.state_dict()
        self.state.average = self.average.state_dict()
        return self.state
