"""What every request passes on its way in and out: its id, its key, its place in the log, and what went wrong."""

import asyncio
import json
import logging
import sys
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.batching import Overloaded
from serve.problems import MEDIA_TYPE, Problem
from serve.replica import FailedText, Replica, Timing

MAX_ID = 128
OPEN = ("/", "/docs", "/healthz", "/openapi.json", "/readyz")
OPEN_FOLDERS = ("/docs/", "/page/")
"""Whatever else there is wants a key, where the endpoint has any."""
ENTITIES = "/v1/entities"
CLIENT_LEFT = 499
PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
SECURITY_HEADERS = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "content-security-policy": PAGE_POLICY,
    "cache-control": "no-store",
}

logger = logging.getLogger(__name__)
access = logging.getLogger("rayner.access")


class Border:
    """ASGI middleware around the application."""

    def __init__(self, app: ASGIApp, replica: Replica) -> None:
        self.app, self.replica = app, replica

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and answer with a problem document where it fails."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = time.monotonic()
        headers = Headers(scope=scope)
        request_id = choose_request_id(headers.get("x-request-id", ""))
        state = scope.setdefault("state", {})
        state["request_id"] = request_id
        status = 0
        method = scope["method"]
        is_head = method == "HEAD"
        if is_head:  # every path that can be got answers it
            scope["method"] = "GET"

        async def send_marked(message: Message) -> None:
            """Send on with the request id and the security headers, for HEAD without the body; remembers the status."""
            nonlocal status
            if is_head and message["type"] == "http.response.body":
                message = {**message, "body": b""}
            if message["type"] == "http.response.start":
                status = message["status"]
                found = MutableHeaders(scope=message)
                found["x-request-id"] = request_id
                for name, value in SECURITY_HEADERS.items():
                    found.setdefault(name, value)
            await send(message)

        with open_span(self.replica, headers, method) as tell:
            try:
                try:
                    path = find_path(scope)
                    self.check_key(path, headers)
                    if path == ENTITIES and method == "POST":
                        self.replica.check_room()  # as cheap as can be: refusals must not cost what answers need
                    await self.app(scope, receive, send_marked)
                except Exception as error:
                    if is_departure(error):
                        status = CLIENT_LEFT
                        return
                    problem = explain(error)
                    if problem.status == 500:
                        logger.exception("request %s failed", request_id)
                    if status:  # a stream has begun: what is missing tells the client
                        raise
                    await send_problem(problem, request_id, send_marked)
            except asyncio.CancelledError:
                status = CLIENT_LEFT
                raise
            finally:
                route = getattr(scope.get("route"), "path", "other")
                tell(method, route, status)
                self.note(scope, method, route, request_id, status, time.monotonic() - started)

    def check_key(self, path: str, headers: Headers) -> None:
        """Raise Problem where a key is needed and not given."""
        is_open = path in OPEN or path.startswith(OPEN_FOLDERS)
        if not is_open and not self.replica.keys.allow(headers):
            detail = "this endpoint wants an API key: `Authorization: Bearer KEY`, or `X-API-Key: KEY`"
            raise Problem(401, detail, headers={"www-authenticate": 'Bearer realm="rayner"'})

    def note(self, scope: Scope, method: str, route: str, request_id: str, status: int, seconds: float) -> None:
        """Count the request, and write its line of the access log."""
        state = scope["state"]
        note_request(
            self.replica,
            method,
            route,
            request_id,
            status,
            seconds,
            timing=state.get("timing"),
            texts=state.get("texts"),
        )


def open_span(
    replica: Replica, headers: Mapping[str, str], name: str
) -> AbstractContextManager[Callable[[str, str, int], None]]:
    """A span around a request, where tracing is on; what it gives may be told method, route and status."""
    if not replica.arguments.tracing:
        return nullcontext(lambda *_: None)
    from serve.tracing import trace_request

    return trace_request(headers, name)


def note_request(
    replica: Replica,
    method: str,
    route: str,
    request_id: str,
    status: int,
    seconds: float,
    *,
    timing: Timing | None = None,
    texts: Sequence[str] | None = None,
) -> None:
    """Count a request, and write its line of the access log.

    Args:
        texts: where they may be logged.
    """
    replica.metrics.observe_request(route, status, seconds)
    if not replica.arguments.access_log:
        return
    line: dict[str, Any] = {
        "time": round(time.time(), 3),
        "request_id": request_id,
        "method": method,
        "route": route,
        "status": status,
        "ms": round(1000 * seconds, 1),
    }
    if timing is not None:
        line |= {
            "queue_ms": round(1000 * timing.queue_s, 1),
            "engine_ms": round(1000 * timing.engine_s, 1),
            "num_tokens": timing.num_tokens,
        }
    if texts is not None:
        line["texts"] = texts
    access.info("%s", json.dumps(line))


def find_path(scope: Scope) -> str:
    """The path below the application's own, which is part of `path` where it is not served at the root."""
    path: str = scope["path"]
    root = scope.get("root_path", "").rstrip("/")
    return path[len(root) :] if root and f"{path}/".startswith(f"{root}/") else path


def is_departure(error: BaseException) -> bool:
    """Whether a request ended because its client went."""
    if isinstance(error, BaseExceptionGroup):
        return all(is_departure(one) for one in error.exceptions)
    return isinstance(error, ClientDisconnect)


def choose_request_id(given: str) -> str:
    """The client's own id, if it is harmless, else a new one."""
    is_fine = 0 < len(given) <= MAX_ID and given.isascii() and given.isprintable()
    return given if is_fine else uuid.uuid4().hex


def explain(error: Exception) -> Problem:
    """The problem that an error is to a client; what is not the client's matter stays inside."""
    if isinstance(error, Problem):
        error.__cause__ = error.__context__ = None  # frames of its past hold the body, and are held by who holds it
        return error.with_traceback(None)
    if isinstance(error, Overloaded):
        return Problem(429, str(error), headers={"retry-after": str(max(1, round(error.retry_after_s)))})
    if isinstance(error, TimeoutError):
        return Problem(504, "the answer was not there in time", headers={"retry-after": "1"})
    if isinstance(error, FailedText):
        return Problem(500, str(error), errors=[(f"/texts/{error.index}", "could not be computed")])
    return Problem(500, "the request could not be answered; the log has its id")


async def send_problem(problem: Problem, request_id: str, send: Send) -> None:
    """Answer with a problem document."""
    body = problem.render(request_id)
    headers = {"content-type": MEDIA_TYPE, "content-length": str(len(body)), **problem.headers}
    raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": problem.status, "headers": raw})
    await send({"type": "http.response.body", "body": body})


def open_access_log() -> None:
    """Let the access log go to standard error, a JSON object a line."""
    if access.handlers:
        return
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    access.addHandler(handler)
    access.setLevel(logging.INFO)
    access.propagate = False
