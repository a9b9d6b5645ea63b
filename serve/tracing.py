"""OpenTelemetry spans of requests, sent as the standard `OTEL_…` variables say."""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial

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
def trace_request(headers: Mapping[str, str], name: str) -> Iterator[Callable[[str, str, int], None]]:
    """A span of a request, below that of the client if it sent one (`traceparent`). Free where tracing is off.

    What it gives is to be called with the method, the route and the status when they are known.
    """
    with trace.get_tracer(SERVICE).start_as_current_span(
        name,
        context=propagate.extract(headers),
        kind=trace.SpanKind.SERVER,
        record_exception=False,  # its message may have a text in it
        set_status_on_exception=False,
    ) as span:
        yield partial(_describe, span)


def _describe(span: trace.Span, method: str, route: str, status: int) -> None:
    span.update_name(f"{method} {route}")
    span.set_attributes(
        {"http.request.method": method, "http.route": route, "http.response.status_code": status},
    )
    if status >= 500:  # a client's mistake is no error of ours
        span.set_status(trace.StatusCode.ERROR)
