"""A few real steps of a random encoder, to see how fast this machine trains."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from transformers import AutoConfig, AutoModelForTokenClassification

from pipelines.ner.labels import LabelScheme
from pipelines.ner.model import TokenClassifier
from pipelines.training.batches import TrainingWindows
from pipelines.training.config import TrainingConfig
from pipelines.training.loop import train
from pipelines.training.optimizer import OptimizerConfig
from pipelines.training.process import prepare_process
from pipelines.training.state import TrainingState

LABELS = ["A", "B", "C", "D"]


class _Steps:
    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def on_start(self, metrics: dict[str, Any]) -> None:
        pass

    def on_step(self, metrics: dict[str, Any]) -> None:
        self.rows.append(metrics)

    def on_checkpoint(self, metrics: dict[str, Any] | None, get_state: Callable[[], TrainingState]) -> None:
        pass


def train_probe(
    family: str,
    shape: dict[str, Any],
    lengths: Sequence[int],
    num_steps: int,
    *,
    words_per_token: float = 0.75,
    precision: str = "auto",
    device: str = "cpu",
) -> list[dict[str, Any]]:
    """Train a random encoder through the real loop; returns the rows of its steps, as `metrics.jsonl` has them.

    Args:
        family: transformers' `model_type`; `shape` holds the settings of its configuration.
        lengths: sub-tokens of the windows of each step.
    """
    prepare_process()  # as a worker does
    scheme = LabelScheme.from_labels(LABELS)
    config = AutoConfig.for_model(family, num_labels=len(scheme.tags), **shape)
    generator = np.random.default_rng(1)
    rows = [
        _draw_window(number, length, words_per_token, config.vocab_size, generator)
        for number, length in enumerate([*lengths] * num_steps)
    ]
    windows, listener = TrainingWindows(pa.Table.from_pylist(rows)), _Steps()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = TokenClassifier(
            AutoModelForTokenClassification.from_config(config, dtype=torch.float32, trust_remote_code=False), scheme
        )
        train(
            model,
            windows,
            TrainingConfig(
                num_epochs=1,
                batch_tokens=sum(lengths),
                device_batch_tokens=len(lengths) * max(lengths),
                precision=precision,
                optimizer=OptimizerConfig(learning_rate=1e-5),
            ),
            pad_id=config.pad_token_id or 0,
            device=torch.device(device),
            evaluate=lambda _: 0.0,
            listener=listener,
        )
    return listener.rows


def _draw_window(
    number: int, length: int, words_per_token: float, vocab_size: int, generator: np.random.Generator
) -> dict[str, Any]:
    num_words = max(1, min(length, round(length * words_per_token)))
    return {
        "record_id": f"{number:06}",
        "input_ids": generator.integers(5, vocab_size, length).tolist(),
        "word_starts": list(range(num_words)),
        "tag_ids": [0] * num_words,
        "starts_document": True,
        "ends_document": True,
    }
