"""A run as it is seen from outside: trackers, its card, the hub; killed in the middle, and refused by the hub once."""

import json
import subprocess
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pipelines.training.history import read_metrics
from tests.conftest import SAMPLE
from tests.hub_server import TOKEN, Hub, serve_hub
from tests.integration.processes import kill, list_descendants, start_door, wait_until
from tests.unit.test_tracking import read_items, read_wandb_history, wait_for_wandb

NAME = "me/my-model"


def start(folder: Path, hub: Hub, *arguments: str) -> subprocess.Popen[str]:
    home = folder.parent
    environment = {
        "HF_ENDPOINT": hub.url,
        "HF_HUB_OFFLINE": "0",
        "HF_HOME": str(home / "hf"),
        "HF_TOKEN": TOKEN,
        "MLFLOW_TRACKING_URI": (home / "mlflow").as_uri(),
        "MLFLOW_ALLOW_FILE_STORE": "true",
        "WANDB_MODE": "offline",
    }
    return start_door("train", [*arguments, "--output_dir", str(folder)], environment, stderr=subprocess.PIPE)


def finish(driver: subprocess.Popen[str], code: int) -> tuple[str, str]:
    try:
        told, complained = driver.communicate(timeout=150)
    finally:
        kill([*list_descendants(driver.pid), driver.pid])
    assert driver.returncode == code, complained
    assert "Traceback" not in complained
    return told, complained


@pytest.mark.long
@pytest.mark.timeout(1500)
def test_run_that_is_killed_and_resumed_is_one_run_everywhere_and_reaches_the_hub(tiny_encoder, tmp_path, monkeypatch):
    folder, metrics = tmp_path / "run", tmp_path / "run" / "metrics.jsonl"
    some = tmp_path / "train.jsonl"
    some.write_text("".join((SAMPLE / "en-train.jsonl").open().readlines()[:40]), encoding="utf-8")
    command = (
        *("--corpus.train", str(some), "--corpus.dev", "sample:en-dev.jsonl", "--corpus.test", "sample:en-dev.jsonl"),
        *("--model.encoder", tiny_encoder, "--model.head", "crf", "--training.num_epochs", "2"),
        *("--training.batch_tokens", "300", "--training.checkpoint_every_steps", "5"),
        *("--tracking.to", "tensorboard", "mlflow", "wandb", "--push_to_hub", NAME, "--push_private", "true"),
    )
    with serve_hub() as hub:
        driver = start(folder, hub, *command)
        try:
            wait_until(lambda: any(row["kind"] == "epoch" for row in read_metrics(metrics)), "the first epoch")
            wait_until(lambda: "dev/strict_f1" in (folder / "tracking.json").read_text(), "trackers know it")
            assert driver.poll() is None
        finally:
            kill([driver.pid, *list_descendants(driver.pid)])
            driver.communicate()
        assert hub.requests == []

        hub.refuse = "/commit"
        _, complained = finish(start(folder, hub, *command), 1)
        assert f"{NAME} is not uploaded" in complained
        assert f"hf upload {NAME} {folder}/bundle . --private" in complained
        assert json.loads((folder / "run.json").read_text())["status"] == "done"
        assert hub.models[NAME].files == {}

        hub.refuse = ""
        told, _ = finish(start(folder, hub, *command), 0)
        assert "this run is finished" in told
        assert f"uploaded: {hub.url}/{NAME}" in told
        assert hub.models[NAME].private
        bundle = {path.name: path.read_bytes() for path in (folder / "bundle").iterdir()}
        assert hub.models[NAME].files == bundle

    rows = read_metrics(metrics)
    losses = {row["step"]: row["loss"] for row in rows if row["kind"] == "step"}
    scores = {row["step"]: row["dev_f1"] for row in rows if row["kind"] == "epoch"}
    f1 = json.loads((folder / "run.json").read_text())["scores"]["strict_micro_f1"]
    assert list(losses) == list(range(1, len(losses) + 1))
    check_tensorboard(folder, losses, scores, f1)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlflow").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    check_mlflow(losses, scores, f1)
    check_wandb(folder, losses, scores, f1)
    card = ModelCard.load(folder / "bundle" / "README.md")
    assert card.data.to_dict()["model-index"][0]["name"] == NAME
    assert f'NerEngine.load("{NAME}")' in card.content
    assert "CPU, " in card.content
    assert str(tmp_path) not in card.content


def check_tensorboard(folder: Path, losses: dict[int, float], scores: dict[int, float], f1: float) -> None:
    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    found = [(one.step, one.value) for one in events.Scalars("train/loss")]
    assert [step for step, _ in found] == list(losses)
    assert [value for _, value in found] == pytest.approx(list(losses.values()), rel=1e-4)
    assert {one.step: one.value for one in events.Scalars("dev/strict_f1")} == pytest.approx(scores)
    assert events.Scalars("test/strict_f1")[-1].value == pytest.approx(f1)


def check_mlflow(losses: dict[int, float], scores: dict[int, float], f1: float) -> None:
    from mlflow import MlflowClient

    client = MlflowClient()
    (run,) = client.search_runs([client.get_experiment_by_name("rayner").experiment_id])
    history = client.get_metric_history(run.info.run_id, "train/loss")
    assert [one.step for one in history] == list(losses)
    assert [one.value for one in history] == pytest.approx(list(losses.values()), rel=1e-2)
    assert {one.step for one in client.get_metric_history(run.info.run_id, "dev/strict_f1")} == set(scores)
    assert run.data.metrics["test/strict_f1"] == pytest.approx(f1)
    assert (run.info.status, run.data.params["model.head"]) == ("FINISHED", "crf")


def check_wandb(folder: Path, losses: dict[int, float], scores: dict[int, float], f1: float) -> None:
    """What a killed process had not yet written to its file is lost offline, so that steps may be missing there."""
    records = wait_for_wandb(folder, 1)
    assert len({one.run.run_id for one in records if one.WhichOneof("record_type") == "run"}) == 1
    history = read_wandb_history(records)
    steps = [step for step, _ in history]
    assert steps == sorted(set(steps))
    assert set(steps) <= set(losses)
    assert steps[-1] == max(losses)
    updates = [item for one in records if one.WhichOneof("record_type") == "summary" for item in one.summary.update]
    assert read_items(updates)["test/strict_f1"] == pytest.approx(f1)


def test_mistakes_are_told_together_before_anything_is_made(tmp_path: Path):
    with serve_hub() as hub:
        flags = ("--tracking.to", "tensorbord", "--push_to_hub", "no name", "--corpus.train", "sample:en-train.jsonl")
        _, complained = finish(start(tmp_path / "run", hub, *flags), 2)
    assert "2 mistakes" in complained
    assert "one of tensorboard, mlflow, wandb" in complained
    assert "user/name" in complained
    assert not (tmp_path / "run").exists()
    assert hub.requests == []
