"""A load generator for HTTP: a process of its own, bounded in requests and in time, that prints a report as JSON.

    python -m benchmarks.load --url http://127.0.0.1:8000/v1/entities --bodies FILE.jsonl --connections 16 --seconds 10

Closed loop (default): each connection sends its next request when the answer to the last is there. Open loop
(`--rate`): requests arrive at random moments (a Poisson process), whether or not the server keeps up, on as many
connections as it takes, up to `--connections`; latency counts from the moment of arrival, so a request that waits for a
free connection is as slow as its user finds it.

A line of the file is a request: `{"body": …, "path"?: …, "content_type"?: …, "num_tokens"?: …, "expect"?: …}`. A body
that is a string is sent as it is, any other as JSON; `expect` is the status it should get, 200 by default. The lines
are sent in order, over and over.
"""

import argparse
import asyncio
import itertools
import json
import math
import random
import resource
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httptools

PERCENTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}
PAUSE_AFTER_ERROR_S = 0.1
"""So long a connection of the closed loop rests where the server is gone, instead of trying in a tight loop."""


@dataclass(frozen=True, slots=True)
class Request:
    """The bytes of a request; the sub-tokens of its texts, where told; the status that it should get."""

    raw: bytes
    num_tokens: int = 0
    expected: int = 200


