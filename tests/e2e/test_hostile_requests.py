"""Requests that mean harm, sent to a real server: each is refused, none is an error of ours, others are answered."""

import http.client
import json
import os
import random
import re
import select
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from serve import ingress
from tests.conftest import ROOT, make_bundle
from tests.e2e.endpoint_server import BODY_TIMEOUT_S, Server, open_server

SEED = 20_260
NUM_BODIES = 10_000
NUM_CONNECTIONS = 8
MAX_BODY_BYTES = 1_000_000
"""Of those many; larger ones have tests of their own."""
MAX_GROWTH_MIB = 50
KEY = "a-key-of-the-schemathesis-run"
TEXT = "Angela Merkel visited 👩‍👩‍👧 in Utrecht ."
GOOD: list[dict[str, Any]] = [
    {"text": TEXT},
    {"texts": [TEXT, "王小明住在台北。", ""], "labels": ["PER", "LOC"], "min_score": 0.25, "redact": "hash"},
    {"text": "Ada met Grace.", "redact": "mask", "labels": None},
]
PATHS = ("/v1/entities", "/v1/models/default/entities", "/v1/entities/stream")
FRAGMENTS = [
    b"\x00", b"\xff", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xef\xbb\xbf", b"\\ud800", b"\\u0000", b"\\x", b'"', b"'",
    b"{", b"}", b"[", b"]", b",", b":", b"\\", b"\n", b"\r\n", b"//", b"NaN", b"-Infinity", b"1e999", b"-0", b"00",
    b"1" * 400, b"0." + b"3" * 400, b"null", b"true", b'"text":', b'"texts":[', b'"a":' * 40, b"[" * 300,
]  # fmt: skip
WRONG = [None, True, 0, -1, 1.5, 10**30, "", "x", [], {}, [[]], [None], {"text": "a"}, ["a", 1], "\x00", "x" * 5000]


@pytest.fixture(scope="module")
def bundle(tiny_encoder: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tiny_encoder, tmp_path_factory.mktemp("bundle") / "tiny")


@pytest.fixture(scope="module")
def arguments(bundle: Path) -> dict[str, Any]:
    computing = {"device": "cpu", "runtime": "torch", "precision": "fp32", "num_cpus": 2}
    patient = {"tuning": {"max_wait_s": 60, "timeout_s": 120}}  # a busy machine is not overload
    return {"model": str(bundle), "page": False, "access_log": False, **computing, **patient}


