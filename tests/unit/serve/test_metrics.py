"""Figures of several replicas as one page that Prometheus' own parser reads."""

import asyncio
import time

import pytest
from prometheus_client.parser import text_string_to_metric_families

from pipelines.ner.entities import Coverage, Entity, Prediction
from serve import metrics
from serve.app import LeavingBoard
from serve.metrics import Board, Metrics, render_figures


def make_metrics(num_requests: int) -> Metrics:
    made = Metrics()
    for _ in range(num_requests):
        made.observe_request("/v1/entities", 200, 0.03)
    made.observe_batch(512, 2048, 0.1)
    prediction = Prediction([Entity("Ada", 'P"\\\nER', 0, 3, 0.9)] * 2, Coverage(10, 2, 4, 1, 1.0))
    made.observe_text("default", prediction, 0.001, 0.01)
    made.queued.set(7)
    return made


def read(figures):
    families = list(text_string_to_metric_families(render_figures(figures).decode()))
    return {family.name: family for family in families}, families


def test_page_has_one_family_for_all_replicas_and_a_series_for_each():
    figures = {"one": make_metrics(3).collect(), "two": make_metrics(5).collect()}
    text = render_figures(figures).decode()
    by_name, families = read(figures)
    assert len(by_name) == len(families)
    named = [line.split()[2] for line in text.splitlines() if line.startswith("# HELP ")]
    assert len(named) == len(set(named)) == text.count("# TYPE ")
    counts = {sample.labels["replica"]: sample.value for sample in by_name["rayner_requests"].samples}
    assert counts == {"one": 3.0, "two": 5.0}
    assert all("replica" in sample.labels for family in families for sample in family.samples)


def test_histograms_of_each_replica_stay_whole():
    by_name, _ = read({"one": make_metrics(3).collect(), "two": make_metrics(5).collect()})
    samples = by_name["rayner_request_seconds"].samples
    for replica, count in (("one", 3), ("two", 5)):
        own = [sample for sample in samples if sample.labels["replica"] == replica]
        buckets = [sample.value for sample in own if sample.name.endswith("_bucket")]
        assert buckets == sorted(buckets)
        assert buckets[-1] == count
        assert [sample.value for sample in own if sample.name.endswith("_sum")] == pytest.approx([0.03 * count])


def test_series_are_not_repeated():
    text = render_figures({"one": make_metrics(3).collect(), "two": make_metrics(5).collect()}).decode()
    series = [line.rpartition(" ")[0] for line in text.splitlines() if not line.startswith("#")]
    assert len(series) == len(set(series))
    assert "_created" not in text


def test_labels_of_a_model_are_escaped():
    by_name, _ = read({"one": make_metrics(1).collect()})
    [sample] = by_name["rayner_entities"].samples
    assert sample.labels == {"model": "default", "label": 'P"\\\nER', "replica": "one"}
    assert sample.value == 2


def test_text_is_counted_with_its_sub_tokens_coverage_and_times():
    by_name, _ = read({"one": make_metrics(1).collect()})
    assert by_name["rayner_tokens"].samples[0].value == 4
    assert by_name["rayner_texts"].samples[0].value == 1
    assert by_name["rayner_batch_tokens"].samples[0].value == 512
    assert by_name["rayner_queued_tokens"].samples[0].value == 7
    for name in ("rayner_queue_seconds", "rayner_engine_seconds", "rayner_coverage", "rayner_batch_fill"):
        assert [one.value for one in by_name[name].samples if one.name.endswith("_count")] == [1], name


def test_no_replica_gives_an_empty_page():
    assert render_figures({}) == b""


def test_board_forgets_replicas_that_say_nothing_any_more(monkeypatch):
    async def check() -> None:
        board = Board(b"k" * 32)
        await board.tell("gone", [])
        now = time.monotonic()
        monkeypatch.setattr(metrics.time, "monotonic", lambda: now + metrics.STALE_S - 1)
        await board.tell("here", [])
        assert set(await board.list_figures()) == {"gone", "here"}
        monkeypatch.setattr(metrics.time, "monotonic", lambda: now + metrics.STALE_S + 1)
        assert set(await board.list_figures()) == {"here"}
        assert set(board.told) == {"here"}

    asyncio.run(check())


def test_board_keeps_the_redaction_key_of_the_first_replica():
    async def check() -> None:
        assert await Board(b"k" * 32).get_key() == b"k" * 32

    asyncio.run(check())


def test_board_ends_after_the_last_replica_and_calls_that_wait_for_it_do_not_add_up(monkeypatch):
    """Each replica that starts asks for it, and an actor has room for a thousand calls."""
    ends: list[bool] = []
    monkeypatch.setattr(metrics, "STALE_S", 0.01)
    monkeypatch.setattr("ray.actor.exit_actor", lambda: ends.append(True))

    async def check() -> None:
        board = LeavingBoard(b"k" * 32)
        calls = [asyncio.create_task(board.wait_until_left()) for _ in range(5)]
        await asyncio.sleep(0.05)
        assert sum(not call.done() for call in calls) == 1
        assert not ends
        board.heard_at -= metrics.LEFT_S
        await asyncio.wait(calls, timeout=10)
        assert len(ends) == 1

    asyncio.run(check())
