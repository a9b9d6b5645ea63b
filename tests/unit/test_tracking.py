"""Trackers, each through its own library: what a run tells them is there, once, also after a resume or a failure."""

import importlib.util
import json
import math
import shutil
import struct
import sys
import threading
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from pipelines import tracking
from pipelines.ner.errors import UserError
from pipelines.tracking import Tracking, TrackingConfig, TrackingError, read_points
from pipelines.training.history import append_metrics

SCORES = {
    "strict": {"micro": {"precision": 0.75, "recall": 0.5, "f1": 0.6, "support": 8}},
    "lenient": {"micro": {"precision": 0.75, "recall": 0.625, "f1": 0.7, "support": 8}},
}
SETTINGS = {
    "training": {"seed": 1, "optimizer": {"learning_rate": 5e-5}},
    "corpus": {"train": ["a.conll", "é.jsonl"], "shards": None},
    "note": "x" * 9000,
}


def start(step: int) -> dict:
    return {"kind": "start", "time": 1e9, "step": step, "num_steps": 6, "num_epochs": 2}


def steps(*numbers: int, loss: float = 8.0) -> list[dict]:
    row = {"kind": "step", "epoch": 0, "learning_rate": 1e-5, "gradient_norm": 1.5, "num_tokens": 100, "seconds": 0.5}
    return [row | {"step": number, "time": 1e9 + number, "loss": loss / number} for number in numbers]


def epoch(number: int, step: int) -> list[dict]:
    return [{"kind": "epoch", "time": 1e9 + step, "step": step, "epoch": number, "dev_f1": number / 4}]


def track(folder: Path, *reports: list[dict], scores: dict | None = None, stop: bool = False, **options) -> None:
    """One process's share of a run: rows come in, and perhaps the scores, or the user stops it."""
    with Tracking(TrackingConfig(**options), folder, SETTINGS) as followed:
        followed.start(folder / "metrics.jsonl")
        for rows in reports:
            append_metrics(folder / "metrics.jsonl", rows)
        if stop:
            raise KeyboardInterrupt
        if scores:
            followed.log_scores(scores, 6)


def break_off(folder: Path, *reports: list[dict], **options: object) -> None:
    with pytest.raises(KeyboardInterrupt):
        track(folder, *reports, stop=True, **options)


FIRST = ([start(0)], steps(1, 2, 3), epoch(1, 3), steps(4, 5))
"""What the first process tells before it is interrupted; its last checkpoint is that of step 3."""
SECOND = ([start(3)], steps(4, 5, 6), epoch(2, 6))
LOSSES = {number: 8.0 / number for number in range(1, 7)}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run folder; trackers are asked often, and know no account."""
    monkeypatch.setattr(tracking, "POLL_S", 0.02)
    monkeypatch.setattr(tracking, "RETRY_S", 0.05)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlflow").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("WANDB_MODE", "offline")
    run = tmp_path / "my run"
    run.mkdir()
    return run


def wait(holds, deadline_s: float = 10) -> None:
    end = time.monotonic() + deadline_s
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)


def read_events(folder: Path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0, "tensors": 0}).Reload()


def read_mlflow(project: str = "rayner"):
    from mlflow import MlflowClient

    client = MlflowClient()
    experiment = client.get_experiment_by_name(project)
    return client, client.search_runs([experiment.experiment_id])


def wait_for_wandb(folder: Path, num_exits: int) -> list:
    """The records of runs so many of which were closed: W&B's process writes the last ones after it has answered."""
    wait(lambda: sum(one.WhichOneof("record_type") == "exit" for one in read_wandb(folder)) == num_exits)
    return read_wandb(folder)


def read_wandb(folder: Path) -> list:
    """Every record in W&B's offline files: a header of seven bytes, then LevelDB's log format."""
    from wandb.proto import wandb_internal_pb2

    found = []
    for path in sorted(folder.glob("wandb/offline-run-*/run-*.wandb"), key=lambda path: path.stat().st_mtime_ns):
        data, at, whole = path.read_bytes(), 7, b""
        while at + 7 <= len(data):
            if 32768 - at % 32768 < 7:
                at += 32768 - at % 32768
                continue
            length, kind = struct.unpack("<HB", data[at + 4 : at + 7])
            if at + 7 + length > len(data):  # still being written, or cut off by a kill
                break
            whole += data[at + 7 : at + 7 + length]
            at += 7 + length
            if kind in (1, 4):  # a record's end
                found.append(wandb_internal_pb2.Record.FromString(whole))
                whole = b""
    return found


