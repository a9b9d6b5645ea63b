"""The settings of training, and their rules."""

import math
from dataclasses import dataclass, field

from pipelines.ner.errors import UserError
from pipelines.ner.model import ModelConfig
from pipelines.training import adversarial, averaging
from pipelines.training.adversarial import AdversarialConfig
from pipelines.training.averaging import AveragingConfig
from pipelines.training.freezing import FreezingConfig
from pipelines.training.optimizer import SCHEDULES, OptimizerConfig
from pipelines.training.parallel import ParallelConfig

PRECISIONS = ("auto", "fp32", "bf16", "fp16")


class TrainingError(UserError):
    """Training that cannot go on."""


class TrainingHalted(TrainingError):
    """Training that cannot go on here and now; the same command goes on from the last checkpoint."""


@dataclass(frozen=True)
class TrainingConfig:
    """How long, in what steps, at what precision."""

    num_epochs: int = 4
    """Passes over the training corpus."""
    batch_tokens: int = 1024
    """Sub-tokens of one optimizer step over all workers; gradients are accumulated where a device takes less."""
    device_batch_tokens: int = 4096
    """Padded sub-tokens of one forward pass on one worker. At the default `train` and `tune` plan it
    (`resources.auto`), on a GPU perhaps to more."""
    precision: str = "auto"
    """bf16, fp16 (with scaled gradients), fp32, or auto: bf16 where the hardware computes it faster. Weights stay in
    fp32."""
    patience: int | None = None
    """Stop after so many epochs without a better dev F1, where one was above 0; default: never."""
    checkpoint_every_steps: int = 200
    """A checkpoint every so many steps, besides one after every epoch."""
    label_smoothing: float = 0.0
    """Share of a word's weight that is spread over all tags; not with a CRF."""
    r_drop: float = 0.0
    """Weight of the divergence between two passes with different dropout (R-Drop, Liang et al. 2021), which double the
    time of a step; 0: one pass; not with a CRF."""
    dropout_samples: int = 1
    """Dropout masks before the classifier, whose losses are averaged (multi-sample dropout, Inoue 2019)."""
    seed: int = 1
    """Seeds the new head, the order of the batches, and dropout."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    adversarial: AdversarialConfig = field(default_factory=AdversarialConfig)
    averaging: AveragingConfig = field(default_factory=AveragingConfig)
    freezing: FreezingConfig = field(default_factory=FreezingConfig)

    def find_problems(self) -> list[UserError]:
        """Every mistake in these settings."""
        optimizer, adversary, average, freezing = self.optimizer, self.adversarial, self.averaging, self.freezing
        checks = [
            ("num_epochs", self.num_epochs, "at least 1", self.num_epochs >= 1),
            ("batch_tokens", self.batch_tokens, "at least 1", self.batch_tokens >= 1),
            ("device_batch_tokens", self.device_batch_tokens, "at least 1", self.device_batch_tokens >= 1),
            ("precision", self.precision, "one of " + ", ".join(PRECISIONS), self.precision in PRECISIONS),
            ("patience", self.patience, "at least 1", self.patience is None or self.patience >= 1),
            ("checkpoint_every_steps", self.checkpoint_every_steps, "at least 1", self.checkpoint_every_steps >= 1),
            ("label_smoothing", self.label_smoothing, "0 ≤ share < 1", 0 <= self.label_smoothing < 1),
            ("r_drop", self.r_drop, "0 ≤ weight < ∞", 0 <= self.r_drop < math.inf),
            ("dropout_samples", self.dropout_samples, "at least 1", self.dropout_samples >= 1),
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
            (
                "adversarial.method",
                adversary.method,
                "one of " + ", ".join(adversarial.METHODS),
                adversary.method in adversarial.METHODS,
            ),
            (
                "adversarial.epsilon",
                adversary.epsilon,
                "0 < distance < ∞",
                adversary.epsilon is None or 0 < adversary.epsilon < math.inf,
            ),
            ("adversarial.steps", adversary.steps, "at least 1", adversary.steps >= 1),
            ("adversarial.first_epoch", adversary.first_epoch, "at least 1", adversary.first_epoch >= 1),
            (
                "averaging.method",
                average.method,
                "one of " + ", ".join(averaging.METHODS),
                average.method in averaging.METHODS,
            ),
            ("averaging.decay", average.decay, "0 < decay < 1", 0 < average.decay < 1),
            ("averaging.start_fraction", average.start_fraction, "0 to 1", 0 <= average.start_fraction <= 1),
            (
                "averaging.every_steps",
                average.every_steps,
                "at least 1",
                average.every_steps is None or average.every_steps >= 1,
            ),
            ("freezing.layers", freezing.layers, "at least 0", freezing.layers is None or freezing.layers >= 0),
            (
                "freezing.unfreeze_per_epoch",
                freezing.unfreeze_per_epoch,
                "at least 0",
                freezing.unfreeze_per_epoch >= 0,
            ),
        ]
        return [
            TrainingError("a value out of range", where=f"`training.{name}`", rule=rule, value=value)
            for name, value, rule, holds in checks
            if not holds
        ]


def find_idle(training: TrainingConfig, parallel: ParallelConfig) -> list[str]:
    """Settings given that change nothing in this run, each with its reason."""
    averaged, hurt = training.averaging, training.adversarial
    needs = [
        ("averaging", averaged, ("decay",), "`averaging.method` ema", averaged.method == "ema"),
        ("averaging", averaged, ("start_fraction",), "`averaging.method` swa", averaged.method == "swa"),
        ("averaging", averaged, ("every_steps",), "an `averaging.method`", averaged.method != "none"),
        ("adversarial", hurt, ("epsilon", "first_epoch"), "an `adversarial.method`", hurt.method != "none"),
        ("adversarial", hurt, ("steps",), "`adversarial.method` pgd", hurt.method == "pgd"),
    ]
    idle = [
        f"`training.{part}.{name}` has no effect without {what}"
        for part, config, names, what, holds in needs
        for name in names
        if not holds and getattr(config, name) != getattr(type(config)(), name)
    ]
    epochs = f"training has {training.num_epochs} epoch{'s' if training.num_epochs > 1 else ''}"
    ends = [
        ("adversarial", hurt.method != "none" and hurt.first_epoch > training.num_epochs, "begins later"),
        ("patience", training.patience is not None and training.patience >= training.num_epochs - 1, "never ends it"),
        (
            "averaging",
            averaged.method == "swa" and averaged.every_steps is None and training.num_epochs == 1,
            "averages the weights after each",
        ),
    ]
    idle += [f"`training.{name}` has no effect: {epochs}, and it {why}" for name, is_idle, why in ends if is_idle]
    return idle + parallel.find_idle()


def find_contradictions(model: ModelConfig, training: TrainingConfig, parallel: ParallelConfig) -> list[UserError]:
    """Settings of training that exclude each other, or what the model or the workers are."""
    used = {
        "precision": training.precision == "fp16",
        "label_smoothing": training.label_smoothing > 0,
        "r_drop": training.r_drop > 0,
        "dropout_samples": training.dropout_samples > 1,
        "adversarial.method": training.adversarial.method != "none",
        "averaging.method": training.averaging.method != "none",
        "freezing.layers": training.freezing.layers is not None,
        "freezing.unfreeze_per_epoch": training.freezing.unfreeze_per_epoch > 0,
    }
    crf, no_dropout, strategy = "`model.head` crf", "`model.dropout` 0", f"`parallel.strategy` {parallel.strategy}"
    method, all_train = f"`training.adversarial.method` {training.adversarial.method}", "no `training.freezing.layers`"
    loss = "a CRF scores whole tag sequences; only a linear head has a loss for each word to smooth"
    tags = "a CRF scores whole tag sequences; only a linear head gives each word a distribution of tags"
    same = "passes differ by their dropout alone"
    whole = "weights are moved where a worker has all of them: ddp, local_sgd, or one worker alone"
    stages = "a worker of a pipeline has some of the layers only"
    words = "fgm and pgd follow the gradient of the embeddings, which frozen ones do not have"
    powersgd = "`parallel.gradient_compression` powersgd"
    kept = "powersgd adds to each step what the last one left out, and fp16's first overflow would stay in it for ever"
    own = "workers of local_sgd decide alone which steps overflow, and their running means no longer match"
    rules = [
        ("precision", powersgd, parallel.gradient_compression == "powersgd", kept),
        ("precision", strategy, parallel.strategy == "local_sgd", own),
        ("label_smoothing", crf, model.head == "crf", loss),
        ("r_drop", crf, model.head == "crf", tags),
        ("r_drop", no_dropout, model.dropout == 0, same),
        ("dropout_samples", no_dropout, model.dropout == 0, same),
        ("adversarial.method", strategy, parallel.strategy not in ("ddp", "local_sgd"), whole),
        *(
            (name, strategy, parallel.strategy == "pipeline", stages)
            for name in ("r_drop", "dropout_samples", "averaging.method", "freezing.layers")
        ),
        ("freezing.layers", method, training.adversarial.method in ("fgm", "pgd"), words),
        ("freezing.unfreeze_per_epoch", all_train, not used["freezing.layers"], "layers unfreeze that were frozen"),
    ]
    return [
        TrainingError(
            "two settings that contradict each other",
            rule=rule,
            value=f"`training.{name}`, {other}",
            remedy="leave one of them out",
        )
        for name, other, holds, rule in rules
        if used[name] and holds
    ]
