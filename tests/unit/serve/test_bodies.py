"""Request bodies: whole ones and lines, in any parts, with limits on size and time."""

import asyncio
from collections.abc import AsyncIterator, Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import ClientDisconnect, Request

from serve import bodies
from serve.bodies import KIB, MAX_MISTAKES, parse, read_body, read_lines
from serve.problems import Problem
from serve.schemas import EntitiesRequest, StreamLine
from tests.unit.serve.replicas import run


def make_request(parts: Iterable[bytes], headers: dict[str, str] | None = None, *, then: str = "end") -> Request:
    """A request whose body comes in these parts, and then ends, stops or breaks off."""
    messages = [{"type": "http.request", "body": part, "more_body": True} for part in parts]
    messages += {"end": [{"type": "http.request", "body": b""}], "break": [{"type": "http.disconnect"}]}.get(then, [])
    waiting = iter(messages)

    async def receive():  # type: ignore[no-untyped-def]
        message = next(waiting, None)
        return message or await asyncio.sleep(60)

    raw = [(name.encode(), value.encode("latin-1")) for name, value in (headers or {}).items()]
    return Request({"type": "http", "method": "POST", "path": "/", "headers": raw}, receive)


def read(request: Request, max_kib: int = 1) -> bytes:
    found: list[bytes] = []

    async def check() -> None:
        found.append(await read_body(request, max_kib))

    run(check())
    return found[0]


async def list_lines(request: Request, max_kib: int = 1) -> list[bytes | int]:
    """Lines, and the status of problems in their places."""
    lines: AsyncIterator[bytes | Problem] = read_lines(request, max_kib)
    return [line if isinstance(line, bytes) else line.status async for line in lines]


def split_lines(parts: Iterable[bytes], max_kib: int = 1) -> list[bytes | int]:
    found: list[bytes | int] = []

    async def check() -> None:
        found.extend(await list_lines(make_request(parts), max_kib))

    run(check())
    return found


def test_body_is_put_together_of_its_parts():
    assert read(make_request([b"ab", b"", b"c"])) == b"abc"
    assert read(make_request([])) == b""


def test_body_of_exactly_the_limit_is_read():
    assert len(read(make_request([b"x" * KIB], {"content-length": str(KIB)}))) == KIB


@pytest.mark.parametrize("declared", [str(KIB + 1), "9" * 30, "9" * 5000])
def test_body_that_is_declared_too_large_is_refused_before_any_of_it_is_read(declared):
    with pytest.raises(Problem) as refused:
        read(make_request([], {"content-length": declared}, then="stop"))
    assert refused.value.status == 413


@pytest.mark.parametrize("declared", ["", "-1", "²", "1e3", "abc"])
def test_declared_length_that_is_no_number_is_not_relied_on(declared):
    assert read(make_request([b"ab"], {"content-length": declared})) == b"ab"


def test_body_that_is_not_declared_is_read_as_far_as_the_limit():
    taken = 0

    def make_parts():  # type: ignore[no-untyped-def]
        nonlocal taken
        for _ in range(1000):
            taken += 1
            yield b"x" * 100

    messages = make_parts()

    async def receive():  # type: ignore[no-untyped-def]
        return {"type": "http.request", "body": next(messages), "more_body": True}

    with pytest.raises(Problem) as refused:
        read(Request({"type": "http", "method": "POST", "path": "/", "headers": []}, receive))
    assert refused.value.status == 413
    assert taken == 11


def test_client_that_stops_sending_is_cut_off(monkeypatch):
    monkeypatch.setattr(bodies, "BODY_TIMEOUT_S", 0.05)
    with pytest.raises(Problem) as refused:
        read(make_request([b"ab"], then="stop"))
    assert refused.value.status == 408


def test_client_that_sends_drop_by_drop_is_cut_off(monkeypatch):
    """Each of its pauses is short enough."""
    monkeypatch.setattr(bodies, "BODY_TIMEOUT_S", 0.1)
    taken = 0

    async def receive():  # type: ignore[no-untyped-def]
        nonlocal taken
        taken += 1
        await asyncio.sleep(0.01)
        return {"type": "http.request", "body": b"x", "more_body": True}

    with pytest.raises(Problem) as refused:
        read(Request({"type": "http", "method": "POST", "path": "/", "headers": []}, receive))
    assert refused.value.status == 408
    assert taken < 100


def test_client_that_leaves_is_no_problem_of_its_request():
    with pytest.raises(ClientDisconnect):
        read(make_request([b"ab"], then="break"))


@given(st.lists(st.binary(max_size=12), max_size=12), st.integers(1, 9))
def test_lines_are_the_same_however_the_body_is_cut(lines, step):
    body = b"\n".join(lines)
    wanted = body.split(b"\n")
    if not wanted[-1]:
        wanted.pop()  # a newline ends a line
    assert split_lines([body[at : at + step] for at in range(0, len(body), step)]) == wanted


def test_line_may_come_in_many_parts_and_the_last_one_without_a_newline():
    assert split_lines([b"a", b"b", b"c\nd", b"e\n\nf"]) == [b"abc", b"de", b"", b"f"]


@pytest.mark.parametrize("step", [1, 7, 1000, 100_000])
def test_too_long_line_is_a_problem_in_its_place_and_the_next_is_read(step):
    body = b"a\n" + b"x" * (3 * KIB) + b"\nb\n" + b"y" * KIB + b"\n" + b"z" * (KIB + 1)
    assert split_lines([body[at : at + step] for at in range(0, len(body), step)]) == [b"a", 413, b"b", b"y" * KIB, 413]