def read_wandb_history(records: list) -> list[tuple[int, dict]]:
    rows = [one.history for one in records if one.WhichOneof("record_type") == "history"]
    return [(row.step.num, read_items(row.item)) for row in rows]


def read_items(items) -> dict:
    return {(item.key or item.nested_key[0]): json.loads(item.value_json) for item in items}


def test_nothing_is_written_or_loaded_unless_asked(folder: Path):
    before = set(sys.modules)
    track(folder, *FIRST, scores=SCORES)
    assert [path.name for path in folder.iterdir()] == ["metrics.jsonl"]
    assert not {"wandb", "mlflow", "tensorboard"} & (set(sys.modules) - before)
    assert not (folder.parent / "mlflow").exists()


def test_tensorboard_has_each_point_of_a_resumed_run_once_and_the_scores(folder: Path):
    break_off(folder, *FIRST, to=["tensorboard"])
    track(folder, *SECOND, scores=SCORES, to=["tensorboard"])
    events = read_events(folder)
    assert {one.step: one.value for one in events.Scalars("train/loss")} == pytest.approx(LOSSES)
    assert len(events.Scalars("train/loss")) == 6
    assert [one.wall_time for one in events.Scalars("train/loss")] == [1e9 + step for step in range(1, 7)]
    assert [one.value for one in events.Scalars("train/tokens_per_s")] == [200.0] * 6
    assert [(one.step, one.value) for one in events.Scalars("dev/strict_f1")] == [(3, 0.25), (6, 0.5)]
    assert [one.value for one in events.Scalars("test/strict_f1")] == pytest.approx([0.6])
    assert {"train/learning_rate", "train/gradient_norm", "test/lenient_f1"} <= set(events.Tags()["scalars"])
    text = events.Tensors("config/text_summary")[-1].tensor_proto.string_val[0].decode()
    assert '"learning_rate": 5e-05' in text


def test_checkpoint_that_is_written_late_hides_no_step(folder: Path):
    metrics, late = folder / "metrics.jsonl", [{"kind": "checkpoint", "time": 1e9, "step": 1}]
    with Tracking(TrackingConfig(to=["tensorboard"]), folder, SETTINGS) as followed:
        followed.start(metrics)
        append_metrics(metrics, [start(0), *steps(1, 2)])
        wait(lambda: followed.followers[0].told.get("train/loss") == 2)
        append_metrics(metrics, [*steps(3, 4), *late, *steps(5, 6)])
    assert {one.step: one.value for one in read_events(folder).Scalars("train/loss")} == pytest.approx(LOSSES)


def test_mlflow_goes_on_with_the_same_run_and_has_each_point_once(folder: Path):
    break_off(folder, *FIRST, to=["mlflow"], project="my project")
    client, (run,) = read_mlflow("my project")
    assert run.info.status == "FAILED"
    track(folder, *SECOND, scores=SCORES, to=["mlflow"], project="my project")
    client, runs = read_mlflow("my project")
    assert [one.info.run_id for one in runs] == [run.info.run_id]
    assert (runs[0].info.status, runs[0].info.run_name) == ("FINISHED", "my run")
    history = client.get_metric_history(run.info.run_id, "train/loss")
    assert [one.step for one in history] == [1, 2, 3, 4, 5, 6]
    assert {one.step: one.value for one in history} == pytest.approx(LOSSES)
    assert [(one.step, one.value) for one in client.get_metric_history(run.info.run_id, "dev/strict_f1")] == [
        (3, 0.25),
        (6, 0.5),
    ]
    metrics, params = runs[0].data.metrics, runs[0].data.params
    assert (metrics["test/strict_f1"], metrics["test/lenient_f1"]) == (0.6, 0.7)
    assert params["training.optimizer.learning_rate"] == "5e-05"
    assert params["corpus.train"] == '["a.conll", "é.jsonl"]'
    assert len(params["note"]) == 6000


