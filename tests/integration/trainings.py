"""Small training jobs on the tests' Ray, and the comparison of a disturbed run with an undisturbed one."""

from pathlib import Path
from typing import Any

import pytest
import torch

from pipelines.training.config import TrainingConfig
from pipelines.training.history import read_metrics
from pipelines.training.job import TrainingResult

TRAINING = TrainingConfig(
    num_epochs=2, batch_tokens=200, device_batch_tokens=300, precision="fp32", checkpoint_every_steps=5, seed=7
)


def read(folder: Path, kind: str) -> list[dict[str, Any]]:
    return [row for row in read_metrics(folder / "metrics.jsonl") if row["kind"] == kind]


def check_same_run(folder: Path, result: TrainingResult, undisturbed: tuple[Path, TrainingResult]) -> None:
    before, expected = undisturbed
    for kind, names in (("step", ("step", "epoch", "num_tokens", "num_words")), ("epoch", ("step", "epoch"))):
        found = [[row[name] for name in names] for row in read(folder, kind)]
        assert found == [[row[name] for name in names] for row in read(before, kind)]
    for kind, name in (("step", "loss"), ("step", "learning_rate"), ("step", "gradient_norm"), ("epoch", "dev_f1")):
        values = [row[name] for row in read(folder, kind)]
        assert values == pytest.approx([row[name] for row in read(before, kind)], rel=1e-3, abs=1e-4)
    assert (result.num_steps, result.num_epochs, result.best_epoch) == (
        expected.num_steps,
        expected.num_epochs,
        expected.best_epoch,
    )
    for name, weight in expected.best_model.items():
        torch.testing.assert_close(result.best_model[name], weight, rtol=1e-2, atol=1e-3)
