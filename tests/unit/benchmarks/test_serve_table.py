"""The table, the plot and the derived figures of the serving benchmark, its requests, and how it ends servers."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from xml.etree import ElementTree

import pytest

from benchmarks.load import build_request
from benchmarks.serve import (
    CONNECTIONS,
    INGRESSES,
    LOADS,
    RESULTS,
    derive,
    find_capacity,
    render_plot,
    render_table,
)
from benchmarks.serve_soak import BAD_LINES, find_growth, mix_lines
from benchmarks.servers import end_server, read_resident_mib, start_server
from benchmarks.tables import README, put_table
from serve.schemas import EntitiesRequest

PATH = RESULTS / "serve-cpu.json"
LATENCY = {"p50": 2.0, "p90": 4.0, "p99": 8.25, "max": 1600.0}
HTTP_SERVER = [sys.executable, "-m", "http.server", "{port}", "--bind", "127.0.0.1"]


def make_report(goodput: float, **more: object) -> dict:
    return {"goodput_per_s": goodput, "sub_tokens_per_s": 20 * goodput, "latency_ms": LATENCY, **more}


def make_server(goodput: float) -> dict:
    """Reports of a server that answers so many with one client, and more with more."""
    closed = {str(connections): make_report(goodput * number) for number, connections in enumerate(CONNECTIONS, 1)}
    return {"closed": closed, "memory_mib": {"ready": {"7": 100.0}, "closed 1": {"7": 150.0, "8": 50.0}}}


def make_results() -> dict:
    ours = {}
    for ingress in INGRESSES:
        found = make_server(100.0)
        found["lists"] = make_report(450.0)
        found["open"] = [make_report(min(300.0, 300.0 * load) - 30 * (load == 2), rate=300 * load) for load in LOADS]
        ours[ingress] = found | derive(found, engine_tokens_per_s=10_000.0)
    return {"peer": make_server(40.0), "ours": ours}


def test_the_table_and_the_plot_of_the_readme_are_rendered_from_the_results():
    results = json.loads(PATH.read_text(encoding="utf-8"))
    page = README.read_text(encoding="utf-8")
    assert put_table(page, render_table(results), "serve") == page
    assert PATH.with_suffix(".svg").read_text(encoding="utf-8") == render_plot(results)


def test_the_table_tells_rates_ratios_and_latencies_of_both_ingresses():
    header, line, one_client, its_latency, *rest = render_table(make_results()).splitlines()
    assert header.split(" | ")[1:] == [
        "transformers + FastAPI",
        "ours, `haproxy`",
        "ratio",
        "ours, `python`",
        "ratio |",
    ]
    assert one_client == "| 1 client: good answers/s | 40 | 100 | 2.5 | 100 | 2.5 |"
    assert its_latency == "| 1 client: p50 / p99, ms | 2 / 8.25 | 2 / 8.25 |  | 2 / 8.25 |  |"
    assert "| lists: of the engine alone |  | 90 % |  | 90 % |  |" in rest
    assert "| arrivals at twice the capacity: good answers, of the best rate |  | 90 % |  | 90 % |  |" in rest
    assert "| memory in the end, MiB | 200 | 200 | 1.0 | 200 | 1.0 |" in rest
    assert {row.count("|") for row in (header, line, one_client, its_latency, *rest)} == {7}


def test_goodput_at_twice_the_capacity_is_a_share_of_the_best_rate_of_all():
    found = make_results()["ours"]["haproxy"]
    found["open"][3]["goodput_per_s"] = 360.0
    assert derive(found, 1.0)["goodput_at_twice_capacity"] == pytest.approx(270 / 360)


def test_a_server_without_a_good_answer_has_no_capacity():
    with pytest.raises(RuntimeError, match="no good answer"):
        find_capacity(make_server(0.0))


def test_the_plot_is_an_svg_with_a_line_a_percentile_and_a_gap_where_nothing_was_answered():
    results = make_results()
    results["ours"]["haproxy"]["open"][-1]["latency_ms"] = dict.fromkeys(LATENCY)
    svg = ElementTree.fromstring(render_plot(results))
    texts = [text.text for text in svg.iter("{http://www.w3.org/2000/svg}text")]
    assert {f"{ingress}, {name}" for ingress in INGRESSES for name in ("p50", "p90", "p99")} <= set(texts)
    dots = list(svg.iter("{http://www.w3.org/2000/svg}circle"))
    assert len(dots) == 3 * (2 * len(LOADS) - 1)


def test_the_mixed_load_holds_good_requests_of_the_contract_and_bad_ones_that_are_expected_to_fail():
    lines = mix_lines([f"Sentence {number} of Oslo ." for number in range(700)])
    good = [line for line in lines if line.get("expect", 200) == 200]
    streams = [line for line in good if line.get("path") == "/v1/entities/stream"]
    requests = [EntitiesRequest.model_validate(line["body"]) for line in good if line not in streams]
    assert {len(request.texts) for request in requests if request.texts} >= {64}
    lengths = sorted(len(request.text) for request in requests if request.text)
    assert (lengths[0] < 30, lengths[-1] > 2000) == (True, True)
    assert len(lines) - len(good) == 3 * len(BAD_LINES)
    assert {line["expect"] for line in lines if "expect" in line} == {400, 404, 405, 415, 422}
    stream = build_request(streams[0], "http://127.0.0.1:1/v1/entities", {})
    assert stream.raw.startswith(b"POST /v1/entities/stream HTTP/1.1\r\n")
    assert b"content-type: application/x-ndjson\r\n" in stream.raw
    assert mix_lines([f"Sentence {number} of Oslo ." for number in range(700)]) == lines


def test_growth_is_that_from_the_median_of_the_second_minute_to_that_of_the_last_over_all_replicas():
    sizes = {10: 10.0, 50: 90.0, 61: 100.0, 70: 140.0, 80: 110.0, 600: 180.0, 640: 120.0, 650: 121.0, 659: 110.0}
    samples = [{"at_s": at, "memory_mib": {"1": mib, "2": mib}} for at, mib in sizes.items()]
    found = find_growth(samples)
    assert (found["from_s"], found["before_mib"], found["after_mib"]) == (61, 220.0, 241.0)
    assert found["growth_fraction"] == pytest.approx(241 / 220 - 1)
    assert not found["replicas_changed"]
    assert find_growth(samples[:2])["from_s"] == 10
    samples[-1]["memory_mib"] = {"1": 110.0, "3": 110.0}
    assert find_growth(samples)["replicas_changed"]


def test_a_server_is_told_of_when_ready_and_gone_in_the_end(tmp_path):
    with start_server(HTTP_SERVER, "/", tmp_path / "log") as server:
        assert list(server.read_memory_mib()) == [str(server.pid)]
        assert server.read_memory_mib()[str(server.pid)] > 1
    assert read_resident_mib(server.pid) == 0.0


def test_a_server_that_ends_at_once_is_reported_with_what_it_said(tmp_path):
    with (
        pytest.raises(RuntimeError, match=r"exit code 3(.|\n)*no such bundle"),
        start_server([sys.executable, "-c", "print('no such bundle'); exit(3)"], "/", tmp_path / "log"),
    ):
        pass


def test_a_server_that_ignores_the_interrupt_is_killed_with_all_that_it_started(tmp_path):
    program = (
        "import os, signal, subprocess, sys, time\n"
        "signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "child = subprocess.Popen(['sleep', '600'])\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, start_new_session=True)
    assert process.stdout is not None
    child = int(process.stdout.readline())
    end_server(process, deadline_s=0.1)
    deadline = time.monotonic() + 10
    while is_running(child) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not is_running(child)
    assert process.returncode == -9


def is_running(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    return os.path.exists(stat) and stat.read_text().rpartition(")")[2].split()[0] != "Z"
