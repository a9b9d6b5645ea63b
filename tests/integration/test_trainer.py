"""Training on Ray: workers agree, metrics are whole, a killed worker changes nothing, mistakes are not retried."""

import os
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch

from pipelines.corpus.preparation import prepare_shards
from pipelines.corpus.reading import CorpusConfig
from pipelines.corpus.shards import load_shards_info, read_rows, read_windows
from pipelines.ner.encoding import EncodingConfig
from pipelines.ner.model import ModelConfig
from pipelines.training.config import TrainingConfig, TrainingError
from pipelines.training.history import read_metrics
from pipelines.training.loop import TrainingState
from pipelines.training.parallel import ParallelConfig
from pipelines.training.trainer import (
    ResourcesConfig,
    TrainingJob,
    TrainingResult,
    _load_state,
    _save_state,
    fit,
    plan_workers,
)
from tests.conftest import SAMPLE
from tests.integration.processes import kill, list_descendants, wait_until

pytestmark = pytest.mark.usefixtures("ray_session")

TRAINING = TrainingConfig(
    num_epochs=2, batch_tokens=200, device_batch_tokens=300, precision="fp32", checkpoint_every_steps=5, seed=7
)


@pytest.fixture(scope="module")
def make_job(
    ray_session: None, tiny_encoder: str, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., TrainingJob]:
    """Jobs on forty documents of the sample, without dropout."""
    folder = tmp_path_factory.mktemp("corpus")
    some = folder / "train.jsonl"
    some.write_text("".join((SAMPLE / "en-train.jsonl").open().readlines()[:40]), encoding="utf-8")
    corpus = CorpusConfig(train=[str(some)], dev=["sample:en-dev.jsonl"], test=["sample:en-dev.jsonl"])
    shards, model = folder / "shards", ModelConfig(encoder=tiny_encoder, dropout=0.0)
    prepare_shards(corpus, EncodingConfig(window=64), model, shards, seed=1, num_actors=1)
    info = load_shards_info(shards)

    def make(load_windows: Callable[[], pa.Table] = partial(read_windows, shards)) -> TrainingJob:  # noqa: B008
        return TrainingJob(
            encoder=tiny_encoder,
            model=model,
            scheme=info.label_scheme,
            window=info.window,
            stride=info.stride,
            splitter=info.splitter,
            casing=info.casing,
            training=TRAINING,
            parallel=ParallelConfig(),
            load_windows=load_windows,
            load_dev=partial(read_rows, shards, "dev"),
            corpus_scheme=info.corpus_scheme,
        )

    return make


@pytest.fixture(scope="module")
def undisturbed(make_job, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TrainingResult]:
    """A run with one worker."""
    folder = tmp_path_factory.mktemp("undisturbed")
    return folder, fit(make_job(), ResourcesConfig(num_workers=1, cpus_per_worker=1), folder)


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


def test_metrics_hold_each_step_once_and_the_loss_falls(undisturbed):
    folder, result = undisturbed
    start, steps, epochs = (read(folder, kind) for kind in ("start", "step", "epoch"))
    assert len(start) == 1
    assert (start[0]["step"], start[0]["num_workers"], start[0]["precision"]) == (0, 1, "fp32")
    assert [row["step"] for row in steps] == list(range(1, result.num_steps + 1))
    assert start[0]["num_steps"] == result.num_steps
    assert [row["epoch"] for row in epochs] == [1, 2]
    assert all(row["peak_memory_mib"] > 100 for row in epochs)
    assert sum(row["loss"] for row in steps[-5:]) < sum(row["loss"] for row in steps[:5])
    assert result.best_dev_f1 == max(row["dev_f1"] for row in epochs)


def test_two_workers_see_the_same_batches_and_losses_as_one(make_job, undisturbed, tmp_path):
    result = fit(make_job(), ResourcesConfig(num_workers=2, cpus_per_worker=1), tmp_path)
    assert read(tmp_path, "start")[0]["num_workers"] == 2
    check_same_run(tmp_path, result, undisturbed)


def test_worker_killed_in_mid_epoch_changes_nothing(make_job, undisturbed, tmp_path):
    killed: list[int] = []

    def kill_worker() -> None:
        wait_until(lambda: any(row["step"] >= 5 for row in read(tmp_path, "step")), "five steps")
        killed.extend(list_descendants(os.getpid(), "RayTrainWorker"))
        kill(killed)

    killer = threading.Thread(target=kill_worker)
    killer.start()
    result = fit(make_job(), ResourcesConfig(num_workers=1, cpus_per_worker=1), tmp_path)
    killer.join()
    assert len(killed) == 1
    assert [row["step"] > 0 for row in read(tmp_path, "start")] == [True], "it did not resume from a checkpoint"
    check_same_run(tmp_path, result, undisturbed)


def test_finished_training_is_not_repeated(make_job, undisturbed):
    folder, first = undisturbed
    before = (folder / "metrics.jsonl").read_bytes()
    again = fit(make_job(), ResourcesConfig(num_workers=1, cpus_per_worker=1), folder)
    assert (folder / "metrics.jsonl").read_bytes() == before
    assert again.num_steps == first.num_steps
    assert all(torch.equal(again.best_model[name], weight) for name, weight in first.best_model.items())


def test_mistake_found_by_a_worker_arrives_as_such_and_is_not_retried(make_job, tmp_path):
    read_all = make_job().load_windows
    calls = tmp_path / "calls"

    def load_nothing() -> pa.Table:
        with calls.open("a") as file:
            file.write("called\n")
        return read_all().slice(0, 0)

    with pytest.raises(TrainingError, match="the training corpus has no words") as caught:
        fit(make_job(load_nothing), ResourcesConfig(num_workers=1, cpus_per_worker=1), tmp_path)
    assert caught.value.remedy == "check the files given as `--corpus.train`"
    assert calls.read_text() == "called\n"


@pytest.mark.parametrize("average", [{}, {"weights": {"w": torch.ones(9)}, "count": 3}])
def test_saved_state_has_the_best_weights_once_where_they_are_the_present_ones(average, tmp_path):
    present = {"w": torch.zeros(9)}
    best = average.get("weights", present)
    state = TrainingState(epoch=2, best_epoch=2, best_f1=0.5, model=present, average=average, best_model=best)
    _save_state(state, tmp_path)
    found = _load_state(tmp_path)
    assert torch.equal(found.best_model["w"], best["w"])
    assert torch.equal(found.model["w"], present["w"])
    assert found.average.keys() == average.keys()
    assert (found.best_model is found.model) == (not average)


@pytest.mark.parametrize(
    ("resources", "facts"),
    [
        (ResourcesConfig(num_workers=9, cpus_per_worker=1), ["9 workers with 1 CPU each", "room for 8: 8 CPU"]),
        (ResourcesConfig(num_workers=1, cpus_per_worker=64), ["1 workers with 64 CPU each", "room for 0: 8 CPU"]),
        (ResourcesConfig(num_workers=2, cpus_per_worker=1, use_gpu=True), ["2 workers with 1 CPU, 1 GPU", "for 0"]),
    ],
)
def test_workers_without_room_are_refused_at_once_with_the_sum(resources, facts):
    with pytest.raises(TrainingError, match="no room for the workers") as caught:
        plan_workers(resources)
    for fact in facts:
        assert fact in str(caught.value)
    assert "--resources.num_workers" in str(caught.value)