@pytest.fixture(scope="module")
def server(arguments: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with open_server(arguments, tmp_path_factory.mktemp("server")) as running:
        warm_up(running)
        yield running
        assert "Traceback" not in running.log.read_text()


def warm_up(server: Server) -> None:
    """Let it have the buffers that it keeps: what it grows by after that is lost."""
    large = json.dumps({"texts": ["x" * 300] * 10_000}).encode()
    work = json.dumps({"texts": [f"{TEXT} {at} " * 5 for at in range(100)]}).encode()
    with ThreadPoolExecutor(NUM_CONNECTIONS) as pool:
        answers = list(pool.map(lambda body: post(server, body), [large, work] * NUM_CONNECTIONS))
    assert [status for status, _ in answers] == [422, 200] * NUM_CONNECTIONS
    send_malformed(server, SEED + 1000, NUM_BODIES // 2)  # more of them add nothing


@pytest.fixture(autouse=True)
def unharmed(server: Server) -> Iterator[None]:
    """After each test the server answers as before it, and is as large."""
    wanted = post(server, json.dumps(GOOD[1]).encode())
    size_mib = server.read_rss_mib()
    yield
    assert post(server, json.dumps(GOOD[1]).encode()) == wanted
    assert wanted[0] == 200
    assert server.read_rss_mib() - size_mib < MAX_GROWTH_MIB


class Connection:
    """Keep-alive, renewed where the server closes it."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.opened = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)

    def post(self, body: bytes, path: str = PATHS[0]) -> tuple[int, bytes]:
        media_type = "application/x-ndjson" if path.endswith("/stream") else "application/json"
        try:
            return self._post(body, path, media_type)
        except (http.client.RemoteDisconnected, BrokenPipeError, ConnectionResetError):
            self.opened.close()  # it was closed between two requests
            return self._post(body, path, media_type)

    def _post(self, body: bytes, path: str, media_type: str) -> tuple[int, bytes]:
        self.opened.request("POST", path, body, {"content-type": media_type})
        answer = self.opened.getresponse()
        return answer.status, answer.read()


def post(server: Server, body: bytes, path: str = PATHS[0]) -> tuple[int, Any]:
    connection = Connection(server)
    status, answer = connection.post(body, path)
    connection.opened.close()
    return status, json.loads(answer)


# ---- malformed bodies


def cut(chance: random.Random, body: bytes) -> bytes:
    return body[: chance.randrange(len(body))]


def insert(chance: random.Random, body: bytes) -> bytes:
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(body) + 1)
        body = body[:at] + chance.choice(FRAGMENTS) + body[at:]
    return body


def flip(chance: random.Random, body: bytes) -> bytes:
    changed = bytearray(body)
    for _ in range(chance.randint(1, 8)):
        changed[chance.randrange(len(changed))] = chance.randrange(256)
    return bytes(changed)


def repeat(chance: random.Random, body: bytes) -> bytes:
    start, end = sorted(chance.randrange(len(body) + 1) for _ in range(2))
    return body[:end] + body[start:end] * chance.randint(1, 50) + body[end:]


def make_random(chance: random.Random, body: bytes) -> bytes:
    return chance.randbytes(chance.randrange(300))


def change_type(chance: random.Random, body: bytes) -> bytes:
    changed = dict(chance.choice(GOOD))
    changed[chance.choice(["text", "texts", "labels", "min_score", "redact", "id", "", "x" * 300])] = chance.choice(
        WRONG
    )
    return json.dumps(changed).encode()


def name_twice(chance: random.Random, body: bytes) -> bytes:
    name = chance.choice(["text", "texts", "min_score"])
    return body[:-1] + f', "{name}": {json.dumps(chance.choice(WRONG))}}}'.encode()


def nest(chance: random.Random, body: bytes) -> bytes:
    opening, closing = chance.choice([(b"[", b"]"), (b'{"text":', b"}"), (b'{"texts":[', b"]}")])
    depth = chance.choice([150, 250, 5000, 100_000 if chance.random() < 0.1 else 1000])
    return opening * depth + closing * chance.choice([0, depth])


MUTATIONS: list[Callable[[random.Random, bytes], bytes]] = [
    *(cut, insert, flip, repeat, make_random, change_type, name_twice, nest),
]


def make_body(chance: random.Random) -> bytes:
    body = json.dumps(chance.choice(GOOD), ensure_ascii=chance.random() < 0.5).encode()
    for _ in range(chance.randint(1, 2)):
        body = chance.choice(MUTATIONS)(chance, body or b"{}")[:MAX_BODY_BYTES]
    return body


def judge(path: str, status: int, answer: bytes) -> str:
    """What an answer is; `fine` and `refused` are as they should be."""
    told = json.loads(answer) if not path.endswith("/stream") else [json.loads(line) for line in answer.splitlines()]
    if path.endswith("/stream"):
        is_fine = status == 200 and all(one.get("error", {"status": 400})["status"] in (400, 413, 422) for one in told)
        return "fine" if is_fine else f"{status}: {answer[:300]!r}"
    if status == 200:
        return "fine" if "results" in told or "entities" in told else f"200: {answer[:300]!r}"
    is_problem = status in (400, 413, 422) and told["status"] == status and "Traceback" not in told["detail"]
    return "refused" if is_problem else f"{status}: {answer[:300]!r}"


def send_malformed(server: Server, seed: int, count: int) -> Counter[str]:
    """How many bodies, over several connections, were answered how."""

    def send_some(seed: int) -> Counter[str]:
        chance = random.Random(seed)
        connection = Connection(server)
        seen: Counter[str] = Counter()
        for _ in range(count // NUM_CONNECTIONS):
            path, body = chance.choice(PATHS), make_body(chance)
            verdict = judge(path, *connection.post(body, path))
            seen[verdict if verdict in ("fine", "refused") else f"{path} {body[:300]!r} → {verdict}"] += 1
        connection.opened.close()
        return seen

    with ThreadPoolExecutor(NUM_CONNECTIONS) as pool:
        return sum(pool.map(send_some, range(seed, seed + NUM_CONNECTIONS)), Counter())


def test_ten_thousand_malformed_bodies_are_refused_and_none_is_an_error_of_ours(server):
    seen = send_malformed(server, SEED, NUM_BODIES)
    assert set(seen) == {"fine", "refused"}, [one for one in seen if one not in ("fine", "refused")][:5]
    assert seen["refused"] > NUM_BODIES / 3
    assert seen["fine"] > 100  # streams, and bodies that are still valid


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 100_000,
        b'{"text":' * 100_000 + b'"a"' + b"}" * 100_000,
        b'{"texts": [' + b"1," * 2_000_000 + b"1]}",
        b'{"labels": [' + b"1," * 2_000_000 + b"1]}",
        b"{" + b",".join(b'"%x":1' % at for at in range(350_000)) + b"}",
        b'{"text": "a", "min_score": ' + b"9" * 4_000_000 + b"}",
        json.dumps({"texts": ["a"] * 10_000}).encode(),
        json.dumps({"text": "x" * 500_001}).encode(),
        json.dumps({"texts": ["a", "\U0010ffff" * 500_001]}, ensure_ascii=False).encode(),
    ],
    ids=["arrays", "objects", "texts", "labels", "keys", "digits", "many", "long", "last"],
)
def test_body_that_is_large_in_one_way_is_refused(server, body):
    for _ in range(3):
        status, told = post(server, body)
        assert status in (400, 422)
        assert told["status"] == status
        assert len(json.dumps(told)) < 5000


def test_lines_of_every_kind_in_one_stream_are_each_answered(server):
    chance = random.Random(SEED)
    lines = [make_body(chance).replace(b"\n", b" ") or b"{}" for _ in range(1500)]
    lines = [line if line.strip() else b"{}" for line in lines]
    connection = Connection(server)
    status, answer = connection.post(b"\n".join(lines), PATHS[2])
    told = [json.loads(line) for line in answer.splitlines()]
    assert status == 200
    assert [one["line"] for one in told] == list(range(1, len(lines) + 1))
    assert {one.get("error", {}).get("status", 200) for one in told} <= {200, 400, 422}


# ---- raw requests


def open_socket(server: Server) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=30)


def read_status(opened: socket.socket) -> int:
    """Of the answer on this connection; 0 where it was closed without one."""
    try:
        found = re.match(rb"HTTP/1\.1 (\d+) ", opened.recv(65536))
    except ConnectionError:
        return 0
    return int(found[1]) if found else 0


HEAD = "POST /v1/entities HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n"


def test_body_that_is_declared_huge_is_refused_before_it_is_sent(server):
    with open_socket(server) as opened:
        opened.sendall(f"{HEAD}content-length: {10**12}\r\n\r\n".encode())
        assert read_status(opened) == 413


def test_body_that_grows_without_end_is_refused_soon_after_the_limit(server):
    part = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
    with open_socket(server) as opened:
        opened.sendall(f"{HEAD}transfer-encoding: chunked\r\n\r\n".encode())
        num_sent = 0
        while not select.select([opened], [], [], 0)[0]:
            opened.sendall(part)
            num_sent += len(part)
            assert num_sent < 2**26, "a body may have 2**22 bytes"
        assert read_status(opened) == 413


@pytest.mark.parametrize(
    "head",
    [
        "POST /v1/entities HTTP/1.1\r\nhost: a\r\ncontent-length: -5\r\n\r\n",
        "POST /v1/entities HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nabcdef",
        "POST /v1/entities HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\nZZ\r\n",
        "GET /healthz\x00 HTTP/1.1\r\nhost: a\r\n\r\n",
        "GET / HTTP/9.9\r\n\r\n",
        "\x16\x03\x01\x02\x00\x01\x00\x01\xfc",
        "GET /healthz HTTP/1.1\r\nhost: a\r\nx: " + "y" * 200_000 + "\r\n\r\n",
        "GET /" + "y" * 200_000 + " HTTP/1.1\r\nhost: a\r\n\r\n",
        "nonsense\r\n\r\n",
    ],
)
def test_what_is_hardly_http_is_no_error_of_ours_and_its_connection_ends(server, head):
    with open_socket(server) as opened:
        opened.sendall(head.encode("latin-1"))
        opened.shutdown(socket.SHUT_WR)
        assert read_status(opened) < 500
        opened.settimeout(BODY_TIMEOUT_S * 5)
        while opened.recv(65536):
            pass  # the connection ends


# ---- slow clients


def test_clients_that_send_bodies_drop_by_drop_are_cut_off_and_hold_nobody_up(server):
    slow = [open_socket(server) for _ in range(50)]
    for opened in slow:
        opened.sendall(f'{HEAD}content-length: 1000\r\n\r\n{{"text": "'.encode())
    left = set(slow)
    statuses: Counter[int] = Counter()
    end = time.monotonic() + 10 * BODY_TIMEOUT_S
    while left:
        assert time.monotonic() < end, f"{len(left)} connections are still open"
        assert post(server, json.dumps(GOOD[0]).encode())[0] == 200
        answered = select.select(list(left), [], [], BODY_TIMEOUT_S / 10)[0]
        for opened in answered:
            statuses[read_status(opened)] += 1
            opened.close()
        left -= set(answered)
        for opened in left:
            opened.sendall(b"x")
    assert statuses == {408: 50}


def test_clients_that_never_end_their_headers_hold_nobody_up(server):
    """HAProxy ends them, where it is the way in (the next test)."""
    slow = [open_socket(server) for _ in range(200)]
    for opened in slow:
        opened.sendall(b"POST /v1/entities HTTP/1.1\r\nhost: a\r\nx-slow: ")
    for _ in range(20):
        assert post(server, json.dumps(GOOD[0]).encode())[0] == 200
    for opened in slow:
        opened.close()


def test_haproxy_ends_headers_that_never_end(server, tmp_path, monkeypatch):
    program = ingress.find_haproxy()
    if program is None:
        pytest.skip("there is no HAProxy")
    monkeypatch.setattr(ingress, "HEADERS_TIMEOUT_S", 1)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    config = tmp_path / "haproxy.cfg"
    config.write_text(
        "defaults\n    mode http\n    timeout connect 5s\n    timeout client 300s\n    timeout server 300s\n"
        "    errorfile 503 /nowhere\n"
        f"frontend in\n    bind 127.0.0.1:{port}\n    default_backend out\n"
        f"backend out\n    server one 127.0.0.1:{server.port}\n"
    )
    wrapper = ingress.write_wrapper(program, tmp_path)
    with subprocess.Popen([wrapper, "-db", "-f", config], stderr=subprocess.PIPE, text=True) as process:
        try:
            front = Server(port, process.pid, tmp_path)
            end = time.monotonic() + 20
            while socket.socket().connect_ex(("127.0.0.1", port)):
                assert process.poll() is None, process.stderr and process.stderr.read()
                assert time.monotonic() < end
                time.sleep(0.02)
            with open_socket(front) as slow:
                slow.sendall(b"POST /v1/entities HTTP/1.1\r\nhost: a\r\nx-slow: ")
                assert post(front, json.dumps(GOOD[0]).encode())[0] == 200
                assert read_status(slow) == 408
        finally:
            process.terminate()


# ---- what the document says


def test_schemathesis_finds_nothing(arguments, tmp_path):
    """All of its checks, with requests made from the OpenAPI document, against an endpoint that wants keys."""
    keys = tmp_path / "keys"
    keys.write_text(KEY)
    (tmp_path / "schemathesis.toml").write_text(f'[auth.openapi.bearer]\nbearer = "{KEY}"\n')
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "SCHEMATHESIS_HOOKS": "tests.e2e.schemathesis_lines",
        "HYPOTHESIS_STORAGE_DIRECTORY": str(tmp_path / "hypothesis"),
    }
    with open_server(
        {**arguments, "api_keys_file": str(keys), "models": {"other": arguments["model"]}}, tmp_path
    ) as own:
        command = [str(Path(sys.executable).parent / "schemathesis"), "run", f"{own.url}/openapi.json", "--no-color"]
        ended = subprocess.run(
            [*command, "--max-examples", "60", "--request-timeout", "60", "--seed", str(SEED)],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert ended.returncode == 0, ended.stdout[-6000:] + ended.stderr[-2000:]
        assert "No issues found" in ended.stdout
        tested = re.search(r"(\d+) generated, (\d+) passed", ended.stdout)
        assert tested is not None
        assert int(tested[1]) > 500
        assert "Traceback" not in own.log.read_text()
