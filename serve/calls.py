"""The gRPC methods: what HTTP answers, in the messages of `entities.proto`. Needs no Ray."""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import grpc

from serve import entities_pb2 as messages
from serve.bodies import BODY_TIMEOUT_S, await_each, check_size, validate
from serve.border import CLIENT_LEFT, choose_request_id, explain, note_request, open_span
from serve.problems import Problem
from serve.replica import Replica, Timing
from serve.schemas import EntitiesRequest, StreamLine
from serve.streaming import MAX_CHARACTERS, MAX_LINES

SERVICE: str = messages.DESCRIPTOR.services_by_name["Ner"].full_name
METHOD = "GRPC"
"""In the place of HTTP's method in the access log."""
CODES = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    404: grpc.StatusCode.NOT_FOUND,
    408: grpc.StatusCode.DEADLINE_EXCEEDED,
    413: grpc.StatusCode.INVALID_ARGUMENT,
    422: grpc.StatusCode.INVALID_ARGUMENT,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}
"""Of a problem's HTTP status; any other is INTERNAL."""
REDACTIONS = {
    messages.REDACTION_UNSPECIFIED: None,
    messages.REDACTION_MASK: "mask",
    messages.REDACTION_LABEL: "label",
    messages.REDACTION_HASH: "hash",
}

logger = logging.getLogger(__name__)


class Context(Protocol):
    """What a call asks of gRPC; Ray Serve hands a copy of it to the replica."""

    def invocation_metadata(self) -> Any:
        """Pairs that the client sent."""

    def set_trailing_metadata(self, trailing_metadata: Any) -> None:
        """Pairs that follow the answer."""

    def set_code(self, code: grpc.StatusCode) -> None:
        """How the call ended."""

    def set_details(self, details: str) -> None:
        """Why."""


class GrpcCalls:
    """The methods of the service, for a class that has a replica.

    An error is set as the status of a call, and an empty answer returned: of one that is raised, Ray Serve would lose
    the trailing metadata.
    """

    replica: Replica

    async def FindEntities(self, request: Any, grpc_context: Context) -> Any:
        """Entities of several texts."""
        call = Call(self.replica, "FindEntities", grpc_context)
        with call.attend():
            call.check_key()
            tuning = self.replica.tuning
            check_size(request.ByteSize(), tuning.max_body_kib)
            found = validate(EntitiesRequest, {"texts": list(request.texts), **read_options(request)})
            self.replica.check_request(found)
            if self.replica.arguments.log_texts:
                call.texts = found.texts
            call.timing = Timing()
            with open_span(self.replica, call.metadata, call.route):
                async with asyncio.timeout(tuning.timeout_s):
                    answered = await self.replica.answer(found, request.model or None, call.timing)
            return messages.EntitiesResponse(**answered)
        return messages.EntitiesResponse()

    async def StreamEntities(self, request_stream: AsyncIterable[Any], grpc_context: Context) -> AsyncIterator[Any]:
        """Entities of a text a line, in order."""
        call = Call(self.replica, "StreamEntities", grpc_context)
        with call.attend():
            call.check_key()
            call.timing = Timing()
            with self.replica.hold_stream():
                answers = Stream(self.replica, call.request_id, call.timing).answer(request_stream)
                try:
                    async for result in answers:
                        yield result
                finally:
                    await answers.aclose()
        if call.problem is not None:
            # Ray Serve takes the status and the trailing metadata from a message.
            yield messages.StreamResult(problem=describe(call.problem, call.request_id))

    async def DescribeModel(self, request: Any, grpc_context: Context) -> Any:
        """A model."""
        call = Call(self.replica, "DescribeModel", grpc_context)
        with call.attend():
            call.check_key()
            return messages.ModelInfo(**await self.replica.describe_model(request.model or None))
        return messages.ModelInfo()

    async def ListModels(self, request: Any, grpc_context: Context) -> Any:
        """The models."""
        call = Call(self.replica, "ListModels", grpc_context)
        with call.attend():
            call.check_key()
            return messages.ModelList(**self.replica.list_models())
        return messages.ModelList()


