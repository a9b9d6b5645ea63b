"""The metrics file: rows are added, a restart replaces what it does again, a torn last line is not read."""

import json
import math
import os
import resource
import signal
from pathlib import Path

import pytest
import ray

from pipelines.training.history import (
    MetricsTail,
    append_metrics,
    read_metrics,
    summarize_usage,
    trace_dev_f1,
    trace_loss,
)
from pipelines.training.notices import FailureNotices


def step(number: int, loss: float = 1.0) -> dict:
    return {"kind": "step", "step": number, "loss": loss, "seconds": 0.5, "num_tokens": 100}


def start(number: int) -> dict:
    return {"kind": "start", "step": number, "num_workers": 2, "precision": "bf16"}


def test_a_restart_takes_out_the_steps_that_it_repeats(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    append_metrics(path, [start(0)])
    append_metrics(path, [step(1), step(2), {"kind": "epoch", "step": 2, "epoch": 1, "dev_f1": 0.5}, step(3, 9.0)])
    append_metrics(path, [start(2)])
    append_metrics(path, [step(3, 7.0), step(4)])
    rows = read_metrics(path)
    assert [(row["kind"], row["step"]) for row in rows] == [
        ("step", 1), ("step", 2), ("epoch", 2), ("start", 2), ("step", 3), ("step", 4)
    ]  # fmt: skip
    assert rows[4]["loss"] == 7.0


def test_a_line_that_is_still_being_written_is_not_read(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    append_metrics(path, [step(1)])
    with path.open("a") as file:
        file.write('{"kind": "st')
    assert read_metrics(path) == [step(1)]
    assert read_metrics(tmp_path / "none.jsonl") == []


def test_a_tail_has_at_any_time_what_reading_the_whole_file_gives(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    tail = MetricsTail(path)
    assert tail.read() == []
    for rows in ([start(0)], [step(1), step(2)], [], [step(3, 9.0)], [start(2)], [step(3)], [start(0)], [step(1)]):
        append_metrics(path, rows)
        assert tail.read() == read_metrics(path)
    whole = '{"kind": "step", "step": 2, "loss": "é"}\n'.encode()
    for cut in (10, len(whole) - 4):  # also in the middle of a character
        with path.open("ab") as file:
            file.write(whole[:cut])
        assert tail.read() == read_metrics(path)
        with path.open("ab") as file:
            file.write(whole[cut:])
        assert tail.read()[-1]["loss"] == "é"
        assert tail.read() == read_metrics(path)
    path.unlink()
    assert tail.read() == []


def test_a_tail_parses_each_row_once(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    append_metrics(path, [step(1), step(2)])
    tail = MetricsTail(path)
    (first, _), again = tail.read(), tail.read()
    assert again[0] is first
    assert len(again) == 2


def test_a_restart_keeps_notices_and_a_torn_line_spoils_no_other(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    notice = {"kind": "notice", "step": 3, "text": "a node is about to be taken"}
    append_metrics(path, [start(0), step(1), step(2), notice])
    with path.open("a") as file:
        file.write('{"kind": "st\n')
    append_metrics(path, [step(3)])
    assert [(row["kind"], row["step"]) for row in read_metrics(path)][-2:] == [("notice", 3), ("step", 3)]
    append_metrics(path, [start(1)])
    assert [(row["kind"], row["step"]) for row in read_metrics(path)] == [("step", 1), ("notice", 3), ("start", 1)]


def test_a_line_that_a_kill_has_torn_does_not_swallow_the_next(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    append_metrics(path, [step(1)])
    with path.open("a") as file:
        file.write('{"kind": "st')
    FailureNotices(path).after_exception(None, {0: ray.exceptions.ActorDiedError()})
    one, notice = read_metrics(path)
    assert (one, notice["kind"], notice["step"]) == (step(1), "notice", 1)


def test_a_run_that_resumes_before_an_epochs_scores_has_them_once(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    first, second = ({"kind": "epoch", "step": 2 * epoch, "epoch": epoch, "dev_f1": 0.5} for epoch in (1, 2))
    append_metrics(path, [start(0) | {"epoch": 0}, step(1), step(2), first, step(3), step(4), second])
    append_metrics(path, [start(4) | {"epoch": 1}, second])
    assert [row["epoch"] for row in read_metrics(path) if row["kind"] == "epoch"] == [1, 2]
    append_metrics(path, [start(4) | {"epoch": 2}])
    append_metrics(path, [start(4)])  # as an older run has it
    assert [row["epoch"] for row in read_metrics(path) if row["kind"] == "epoch"] == [1, 2]


def test_a_norm_that_is_infinite_is_written_as_json(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    append_metrics(path, [step(1) | {"gradient_norm": math.inf}, step(2) | {"gradient_norm": 0.5}])
    assert [row["gradient_norm"] for row in read_metrics(path)] == [None, 0.5]
    for line in path.read_text().splitlines():
        json.loads(line, parse_constant=pytest.fail)


def test_storage_that_fails_in_any_way_is_not_readable_for_a_while(tmp_path: Path):
    path, run = tmp_path / "run" / "metrics.jsonl", tmp_path / "run"
    run.mkdir()
    append_metrics(path, [step(1)])
    tail, notices = MetricsTail(path), FailureNotices(path)
    assert tail.read() == [step(1)]
    run.rename(tmp_path / "kept")
    os.symlink("run", run)  # a loop: neither a file nor none
    with pytest.raises(OSError, match="symbolic links"):
        read_metrics(path)
    assert tail.read() == MetricsTail(path).read() == []
    notices.after_exception(None, {0: ray.exceptions.ActorDiedError()})
    run.unlink()
    (tmp_path / "kept").rename(run)
    assert tail.read() == [step(1)]


def test_rows_that_do_not_fit_leave_the_file_as_it_was(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    append_metrics(path, [step(1)])
    before = path.read_bytes()
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 100, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            append_metrics(path, [step(2), step(3)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert path.read_bytes() == before


def test_usage_counts_real_tokens_over_the_time_in_steps():
    epoch = {"kind": "epoch", "step": 2, "epoch": 1, "dev_f1": 0.5, "peak_memory_mib": 700, "evaluation_s": 1.5}
    usage = summarize_usage([start(0) | {"device": "CPU, AVX2"}, step(1), step(2), epoch])
    assert (usage["num_tokens"], usage["tokens_per_s"], usage["worker_peak_memory_mib"]) == (200, 200.0, 700)
    assert (usage["num_workers"], usage["precision"], usage["device"]) == (2, "bf16", "CPU, AVX2")
    assert (usage["step_s"], usage["evaluation_s"], usage["gpu_peak_memory_mib"]) == (1.0, 1.5, 0)
    assert summarize_usage([])["tokens_per_s"] == 0.0


def test_usage_shares_a_steps_time_among_its_parts():
    rows = [step(1) | {"parts_s": {"forward": 0.1, "backward": 0.2}}, step(2) | {"parts_s": {"backward": 0.1}}, step(3)]
    assert summarize_usage(rows)["shares"] == {"forward": 0.25, "backward": 0.75}
    assert summarize_usage([step(1)])["shares"] == {}


def test_usage_tells_what_workers_hold_and_send_and_how_far_the_slowest_lags():
    measured = {"state_mib": {"weights": 1.0}, "sent_mib": {"all-reduce": 2.0}}
    rows = [start(0) | {"strategy": "ddp"}, *(step(at) | {"worker_s": [1.0, 1.0, 1.0 + at]} for at in (1, 2, 3))]
    usage = summarize_usage([*rows, step(4) | measured])
    assert (usage["strategy"], usage["straggling"]) == ("ddp", 3.0)
    assert {name: usage[name] for name in measured} == measured
    on_gpus = summarize_usage([start(0), *(step(at) | {"worker_s": [0.0, 0.0]} for at in (1, 2))])
    assert on_gpus["straggling"] is None
    alone = summarize_usage([start(0), step(1)])
    assert (alone["state_mib"], alone["sent_mib"], alone["straggling"]) == ({}, {}, None)


def test_the_loss_curve_is_averaged_to_about_a_hundred_points():
    rows = [step(number, float(number % 2)) for number in range(1, 1001)]
    curve = trace_loss(rows)
    assert len(curve) == 100
    assert all(abs(loss - 0.5) < 1e-9 for _, loss in curve)
    assert trace_dev_f1([{"kind": "epoch", "step": 2, "epoch": 1, "dev_f1": 0.5}]) == [(1, 0.5)]
