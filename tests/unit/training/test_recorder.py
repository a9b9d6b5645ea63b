"""The run's recorder: rows before checkpoints, patience with storage, what is told of faults, when workers meet."""

import time
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from pipelines.training import recorder as module
from pipelines.training.checkpoints import list_checkpoints, read_step
from pipelines.training.config import TrainingError
from pipelines.training.history import read_metrics
from pipelines.training.recorder import Recorder
from pipelines.training.state import TrainingState


def make_recorder(folder: Path, patience_s: float = 60.0) -> Recorder:
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    return Recorder(folder, patience_s)


def make_state(step: int, done: bool = False) -> TrainingState:
    return TrainingState(step=step, epoch_step=step, done=done, model={"weight": torch.ones(10) * step})


def record(recorder: Recorder, *steps: int) -> None:
    """Train to these steps, with a checkpoint at each."""
    for step in steps:
        recorder.add("step", {"step": step})
        recorder.write_checkpoint(make_state(step))
        recorder.writer.wait()
    recorder.flush()


def read_notices(folder: Path) -> list[str]:
    return [row["text"] for row in read_metrics(folder / "metrics.jsonl") if row["kind"] == "notice"]


def test_rows_up_to_a_checkpoint_are_written_before_it(tmp_path):
    recorder = make_recorder(tmp_path)
    recorder.add("start", {"step": 0})
    recorder.add("step", {"step": 1})
    recorder.add("step", {"step": 2})
    assert not (tmp_path / "metrics.jsonl").exists()
    recorder.write_checkpoint(make_state(2))
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [0, 1, 2]
    recorder.writer.wait()
    again = make_recorder(tmp_path)
    assert read_step(again.find_checkpoint()) == 2
    assert again.rows == []


def test_no_checkpoint_is_written_whose_rows_are_not(tmp_path):
    recorder = make_recorder(tmp_path)
    record(recorder, 1)
    (tmp_path / "metrics.jsonl").rename(tmp_path / "kept")
    (tmp_path / "metrics.jsonl").mkdir()
    record(recorder, 2)
    assert [read_step(path) for path in list_checkpoints(tmp_path / "checkpoints")] == [1]
    (tmp_path / "metrics.jsonl").rmdir()
    (tmp_path / "kept").rename(tmp_path / "metrics.jsonl")
    record(recorder, 3)
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl") if row["kind"] == "step"] == [1, 2, 3]
    assert [read_step(path) for path in list_checkpoints(tmp_path / "checkpoints")] == [3, 1]


def test_storage_that_comes_back_in_time_is_told_and_costs_nothing_else(tmp_path):
    run, away = tmp_path / "run", tmp_path / "away"
    recorder = make_recorder(run, patience_s=2.0)
    record(recorder, 1)
    run.rename(away)
    record(recorder, 2)
    assert recorder.look(3).problem is None
    time.sleep(0.11)  # patience over twenty
    assert recorder.look(4).keep_now, "it does not try again"
    away.rename(run)
    record(recorder, 4)
    order = recorder.look(5)
    assert (order.problem, order.keep_now) == (None, False)
    recorder.flush()
    first, second = read_notices(run)
    assert "cannot be written (No such file or directory): training goes on, tries again, and stops after 2 s" in first
    assert second == "checkpoints are written again"
    assert [row["step"] for row in read_metrics(run / "metrics.jsonl") if row["kind"] == "step"] == [1, 2, 4]


def test_a_single_failure_is_told_though_the_next_one_succeeds_before_workers_meet(tmp_path):
    run, away = tmp_path / "run", tmp_path / "away"
    recorder = make_recorder(run)
    recorder.add("start", {"step": 0})
    recorder.flush()
    (run / "checkpoints").rename(away)
    record(recorder, 1)
    away.rename(run / "checkpoints")
    record(recorder, 2, 3)
    assert [told.split(" (")[0] for told in read_notices(run)] == [
        "a checkpoint cannot be written",
        "checkpoints are written again",
    ]


