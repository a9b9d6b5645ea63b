"""gRPC through Ray Serve, by each way in: it answers as HTTP does, and keeps what its statuses carry."""

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import json_format
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from serve import entities_pb2 as messages
from serve import entities_pb2_grpc as services
from serve.ingress import choose_grpc_environment, find_free_ports
from tests.conftest import ROOT, make_bundle
from tests.integration.endpoint import Endpoint, open_endpoint
from tests.integration.processes import list_descendants, wait_until

TEXTS = [json.loads(line)["text"] for line in (ROOT / "tests/data/twenty_documents.jsonl").open(encoding="utf-8")]
SENTENCE = "Angela Merkel visited Utrecht."
KEY = "a-key-of-enough-characters"
ALLOWED = [("x-api-key", KEY)]
SERVICERS = ["serve.entities_pb2_grpc.add_NerServicer_to_server"]


class Caller:
    """An endpoint and a client of its gRPC."""

    def __init__(self, endpoint: Endpoint, port: int) -> None:
        self.endpoint, self.port = endpoint, port
        self.channel = grpc.insecure_channel(f"127.0.0.1:{port}")
        self.stub = services.NerStub(self.channel)

    def ask_http(self, body: dict[str, Any]) -> list[dict[str, Any]]:
        status, answer = self.endpoint.ask("/v1/entities", body, dict(ALLOWED))
        assert status == 200
        return answer["results"]

    def count_requests(self, method: str, status: int) -> float:
        _, page = self.endpoint.ask("/metrics", headers=dict(ALLOWED))
        start = 'rayner_requests_total{replica="'
        wanted = f'route="/rayner.v1.Ner/{method}",status="{status}"}} '
        return sum(float(line.split()[-1]) for line in page.splitlines() if line.startswith(start) and wanted in line)


@pytest.fixture(scope="module", params=["haproxy", "python"])
def caller(
    request: pytest.FixtureRequest, tiny_encoder: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Caller]:
    folder = tmp_path_factory.mktemp("grpc")
    (folder / "keys").write_text(KEY, encoding="utf-8")
    arguments = {
        "model": str(make_bundle(tiny_encoder, folder / "bundle")),
        "api_keys_file": str(folder / "keys"),
        "runtime": "torch",
        "precision": "fp32",
    }
    port = find_free_ports(1)[0]
    environment = choose_grpc_environment() | {
        "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT": str(find_free_ports(1)[0]),
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(find_free_ports(1)[0]),
    }
    if request.param == "python":
        environment["RAY_SERVE_ENABLE_DIRECT_INGRESS"] = "0"  # the proxy is the only way in
    options = {"port": port, "grpc_servicer_functions": SERVICERS}
    with open_endpoint(arguments, folder, request.param, environment, options) as endpoint:
        found = Caller(endpoint, port)
        wait_until(lambda: is_answering(found), "gRPC answers", 300)
        yield found
        found.channel.close()


def is_answering(caller: Caller) -> bool:
    try:
        caller.stub.ListModels(messages.ListModelsRequest(), metadata=ALLOWED)
    except grpc.RpcError:  # the way in hears of replicas a little later
        return False
    return True


def read(result: Any) -> dict[str, Any]:
    """A result as HTTP gives it, but for its integers, which protobuf writes as strings."""
    return json_format.MessageToDict(
        result, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )


def assert_alike(found: list[dict[str, Any]], wanted: list[dict[str, Any]]) -> None:
    """Scores depend on the batch in their last digits."""
    found_scores, wanted_scores = (
        [entity.pop("score") for one in results for entity in one["entities"]] for results in (found, wanted)
    )
    assert found_scores == pytest.approx(wanted_scores, abs=1e-5)
    assert write_integers(found) == write_integers(wanted)


def write_integers(value: Any) -> Any:
    """The same with its integers, and they alone, as strings."""
    if isinstance(value, dict):
        return {name: write_integers(one) for name, one in value.items()}
    if isinstance(value, list):
        return [write_integers(one) for one in value]
    return str(value) if isinstance(value, int) else value


@pytest.mark.parametrize("redact", ["REDACTION_UNSPECIFIED", "REDACTION_HASH"])
def test_texts_are_answered_as_over_http(caller: Caller, redact):
    options = {} if redact == "REDACTION_UNSPECIFIED" else {"redact": "hash"}
    request = messages.EntitiesRequest(texts=TEXTS, redact=redact)
    found = caller.stub.FindEntities(request, metadata=ALLOWED)
    assert sum(len(one.entities) for one in found.results) > 20
    assert_alike([read(one) for one in found.results], caller.ask_http({"texts": TEXTS, **options}))


def test_stream_is_answered_in_order_as_over_http(caller: Caller):
    lines = (messages.StreamLine(text=text, id=str(at)) for at, text in enumerate(TEXTS * 10))
    found = list(caller.stub.StreamEntities(lines, metadata=ALLOWED))
    assert [(one.line, one.id) for one in found] == [(at + 1, str(at)) for at in range(len(TEXTS) * 10)]
    assert_alike(
        [read(one.result) for one in found], [one for _ in range(10) for one in caller.ask_http({"texts": TEXTS})]
    )


