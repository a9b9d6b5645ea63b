"""The load generator against small servers whose behaviour is known; nothing here asserts how fast the machine is."""

import asyncio
import json
import subprocess
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import pytest

from benchmarks.load import Load, Outcome, Plan, Request, build_request, find_percentile, summarize

Answer = Callable[[asyncio.StreamWriter, bytes, int], Awaitable[bool]]
"""Answers the request with this body and number; returns whether the connection is kept."""
ANSWER = b"HTTP/1.1 %d Said\r\ncontent-length: 2\r\n\r\nok"


async def answer_ok(writer: asyncio.StreamWriter, body: bytes, number: int) -> bool:
    writer.write(ANSWER % 200)
    return True


class Server:
    """Reads requests with a length, one after the other on each connection, and counts."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.num_connections = 0
        self.bodies: list[bytes] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.num_connections += 1
        keep = True
        with suppress(asyncio.IncompleteReadError, ConnectionError):  # the client has left
            while keep:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
                self.bodies.append(await reader.readexactly(length))
                keep = await self.answer(writer, self.bodies[-1], len(self.bodies))
        writer.close()


def run(answer: Answer, plan: Plan, lines: list[dict[str, Any]] | None = None) -> tuple[dict[str, Any], Server]:
    """The report of a plan against a server that answers so, and the server."""

    async def measure() -> tuple[dict[str, Any], Server]:
        server = Server(answer)
        listener = await asyncio.start_server(server.serve, "127.0.0.1", 0)
        port = listener.sockets[0].getsockname()[1]
        requests = [build_request(line, f"http://127.0.0.1:{port}/", {}) for line in lines or [{"body": {"text": "a"}}]]
        report = await Load("127.0.0.1", port, requests, plan).run()
        listener.close()
        return report, server

    return asyncio.run(measure())


def test_a_closed_loop_sends_the_lines_in_turn_over_connections_that_are_kept():
    lines = [{"body": {"text": "é"}, "num_tokens": 3}, {"body": "not JSON", "num_tokens": 5}]
    report, server = run(answer_ok, Plan(2, seconds=60, max_requests=10), lines)
    assert server.num_connections == 2
    assert sorted(server.bodies) == sorted([json.dumps({"text": "é"}, ensure_ascii=False).encode(), b"not JSON"] * 5)
    assert report["statuses"] == {"200": 10}
    assert (report["errors"], report["unexpected"]) == ({}, {})
    assert report["goodput_per_s"] == report["requests_per_s"] == pytest.approx(10 / report["seconds"])
    assert report["sub_tokens_per_s"] == pytest.approx(5 * (3 + 5) / report["seconds"])
    latency = report["latency_ms"]
    assert 0 < latency["p50"] <= latency["p90"] <= latency["p99"] <= latency["max"] < 60_000


def test_latency_is_at_least_what_the_server_takes():
    async def answer_late(writer: asyncio.StreamWriter, body: bytes, number: int) -> bool:
        await asyncio.sleep(0.05)
        return await answer_ok(writer, body, number)

    report, _ = run(answer_late, Plan(1, seconds=60, max_requests=4))
    assert report["latency_ms"]["p50"] >= 49
    assert report["requests_per_s"] <= 1 / 0.049


def test_an_open_loop_counts_the_time_that_requests_wait_for_a_server_that_stalls():
    async def stall_once(writer: asyncio.StreamWriter, body: bytes, number: int) -> bool:
        if number == 1:
            await asyncio.sleep(0.4)
        return await answer_ok(writer, body, number)

    report, server = run(stall_once, Plan(1, seconds=60, rate=200, max_requests=40))
    assert server.num_connections == 1
    assert report["statuses"] == {"200": 40}
    # About 0.2 s of arrivals all come during the stall: most of them wait, though the server answers each at once.
    assert report["latency_ms"]["p50"] >= 150
    assert report["latency_ms"]["max"] >= 390


def test_an_open_loop_opens_connections_up_to_its_bound_and_counts_what_it_could_not_send():
    async def never_answer(writer: asyncio.StreamWriter, body: bytes, number: int) -> bool:
        await asyncio.sleep(3600)
        return False

    report, server = run(never_answer, Plan(3, seconds=0.2, rate=200, timeout_s=0.3, max_requests=20))
    assert server.num_connections >= 3
    assert report["errors"]["timeout"] >= 3
    assert report["errors"]["timeout"] + report["errors"]["unsent"] == report["num_requests"]
    assert report["statuses"] == {}
    assert report["latency_ms"]["p50"] is None


def test_connections_that_the_server_closes_are_errors_and_opened_again():
    async def close_each_second(writer: asyncio.StreamWriter, body: bytes, number: int) -> bool:
        return await answer_ok(writer, body, number) if number % 2 else False

    report, server = run(close_each_second, Plan(1, seconds=60, max_requests=6))
    assert report["errors"] == {"closed": 3}
    assert report["statuses"] == {"200": 3}
    assert server.num_connections == 3


def test_an_answer_that_announces_the_end_of_its_connection_is_no_error():
    async def answer_and_close(writer: asyncio.StreamWriter, body: bytes, number: int) -> bool:
        writer.write(b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 0\r\n\r\n")
        return False

    report, server = run(answer_and_close, Plan(1, seconds=60, max_requests=3))
    assert (report["errors"], report["statuses"], server.num_connections) == ({}, {"200": 3}, 3)


def test_a_server_that_is_not_there_or_speaks_another_protocol_is_an_error_of_its_kind():
    report = asyncio.run(Load("127.0.0.1", 1, [Request(b"")], Plan(2, seconds=60, max_requests=4)).run())
    assert report["errors"] == {"refused": 4}

    async def say_nonsense(writer: asyncio.StreamWriter, body: bytes, number: int) -> bool:
        writer.write(b"220 ready\r\n\r\n")
        return True

    assert run(say_nonsense, Plan(1, seconds=60, max_requests=2))[0]["errors"] == {"protocol": 2}


def test_goodput_counts_only_answers_with_status_200_and_unexpected_statuses_are_named():
    async def refuse_bad(writer: asyncio.StreamWriter, body: bytes, number: int) -> bool:
        writer.write(ANSWER % (400 if body == b"bad" else 429 if body == b"much" else 200))
        return True

    lines = [{"body": "bad", "expect": 400}, {"body": "much", "num_tokens": 9}, {"body": "good", "num_tokens": 1}]
    report, _ = run(refuse_bad, Plan(1, seconds=60, max_requests=9), lines)
    assert report["statuses"] == {"200": 3, "400": 3, "429": 3}
    assert report["unexpected"] == {"429 for 200": 3}
    assert report["goodput_per_s"] == pytest.approx(report["requests_per_s"] / 3)
    assert report["sub_tokens_per_s"] == pytest.approx(report["goodput_per_s"])


def test_answers_in_chunks_are_read_to_their_end():
    async def answer_in_chunks(writer: asyncio.StreamWriter, body: bytes, number: int) -> bool:
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n")
        await writer.drain()
        await asyncio.sleep(0.02)
        writer.write(b"0\r\n\r\n")
        return True

    report, server = run(answer_in_chunks, Plan(1, seconds=60, max_requests=3))
    assert (report["statuses"], report["errors"], server.num_connections) == ({"200": 3}, {}, 1)
    assert report["latency_ms"]["p50"] >= 19


TIMES = [(9.0, 9.5), (9.5, 10.5), (11.0, 11.25), (11.9, 12.3)]
"""Arrivals and ends of requests, to be counted from 10.0 to 12.0."""


@pytest.mark.parametrize(("rate", "counted"), [(None, 0.5 + 1 + 0.25), (5.0, 2)])
def test_requests_at_the_edges_count_by_share_in_a_closed_loop_and_by_their_end_in_an_open_one(rate, counted):
    outcomes = [Outcome(*pair, 200, None, Request(b"", num_tokens=7)) for pair in TIMES]
    report = summarize(outcomes, Plan(1, seconds=2, rate=rate), begins=10.0)
    assert report["requests_per_s"] == pytest.approx(counted / 2)
    assert report["goodput_per_s"] == report["requests_per_s"]
    assert report["sub_tokens_per_s"] == pytest.approx(7 * counted / 2)


def test_latencies_and_statuses_are_of_requests_that_arrive_in_the_seconds_that_count():
    outcomes = [Outcome(*pair, 200, None, Request(b"")) for pair in TIMES]
    report = summarize(outcomes, Plan(1, seconds=2), begins=10.0)
    assert (report["num_requests"], report["statuses"]) == (2, {"200": 2})
    assert report["latency_ms"]["p50"] == pytest.approx(250)
    assert report["latency_ms"]["max"] == pytest.approx(400)


@pytest.mark.parametrize(("share", "value"), [(0.5, 50), (0.9, 90), (0.99, 99), (1.0, 100)])
def test_percentiles_are_values_that_were_met(share, value):
    assert find_percentile(range(1, 101), share) == value
    assert find_percentile([7.0], share) == 7.0
    assert find_percentile([], share) is None


def test_the_command_refuses_what_it_cannot_run(tmp_path):
    command = [sys.executable, "-m", "benchmarks.load", "--bodies", str(tmp_path / "none"), "--url"]
    for more, said in ((["https://example.org/"], "--url"), (["http://127.0.0.1:1/", "--rate", "-1"], "--rate")):
        found = subprocess.run([*command, *more], capture_output=True, text=True, check=False)
        assert found.returncode == 2
        assert said in found.stderr


def test_the_command_prints_its_report_as_json(tmp_path):
    bodies = tmp_path / "bodies.jsonl"
    bodies.write_text('{"body": {"text": "a"}}\n', encoding="utf-8")
    command = [sys.executable, "-m", "benchmarks.load", "--url", "http://127.0.0.1:1/", "--bodies", str(bodies)]
    found = subprocess.run([*command, "--requests", "3", "--connections", "1"], capture_output=True, check=True)
    assert json.loads(found.stdout)["errors"] == {"refused": 3}