@dataclass(frozen=True)
class Plan:
    """How much load, and for how long."""

    connections: int
    """Connections of the closed loop; at most so many of the open loop."""
    seconds: float
    """Seconds that count, after those of `warmup_s`."""
    warmup_s: float = 0.0
    rate: float | None = None
    """Arrivals per second of the open loop; None is the closed loop."""
    max_requests: int = 1_000_000
    """The run ends earlier once so many requests were sent."""
    timeout_s: float = 30.0
    """For an answer; and for how long after the last arrival waiting requests are still sent."""
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one request: a status, or an error of the connection."""

    intended: float
    finished: float
    status: int | None
    error: str | None
    request: Request


class Connection(asyncio.Protocol):
    """A kept-alive connection with at most one request under way."""

    def __init__(self) -> None:
        self.parser = httptools.HttpResponseParser(self)
        self.answer: asyncio.Future[int] | None = None
        self.is_usable = True

    def connection_made(self, transport: Any) -> None:
        """The connection stands."""
        self.transport = transport

    async def ask(self, raw: bytes) -> int:
        """Send a request; returns the status once the whole answer is there."""
        self.answer = asyncio.get_running_loop().create_future()
        self.transport.write(raw)
        return await self.answer

    def data_received(self, data: bytes) -> None:
        """A piece of an answer."""
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError as error:
            self.close(error)

    def on_message_complete(self) -> None:
        """The parser has seen the whole answer."""
        status, self.is_usable = self.parser.get_status_code(), self.parser.should_keep_alive()
        if self.answer and not self.answer.done():
            self.answer.set_result(status)
        if not self.is_usable:
            self.transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        """The server has closed the connection, or we have."""
        self.close(error or ConnectionResetError())

    def close(self, error: Exception) -> None:
        """End the connection; a request under way fails with this error."""
        self.is_usable = False
        self.transport.abort()
        if self.answer and not self.answer.done():
            self.answer.set_exception(error)


class Load:
    """One run of a plan against one server."""

    def __init__(self, host: str, port: int, requests: Sequence[Request], plan: Plan) -> None:
        self.host, self.port, self.plan = host, port, plan
        self.requests = itertools.islice(itertools.cycle(requests), plan.max_requests)
        self.idle: list[Connection] = []
        self.outcomes: list[Outcome] = []
        self.started = time.perf_counter()
        self.ends = self.started + plan.warmup_s + plan.seconds

    async def run(self) -> dict[str, Any]:
        """Run to the end; returns the report."""
        cpu_started = time.process_time()
        if self.plan.rate is None:
            await asyncio.gather(*(self._follow_answers() for _ in range(self.plan.connections)))
        else:
            await self._follow_clock(self.plan.rate)
        for connection in self.idle:
            connection.transport.close()
        report = summarize(self.outcomes, self.plan, self.started + self.plan.warmup_s)
        cpu_s = time.process_time() - cpu_started
        return report | {"generator_cpu_fraction": cpu_s / (time.perf_counter() - self.started)}

    async def _follow_answers(self) -> None:
        """One connection of the closed loop."""
        while (now := time.perf_counter()) < self.ends:
            request = next(self.requests, None)
            if request is None:
                return
            if not await self._ask(request, now):
                await asyncio.sleep(PAUSE_AFTER_ERROR_S)

    async def _follow_clock(self, rate: float) -> None:
        """The open loop."""
        dice, slots = random.Random(self.plan.seed), asyncio.Semaphore(self.plan.connections)
        tasks: set[asyncio.Task[None]] = set()
        arrival = self.started + dice.expovariate(rate)
        while arrival < self.ends and (request := next(self.requests, None)) is not None:
            await asyncio.sleep(max(0.0, arrival - time.perf_counter()))  # also where late: answers are read meanwhile
            task = asyncio.create_task(self._ask_when_free(slots, request, arrival))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
            arrival += dice.expovariate(rate)
        await asyncio.gather(*tasks)

    async def _ask_when_free(self, slots: asyncio.Semaphore, request: Request, arrival: float) -> None:
        async with slots:
            if time.perf_counter() < self.ends + self.plan.timeout_s:
                await self._ask(request, arrival)
            else:
                self._record(request, arrival, None, "unsent")

    async def _ask(self, request: Request, intended: float) -> bool:
        """Send a request and record what becomes of it; returns whether it got an answer."""
        connection: Connection | None = None
        status, error = None, None
        try:
            async with asyncio.timeout(self.plan.timeout_s):
                connection = self._take_idle() or await self._open()
                status = await connection.ask(request.raw)
        except TimeoutError:
            error = "timeout"
        except ConnectionRefusedError:
            error = "refused"
        except httptools.HttpParserError:
            error = "protocol"
        except OSError:
            error = "closed"
        self._record(request, intended, status, error)
        if connection is not None and error:
            connection.transport.abort()
        elif connection is not None and connection.is_usable:
            self.idle.append(connection)
        return error is None

    def _take_idle(self) -> Connection | None:
        while self.idle:
            connection = self.idle.pop()
            if connection.is_usable:
                return connection
        return None

    async def _open(self) -> Connection:
        _, connection = await asyncio.get_running_loop().create_connection(Connection, self.host, self.port)
        return connection

    def _record(self, request: Request, intended: float, status: int | None, error: str | None) -> None:
        self.outcomes.append(Outcome(intended, time.perf_counter(), status, error, request))


def summarize(outcomes: Iterable[Outcome], plan: Plan, begins: float) -> dict[str, Any]:
    """The report. Rates are of what was answered in the seconds that count; the rest is of what arrived in them.

    In the closed loop, a request that reaches over the edge of these seconds counts by the share of its time in them:
    else a few long ones more or less would decide the rate. Latencies are of answers with status 200; statuses that a
    request was not expected to get are counted apart.
    """
    outcomes = list(outcomes)
    ends = begins + plan.seconds
    arrived = [one for one in outcomes if begins <= one.intended < ends]
    if len(outcomes) >= plan.max_requests:
        ends = min(ends, max(one.finished for one in outcomes))
    seconds = max(ends - begins, 1e-9)
    share = _find_overlap if plan.rate is None else _ends_inside
    answered = [(one, share(one, begins, ends)) for one in outcomes if one.status is not None]
    good = [(one, weight) for one, weight in answered if one.status == 200]
    latencies = sorted(1000 * (one.finished - one.intended) for one in arrived if one.status == 200)
    odd = Counter(f"{one.status} for {one.request.expected}" for one in arrived if one.status != one.request.expected)
    return {
        "loop": "closed" if plan.rate is None else "open",
        "connections": plan.connections,
        "rate": plan.rate,
        "seconds": seconds,
        "num_requests": len(arrived),
        "requests_per_s": sum(weight for _, weight in answered) / seconds,
        "goodput_per_s": sum(weight for _, weight in good) / seconds,
        "sub_tokens_per_s": sum(weight * one.request.num_tokens for one, weight in good) / seconds,
        "latency_ms": {name: find_percentile(latencies, share) for name, share in PERCENTILES.items()},
        "statuses": {str(status): n for status, n in _count(one.status for one in arrived).items()},
        "errors": _count(one.error for one in arrived),
        "unexpected": dict(sorted(odd.items())),
    }


def _find_overlap(one: Outcome, begins: float, ends: float) -> float:
    inside = min(one.finished, ends) - max(one.intended, begins)
    return max(0.0, inside / max(one.finished - one.intended, 1e-9))


def _ends_inside(one: Outcome, begins: float, ends: float) -> float:
    return float(begins <= one.finished <= ends)


def find_percentile(ordered: Sequence[float], share: float) -> float | None:
    """The smallest of the values that at least this share of them does not exceed; None where there are none."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else None


