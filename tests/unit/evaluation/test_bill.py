"""The bill: what adds up, what it costs, how throughput is drawn, and the page."""

import re

import pytest

from pipelines.evaluation.bill import MAX_BINS, Bill, Timeline, describe_engine, format_mib, render_bill

START = 1_000_000.0


def part(run="one", started=10.0, seconds=2.0, **changes):
    counts = {
        "chunk": "00000-000000",
        "num_documents": 5,
        "quarantined": {},
        "num_characters": 100,
        "num_words": 20,
        "num_tokens": 40,
        "num_windows": 6,
        "num_tokens_skipped": 0,
        "entities": {"PER": 3},
        "run": run,
        "actor": "host:1",
        "started": START + started,
        "seconds": seconds,
        "busy_seconds": seconds,
        "cpu_seconds": 3.0,
        "gpu_seconds": 0.5,
        "peak_memory_mib": 700,
        "engine": {"runtime": "packed", "precision": "bf16", "max_batch_tokens": 4096},
    }
    return counts | changes


@pytest.fixture
def bill():
    """Two sessions: one that was cut short after 20 seconds, and one that ended the job."""
    bill = Bill({"one": START, "two": START + 100})
    bill.add(part(started=8, seconds=4))
    bill.add(part(started=12, seconds=8, entities={"LOC": 7}, quarantined={"no_text": 2}))
    bill.add(part("two", started=106, seconds=10, actor="host:2", peak_memory_mib=900, num_documents=0))
    bill.add(part("two", started=106, seconds=5, actor="host:3", entities={}, quarantined={"kills_worker": 1}))
    return bill


def test_counts_add_up(bill):
    found = bill.to_dict(START + 120, 300, None)
    assert (found["num_documents"], found["num_quarantined"], found["num_entities"]) == (15, 3, 13)
    assert found["quarantined"] == {"no_text": 2, "kills_worker": 1}
    assert found["entities"] == {"LOC": 7, "PER": 6}
    assert (found["num_characters"], found["num_tokens"], found["num_windows"]) == (400, 160, 24)
    assert (found["cpu_seconds"], found["gpu_seconds"], found["actor_seconds"]) == (12.0, 2.0, 27.0)
    assert found["cost"] is None


def test_time_is_split_and_earlier_sessions_are_counted(bill):
    found = bill.to_dict(START + 120, 300, None)
    assert found["seconds"] == {"start_up": 6, "labelling": 10, "finish": 4, "earlier": 20, "total": 40}
    assert found["tokens_per_s"] == round(160 / (12 + 10), 1)
    assert (found["num_sessions"], found["num_actors"]) == (2, 2)


def test_memory_is_that_of_the_driver_and_of_the_actors_of_the_last_session(bill):
    memory = bill.to_dict(START + 120, 300, None)["peak_memory_mib"]
    assert memory == {"driver": 300, "largest_actor": 900, "driver_and_actors": 300 + 900 + 700}


def test_cost_is_that_of_the_whole_time(bill):
    cost = bill.to_dict(START + 120, 300, 9.0)["cost"]
    assert cost["total"] == pytest.approx(40 / 3600 * 9)
    assert cost["per_million_documents"] == pytest.approx(cost["total"] / 15 * 1e6, rel=1e-4)


def test_session_that_only_finishes_has_no_labelling():
    bill = Bill({"one": START, "two": START + 100})
    bill.add(part(started=8, seconds=4))
    found = bill.to_dict(START + 107, 300, 1.0)
    assert found["seconds"] == {"start_up": 0, "labelling": 0, "finish": 7, "earlier": 12, "total": 19}
    assert found["num_actors"] == 0


def test_session_that_labelled_nothing_before_it_was_killed_costs_no_division():
    bill = Bill({"one": START, "two": START + 100})
    bill.add(part("two", started=103))
    assert bill.to_dict(START + 107, 300, 1.0)["seconds"]["earlier"] == 0


def test_equal_engines_are_told_once(bill):
    assert len(bill.to_dict(START + 120, 300, None)["engines"]) == 1
    bill.add(part("two", started=110, engine={"runtime": "torch"}))
    assert bill.to_dict(START + 120, 300, None)["engines"][1] == {"runtime": "torch"}


def test_timeline_keeps_amounts_in_a_bounded_number_of_bins():
    timeline = Timeline()
    for second in range(5000):
        timeline.add(second, second + 1, 10)
    points = timeline.trace(5000)
    assert len(points) <= MAX_BINS
    assert sum(timeline.bins) == pytest.approx(50_000)
    assert [rate for _, rate in points] == pytest.approx([10] * len(points))


def test_timeline_spreads_an_amount_over_the_time_it_took():
    timeline = Timeline()
    timeline.add(0.25, 1.75, 15)
    assert timeline.trace(2.0)[:4] == [(0.25, pytest.approx(5)), (0.75, pytest.approx(10)), (1.25, 10), (1.75, 5)]


def test_timeline_takes_what_took_no_time_or_began_before_the_clock():
    timeline = Timeline()
    timeline.add(-5, -4, 1)
    timeline.add(3, 3, 2)
    assert sum(timeline.bins) == pytest.approx(3)


def test_throughput_of_sessions_is_drawn_one_after_the_other(bill):
    points = bill.to_dict(START + 120, 300, None)["throughput"]
    seconds = [second for second, _ in points]
    assert seconds == sorted(seconds)
    assert seconds[-1] < 20 + 16
    assert max(rate for second, rate in points if second < 8) == 0


def test_page_tells_everything_and_escapes_it(bill):
    found = bill.to_dict(START + 120, 300, 9.0)
    page = render_bill(found, "Bill of <out>", {"Job": {"model": "a & b"}})
    for fact in ("Bill of &lt;out&gt;", "a &amp; b", "kills_worker", "LOC", "runtime packed", "1,900 MiB", "earlier"):
        assert fact in page
    assert "<svg" in page
    assert "<script" not in page
    for outside in ("<link", "@import", 'src="http', 'href="http'):
        assert outside not in page
    assert "Cost per million documents" in page
    assert not re.search(r"\{\{|\{%", page)


def test_page_without_price_entities_or_quarantine_says_so():
    bill = Bill({"one": START})
    bill.add(part(entities={}))
    page = render_bill(bill.to_dict(START + 20, 300, None), "Bill", {})
    assert "CPU-hours" in page
    assert "None were found." in page
    assert "every document was labelled" in page


def test_engines_and_memory_read_well():
    assert describe_engine({"runtime": "packed", "max_batch_tokens": 8}) == "runtime packed, max batch tokens 8"
    assert format_mib(1900) == "1,900 MiB"
    assert format_mib(20_480) == "20.0 GiB"
