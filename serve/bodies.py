"""Request bodies, read with limits and parsed strictly."""

import asyncio
import json
import time
from collections.abc import AsyncIterable, AsyncIterator, Callable, Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import from_json
from starlette.requests import Request

from serve.problems import Problem

KIB = 1 << 10
BODY_TIMEOUT_S = 20.0
"""A client that takes longer to send the next part of a body is cut off."""
MIN_BYTES_PER_S = 1000
"""A client that sends a body more slowly is cut off too, after a first `BODY_TIMEOUT_S`."""
MAX_DIGITS = 18
"""Of a size; Python refuses to read thousands of them."""
MAX_MISTAKES = 20
MAX_NAMES = 100
"""In a body."""

Model = TypeVar("Model", bound=BaseModel)
Item = TypeVar("Item")


def check_media_type(request: Request, *wanted: str) -> None:
    """Raise Problem unless the body is said to be one of these."""
    given = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if given not in wanted:
        raise Problem(415, f"the body must be `{wanted[0]}`, not `{given[:100] or 'of no content-type'}`")
    encoding = request.headers.get("content-encoding", "identity").lower()
    if encoding != "identity":
        raise Problem(415, f"the body must not be compressed (`{encoding[:100]}`)")


async def read_body(request: Request, max_kib: int) -> bytes:
    """The whole body. Raises Problem where it is too large or too slow."""
    limit = max_kib * KIB
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and (len(declared) > MAX_DIGITS or int(declared) > limit):
        raise _too_large(max_kib)
    parts = []
    size = 0
    started = time.monotonic()
    async for part in iterate_parts(request):
        size += len(part)
        if size > limit:
            raise _too_large(max_kib)
        if time.monotonic() - started > BODY_TIMEOUT_S + size / MIN_BYTES_PER_S:
            raise Problem(408, f"a body must come with at least {MIN_BYTES_PER_S} bytes per second")
        parts.append(part)
    return b"".join(parts)


async def read_lines(
    request: Request, max_kib: int, is_owed: Callable[[], bool] = lambda: False
) -> AsyncIterator[bytes | Problem]:
    """The lines of a body, without their ends; a Problem in place of one that is too long. Blank lines come too.

    Args:
        is_owed: whether the client may be waiting for us before it sends more; then its silence is not counted.
    """
    limit = max_kib * KIB
    rest = bytearray()
    is_skipping = False
    async for part in iterate_parts(request, is_owed):
        *whole, tail = part.split(b"\n")
        for piece in whole:
            rest += piece
            if is_skipping or len(rest) > limit:
                yield _too_large(max_kib)
            else:
                yield bytes(rest)
            rest.clear()
            is_skipping = False
        rest += tail
        if len(rest) > limit:
            rest.clear()
            is_skipping = True
    if is_skipping:
        yield _too_large(max_kib)
    elif rest:
        yield bytes(rest)


async def iterate_parts(request: Request, is_owed: Callable[[], bool] = lambda: False) -> AsyncIterator[bytes]:
    """The parts of a body as they come. Raises Problem for a client that stops sending."""
    async for part in await_each(request.stream(), BODY_TIMEOUT_S, is_owed, "part of the body"):
        if part:
            yield part


async def await_each(
    coming: AsyncIterable[Item], timeout_s: float, is_owed: Callable[[], bool], what: str
) -> AsyncIterator[Item]:
    """What comes, one by one. Raises Problem if nothing comes for so long while the client is owed nothing."""
    items = aiter(coming)
    waiting: asyncio.Future[Item] | None = None
    try:
        while True:
            waiting = waiting or asyncio.ensure_future(anext(items))
            done, _ = await asyncio.wait([waiting], timeout=timeout_s)
            if done:
                try:
                    item = waiting.result()
                except StopAsyncIteration:
                    return
                waiting = None
                yield item
            elif not is_owed():
                raise Problem(408, f"no {what} came for {timeout_s:g} s")
    finally:
        if waiting is not None:
            waiting.cancel()


def parse(model: type[Model], body: bytes) -> Model:
    """A request's JSON. Raises Problem: 400 where it is no JSON, 422 where it breaks a rule."""
    try:
        given = from_json(body, cache_strings="none")  # whose memory would not come back
    except ValueError as error:
        raise Problem(400, f"Invalid JSON: {error}") from None
    if not isinstance(given, dict):
        raise _break_rule("the body should be an object")
    if len(given) > MAX_NAMES:  # each would become a mistake of its own
        raise _break_rule(f"the body has {len(given)} names; none has so many")
    found = validate(model, given)
    try:
        _NAMED_ONCE.decode(body.decode())  # `from_json` does not tell, and takes the last
    except ValueError as error:
        raise Problem(400, f"Invalid JSON: {error}") from None
    return found


def validate(model: type[Model], given: Mapping[str, Any]) -> Model:
    """The same for what has been read from another form than JSON."""
    try:
        return model.model_validate(given)
    except ValidationError as error:
        raise _describe(error) from None


def check_size(num_bytes: int, max_kib: int) -> None:
    """Raise Problem for a message that is too large."""
    if num_bytes > max_kib * KIB:
        raise _too_large(max_kib)


def _refuse_twins(pairs: list[tuple[str, Any]]) -> None:
    seen: set[str] = set()
    for name, _ in pairs:
        if name in seen:
            raise ValueError(f"the name `{name}` stands twice")
        seen.add(name)


_NAMED_ONCE = json.JSONDecoder(object_pairs_hook=_refuse_twins)


def _describe(error: ValidationError) -> Problem:
    mistakes = error.errors(include_url=False, include_input=False, include_context=False)
    told = [(_point(mistake["loc"]), mistake["msg"].removeprefix("Value error, ")) for mistake in mistakes]
    more = f" (and {len(told) - MAX_MISTAKES} more)" if len(told) > MAX_MISTAKES else ""
    return Problem(422, f"{told[0][0] or 'the body'}: {told[0][1]}{more}", errors=told[:MAX_MISTAKES])


def _break_rule(detail: str) -> Problem:
    return Problem(422, detail, errors=[("", detail)])


def _point(location: tuple[int | str, ...]) -> str:
    return "".join("/" + str(part)[:100].replace("~", "~0").replace("/", "~1") for part in location)


def _too_large(max_kib: int) -> Problem:
    return Problem(413, f"at most {max_kib} KiB are read")