class Call:
    """What every call passes on its way in and out: its id, its key, its place in the log, and what went wrong."""

    def __init__(self, replica: Replica, name: str, context: Context) -> None:
        self.replica, self.context = replica, context
        self.route = f"/{SERVICE}/{name}"
        self.metadata = {name: value for name, value in context.invocation_metadata() if isinstance(value, str)}
        self.request_id = choose_request_id(self.metadata.get("x-request-id", ""))
        self.started = time.monotonic()
        self.timing: Timing | None = None
        self.texts: list[str] | None = None
        self.problem: Problem | None = None

    @contextmanager
    def attend(self) -> Iterator[None]:
        """A block that answers the call; where it fails, the call gets the status of its problem."""
        self.context.set_trailing_metadata([("x-request-id", self.request_id)])
        status = 200  # HTTP's, for the figures and the log
        try:
            yield
            self._tell_timing()
        except (asyncio.CancelledError, GeneratorExit):
            status = CLIENT_LEFT
            raise
        except Exception as error:
            self.problem = explain(error)
            status = self.problem.status
            if status == 500:
                logger.exception("request %s failed", self.request_id)
            self._refuse(self.problem)
        finally:
            seconds = time.monotonic() - self.started
            note_request(
                self.replica,
                METHOD,
                self.route,
                self.request_id,
                status,
                seconds,
                timing=self.timing,
                texts=self.texts,
            )

    def check_key(self) -> None:
        """Raise Problem where a key is needed and not given."""
        if not self.replica.keys.allow(self.metadata):
            raise Problem(401, "this endpoint wants an API key: `authorization: Bearer KEY`, or `x-api-key: KEY`")

    def _tell_timing(self) -> None:
        if self.timing is not None:
            spent = f"queue;dur={1000 * self.timing.queue_s:.1f}, engine;dur={1000 * self.timing.engine_s:.1f}"
            self.context.set_trailing_metadata([("x-request-id", self.request_id), ("server-timing", spent)])

    def _refuse(self, problem: Problem) -> None:
        self.context.set_code(CODES.get(problem.status, grpc.StatusCode.INTERNAL))
        pointer = problem.errors[0][0] if problem.errors else ""
        has_pointer = not pointer or problem.detail.startswith(pointer)
        self.context.set_details(problem.detail if has_pointer else f"{pointer}: {problem.detail}")
        told = [(name, value) for name, value in problem.headers.items() if name == "retry-after"]
        self.context.set_trailing_metadata([("x-request-id", self.request_id), *told])


class Stream:
    """Reads lines and answers them in order; no more of them are read than can be answered soon."""

    def __init__(self, replica: Replica, request_id: str, timing: Timing) -> None:
        self.replica, self.request_id, self.timing = replica, request_id, timing
        self.lines: asyncio.Queue[tuple[asyncio.Task[Any], int] | None] = asyncio.Queue(MAX_LINES)
        self.tasks: set[asyncio.Task[Any]] = set()
        self.size = 0
        """Bytes of the lines under way."""
        self.has_room = asyncio.Event()

    async def answer(self, lines: AsyncIterable[Any]) -> AsyncGenerator[Any, None]:
        """A result a line."""
        reading = asyncio.create_task(self._read(lines))
        try:
            while (line := await self.lines.get()) is not None:
                task, size = line
                result = await task
                self.size -= size
                self.has_room.set()
                yield result
            await reading
        finally:
            for task in (reading, *self.tasks):
                task.cancel()

    async def _read(self, lines: AsyncIterable[Any]) -> None:
        number = 0
        try:
            async for line in await_each(lines, BODY_TIMEOUT_S, lambda: bool(self.tasks), "line"):
                number += 1
                size = line.ByteSize()
                while self.size and self.size + size > MAX_CHARACTERS:
                    self.has_room.clear()
                    await self.has_room.wait()
                self.size += size
                task = asyncio.create_task(self._answer(number, line))
                self.tasks.add(task)
                task.add_done_callback(self.tasks.discard)
                await self.lines.put((task, size))
        except Exception:
            await self.lines.put(None)
            raise
        await self.lines.put(None)

    async def _answer(self, number: int, line: Any) -> Any:
        given = {"line": number} | ({"id": line.id} if line.HasField("id") else {})
        try:
            check_size(line.ByteSize(), self.replica.tuning.max_body_kib)
            parsed = validate(StreamLine, {"text": line.text, **read_options(line)})
            self.replica.check_line(parsed)
            answered = await self.replica.answer_text(
                parsed.text, parsed, line.model or None, self.timing, is_patient=True
            )
            return messages.StreamResult(**given, result=messages.Result(**answered))
        except Exception as error:
            problem = explain(error)
            if problem.status == 500:
                logger.exception("line %d of request %s failed", number, self.request_id)
            return messages.StreamResult(**given, problem=describe(problem, self.request_id))


def read_options(message: Any) -> dict[str, Any]:
    """The options of a request or a line, as HTTP would give them."""
    return {
        "labels": list(message.labels) or None,
        "min_score": message.min_score if message.HasField("min_score") else None,
        "redact": REDACTIONS.get(message.redact, str(message.redact)),  # a number that this version does not know
    }


def describe(problem: Problem, request_id: str) -> Any:
    """A problem as a message."""
    document = problem.describe(request_id)
    del document["type"]
    return messages.Problem(**document)
