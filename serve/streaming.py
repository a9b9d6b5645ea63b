"""Lines in, lines out: a stream of texts of any length, answered in order while it is still being sent."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from serve.bodies import parse, read_lines
from serve.border import explain
from serve.problems import Problem
from serve.replica import Replica, Timing
from serve.schemas import StreamLine

MEDIA_TYPE = "application/x-ndjson"
MAX_LINES = 256
"""Of a stream that are under way at once."""
MAX_CHARACTERS = 2_000_000
"""Of those lines, where there is more than one."""

LINE_BREAKS = {"\u0085": "\\u0085", "\u2028": "\\u2028", "\u2029": "\\u2029"}
"""JSON lets them stand as they are, but many a reader of lines breaks there."""

logger = logging.getLogger(__name__)


@dataclass(eq=False)
class Line:
    """A line under way."""

    number: int
    task: "asyncio.Task[dict[str, Any]]"
    num_characters: int


class StreamResponse(Response):
    """Reads the lines of a request and sends their answers; no more of it is read than can be answered soon."""

    def __init__(self, request: Request, replica: Replica, model: str | None, timing: Timing) -> None:
        super().__init__(media_type=MEDIA_TYPE)
        self.request, self.replica, self.model, self.timing = request, replica, model, timing
        self.lines: asyncio.Queue[Line | None] = asyncio.Queue(MAX_LINES)
        self.num_characters = 0
        self.num_under_way = 0
        self.has_room = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer. Raises Problem where there are too many streams."""
        with self.replica.hold_stream():
            await self._answer_all(send)

    async def _answer_all(self, send: Send) -> None:
        headers = [
            (b"content-type", MEDIA_TYPE.encode()),
            (b"x-accel-buffering", b"no"),
        ]  # proxies must not hold it back
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        async with asyncio.TaskGroup() as group:
            group.create_task(self._read(group))
            async for body in self._write():
                await send({"type": "http.response.body", "body": body, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    async def _read(self, group: asyncio.TaskGroup) -> None:
        number = 0
        try:
            async for line in read_lines(self.request, self.replica.tuning.max_body_kib, self._is_owed):
                number += 1
                if isinstance(line, bytes) and not line.strip():
                    continue
                size = len(line) if isinstance(line, bytes) else 0
                while self.num_characters and self.num_characters + size > MAX_CHARACTERS:
                    self.has_room.clear()
                    await self.has_room.wait()
                self.num_characters += size
                task = group.create_task(self._answer(number, line))
                self.num_under_way += 1
                task.add_done_callback(self._note_answer)
                await self.lines.put(Line(number, task, size))
        except Problem as problem:  # the client stopped sending
            await self.lines.put(Line(number + 1, group.create_task(self._answer(number + 1, problem)), 0))
        await self.lines.put(None)

    def _is_owed(self) -> bool:
        """Whether the client may be waiting for an answer before it sends more."""
        return self.num_under_way > 0

    def _note_answer(self, _: Any) -> None:
        self.num_under_way -= 1

    async def _write(self) -> AsyncIterator[bytes]:
        """Answers in order, those that are ready together."""
        ready: list[bytes] = []
        while True:
            if ready and (self.lines.empty() or len(ready) >= MAX_LINES):
                yield b"".join(ready)
                ready = []
            line = await self.lines.get()
            if line is None:
                break
            if ready and not line.task.done():
                yield b"".join(ready)
                ready = []
            answer = await line.task
            self.num_characters -= line.num_characters
            self.has_room.set()
            ready.append(_render(answer))
        if ready:
            yield b"".join(ready)

    async def _answer(self, number: int, line: bytes | Problem) -> dict[str, Any]:
        given: dict[str, Any] = {"line": number}
        try:
            if isinstance(line, Problem):
                raise line
            parsed = parse(StreamLine, line)
            if parsed.id is not None:
                given["id"] = parsed.id
            self.replica.check_line(parsed)
            return given | await self.replica.answer_text(parsed.text, parsed, self.model, self.timing, is_patient=True)
        except Exception as error:
            problem, request_id = explain(error), self.request.state.request_id
            if problem.status == 500:
                logger.exception("line %d of request %s failed", number, request_id)
            return given | {"error": problem.describe(request_id)}


def _render(answer: dict[str, Any]) -> bytes:
    """One line, whoever reads it."""
    line = json.dumps(answer, ensure_ascii=False)
    for character, escaped in LINE_BREAKS.items():
        line = line.replace(character, escaped)
    return line.encode() + b"\n"
