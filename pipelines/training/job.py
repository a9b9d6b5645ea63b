"""What is to be trained, and what training has left."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import torch

from pipelines.evaluation.metrics import Scored
from pipelines.ner.bundle import Bundle, BundleInfo, load_bundle
from pipelines.ner.encoders import load_tokenizer
from pipelines.ner.encoding import Encoder
from pipelines.ner.engine import NerEngine
from pipelines.ner.exits import NEVER, Exits
from pipelines.ner.labels import LabelScheme
from pipelines.ner.model import ModelConfig, TokenClassifier, build_token_classifier
from pipelines.training.batches import TrainingWindows, Windows
from pipelines.training.checkpoints import find_last, load_state
from pipelines.training.config import TrainingConfig, TrainingError
from pipelines.training.forward import check_passes_differ
from pipelines.training.objective import Imitation
from pipelines.training.parallel import ParallelConfig
from pipelines.training.recorder import CHECKPOINTS
from pipelines.training.rounding import round_to_int8
from pipelines.training.scoring import score_dev
from pipelines.training.state import TrainingState


@dataclass(frozen=True)
class Task:
    """What a worker trains, on what, and how it is scored."""

    model: Any
    windows: Windows
    pad_id: int
    evaluate: Callable[[Any], float]
    """As the loop takes it."""
    describe: Callable[[dict[str, Any]], dict[str, Any]] = dict
    """What the loop tells of an epoch, in the words of the history."""
    scores_start: bool = False
    """Whether the model is scored before its first step, too."""
    imitation: Imitation | None = None
    """As the loop takes it."""


class Job(Protocol):
    """Something to train on Ray Train; it travels to other machines."""

    @property
    def training(self) -> TrainingConfig:
        """How long, in what steps."""

    @property
    def parallel(self) -> ParallelConfig:
        """How the workers share it."""

    def open_task(self, rank: int, size: int, device: torch.device) -> Task:
        """What one of several workers has to do. Torch is seeded before."""


@dataclass(frozen=True)
class TrainingJob:
    """Everything that a worker needs; it travels to other machines."""

    encoder: str
    model: ModelConfig
    scheme: LabelScheme
    window: int
    stride: int
    splitter: str
    casing: bool
    training: TrainingConfig
    parallel: ParallelConfig
    load_windows: Callable[[], pa.Table]
    """Reads the encoded training windows (columns as `TrainingWindows` has them)."""
    load_dev: Callable[[], Sequence[Mapping[str, Any]]]
    """Reads the dev records with their gold (rows as `Scored.from_row` has them)."""
    corpus_scheme: str
    """Tag scheme of those records."""
    start: str | None = None
    """A bundle to begin with, instead of the encoder with a new head."""
    imitation: Imitation | None = None
    """How the hidden states that the windows have of a teacher are followed."""
    exit_layers: Sequence[int] = ()
    """After how many layers of `start` new early exits are trained with it, by which nothing leaves yet."""
    weight_bits: int | None = None
    """Of a model that is trained as int8 will compute it, and is scored so: bits of its weights."""

    def build_model(self) -> TokenClassifier:
        """What training begins with: the pretrained encoder with a new head, or the model of a bundle."""
        if self.start is not None:
            model = load_bundle(self.start).model
            if self.training.r_drop:
                check_passes_differ(model.network, remedy="leave it out")
            config, num_tags = model.network.config, len(model.scheme.tags)
            layers = self.exit_layers
            model.exits = Exits(layers, config.hidden_size, num_tags, NEVER) if layers else None
            return model
        model = build_token_classifier(self.encoder, self.scheme, self.model, casing=self.casing)
        if self.training.r_drop:
            check_passes_differ(model.network)
        return model

    def build_encoder(self) -> Encoder:
        """What makes windows of words, as the corpus was encoded."""
        tokenizer = load_tokenizer(self.encoder)
        return Encoder(tokenizer, window=self.window, stride=self.stride, splitter=self.splitter, casing=self.casing)

    def open_task(self, rank: int, size: int, device: torch.device) -> Task:
        """See `Job`."""
        model, encoder = self.build_model(), self.build_encoder()
        if self.weight_bits is not None:
            round_to_int8(model.network, self.weight_bits)
        info = BundleInfo(self.scheme.name, self.model.head, self.splitter, self.window, self.stride)
        dev = [Scored.from_row(row, self.corpus_scheme) for row in self.load_dev()[rank::size]]

        def evaluate(scored: TokenClassifier) -> float:
            """Strict micro F1 on dev, by the engine in fp32."""
            bundle = Bundle(scored, encoder, info)
            return score_dev(NerEngine(bundle, device=str(device), runtime="torch", precision="fp32"), dev)

        windows = TrainingWindows(self.load_windows())
        return Task(model, windows, encoder.pad_id, evaluate, imitation=self.imitation)


@dataclass(frozen=True)
class TrainingResult:
    """What training left: the best model, and where it stood."""

    best_model: dict[str, torch.Tensor]
    num_steps: int
    num_epochs: int
    best_epoch: int
    best_dev_f1: float
    """Or the other score that the job's task has."""


def load_result(output_dir: Path, *, must_be_done: bool = True) -> TrainingResult:
    """What training has left in a run folder. Raises TrainingError if it has not come to its end, or to any."""
    checkpoints = output_dir / CHECKPOINTS
    last, _ = find_last(checkpoints)
    state = load_state(last) if last else TrainingState()
    if not state.done and (must_be_done or not state.best_model):
        rule = "the last checkpoint is that of the end"
        remedy = "the same command trains the rest again"
        raise TrainingError("a checkpoint was damaged", where=str(checkpoints), rule=rule, remedy=remedy)
    return TrainingResult(state.best_model, state.step, state.epoch, state.best_epoch, state.best_f1)
