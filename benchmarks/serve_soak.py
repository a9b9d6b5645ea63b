"""Memory of the endpoint under a mixed load: short and long texts, lists, streams and bad requests."""

import json
import random
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.servers import run_load, start_server
from benchmarks.texts import generate_documents

CONNECTIONS = 64
RATE = 25.0
"""Requests per second, at random moments: about half of what two cores without bf16 can answer."""
SLICE_S = 10.0
"""Memory is read between slices of load."""
SETTLED_S = 60.0
"""From here on memory should not grow: caches and pools have their size."""
LONG_CHARACTERS = 150_000
"""Of all long documents of the mixture together."""
BAD_LINES: tuple[dict[str, Any], ...] = (
    {"body": "{", "expect": 400},
    {"body": {"text": "a", "texts": ["a"]}, "expect": 422},
    {"body": {"text": 1}, "expect": 422},
    {"body": "Ada met Alan.", "content_type": "text/plain", "expect": 415},
    {"body": {"text": "a"}, "path": "/v1/models/no-such-model/entities", "expect": 404},
    {"body": {"text": "a"}, "path": "/v1/no-such-path", "expect": 404},
    {"body": {"text": "a"}, "path": "/v1/model", "expect": 405},
)


def soak(command: Sequence[str], sentences: Sequence[str], minutes: float, folder: Path) -> dict[str, Any]:
    """The memory of the server's replicas every ten seconds under load, and by how much it grew."""
    bodies = folder / "mixed.jsonl"
    lines = [json.dumps(line, ensure_ascii=False) + "\n" for line in mix_lines(sentences)]
    samples: list[dict[str, Any]] = []
    totals: dict[str, Counter[str]] = {"statuses": Counter(), "errors": Counter(), "unexpected": Counter()}
    with start_server(command, "/readyz", folder / "soak.log") as server:
        started = time.monotonic()
        while (elapsed := time.monotonic() - started) < 60 * minutes:
            seconds = min(SLICE_S, 60 * minutes - elapsed)
            bodies.write_text("".join(lines), encoding="utf-8")
            report = run_load(
                f"{server.address}/v1/entities", bodies, connections=CONNECTIONS, seconds=seconds, rate=RATE
            )
            at = report["num_requests"] % len(lines)
            lines = lines[at:] + lines[:at]  # the next slice goes on where this one ended
            for name, total in totals.items():
                total.update(report[name])
            samples.append({"at_s": time.monotonic() - started, "memory_mib": server.read_memory_mib()})
            print(f"{samples[-1]['at_s']:.0f} s: {samples[-1]['memory_mib']}, {report['statuses']}", flush=True)
    growth = find_growth(samples)
    print(f"growth of memory after {growth['from_s']:.0f} s: {100 * growth['growth_fraction']:+.1f} %")
    return {"minutes": minutes, **growth, **{name: dict(total) for name, total in totals.items()}, "samples": samples}


def mix_lines(sentences: Sequence[str]) -> list[dict[str, Any]]:
    """Requests of all kinds in a seeded order: mostly single sentences, as on a real endpoint."""
    documents = list(generate_documents(list(sentences), LONG_CHARACTERS))
    streams = [sentences[at : at + 16] for at in range(0, min(len(sentences), 64), 16)]
    stream_bodies = ["".join(json.dumps({"text": text}) + "\n" for text in stream) for stream in streams]
    lines: list[dict[str, Any]] = [{"body": {"text": text}} for text in sentences[:600]]
    lines += [{"body": {"text": text}} for text in documents]
    lines += [{"body": {"text": text, "redact": "mask", "min_score": 0.5}} for text in sentences[:50]]
    lines += [{"body": {"texts": list(sentences[at : at + 64])}} for at in range(0, min(len(sentences), 640), 64)]
    lines += [
        {"body": body, "path": "/v1/entities/stream", "content_type": "application/x-ndjson"}
        for body in [*stream_bodies, stream_bodies[0] + "{\n" + '{"text": 1}\n']  # a bad line is answered in its place
    ]
    lines += [dict(line) for line in BAD_LINES] * 3
    random.Random(0).shuffle(lines)
    return lines


def find_growth(samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """By what share the memory grew from the first sample after a minute to the last; and whether a replica changed.

    A run that is too short counts from its first sample.
    """
    settled = [sample for sample in samples if sample["at_s"] >= SETTLED_S]
    first, last = (settled if len(settled) > 1 else samples)[0], samples[-1]
    before, after = (sum(sample["memory_mib"].values()) for sample in (first, last))
    return {
        "from_s": first["at_s"],
        "growth_fraction": after / before - 1,
        "replicas_changed": first["memory_mib"].keys() != last["memory_mib"].keys(),
    }
