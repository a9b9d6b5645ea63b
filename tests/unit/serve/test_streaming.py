"""Streams: answers in order while lines still come, each bad line by itself, bounded work ahead, patience."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from serve import bodies
from serve.routes import build_http
from serve.streaming import MAX_CHARACTERS, MAX_LINES
from tests.unit.serve.replicas import Talk, WatchedReplica, talk, wait_until

TEXT = "Angela Merkel visited Utrecht ."


def write_lines(*lines: Any) -> bytes:
    return b"".join(line if isinstance(line, bytes) else json.dumps(line).encode() + b"\n" for line in lines)


def read_lines(body: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in body.splitlines()]


class Exchange:
    """A stream under way, as a server would carry it: parts go in one by one, what is sent back is seen at once."""

    def __init__(self, replica: WatchedReplica) -> None:
        self.parts: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.status = 0
        self.headers: dict[str, str] = {}
        self.body = b""
        self.num_read = 0
        self.app = build_http(replica, dict, "1")  # type: ignore[arg-type]
        self.task: asyncio.Task[None] | None = None

    def start(self) -> "asyncio.Task[None]":
        scope = {
            "type": "http",
            "http_version": "1.1",
            "scheme": "http",
            "method": "POST",
            "path": "/v1/entities/stream",
            "raw_path": b"/v1/entities/stream",
            "query_string": b"",
            "headers": [(b"content-type", b"application/x-ndjson")],
        }
        self.task = asyncio.create_task(self.app(scope, self._receive, self._send))
        return self.task

    def put(self, part: bytes) -> None:
        self.parts.put_nowait({"type": "http.request", "body": part, "more_body": True})

    def end(self) -> None:
        self.parts.put_nowait({"type": "http.request", "body": b"", "more_body": False})

    async def _receive(self) -> dict[str, Any]:
        part = await self.parts.get()
        self.num_read += 1
        return part

    async def _send(self, message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.headers = {name.decode(): value.decode() for name, value in message["headers"]}
        else:
            self.body += message.get("body", b"")


def test_answers_are_in_order_with_numbers_and_ids_and_those_of_single_requests(bundle):
    texts = [TEXT * (1 + at % 7) for at in range(40)]

    async def ask(with_: Talk) -> None:
        answer = await with_.stream(write_lines(*({"text": text, "id": at} for at, text in enumerate(texts))))
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "application/x-ndjson"
        assert answer.headers["x-accel-buffering"] == "no"
        assert answer.headers["x-content-type-options"] == "nosniff"
        told = read_lines(answer.content)
        assert [(one["line"], one["id"]) for one in told] == [(at + 1, at) for at in range(40)]
        wanted = with_.replica.engine.predict(texts)
        for one, prediction in zip(told, wanted, strict=True):
            assert [(e["start"], e["end"], e["label"]) for e in one["entities"]] == [
                (e.start, e.end, e.label) for e in prediction.entities
            ]
            assert one["coverage"]["num_tokens"] == prediction.coverage.num_tokens

    talk(bundle, ask)


def test_bad_lines_are_problems_in_their_places_and_the_others_are_answered(bundle):
    lines = [
        {"text": TEXT, "id": "first"},
        b"{nonsense\n",
        b"\n",
        {"text": 1, "id": "third"},
        {"texts": ["a"]},
        {"text": "x" * 2000},
        b'{"text": "' + b"x" * 5000 + b'"}\n',
        b"\xff\n",
        {"text": "Ada", "id": None, "redact": "mask", "labels": [], "min_score": 0.5},
        b'  {"text": "Ada", "id": 12345678901234567890}  \r\n',
        b'{"text": "Grace"}',
    ]

    async def ask(with_: Talk) -> None:
        told = read_lines((await with_.stream(write_lines(*lines))).content)
        assert [one["line"] for one in told] == [1, 2, 4, 5, 6, 7, 8, 9, 10, 11]  # blank lines count and say nothing
        statuses = [one.get("error", {}).get("status", 200) for one in told]
        assert statuses == [200, 400, 422, 422, 422, 413, 400, 200, 200, 200]
        assert [one.get("id") for one in told] == ["first", *[None] * 7, 12345678901234567890, None]
        assert told[2]["error"]["errors"][0]["pointer"] == "/text"
        assert told[7]["redacted"] == {"text": "Ada", "spans": []}
        assert "redacted" not in told[8]
        assert len({one["error"]["request_id"] for one in told if "error" in one}) == 1

    talk(bundle, ask, tuning={"max_characters": 1000, "max_body_kib": 4})


def test_line_beyond_a_limit_gives_its_id_back(bundle):
    async def ask(with_: Talk) -> None:
        [told] = read_lines((await with_.stream(write_lines({"text": "x" * 20, "id": 7}))).content)
        assert (told["id"], told["error"]["status"]) == (7, 422)

    talk(bundle, ask, tuning={"max_characters": 10})


def test_answer_comes_while_the_client_still_sends(bundle):
    async def ask(with_: Talk) -> None:
        exchange = Exchange(with_.replica)
        task = exchange.start()
        for at in range(1, 6):
            line = write_lines({"text": TEXT, "id": at})
            exchange.put(line[:10])
            exchange.put(line[10:])
            await wait_until(lambda at=at: exchange.body.count(b"\n") == at, "the answer is there")
        assert not task.done()
        exchange.end()
        await task
        assert [one["id"] for one in read_lines(exchange.body)] == [1, 2, 3, 4, 5]

    talk(bundle, ask)


def test_answer_is_one_line_for_any_reader_of_lines(bundle):
    text = "Angela\u2028Merkel\u2029visited\u0085Utrecht\x1c\x1d\x1e\x0b\x0c\r\n."

    async def ask(with_: Talk) -> None:
        answer = await with_.stream(write_lines({"text": text, "id": text, "redact": "mask", "labels": []}))
        [line] = answer.text.splitlines()
        told = json.loads(line)
        assert (told["id"], told["redacted"]["text"]) == (text, text)

    talk(bundle, ask)


def test_stream_of_nothing_is_an_answer_of_nothing(bundle):
    async def ask(with_: Talk) -> None:
        for body in (b"", b"\n \n\r\n"):
            answer = await with_.stream(body)
            assert (answer.status_code, answer.content) == (200, b"")

    talk(bundle, ask)


def test_no_more_lines_are_read_than_can_be_answered_soon(bundle):
    """A client that sends two thousand lines fills no memory, whatever the size of its parts."""

    async def ask(with_: Talk) -> None:
        engine = with_.replica.engine
        engine.gate.clear()
        exchange = Exchange(with_.replica)
        task = exchange.start()
        for at in range(2000):
            exchange.put(write_lines({"text": TEXT, "id": at}))
        exchange.end()
        await wait_until(lambda: exchange.num_read > MAX_LINES, "lines are read")
        for _ in range(50):
            await asyncio.sleep(0.001)
            assert exchange.num_read <= MAX_LINES + 3
            assert len(asyncio.all_tasks()) < MAX_LINES + 20
        engine.gate.set()
        await task
        assert [one["id"] for one in read_lines(exchange.body)] == list(range(2000))

    talk(bundle, ask, tuning={"max_batch_tokens": 2048})


def test_few_long_lines_are_read_ahead(bundle):
    async def ask(with_: Talk) -> None:
        engine = with_.replica.engine
        engine.gate.clear()
        exchange = Exchange(with_.replica)
        task = exchange.start()
        size = MAX_CHARACTERS // 4
        for at in range(20):
            exchange.put(write_lines({"text": TEXT + " " * size, "id": at}))
        exchange.end()
        await wait_until(lambda: exchange.num_read >= 4, "lines are read")
        for _ in range(50):
            await asyncio.sleep(0.001)
            assert exchange.num_read <= 5
        engine.gate.set()
        await task
        assert [one["id"] for one in read_lines(exchange.body)] == list(range(20))

    talk(bundle, ask, tuning={"max_characters": MAX_CHARACTERS})


def test_stream_waits_where_a_request_would_be_sent_away(bundle):
    async def ask(with_: Talk) -> None:
        engine = with_.replica.engine
        engine.gate.clear()
        first = asyncio.create_task(with_.ask({"text": TEXT * 300}))
        await wait_until(lambda: with_.replica.count_load() > 500 and bool(engine.batches), "the queue is full")
        streams = [
            asyncio.create_task(with_.stream(write_lines(*({"text": TEXT * 8, "id": at} for at in range(60)))))
            for _ in range(2)
        ]
        assert (await with_.ask({"text": TEXT})).status_code == 429
        engine.gate.set()
        assert (await first).status_code == 200
        for stream in streams:
            told = read_lines((await stream).content)
            assert [one["id"] for one in told] == list(range(60))
            assert not [one for one in told if "error" in one]
        await wait_until(lambda: with_.replica.count_load() == 0, "nothing is left")

    talk(bundle, ask, tuning={"max_queued_tokens": 300, "max_batch_tokens": 64})


class EndlessExchange(Exchange):
    """Its client always has another line."""

    line = b""

    async def _receive(self) -> dict[str, Any]:
        self.num_read += 1
        return {"type": "http.request", "body": self.line, "more_body": True}


@pytest.mark.parametrize("text", [TEXT * 4, TEXT * 250], ids=["short", "long"])
def test_streams_that_never_end_send_no_request_away(bundle, text):
    async def ask(with_: Talk) -> None:
        with_.replica.engine.pause_s = 0.01
        exchanges = [EndlessExchange(with_.replica) for _ in range(4)]
        for exchange in exchanges:
            exchange.line = write_lines({"text": text})
        tasks = [exchange.start() for exchange in exchanges]
        await wait_until(lambda: with_.replica.count_load() >= 150, "lines wait")
        for _ in range(20):
            assert (await with_.ask({"text": TEXT})).status_code == 200
        await wait_until(lambda: all(exchange.body for exchange in exchanges), "each stream has answers")
        assert not any(task.done() for task in tasks)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        await wait_until(lambda: with_.replica.count_load() == 0, "nothing is left")

    talk(bundle, ask, tuning={"max_queued_tokens": 300, "max_batch_tokens": 256})


def test_more_streams_than_a_replica_takes_are_429_with_the_time_to_come_again(bundle):
    async def ask(with_: Talk) -> None:
        exchanges = [Exchange(with_.replica) for _ in range(2)]
        tasks = [exchange.start() for exchange in exchanges]
        await wait_until(lambda: all(exchange.status for exchange in exchanges), "two streams are open")
        refused = await with_.stream(write_lines({"text": TEXT}))
        assert refused.status_code == 429
        assert refused.headers["content-type"] == "application/problem+json"
        assert int(refused.headers["retry-after"]) >= 1
        assert "2 streams" in refused.json()["detail"]
        assert (await with_.ask({"text": TEXT})).status_code == 200
        exchanges[0].end()
        await tasks[0]
        tasks[1].cancel()
        await asyncio.wait(tasks[1:])
        for _ in range(3):
            assert (await with_.stream(write_lines({"text": TEXT}))).status_code == 200

    talk(bundle, ask, tuning={"max_streams": 2})


def test_line_that_takes_too_long_is_a_problem_of_its_own(bundle):
    async def ask(with_: Talk) -> None:
        with_.replica.engine.gate.clear()
        [told] = read_lines((await with_.stream(write_lines({"text": TEXT, "id": 1}))).content)
        assert (told["id"], told["error"]["status"]) == (1, 504)
        with_.replica.engine.gate.set()
        await wait_until(lambda: with_.replica.count_load() == 0, "nothing is left")

    talk(bundle, ask, tuning={"timeout_s": 0.1})


def test_lines_that_only_wait_are_not_too_late(bundle):
    """All of them take far longer than a line may; each of them does not."""

    async def ask(with_: Talk) -> None:
        with_.replica.engine.pause_s = 0.1
        told = read_lines((await with_.stream(write_lines(*({"text": TEXT} for _ in range(30))))).content)
        assert [one.get("error", {}).get("status") for one in told] == [None] * 30
        assert len(with_.replica.engine.batches) >= 30

    talk(bundle, ask, tuning={"timeout_s": 1.0, "max_batch_tokens": 16})


def test_poisonous_line_fails_alone(bundle):
    async def ask(with_: Talk) -> None:
        with_.replica.engine.poison("Utrecht", "compute")
        told = read_lines(
            (await with_.stream(write_lines({"text": "Ada"}, {"text": "Utrecht"}, {"text": "a"}))).content
        )
        assert ["error" in one for one in told] == [False, True, False]
        assert told[1]["error"]["status"] == 500
        assert "poisonous" not in json.dumps(told)

    talk(bundle, ask)


def test_client_that_stops_sending_gets_its_answers_and_is_told(bundle, monkeypatch):
    monkeypatch.setattr(bodies, "BODY_TIMEOUT_S", 0.1)

    async def send() -> AsyncIterator[bytes]:
        yield write_lines({"text": TEXT}, b'{"text": "half')
        await asyncio.sleep(20)

    async def ask(with_: Talk) -> None:
        told = read_lines((await with_.stream(send())).content)  # type: ignore[arg-type]
        assert [(one["line"], one.get("error", {}).get("status")) for one in told] == [(1, None), (2, 408)]

    talk(bundle, ask)


def test_client_that_leaves_stops_what_is_under_way(bundle):
    async def ask(with_: Talk) -> None:
        with_.replica.engine.gate.clear()
        exchange = Exchange(with_.replica)
        task = exchange.start()
        exchange.put(write_lines(*({"text": TEXT * 5} for _ in range(50))))
        await wait_until(lambda: with_.replica.count_load() > 500, "lines are under way")
        exchange.parts.put_nowait({"type": "http.disconnect"})
        await asyncio.wait([task])
        with_.replica.engine.gate.set()
        await wait_until(lambda: with_.replica.count_load() == 0, "nothing is left")
        assert sum(map(len, with_.replica.engine.batches)) < 50

    talk(bundle, ask, tuning={"max_batch_tokens": 64})


def test_stream_that_is_cancelled_leaves_nothing_in_the_queue(bundle):
    """Ray Serve cancels the request of a client that left after its last line, too."""

    async def ask(with_: Talk) -> None:
        with_.replica.engine.gate.clear()
        exchange = Exchange(with_.replica)
        task = exchange.start()
        exchange.put(write_lines(*({"text": TEXT * 5} for _ in range(50))))
        exchange.end()
        await wait_until(lambda: with_.replica.count_load() > 500, "lines are under way")
        task.cancel()
        await asyncio.wait([task])
        with_.replica.engine.gate.set()
        await wait_until(lambda: with_.replica.count_load() == 0, "nothing is left")
        assert sum(map(len, with_.replica.engine.batches)) < 50

    talk(bundle, ask, tuning={"max_batch_tokens": 64})


@pytest.mark.parametrize(
    "media_type", ["application/x-ndjson", "application/jsonl", "application/ndjson; charset=utf-8"]
)
def test_usual_names_of_the_media_type_are_taken(bundle, media_type):
    async def ask(with_: Talk) -> None:
        answer = await with_.client.post(
            "/v1/models/default/entities/stream", content=b'{"text": "a"}', headers={"content-type": media_type}
        )
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "application/x-ndjson"

    talk(bundle, ask)