def test_mlflow_has_no_point_twice_where_it_knows_more_than_the_run_remembers(folder: Path):
    """Killed after points were sent and before that was written down."""
    break_off(folder, *FIRST, to=["mlflow"])
    state = json.loads((folder / "tracking.json").read_text())
    state["mlflow"]["told"] = {}
    (folder / "tracking.json").write_text(json.dumps(state))
    track(folder, *SECOND, to=["mlflow"])
    client, (run,) = read_mlflow()
    for name in ("train/loss", "train/tokens_per_s"):
        assert [one.step for one in client.get_metric_history(run.info.run_id, name)] == [1, 2, 3, 4, 5, 6]


def test_wandb_goes_on_with_the_same_run_and_has_each_point_once(folder: Path):
    break_off(folder, *FIRST, to=["wandb"], run_name="a name")
    track(folder, *SECOND, scores=SCORES, to=["wandb"], run_name="a name")
    records = wait_for_wandb(folder, 2)
    runs = [one.run for one in records if one.WhichOneof("record_type") == "run"]
    assert len({one.run_id for one in runs}) == 1
    assert {one.project for one in runs} == {"rayner"}
    assert runs[0].display_name == "a name"
    assert read_items(runs[0].config.update)["training"]["optimizer"]["learning_rate"] == 5e-5
    history = read_wandb_history(records)
    assert [step for step, _ in history] == [1, 2, 3, 4, 5, 6]
    assert {step: values["train/loss"] for step, values in history} == pytest.approx(LOSSES)
    assert [(step, values["dev/strict_f1"]) for step, values in history if "dev/strict_f1" in values] == [
        (3, 0.25),
        (6, 0.5),
    ]
    updates = [item for one in records if one.WhichOneof("record_type") == "summary" for item in one.summary.update]
    assert read_items(updates)["test/strict_f1"] == 0.6
    exits = [one.exit.exit_code for one in records if one.WhichOneof("record_type") == "exit"]
    assert exits == [1, 0]


def test_tracker_that_goes_away_is_told_once_and_has_everything_when_it_is_back(folder: Path, capsys):
    """The store of MLflow is moved away in mid-run, and comes back."""
    metrics, store = folder / "metrics.jsonl", folder.parent / "mlflow"
    with Tracking(TrackingConfig(to=["mlflow", "tensorboard"]), folder, SETTINGS) as followed:
        followed.start(metrics)
        append_metrics(metrics, [start(0), *steps(1, 2)])
        wait(lambda: followed.followers[0].told.get("train/loss") == 2)
        store.rename(store.with_name("gone"))
        append_metrics(metrics, steps(3, 4))
        wait(lambda: followed.followers[0].is_warned)
        append_metrics(metrics, steps(5))
        wait(lambda: followed.followers[1].told.get("train/loss") == 5)
        shutil.rmtree(store, ignore_errors=True)
        store.with_name("gone").rename(store)
        append_metrics(metrics, steps(6))
        followed.log_scores(SCORES, 6)
    told = capsys.readouterr().err
    assert told.count("mlflow has not taken everything") == 1
    assert "tensorboard" not in told
    client, (run,) = read_mlflow()
    assert [one.step for one in client.get_metric_history(run.info.run_id, "train/loss")] == [1, 2, 3, 4, 5, 6]
    assert (run.info.status, run.data.metrics["test/strict_f1"]) == ("FINISHED", 0.6)


class _StuckServer(BaseHTTPRequestHandler):
    """As much of an MLflow server as begins a run; the points it is sent are never answered."""

    released = threading.Event()
    run = {"info": {"run_id": "r1", "experiment_id": "1", "status": "RUNNING"}, "data": {}}  # noqa: RUF012

    def do_GET(self) -> None:
        self.answer({"experiment": {"experiment_id": "1", "name": "rayner"}})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if body.get("metrics"):
            self.released.wait(20)
        self.answer({"run": self.run} if self.path.endswith("runs/create") else {})

    def answer(self, content: dict) -> None:
        with suppress(OSError):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps(content).encode())

    def log_message(self, *_: object) -> None:
        pass


