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
def trace_request(headers: Mapping[str, str], route: str) -> Iterator[trace.Span]:
    """A span of a request, below that of the client if it sent one (`traceparent`). Free where tracing is off."""
    with trace.get_tracer(SERVICE).start_as_current_span(
        route, context=propagate.extract(headers), kind=trace.SpanKind.SERVER
    ) as span:
        yield span