def test_storage_that_stays_away_ends_the_run_with_what_and_where_and_remedy(tmp_path):
    run = tmp_path / "run"
    recorder = make_recorder(run, patience_s=0.2)
    record(recorder, 1)
    run.rename(tmp_path / "away")
    problem = recorder.finish(make_state(1))
    assert problem is None, "what was written was written"
    record(recorder, 2)
    problem = recorder.finish(make_state(2, done=True))
    told = str(TrainingError(**problem))
    for fact in ("the run folder cannot be written", str(run), "0.2 s", "storage_patience_s", "No such file", "remedy"):
        assert fact in told


def test_the_end_waits_for_the_storage(tmp_path):
    run, away = tmp_path / "run", tmp_path / "away"
    recorder = make_recorder(run, patience_s=4.0)
    record(recorder, 1)
    run.rename(away)
    record(recorder, 2)
    recorder.look(3)
    away.rename(run)
    assert recorder.finish(make_state(2, done=True)) is None
    assert [read_step(path) for path in list_checkpoints(run / "checkpoints")] == [2, 1]
    assert read_notices(run)[-1] == "checkpoints are written again"


def test_a_damaged_and_a_missing_checkpoint_are_told(tmp_path):
    record(make_recorder(tmp_path), 5, 10, 15)
    last, before = list_checkpoints(tmp_path / "checkpoints")
    last.write_bytes(b"")
    again = make_recorder(tmp_path)
    assert again.find_checkpoint() == before
    again.add("start", {"step": 10})
    again.flush()
    (told,) = read_notices(tmp_path)
    what = f"damaged, and kept as {last.stem}.damaged for now"
    assert told == f"the checkpoint of step 15 is {what}: training goes on from step 10"

    record(again, 15)
    list_checkpoints(tmp_path / "checkpoints")[0].unlink()
    third = make_recorder(tmp_path)
    assert third.find_checkpoint() == before
    third.add("start", {"step": 10})
    third.flush()
    assert read_notices(tmp_path)[-1] == "the checkpoint of step 15 is gone: training goes on from step 10"
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in rows if row["kind"] == "step"] == [5, 10]
    assert [row["step"] for row in rows if row["kind"] == "checkpoint"] == [5, 10]


def test_a_run_without_any_of_its_checkpoints_is_refused(tmp_path):
    record(make_recorder(tmp_path), 5, 10)
    for path in list_checkpoints(tmp_path / "checkpoints"):
        path.unlink()
    with pytest.raises(TrainingError, match="checkpoints of the run are gone") as caught:
        make_recorder(tmp_path).find_checkpoint()
    assert "step 10" in str(caught.value)
    assert "--fresh" in str(caught.value)


def test_a_node_about_to_be_taken_has_a_checkpoint_written_at_once_and_every_so_often(tmp_path, monkeypatch):
    recorder = make_recorder(tmp_path)
    assert not recorder.look(1).keep_now
    assert recorder.look(2, ["0123456789"]).keep_now
    record(recorder, 2)
    assert not recorder.look(3, ["0123456789"]).keep_now
    monkeypatch.setattr(module, "KEEP_EVERY_S", 0.0)
    assert recorder.look(4, ["0123456789"]).keep_now
    recorder.flush()
    assert read_notices(tmp_path) == ["a node is about to be taken (01234567): a checkpoint is written at once"]


def test_workers_meet_every_two_seconds_or_twenty_steps(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    recorder = make_recorder(tmp_path)
    met, step, pace_s = [], 1, 0.01
    while step < 200:
        met.append(step)
        after = recorder.look(step).next_look
        pace_s = 0.01 if step < 100 else 0.7
        now[0] += (after - step) * pace_s
        step = after
    gaps = [later - earlier for earlier, later in pairwise(met)]
    assert gaps[:6] == [2, 4, 8, 16, 20, 20]
    assert gaps[-20:] == [2] * 20
