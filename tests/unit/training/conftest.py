"""Synthetic training windows whose tags can be told from their sub-tokens, and short runs of the loop on them."""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from pipelines.ner.labels import LabelScheme
from pipelines.ner.model import ModelConfig, TokenClassifier, build_token_classifier
from pipelines.training.batches import TrainingWindows
from pipelines.training.config import TrainingConfig
from pipelines.training.loop import train
from pipelines.training.parallel import ParallelConfig
from pipelines.training.state import TrainingState

SCHEME = LabelScheme.from_labels(["LOC", "PER"])
CLS, SEP, FIRST_ID, LAST_ID = 2, 3, 10, 60


def make_table(num_windows: int, *, seed: int = 0, longest: int = 12) -> pa.Table:
    """Windows of 1 to `longest` words of one or two sub-tokens; every fourth pair of windows is one document."""
    generator = np.random.default_rng(seed)
    rows = []
    for index in range(num_windows):
        input_ids, word_starts, tag_ids = [CLS], [], []
        for _ in range(generator.integers(1, longest + 1)):
            token = int(generator.integers(FIRST_ID, LAST_ID))
            word_starts.append(len(input_ids))
            input_ids += [token] * int(generator.integers(1, 3))
            inside = tag_ids and tag_ids[-1] in (1, 2) and token % 5 == 1
            tag_ids.append(2 if inside else {0: 1, 2: 3}.get(token % 5, 0))
        part = index % 8 if index % 8 < 2 else None
        rows.append(
            {
                "record_id": f"synthetic:{index - (part or 0):04d}",
                "input_ids": [*input_ids, SEP],
                "word_starts": word_starts,
                "tag_ids": tag_ids,
                "starts_document": part != 1,
                "ends_document": part != 0,
            }
        )
    return pa.Table.from_pylist(rows)


def copy_as_checkpoint(state: TrainingState) -> TrainingState:
    """The state as it comes back from the disk."""
    file = io.BytesIO()
    torch.save({one.name: getattr(state, one.name) for one in fields(state)}, file)
    file.seek(0)
    return TrainingState(**torch.load(file, map_location="cpu", weights_only=True))


@dataclass
class Told:
    """A listener that keeps everything."""

    starts: list[dict[str, Any]] = field(default_factory=list)
    steps: list[dict[str, Any]] = field(default_factory=list)
    epochs: list[dict[str, Any]] = field(default_factory=list)
    states: list[TrainingState] = field(default_factory=list)
    final: TrainingState = field(default_factory=TrainingState)
    keep_after: Sequence[int] = ()
    """Steps after which it wants the state at once."""

    def on_start(self, metrics: dict[str, Any]) -> None:
        self.starts.append(metrics)

    def on_step(self, metrics: dict[str, Any]) -> bool:
        self.steps.append(metrics)
        return metrics["step"] in self.keep_after

    def on_checkpoint(self, metrics: dict[str, Any] | None, get_state: Callable[[], TrainingState]) -> None:
        if metrics is not None:
            self.epochs.append(metrics)
        self.states.append(copy_as_checkpoint(get_state()))

    @property
    def losses(self) -> list[float]:
        return [step["loss"] for step in self.steps]


def build_model(encoder: str, head: str, *, dropout: float = 0.0, seed: int = 1) -> TokenClassifier:
    torch.manual_seed(seed)
    return build_token_classifier(encoder, SCHEME, ModelConfig(head=head, dropout=dropout))


def run_loop(
    model: TokenClassifier,
    table: pa.Table,
    config: TrainingConfig,
    *,
    f1s: Sequence[float] = (),
    parallel: ParallelConfig | None = None,
    state: TrainingState | None = None,
    watch: Callable[[TokenClassifier], object] = lambda _: None,
    keep_after: Sequence[int] = (),
) -> Told:
    """Train on a table; dev F1 is taken from `f1s`, epoch by epoch (default: 0.5); `watch` sees each scored model."""
    told = Told(keep_after=keep_after)
    scores = iter(f1s)

    def evaluate(scored: TokenClassifier) -> float:
        watch(scored)
        return next(scores) if f1s else 0.5

    told.final = train(
        model,
        TrainingWindows(table),
        config,
        pad_id=0,
        device=torch.device("cpu"),
        evaluate=evaluate,
        listener=told,
        parallel=parallel,
        state=state,
    )
    return told


@pytest.fixture(params=["linear", "crf"])
def head(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="session")
def training_room() -> Any:
    """This module's functions, for tests beside it."""
    return _Room


class _Room:
    Told = Told
    make_table = staticmethod(make_table)
    build_model = staticmethod(build_model)
    run_loop = staticmethod(run_loop)