def test_stream_that_stops_ends_with_a_problem_after_its_lines(monkeypatch):
    monkeypatch.setattr(bodies, "BODY_TIMEOUT_S", 0.05)

    async def check() -> None:
        lines = read_lines(make_request([b"a\nb"], then="stop"), 1)
        assert await anext(lines) == b"a"
        with pytest.raises(Problem) as refused:
            await anext(lines)
        assert refused.value.status == 408

    run(check())


def refuse(model, body: bytes) -> Problem:  # type: ignore[no-untyped-def]
    with pytest.raises(Problem) as refused:
        parse(model, body)
    return refused.value


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"nonsense",
        b'{"text": "a"} x',
        b"\xff",
        b'{"text": "\xff"}',
        b'{"text": "\\ud800"}',
        b'\xef\xbb\xbf{"text": "a"}',
        b"[" * 100_000,
        b'{"text":' * 100_000,
        b'{"text": "a", "id": ' + b"1" * 5000 + b"}",
    ],
)
def test_what_is_no_json_is_refused_with_400(body):
    problem = refuse(StreamLine, body)
    assert problem.status == 400
    assert "JSON" in problem.detail
    assert problem.errors == []


@pytest.mark.parametrize(
    ("body", "pointers"),
    [
        (b"[]", [""]),
        (b"null", [""]),
        (b"{}", [""]),
        (b'{"text": 1}', ["/text"]),
        (b'{"text": "a", "texts": ["b"]}', [""]),
        (b'{"texts": []}', ["/texts"]),
        (b'{"texts": "a"}', ["/texts"]),
        (b'{"texts": ["a", 1]}', ["/texts/1"]),
        (b'{"text": "a", "labels": ["PER", 2, null]}', ["/labels/1", "/labels/2"]),
        (b'{"text": "a", "min_score": "0.5"}', ["/min_score"]),
        (b'{"text": "a", "min_score": 1.5}', ["/min_score"]),
        (b'{"text": "a", "min_score": -1e-9}', ["/min_score"]),
        (b'{"text": "a", "min_score": NaN}', ["/min_score"]),
        (b'{"text": "a", "min_score": 1e999}', ["/min_score"]),
        (b'{"text": "a", "redact": "erase"}', ["/redact"]),
        (b'{"text": "a", "a/b~c": 1}', ["/a~1b~0c"]),
        (b'{"text": "a", "text_": 1, "redact": 1}', ["/redact", "/text_"]),
    ],
)
def test_broken_rules_are_told_with_pointers_into_the_body(body, pointers):
    problem = refuse(EntitiesRequest, body)
    assert problem.status == 422
    assert [pointer for pointer, _ in problem.errors] == pointers
    assert problem.detail


@pytest.mark.parametrize("wrong", [b"true", b"1.5", b"[]", b"{}"])
def test_wrong_id_of_a_line_is_one_mistake_at_its_place(wrong):
    assert [pointer for pointer, _ in refuse(StreamLine, b'{"text": "a", "id": ' + wrong + b"}").errors] == ["/id"]


def test_mistakes_are_told_up_to_a_number():
    body = b'{"text": "a", "labels": [' + b",".join([b"1"] * 100) + b"]}"
    problem = refuse(EntitiesRequest, body)
    assert len(problem.errors) == MAX_MISTAKES
    assert "80 more" in problem.detail


@pytest.mark.parametrize(
    "body",
    [
        b'{"texts": [' + b"1," * 2_000_000 + b"1]}",
        b'{"text": "a", "labels": [' + b"1," * 2_000_000 + b"1]}",
        b"{" + b",".join(b'"%x":1' % at for at in range(300_000)) + b"}",
    ],
    ids=["texts", "labels", "keys"],
)
def test_million_mistakes_cost_little(body):
    """Each would become an object of its own: more than a gigabyte for a body of four million bytes."""
    problem = refuse(EntitiesRequest, body)
    assert problem.status == 422
    assert 0 < len(problem.errors) <= MAX_MISTAKES


@pytest.mark.parametrize("body", [b'{"text": "a", "text": "b"}', b'{"text": "a", "min_score": 0.5, "te\\u0078t": "a"}'])
def test_name_that_stands_twice_is_refused(body):
    """Which of the two is meant, nobody knows."""
    for model in (EntitiesRequest, StreamLine):
        problem = refuse(model, body)
        assert (problem.status, problem.errors) == (400, [])
        assert "`text` stands twice" in problem.detail


def test_names_within_a_text_are_no_names():
    assert parse(EntitiesRequest, b'{"texts": ["texts", "{\\"texts\\": 1, \\"texts\\": 2}"]}').texts


def test_silence_of_a_client_that_waits_for_us_is_not_counted():
    owed = [True, True, False]

    async def come():  # type: ignore[no-untyped-def]
        yield 1
        await asyncio.sleep(0.12)
        yield 2
        await asyncio.sleep(20)

    async def take():  # type: ignore[no-untyped-def]
        return [one async for one in bodies.await_each(come(), 0.05, lambda: owed.pop(0), "line")]

    with pytest.raises(Problem, match="no line came for"):
        asyncio.run(take())
    assert owed == []


def test_all_that_comes_is_handed_on():
    async def come():  # type: ignore[no-untyped-def]
        for number in range(3):
            yield number

    async def take():  # type: ignore[no-untyped-def]
        return [one async for one in bodies.await_each(come(), 5, lambda: False, "line")]

    assert asyncio.run(take()) == [0, 1, 2]
