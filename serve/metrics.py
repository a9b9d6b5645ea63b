"""What a replica counts, and the figures of all replicas as one page in Prometheus' form.

A request for `/metrics` reaches one replica, so each tells its figures to a board, an actor that all share; whoever is
asked renders those of all, each series with the replica's name.
"""

import asyncio
import time
from collections.abc import Iterable, Sequence
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.metrics_core import Metric

from pipelines.ner.entities import Prediction

MEDIA_TYPE = "text/plain; version=1.0.0; charset=utf-8"
SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
FILLS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
SHARES = (0.5, 0.9, 0.99, 0.999, 1.0)
STALE_S = 30.0
"""A replica that has said nothing for so long is gone."""
LEFT_S = 600.0
"""So is the endpoint."""


class Metrics:
    """Of one replica."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        own: dict[str, Any] = {"registry": self.registry}
        self.requests = Counter("rayner_requests", "Requests answered.", ["route", "status"], **own)
        self.request_s = Histogram("rayner_request_seconds", "Of a request.", ["route"], buckets=SECONDS, **own)
        self.tokens = Counter("rayner_tokens", "Sub-tokens of texts answered.", ["model"], **own)
        self.texts = Counter("rayner_texts", "Texts answered.", ["model"], **own)
        self.entities = Counter("rayner_entities", "Entities found.", ["model", "label"], **own)
        self.coverage = Histogram("rayner_coverage", "Share of a text that was read.", buckets=SHARES, **own)
        self.queue_s = Histogram("rayner_queue_seconds", "A text waits for a thread.", buckets=SECONDS, **own)
        self.engine_s = Histogram("rayner_engine_seconds", "A text is computed.", buckets=SECONDS, **own)
        self.batch_tokens = Counter("rayner_batch_tokens", "Sub-tokens computed, special ones included.", **own)
        self.batch_fill = Histogram("rayner_batch_fill", "Share of a batch's budget.", buckets=FILLS, **own)
        self.batch_s = Histogram("rayner_batch_seconds", "Of a batch.", buckets=SECONDS, **own)
        self.queued = Gauge("rayner_queued_tokens", "Sub-tokens that wait or are computed.", **own)
        self.models = Gauge("rayner_models_loaded", "Models in memory.", **own)
        self.memory = Gauge("rayner_resident_bytes", "Memory of the replica.", **own)

    def observe_batch(self, num_tokens: int, budget: int, seconds: float) -> None:
        """Count a batch."""
        self.batch_tokens.inc(num_tokens)
        self.batch_fill.observe(num_tokens / budget)
        self.batch_s.observe(seconds)

    def observe_text(self, model: str, prediction: Prediction, queue_s: float, engine_s: float) -> None:
        """Count an answer."""
        self.texts.labels(model).inc()
        self.tokens.labels(model).inc(prediction.coverage.num_tokens)
        self.coverage.observe(prediction.coverage.fraction)
        self.queue_s.observe(queue_s)
        self.engine_s.observe(engine_s)
        for entity in prediction.entities:
            self.entities.labels(model, entity.label).inc()

    def observe_request(self, route: str, status: int, seconds: float) -> None:
        """Count a request; `route` is one of ours, never what a client made up."""
        self.requests.labels(route, str(status)).inc()
        self.request_s.labels(route).observe(seconds)

    def collect(self) -> list[Metric]:
        """All figures as they are now."""
        return list(self.registry.collect())


class Board:
    """What all replicas of an endpoint share: their last figures, and the key of redaction. Runs as an actor."""

    def __init__(self, redaction_key: bytes) -> None:
        self.redaction_key = redaction_key
        self.told: dict[str, tuple[float, list[Metric]]] = {}
        self.heard_at = time.monotonic()
        self.is_watched = False

    async def get_key(self) -> bytes:
        """The key that the first replica brought."""
        return self.redaction_key

    async def tell(self, replica: str, figures: list[Metric]) -> None:
        """Replace what is known of a replica."""
        self.heard_at = time.monotonic()
        self.told[replica] = (self.heard_at, figures)

    async def list_figures(self) -> dict[str, list[Metric]]:
        """Those of the replicas that were heard of lately."""
        now = time.monotonic()
        self.told = {name: told for name, told in self.told.items() if now - told[0] < STALE_S}
        return {name: figures for name, (_, figures) in self.told.items()}

    async def wait_until_left(self) -> bool:
        """True once no replica has been heard of for long; False at once where another call waits for that already.

        Each replica calls this as it starts, and an actor has room for a thousand calls that wait: then it would answer
        nobody.
        """
        if self.is_watched:
            return False
        self.is_watched = True
        try:
            while time.monotonic() - self.heard_at < LEFT_S:
                await asyncio.sleep(STALE_S)
        finally:
            self.is_watched = False
        return True


def render_figures(figures: dict[str, list[Metric]]) -> bytes:
    """Prometheus' text form of several replicas' figures."""
    merged: dict[str, Metric] = {}
    for replica, metrics in sorted(figures.items()):
        for metric in metrics:
            whole = merged.setdefault(metric.name, Metric(metric.name, metric.documentation, metric.type))
            for sample in metric.samples:
                if sample.name.endswith("_created"):
                    continue
                whole.add_sample(sample.name, {**sample.labels, "replica": replica}, sample.value)
    text: bytes = generate_latest(_Merged(list(merged.values())))
    return text


class _Merged:
    """What `generate_latest` asks of a registry."""

    def __init__(self, metrics: Sequence[Metric]) -> None:
        self.metrics = metrics

    def collect(self) -> Iterable[Metric]:
        """The figures."""
        return self.metrics