def test_stream_answers_lines_before_the_last_is_sent(caller: Caller):
    answered = threading.Event()

    def send() -> Iterator[Any]:
        yield messages.StreamLine(text=SENTENCE)
        assert answered.wait(30)
        yield messages.StreamLine(text=SENTENCE, model="other")

    outcomes = []
    for one in caller.stub.StreamEntities(send(), metadata=ALLOWED):
        answered.set()
        outcomes.append((one.line, one.WhichOneof("outcome"), one.problem.status))
    assert outcomes == [(1, "result", 0), (2, "problem", 404)]


def test_status_and_trailing_metadata_arrive(caller: Caller):
    metadata = [*ALLOWED, ("x-request-id", "mine")]
    request = messages.EntitiesRequest(texts=[SENTENCE], model="other")
    with pytest.raises(grpc.RpcError) as caught:
        caller.stub.FindEntities(request, metadata=metadata)
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    assert caught.value.details() == "no model `other`; there are default"
    assert ("x-request-id", "mine") in caught.value.trailing_metadata()
    _, call = caller.stub.DescribeModel.with_call(messages.DescribeModelRequest(), metadata=metadata)
    assert ("x-request-id", "mine") in call.trailing_metadata()
    assert call.code() is grpc.StatusCode.OK


def test_without_a_key_nothing_is_answered(caller: Caller):
    results = []
    metadata = [("x-request-id", "mine")]
    with pytest.raises(grpc.RpcError) as caught:
        caller.stub.FindEntities(messages.EntitiesRequest(texts=[SENTENCE]), metadata=metadata)
    with pytest.raises(grpc.RpcError) as caught_late:
        results.extend(caller.stub.StreamEntities(iter([messages.StreamLine(text=SENTENCE)]), metadata=metadata))
    for error in (caught.value, caught_late.value):
        assert error.code() is grpc.StatusCode.UNAUTHENTICATED
        assert "x-api-key" in error.details()
        assert ("x-request-id", "mine") in error.trailing_metadata()
    assert [(one.line, one.problem.status) for one in results] == [(0, 401)]


def test_calls_are_counted_where_requests_are(caller: Caller):
    before = caller.count_requests("DescribeModel", 200)
    caller.stub.DescribeModel(messages.DescribeModelRequest(), metadata=ALLOWED)
    wait_until(lambda: caller.count_requests("DescribeModel", 200) == before + 1, "the call is counted")


def test_client_that_leaves_ends_the_work_on_its_stream(caller: Caller):
    """Ray Serve's own proxy tells the replica of it as of the end of the lines: the call counts as answered."""

    def count_ended() -> float:
        return sum(caller.count_requests("StreamEntities", status) for status in (200, 499))

    before = count_ended()
    may_end = threading.Event()

    def send() -> Iterator[Any]:
        yield messages.StreamLine(text=SENTENCE)
        may_end.wait(60)

    call = caller.stub.StreamEntities(send(), metadata=ALLOWED)
    assert next(call).line == 1
    call.cancel()
    wait_until(lambda: count_ended() == before + 1, "the stream ended", 15)  # sooner than one that sends nothing more
    may_end.set()


def test_reflection_tells_of_the_service(caller: Caller):
    database = ProtoReflectionDescriptorDatabase(caller.channel)
    assert "rayner.v1.Ner" in database.get_services()
    assert database.FindFileContainingSymbol("rayner.v1.Ner").package == "rayner.v1"


def test_no_port_of_grpc_is_open_beyond_this_host(caller: Caller):
    """Not that of the proxy, nor those that replicas have of their own."""
    ports = list_grpc_ports(caller)
    assert caller.port in ports
    for port in ports:
        with socket.socket() as client:
            assert client.connect_ex(("127.0.0.2", port)) != 0, port  # another address of this machine


def list_grpc_ports(caller: Caller) -> list[int]:
    """Ports of the endpoint's processes at which the service answers."""
    found = []
    for port in list_ports([caller.endpoint.process.pid, *list_descendants(caller.endpoint.process.pid)]):
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            try:
                services.NerStub(channel).ListModels(messages.ListModelsRequest(), metadata=ALLOWED, timeout=2)
                found.append(port)
            except grpc.RpcError:
                continue
    return found


def list_ports(pids: list[int]) -> set[int]:
    """Where processes listen, of IPv4 and of IPv6."""
    sockets = set()
    for file in (file for pid in pids for file in Path(f"/proc/{pid}/fd").glob("*")):
        with suppress(OSError):  # it was closed
            sockets.add(str(file.readlink()))
    found = set()
    for name in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]:
            _, local, _, state, *_, inode = line.split()[:10]
            if state == "0A" and f"socket:[{inode}]" in sockets:  # it listens
                found.add(int(local.rpartition(":")[2], 16))
    return found
