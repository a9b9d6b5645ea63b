"""Workers and the driver of a run are killed in mid-epoch; it ends as an undisturbed one."""

import json
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipelines import prepare, train
from pipelines.training.history import read_metrics
from tests.integration.processes import kill, list_descendants, start_door, wait_until

SETTINGS = (
    *("--training.num_epochs", "3", "--training.batch_tokens", "300", "--training.precision", "fp32"),
    *("--training.checkpoint_every_steps", "10"),
    *("--resources.num_workers", "1", "--resources.cpus_per_worker", "1"),
)


@pytest.fixture(scope="module")
def corpus(ray_session: None, tiny_encoder: str, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("corpus") / "shards"
    splits = (("train", "train"), ("dev", "dev"), ("test", "dev"))
    files = [part for split, name in splits for part in (f"--corpus.{split}", f"sample:en-{name}.jsonl")]
    assert prepare.main([*files, "--model.encoder", tiny_encoder, "--output_dir", str(folder)]) == 0
    return ["--corpus.shards", str(folder), "--model.encoder", tiny_encoder]


@pytest.fixture(scope="module")
def undisturbed(corpus: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    assert train.main([*corpus, *SETTINGS, "--output_dir", str(folder)]) == 0
    return folder


def start(corpus: list[str], folder: Path) -> subprocess.Popen[str]:
    return start_door("train", [*corpus, *SETTINGS, "--output_dir", str(folder)])


@pytest.mark.timeout(1500)
def test_run_with_killed_worker_and_killed_driver_ends_as_an_undisturbed_one(corpus, undisturbed, tmp_path):
    folder = tmp_path / "run"
    metrics = folder / "metrics.jsonl"
    expected = read_metrics(undisturbed / "metrics.jsonl")
    num_steps = select(expected, "start")[-1]["num_steps"]
    per_epoch = num_steps // 3

    driver = start(corpus, folder)
    try:
        wait_until(reaches(driver, metrics, per_epoch // 3), "a third of the first epoch")
        workers = list_descendants(driver.pid, "RayTrainWorker")
        assert len(workers) == 1
        kill(workers)
        wait_until(lambda: is_running(driver) and select(read_metrics(metrics), "start")[-1]["step"], "a resumed group")
        resumed_at = select(read_metrics(metrics), "start")[-1]["step"]
        assert 0 < resumed_at < num_steps
        wait_until(reaches(driver, metrics, per_epoch + 5), "the second epoch")
        assert not (folder / "run.json").exists()
    finally:
        below = list_descendants(driver.pid)
        kill([driver.pid, *below])
        driver.communicate()
    reached = select(read_metrics(metrics), "step")[-1]["step"]
    assert per_epoch < reached < num_steps

    again = start(corpus, folder)
    told, _ = again.communicate(timeout=600)
    assert again.returncode == 0, told

    rows = read_metrics(metrics)
    last_start = select(rows, "start")[-1]["step"]
    assert reached - 20 <= last_start <= reached  # the checkpoint before, where the last one was being written
    assert [row["step"] for row in select(rows, "step")] == list(range(1, num_steps + 1))
    assert [row["epoch"] for row in select(rows, "epoch")] == [1, 2, 3]
    for kind, name in (("step", "loss"), ("epoch", "dev_f1")):
        values = [row[name] for row in select(rows, kind)]
        assert values == pytest.approx([row[name] for row in select(expected, kind)], abs=1e-4)
    assert read_scores(folder) == pytest.approx(read_scores(undisturbed), abs=1e-4)


def reaches(driver: subprocess.Popen[str], metrics: Path, step: int) -> Callable[[], bool]:
    def holds() -> bool:
        return is_running(driver) and any(row["step"] >= step for row in select(read_metrics(metrics), "step"))

    return holds


def is_running(process: subprocess.Popen[str]) -> bool:
    assert process.poll() is None, process.communicate()[0]
    return True


def select(rows: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [row for row in rows if row["kind"] == kind]


def read_scores(folder: Path) -> dict[str, float]:
    run = json.loads((folder / "run.json").read_text())
    assert run["status"] == "done"
    scores: dict[str, float] = run["scores"]
    return scores


@pytest.mark.long
@pytest.mark.timeout(900)
def test_interrupted_run_says_how_to_go_on(corpus, tmp_path):
    folder = tmp_path / "run"
    driver = start(corpus, folder)
    try:
        wait_until(lambda: read_metrics(folder / "metrics.jsonl"), "training has begun")
        driver.send_signal(signal.SIGINT)
        told, _ = driver.communicate(timeout=600)
    finally:
        kill([*list_descendants(driver.pid), driver.pid])
    assert driver.returncode == 130, told
    assert "stopped; the same command goes on" in told
    assert "Traceback" not in told
    assert not (folder / "bundle").exists()