def _count(values: Iterable[Any]) -> dict[Any, int]:
    return dict(sorted(Counter(value for value in values if value is not None).items()))


def read_requests(path: Path, url: str, headers: Mapping[str, str]) -> list[Request]:
    """The requests of a file, for the server of this address."""
    lines = path.read_text(encoding="utf-8").split("\n")
    return [build_request(json.loads(line), url, headers) for line in lines if line]


def build_request(line: Mapping[str, Any], url: str, headers: Mapping[str, str]) -> Request:
    """The bytes of one line's request."""
    body = line["body"] if isinstance(line["body"], str) else json.dumps(line["body"], ensure_ascii=False)
    data, parts = body.encode(), urlsplit(url)
    head = {"host": parts.netloc, "content-type": line.get("content_type", "application/json"), **headers}
    rows = [
        f"POST {line.get('path', parts.path or '/')} HTTP/1.1",
        *(f"{name}: {value}" for name, value in head.items()),
    ]
    raw = "\r\n".join([*rows, f"content-length: {len(data)}", "", ""]).encode() + data
    return Request(raw, line.get("num_tokens", 0), line.get("expect", 200))


def main() -> None:
    """Read the requests, run the load, print the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", required=True, help="http://host:port/path; the path is that of lines without one")
    parser.add_argument("--bodies", type=Path, required=True, help="the requests, a JSON object a line")
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=10.0, help="that count")
    parser.add_argument("--warmup", type=float, default=0.0, help="seconds before them")
    parser.add_argument("--rate", type=float, help="arrivals per second: an open loop")
    parser.add_argument("--requests", type=int, default=Plan.max_requests, help="end after so many")
    parser.add_argument("--timeout", type=float, default=Plan.timeout_s, help="seconds to wait for an answer")
    parser.add_argument("--seed", type=int, default=0, help="of the arrivals")
    parser.add_argument("--header", action="append", default=[], help="`Name: value`, for every request")
    arguments = parser.parse_args()
    parts = urlsplit(arguments.url)
    if parts.scheme != "http" or parts.hostname is None:
        parser.error(f"--url: an address that begins with http:// is needed, not `{arguments.url}`")
    if min(arguments.connections, arguments.requests, arguments.seconds, arguments.timeout, arguments.rate or 1) <= 0:
        parser.error("--connections, --requests, --seconds, --timeout and --rate: more than 0")
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # a connection is a file; the usual limit is 1024
    headers = dict(header.split(": ", 1) for header in arguments.header)
    requests = read_requests(arguments.bodies, arguments.url, headers)
    plan = Plan(
        connections=arguments.connections,
        seconds=arguments.seconds,
        warmup_s=arguments.warmup,
        rate=arguments.rate,
        max_requests=arguments.requests,
        timeout_s=arguments.timeout,
        seed=arguments.seed,
    )
    print(json.dumps(run_load(parts.hostname, parts.port or 80, requests, plan)))


def run_load(host: str, port: int, requests: Sequence[Request], plan: Plan) -> dict[str, Any]:
    """Run a plan on an event loop of its own: uvloop's, which takes the least time from the server's cores."""

    async def run() -> dict[str, Any]:
        """Make the load inside the loop, since it belongs to it."""
        return await Load(host, port, requests, plan).run()

    try:
        import uvloop
    except ImportError:  # it comes with ray[serve], but not on every platform
        return asyncio.run(run())
    report: dict[str, Any] = uvloop.run(run())
    return report


if __name__ == "__main__":
    main()
