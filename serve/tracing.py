"""OpenTelemetry spans of requests, sent as the standard `OTEL_…` variables say."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from opentelemetry import propagate, trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

SERVICE = "rayner"


def start_tracing() -> None:
    """Export the spans of this process."""
    provider = TracerProvider(resource=Resource.create({"service.name": os.environ.get("OTEL_SERVICE_NAME", SERVICE)}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)


@contextmanager
def trace_request(headers: Mapping[str, str], name: str) -> Iterator[trace.Span]:
    """A span of a request, below that of the client if it sent one (`traceparent`). Free where tracing is off."""
    with trace.get_tracer(SERVICE).start_as_current_span(
        name,
        context=propagate.extract(headers),
        kind=trace.SpanKind.SERVER,
        record_exception=False,  # its message may have a text in it
        set_status_on_exception=False,
    ) as span:
        yield span


def describe_request(span: trace.Span, method: str, route: str, status: int) -> None:
    """Say what was asked for and how it ended; a client's mistake is no error of ours."""
    span.update_name(f"{method} {route}")
    span.set_attributes(
        {"http.request.method": method, "http.route": route, "http.response.status_code": status},
    )
    if status >= 500:
        span.set_status(trace.StatusCode.ERROR)
