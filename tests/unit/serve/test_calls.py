"""The gRPC methods behind a gRPC server of this process, without Ray."""

import asyncio
import gc
import json
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import json_format
from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet

from serve import entities_pb2 as messages
from serve import entities_pb2_grpc as services
from serve.calls import GrpcCalls, Stream
from serve.replica import Replica, Timing
from serve.schemas import EntitiesRequest
from serve.settings import Arguments
from serve.streaming import MAX_LINES
from tests.conftest import EXACT, ROOT, make_bundle

KEY = "a-key-of-enough-characters"
TEXTS = [json.loads(line)["text"] for line in (ROOT / "tests/data/twenty_documents.jsonl").open(encoding="utf-8")]
SENTENCE = "Angela Merkel visited Utrecht."


class Servicer(GrpcCalls):
    """What Ray Serve's replica is besides."""

    def __init__(self, replica: Replica) -> None:
        self.replica = replica


class Endpoint:
    """A replica behind a server on a loop of its own thread."""

    def __init__(self, arguments: Arguments, address: str) -> None:
        self.arguments, self.address = arguments, address
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, daemon=True).start()
        self.run(self._start())
        self.channel = grpc.insecure_channel(address)
        self.stub = services.NerStub(self.channel)

    def run(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(60)

    async def _start(self) -> None:
        self.replica = Replica(self.arguments, b"k" * 32)
        await self.replica.start()
        self.server = grpc.aio.server()
        services.add_NerServicer_to_server(Servicer(self.replica), self.server)
        self.server.add_insecure_port(self.address)
        await self.server.start()

    def close(self) -> None:
        self.channel.close()
        self.run(self.server.stop(0))
        self.loop.call_soon_threadsafe(self.loop.stop)

    def count_requests(self, method: str, status: int) -> float:
        labels = {"route": f"/rayner.v1.Ner/{method}", "status": str(status)}
        return self.replica.metrics.registry.get_sample_value("rayner_requests_total", labels) or 0.0

    def answer(self, **request: Any) -> dict[str, Any]:
        """What HTTP answers."""
        return self.run(self.replica.answer(EntitiesRequest(**request), None, Timing()))


Open = Callable[..., Endpoint]


@pytest.fixture(scope="module")
def bundle(tiny_encoder: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tiny_encoder, tmp_path_factory.mktemp("calls") / "bundle")


@pytest.fixture(scope="module")
def open_endpoint(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Open]:
    opened: list[Endpoint] = []

    def open_one(**settings: Any) -> Endpoint:
        folder = tmp_path_factory.mktemp("s")
        arguments = Arguments.model_validate({"model": str(bundle), "access_log": False, **EXACT, **settings})
        opened.append(Endpoint(arguments, f"unix:{folder}/s"))
        return opened[-1]

    yield open_one
    for one in opened:
        one.close()


@pytest.fixture(scope="module")
def endpoint(open_endpoint: Open) -> Endpoint:
    return open_endpoint(models={"broken": "/nowhere/bundle"})


def read(message: Any) -> dict[str, Any]:
    """A message as HTTP's JSON would have it; integers of 64 bits are strings in protobuf's."""
    found = json_format.MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    return json.loads(json.dumps(found), object_hook=_number)


def _number(found: dict[str, Any]) -> dict[str, Any]:
    whole = {"start", "end", "line", "window", "stride"}
    return {name: int(value) if name in whole or name.startswith("num_") else value for name, value in found.items()}


def split_scores(results: list[dict[str, Any]]) -> tuple[list[Any], list[float]]:
    """Everything but the scores, and the scores, which depend on the batch in their last digits."""
    scores = [entity.pop("score") for one in results for entity in one["entities"]]
    return results, scores


def assert_alike(found: list[dict[str, Any]], wanted: list[dict[str, Any]]) -> None:
    (found, found_scores), (wanted, wanted_scores) = split_scores(found), split_scores(wanted)
    assert found == wanted
    assert found_scores == pytest.approx(wanted_scores, abs=1e-5)


@contextmanager
def refused(code: grpc.StatusCode) -> Iterator[Any]:
    with pytest.raises(grpc.RpcError) as caught:
        yield caught
    assert caught.value.code() is code


def for_all(results: Any, do: Callable[[Any], None]) -> None:
    """What came before an error is done too."""
    for one in results:
        do(one)


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_generated_code_is_that_of_the_proto(tmp_path):
    made = tmp_path / "set"
    command = [sys.executable, "-m", "grpc_tools.protoc", "-I.", f"--descriptor_set_out={made}", "serve/entities.proto"]
    subprocess.run(command, cwd=ROOT, check=True, timeout=60)
    (wanted,) = FileDescriptorSet.FromString(made.read_bytes()).file
    found = FileDescriptorProto.FromString(messages.DESCRIPTOR.serialized_pb)
    for message in wanted.message_type:
        for field in message.field:
            field.ClearField("json_name")  # not in generated code
    assert found == wanted


def test_generated_stub_has_every_method_of_the_proto(endpoint):
    methods = messages.DESCRIPTOR.services_by_name["Ner"].methods_by_name
    assert set(methods.keys()) == vars(endpoint.stub).keys()
    assert set(methods.keys()) <= vars(GrpcCalls).keys()
    for name, method in methods.items():
        kind = type(getattr(endpoint.stub, name)).__name__.strip("_")
        assert kind.startswith("Stream") == method.client_streaming
        assert kind.endswith("StreamMultiCallable") == method.server_streaming


def test_texts_are_answered_as_over_http(endpoint):
    answer = endpoint.stub.FindEntities(messages.EntitiesRequest(texts=TEXTS))
    assert_alike(read(answer)["results"], endpoint.answer(texts=TEXTS)["results"])
    assert sum(len(one.entities) for one in answer.results) > 20


@pytest.mark.parametrize(
    ("redact", "name"),
    [(messages.REDACTION_MASK, "mask"), (messages.REDACTION_LABEL, "label"), (messages.REDACTION_HASH, "hash")],
)
def test_options_do_what_they_do_over_http(endpoint, redact, name):
    request = messages.EntitiesRequest(texts=TEXTS, labels=["PER", "LOC"], min_score=0.5, redact=redact)
    wanted = endpoint.answer(texts=TEXTS, labels=["PER", "LOC"], min_score=0.5, redact=name)["results"]
    assert_alike(read(endpoint.stub.FindEntities(request))["results"], wanted)
    assert {entity["label"] for one in wanted for entity in one["entities"]} == {"PER", "LOC"}


def test_min_score_of_zero_is_not_the_endpoints_own(open_endpoint):
    strict = open_endpoint(tuning={"min_score": 1.0})
    request = messages.EntitiesRequest(texts=TEXTS)
    assert not any(one.entities for one in strict.stub.FindEntities(request).results)
    request.min_score = 0.0
    assert any(one.entities for one in strict.stub.FindEntities(request).results)


@pytest.mark.parametrize(
    ("request_of", "where"),
    [
        ({}, "/texts"),
        ({"texts": [SENTENCE], "min_score": 1.5}, "/min_score"),
        ({"texts": [SENTENCE], "min_score": float("nan")}, "/min_score"),
        ({"texts": [SENTENCE], "redact": 17}, "/redact"),
        ({"texts": [SENTENCE], "labels": ["x" * 300]}, "/labels/0"),
        ({"texts": [SENTENCE], "labels": ["PER", "PERSON"]}, "/labels/1"),
        ({"texts": ["", "x" * 500_001]}, "/texts/1"),
        ({"texts": ["x"] * 1025}, "/texts"),
    ],
)
def test_request_that_breaks_a_rule_is_an_invalid_argument(endpoint, request_of, where):
    with refused(grpc.StatusCode.INVALID_ARGUMENT) as caught:
        endpoint.stub.FindEntities(messages.EntitiesRequest(**request_of))
    assert caught.value.details().startswith(f"{where}: ")


def test_request_that_is_too_large_is_an_invalid_argument(open_endpoint):
    small = open_endpoint(tuning={"max_body_kib": 1})
    with refused(grpc.StatusCode.INVALID_ARGUMENT) as caught:
        small.stub.FindEntities(messages.EntitiesRequest(texts=["x" * 1024]))
    assert caught.value.details() == "at most 1 KiB are read"


def test_unknown_model_is_not_found(endpoint):
    for call in (
        lambda: endpoint.stub.FindEntities(messages.EntitiesRequest(texts=[SENTENCE], model="other")),
        lambda: endpoint.stub.DescribeModel(messages.DescribeModelRequest(model="other")),
    ):
        with refused(grpc.StatusCode.NOT_FOUND) as caught:
            call()
        assert "no model `other`" in caught.value.details()


def test_model_that_cannot_be_loaded_is_unavailable_for_a_while(endpoint):
    with refused(grpc.StatusCode.UNAVAILABLE) as caught:
        endpoint.stub.FindEntities(messages.EntitiesRequest(texts=[SENTENCE], model="broken"))
    assert ("retry-after", "60") in caught.value.trailing_metadata()


def test_full_queue_exhausts_resources_and_says_when_to_come_back(open_endpoint):
    narrow = open_endpoint(tuning={"max_queued_tokens": 1})
    narrow.replica.shelf.loaded["default"].batcher.loads[False].num_queued = 1  # as if a text waited
    with refused(grpc.StatusCode.RESOURCE_EXHAUSTED) as caught:
        narrow.stub.FindEntities(messages.EntitiesRequest(texts=[SENTENCE] * 20))
    assert int(dict(caught.value.trailing_metadata())["retry-after"]) >= 1


def test_more_streams_than_a_replica_takes_exhaust_resources(open_endpoint):
    full = open_endpoint(tuning={"max_streams": 1})
    with full.replica.hold_stream(), refused(grpc.StatusCode.RESOURCE_EXHAUSTED) as caught:
        list(full.stub.StreamEntities(iter([messages.StreamLine(text=SENTENCE)])))
    assert int(dict(caught.value.trailing_metadata())["retry-after"]) >= 1
    [answer] = full.stub.StreamEntities(iter([messages.StreamLine(text=SENTENCE)]))
    assert answer.result.coverage.num_characters == len(SENTENCE)


def test_answer_that_takes_too_long_exceeds_the_deadline(open_endpoint):
    hasty = open_endpoint(tuning={"timeout_s": 1e-6})
    with refused(grpc.StatusCode.DEADLINE_EXCEEDED) as caught:
        hasty.stub.FindEntities(messages.EntitiesRequest(texts=[SENTENCE * 1000]))
    assert caught.value.details() == "the answer was not there in time"


def test_error_within_is_internal_and_says_nothing_of_it(open_endpoint):
    broken = open_endpoint()
    broken.replica.shelf.loaded["default"].batcher.engine = None
    with refused(grpc.StatusCode.INTERNAL) as caught:
        broken.stub.FindEntities(messages.EntitiesRequest(texts=[SENTENCE]))
    assert "Error" not in caught.value.details()
    (result,) = broken.stub.StreamEntities(iter([messages.StreamLine(text=SENTENCE)]))
    assert (result.problem.status, result.line) == (500, 1)
    assert "Error" not in result.problem.detail


@pytest.fixture(scope="module")
def guarded(open_endpoint: Open, tmp_path_factory: pytest.TempPathFactory) -> Endpoint:
    file = tmp_path_factory.mktemp("keys") / "keys"
    file.write_text(KEY + "\n", encoding="utf-8")
    return open_endpoint(api_keys_file=str(file))


@pytest.mark.parametrize("metadata", [("authorization", f"Bearer {KEY}"), ("x-api-key", KEY)])
def test_key_opens_every_method(guarded, metadata):
    stub = guarded.stub
    assert stub.FindEntities(messages.EntitiesRequest(texts=[SENTENCE]), metadata=[metadata]).results
    assert stub.DescribeModel(messages.DescribeModelRequest(), metadata=[metadata]).name == "default"
    assert stub.ListModels(messages.ListModelsRequest(), metadata=[metadata]).default == "default"
    (result,) = stub.StreamEntities(iter([messages.StreamLine(text=SENTENCE)]), metadata=[metadata])
    assert result.HasField("result")


@pytest.mark.parametrize("metadata", [[], [("x-api-key", "another-key-of-some-length")], [("authorization", KEY)]])
def test_without_a_key_nothing_is_answered(guarded, metadata):
    stub = guarded.stub
    metadata = [*metadata, ("x-request-id", "mine")]
    for call in (
        lambda: stub.FindEntities(messages.EntitiesRequest(texts=[SENTENCE]), metadata=metadata),
        lambda: stub.DescribeModel(messages.DescribeModelRequest(), metadata=metadata),
        lambda: stub.ListModels(messages.ListModelsRequest(), metadata=metadata),
    ):
        with refused(grpc.StatusCode.UNAUTHENTICATED) as caught:
            call()
        assert ("x-request-id", "mine") in caught.value.trailing_metadata()
    results = []
    with refused(grpc.StatusCode.UNAUTHENTICATED) as caught:
        for_all(stub.StreamEntities(iter([messages.StreamLine(text=SENTENCE)]), metadata=metadata), results.append)
    assert ("x-request-id", "mine") in caught.value.trailing_metadata()
    assert [(one.line, one.problem.status) for one in results] == [(0, 401)]


def test_request_id_comes_back_or_is_made(endpoint):
    request = messages.EntitiesRequest(texts=[SENTENCE])
    _, call = endpoint.stub.FindEntities.with_call(request, metadata=[("x-request-id", "r-1")])
    assert dict(call.trailing_metadata())["x-request-id"] == "r-1"
    _, call = endpoint.stub.FindEntities.with_call(request, metadata=[("x-request-id", "r" * 200)])
    assert len(dict(call.trailing_metadata())["x-request-id"]) == 32


def test_answer_says_where_the_time_went(endpoint):
    _, call = endpoint.stub.FindEntities.with_call(messages.EntitiesRequest(texts=[SENTENCE]))
    assert dict(call.trailing_metadata())["server-timing"].startswith("queue;dur=")


def test_stream_answers_every_line_in_order_with_its_own_options(endpoint):
    lines = [messages.StreamLine(text=text, id=str(at), redact=at % 4) for at, text in enumerate(TEXTS * 3)]
    results = list(endpoint.stub.StreamEntities(iter(lines)))
    assert [(one.line, one.id) for one in results] == [(at + 1, str(at)) for at in range(len(lines))]
    kinds = (None, "mask", "label", "hash")
    wanted = [endpoint.answer(text=line.text, redact=kinds[line.redact]) for line in lines]
    assert_alike([read(one.result) for one in results], wanted)


def test_line_that_breaks_a_rule_leaves_the_others_alone(endpoint):
    lines = [
        messages.StreamLine(text=SENTENCE),
        messages.StreamLine(text=SENTENCE, min_score=2, id="bad"),
        messages.StreamLine(text=SENTENCE, model="other"),
        messages.StreamLine(text=SENTENCE),
    ]
    results = list(endpoint.stub.StreamEntities(iter(lines), metadata=[("x-request-id", "r-2")]))
    assert [one.WhichOneof("outcome") for one in results] == ["result", "problem", "problem", "result"]
    assert (results[1].id, results[1].problem.status, results[2].problem.status) == ("bad", 422, 404)
    assert results[1].problem.errors[0].pointer == "/min_score"
    assert results[1].problem.request_id == "r-2"
    assert not results[0].HasField("id")


def test_stream_waits_where_the_queue_is_full(open_endpoint):
    narrow = open_endpoint(tuning={"max_queued_tokens": 1})
    results = list(narrow.stub.StreamEntities(messages.StreamLine(text=SENTENCE) for _ in range(40)))
    assert [one.WhichOneof("outcome") for one in results] == ["result"] * 40


def test_lines_that_only_wait_are_not_too_late(open_endpoint, monkeypatch):
    slow = open_endpoint(tuning={"timeout_s": 1.0, "max_batch_tokens": 16})
    engine = slow.replica.shelf.loaded["default"].engine
    compute = engine.compute
    monkeypatch.setattr(engine, "compute", lambda windows: time.sleep(0.1) or compute(windows))
    results = list(slow.stub.StreamEntities(messages.StreamLine(text=SENTENCE) for _ in range(30)))
    assert [one.WhichOneof("outcome") for one in results] == ["result"] * 30


def test_stream_answers_lines_before_the_last_is_sent(endpoint):
    answered = threading.Event()

    def send() -> Iterator[Any]:
        yield messages.StreamLine(text=SENTENCE)
        assert answered.wait(20)
        yield messages.StreamLine(text=SENTENCE)

    numbers = []
    for result in endpoint.stub.StreamEntities(send()):
        answered.set()
        numbers.append(result.line)
    assert numbers == [1, 2]


@pytest.mark.parametrize(("text", "most"), [("x", MAX_LINES), ("x" * 1000, 10)])
def test_stream_reads_no_more_than_may_be_under_way(endpoint, monkeypatch, text, most):
    monkeypatch.setattr("serve.calls.MAX_CHARACTERS", 10_000)
    num_read = 0

    async def send() -> AsyncIterator[Any]:
        nonlocal num_read
        for _ in range(most + 50):
            num_read += 1
            yield messages.StreamLine(text=text)

    async def take_one() -> Any:
        answers = Stream(endpoint.replica, "r-4", Timing()).answer(send())
        assert (await anext(answers)).line == 1
        return answers

    answers = endpoint.run(take_one())
    wait_until(lambda: num_read > most / 2 and endpoint.replica.count_load() == 0)
    assert num_read <= most + 3
    endpoint.run(answers.aclose())


def test_client_that_stops_sending_is_cut_off(endpoint, monkeypatch):
    monkeypatch.setattr("serve.calls.BODY_TIMEOUT_S", 1)
    may_end = threading.Event()

    def send() -> Iterator[Any]:
        yield messages.StreamLine(text=SENTENCE)
        may_end.wait(20)

    results = []
    with refused(grpc.StatusCode.DEADLINE_EXCEEDED) as caught:
        for_all(endpoint.stub.StreamEntities(send()), results.append)
    may_end.set()
    assert [(one.line, one.problem.status) for one in results] == [(1, 0), (0, 408)]
    assert caught.value.details() == "no line came for 1 s"


def test_client_that_leaves_ends_the_work_on_its_stream(endpoint):
    before = endpoint.count_requests("StreamEntities", 499)
    sending = threading.Event()

    def send() -> Iterator[Any]:
        yield messages.StreamLine(text=SENTENCE)
        sending.wait(20)

    call = endpoint.stub.StreamEntities(send())
    assert next(call).line == 1
    call.cancel()

    def is_counted() -> bool:
        gc.collect()  # to which grpc leaves a generator that nobody asks any more
        return endpoint.count_requests("StreamEntities", 499) == before + 1

    wait_until(is_counted)
    sending.set()
    wait_until(lambda: endpoint.replica.count_load() == 0)


def test_models_are_listed_and_described(endpoint):
    found = endpoint.stub.ListModels(messages.ListModelsRequest())
    assert (found.default, list(found.models), list(found.loaded)) == ("default", ["default", "broken"], ["default"])
    model = endpoint.stub.DescribeModel(messages.DescribeModelRequest())
    wanted = endpoint.run(endpoint.replica.describe_model(None))
    assert read(model) == {"metrics": {}, **wanted}


def test_calls_are_counted_and_logged_as_requests_are(open_endpoint, caplog):
    logged = open_endpoint(access_log=True)
    with caplog.at_level("INFO", "rayner.access"):
        logged.stub.FindEntities(messages.EntitiesRequest(texts=[SENTENCE]), metadata=[("x-request-id", "r-3")])
        with refused(grpc.StatusCode.INVALID_ARGUMENT):
            logged.stub.FindEntities(messages.EntitiesRequest())
        wait_until(lambda: len(caplog.records) == 2)
    first, second = (json.loads(record.getMessage()) for record in caplog.records)
    assert first["request_id"] == "r-3"
    assert (first["method"], first["route"], first["status"]) == ("GRPC", "/rayner.v1.Ner/FindEntities", 200)
    assert first["num_tokens"] > 0
    assert SENTENCE not in caplog.text
    assert second["status"] == 422
    assert (logged.count_requests("FindEntities", 200), logged.count_requests("FindEntities", 422)) == (1, 1)


def test_texts_are_logged_where_the_endpoint_says_so(open_endpoint, caplog):
    logged = open_endpoint(access_log=True, log_texts=True)
    with caplog.at_level("INFO", "rayner.access"):
        logged.stub.FindEntities(messages.EntitiesRequest(texts=[SENTENCE]))
        wait_until(lambda: len(caplog.records) == 1)
    assert json.loads(caplog.records[0].getMessage())["texts"] == [SENTENCE]