def test_server_that_never_answers_holds_up_the_end_for_a_bounded_time(folder: Path, capsys, monkeypatch):
    server = ThreadingHTTPServer(("127.0.0.1", 0), _StuckServer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(tracking, "FINISH_S", 0.3)
    began = time.monotonic()
    try:
        track(folder, *FIRST, to=["mlflow"])
        assert time.monotonic() - began < 10
        assert "mlflow has not taken everything (no answer within 0.3 s)" in capsys.readouterr().err
    finally:
        _StuckServer.released.set()
        server.shutdown()
        server.server_close()


def test_numbers_that_are_none_arrive_as_such(folder: Path):
    """With fp16 the norm of a skipped step is infinite."""
    rows = [start(0), *steps(1), steps(2)[0] | {"gradient_norm": math.inf}]
    track(folder, rows, to=["tensorboard", "mlflow", "wandb"])
    assert read_events(folder).Scalars("train/gradient_norm")[-1].value == math.inf
    client, (run,) = read_mlflow()
    assert client.get_metric_history(run.info.run_id, "train/gradient_norm")[-1].value == math.inf
    assert read_wandb_history(wait_for_wandb(folder, 1))[-1][1]["train/gradient_norm"] in (math.inf, "Infinity")


def test_mistakes_are_told_together_and_before_anything(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)  # as where the extra is not installed
    problems = TrackingConfig(to=["mlflow", "wanbd", "mlflow"], project=" ").find_problems()
    assert [one.what for one in problems] == [
        "the library for `--tracking.to mlflow` is not installed",
        "no such tracker",
        "an empty name",
    ]
    assert problems[0].remedy == "pip install 'rayner[tracking]'"
    assert problems[1].rule == "one of tensorboard, mlflow, wandb"


def test_a_folder_of_the_same_name_is_no_library(tmp_path: Path, monkeypatch):
    """W&B leaves a folder `wandb` where it runs, and Python takes it for a package."""
    (tmp_path / "wandb").mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    importlib.invalidate_caches()
    assert importlib.util.find_spec("wandb") is not None
    (problem,) = TrackingConfig(to=["wandb"]).find_problems()
    assert "not installed" in problem.what


def test_server_that_does_not_answer_is_told_before_the_run(folder: Path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(TrackingError, match="mlflow takes no run") as caught:
        TrackingConfig(to=["mlflow"]).check_servers()
    assert "127.0.0.1" in caught.value.value
    assert "MLFLOW_TRACKING_URI" in caught.value.remedy


def test_wandb_without_an_account_is_told_before_the_run_and_asks_nothing(folder: Path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("NETRC", str(folder / "netrc"))
    import wandb

    wandb.teardown()
    with pytest.raises(UserError, match="wandb takes no run") as caught:
        TrackingConfig(to=["wandb"]).check_servers()
    assert "no account" in caught.value.value
    wandb.teardown()


def test_settings_without_a_tracker_have_no_effect_and_are_told():
    assert TrackingConfig(project="x", run_name="y").find_idle() == [
        "`tracking.project` has no effect without `--tracking.to`",
        "`tracking.run_name` has no effect without `--tracking.to`",
    ]
    assert TrackingConfig(to=["wandb"], project="x").find_idle() == []
    assert TrackingConfig().find_idle() == []


def test_points_are_the_curves_of_the_history():
    first, second = read_points([start(0), *steps(2), *epoch(1, 2)])
    assert (first.step, first.time) == (2, 1e9 + 2)
    assert first.values == {
        "train/loss": 4.0,
        "train/learning_rate": 1e-5,
        "train/gradient_norm": 1.5,
        "train/tokens_per_s": 200.0,
    }
    assert second.values == {"dev/strict_f1": 0.25, "epoch": 1}


def test_points_of_a_pretraining_are_its_perplexity():
    row = {"kind": "epoch", "time": 1e9, "step": 4, "epoch": 1, "held_out_perplexity": 20.0}
    [point] = read_points([row])
    assert point.values == {"held_out/perplexity": 20.0, "epoch": 1}
