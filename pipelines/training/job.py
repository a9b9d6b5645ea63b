"""What is to be trained, and what training has left."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

from pipelines.ner.bundle import load_bundle
from pipelines.ner.encoders import load_tokenizer
from pipelines.ner.encoding import Encoder
from pipelines.ner.labels import LabelScheme
from pipelines.ner.model import ModelConfig, TokenClassifier, build_token_classifier
from pipelines.training.checkpoints import find_last, load_state
from pipelines.training.config import TrainingConfig, TrainingError
from pipelines.training.parallel import ParallelConfig
from pipelines.training.recorder import CHECKPOINTS
from pipelines.training.state import TrainingState


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

    def build_model(self) -> TokenClassifier:
        """What training begins with: the pretrained encoder with a new head, or the model of a bundle."""
        if self.start is not None:
            return load_bundle(self.start).model
        return build_token_classifier(self.encoder, self.scheme, self.model, casing=self.casing)

    def build_encoder(self) -> Encoder:
        """What makes windows of words, as the corpus was encoded."""
        tokenizer = load_tokenizer(self.encoder)
        return Encoder(tokenizer, window=self.window, stride=self.stride, splitter=self.splitter, casing=self.casing)


@dataclass(frozen=True)
class TrainingResult:
    """What training left: the best model, and where it stood."""

    best_model: dict[str, torch.Tensor]
    num_steps: int
    num_epochs: int
    best_epoch: int
    best_dev_f1: float


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
