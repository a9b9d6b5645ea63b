"""Spans of requests: below the client's, named by route, with the status, and no texts in them."""

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from serve import tracing
from tests.unit.serve.replicas import Talk, talk

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


@pytest.fixture
def exported(monkeypatch):
    """The spans of this test, in the order of their ends."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "get_tracer", provider.get_tracer)
    return exporter


def test_spans_tell_route_and_status_below_the_clients_own(bundle, exported):
    async def ask(with_: Talk) -> None:
        await with_.ask({"text": "Ada met Grace."}, headers={"traceparent": f"00-{TRACE}-{PARENT}-01"})
        await with_.ask({"text": 1})
        await with_.client.get("/v1/models/nobody")
        await with_.client.get("/nowhere/secret-path")

    talk(bundle, ask, tracing=True)
    spans = exported.get_finished_spans()
    told = [(span.name, span.attributes["http.route"], span.attributes["http.response.status_code"]) for span in spans]
    assert told == [
        ("POST /v1/entities", "/v1/entities", 200),
        ("POST /v1/entities", "/v1/entities", 422),
        ("GET /v1/models/{name}", "/v1/models/{name}", 404),
        ("GET other", "other", 404),
    ]
    assert {span.kind for span in spans} == {trace.SpanKind.SERVER}
    assert {span.status.status_code for span in spans} == {trace.StatusCode.UNSET}
    assert format(spans[0].context.trace_id, "032x") == TRACE
    assert format(spans[0].parent.span_id, "016x") == PARENT
    assert spans[1].parent is None


def test_failure_is_an_error_of_its_span_without_the_text(bundle, exported):
    async def ask(with_: Talk) -> None:
        with_.replica.engine.poison("Utrecht", "finish")
        answer = await with_.ask({"text": "secret Utrecht"})
        assert answer.status_code == 500

    talk(bundle, ask, tracing=True)
    [span] = exported.get_finished_spans()
    assert span.status.status_code == trace.StatusCode.ERROR
    assert span.events == ()
    assert "secret" not in span.to_json()


@pytest.mark.parametrize("header", ["", "nonsense", "00-" + "0" * 32 + "-" + "0" * 16 + "-00", "ü"])
def test_traceparent_that_is_none_is_passed_over(bundle, exported, header):
    async def ask(with_: Talk) -> None:
        answer = await with_.client.get("/healthz", headers={"traceparent": header.encode("latin-1")})
        assert answer.status_code == 200

    talk(bundle, ask, is_started=False, tracing=True)
    [span] = exported.get_finished_spans()
    assert span.parent is None


def test_without_tracing_there_are_no_spans(bundle, exported):
    async def ask(with_: Talk) -> None:
        await with_.client.get("/healthz")

    talk(bundle, ask, is_started=False)
    assert exported.get_finished_spans() == ()


def test_exporter_is_that_of_the_standard_variables(monkeypatch):
    given: list[TracerProvider] = []
    monkeypatch.setattr(trace, "set_tracer_provider", given.append)
    monkeypatch.setenv("OTEL_SERVICE_NAME", "our-endpoint")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9/elsewhere")
    tracing.start_tracing()
    [provider] = given
    assert provider.resource.attributes["service.name"] == "our-endpoint"
    provider.shutdown()
