"""A small server that speaks the endpoint's contract with entities found by rule, to try the page in a browser."""

import asyncio
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from tests.conftest import ROOT

PAGE = ROOT / "serve" / "page"
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
NAME = re.compile(r"[A-Z]\w+(?: [A-Z]\w+)*|[\u0590-\u05ff]{3,}|[\u0620-\u064a]{5,}|[\u4e00-\u9fff]{3}")
LABELS = ["PER", "ORG", "LOC"]
SCORES = [0.95, 0.35, 0.75]


@dataclass
class Endpoint:
    """What the server should do besides its duty, and what it was asked."""

    url: str = ""
    models: list[str] = field(default_factory=lambda: ["plain"])
    key: str = ""
    """Requests must carry this key."""
    refusals: list[tuple[int, dict[str, Any], dict[str, str]]] = field(default_factory=list)
    """Status, further fields of the problem, and headers of the next answers."""
    answers: list[dict[str, Any]] = field(default_factory=list)
    """Whole answers to give next instead of what the rule finds."""
    held: threading.Event = field(default_factory=threading.Event)
    """Texts with `HOLD` are answered once this is set."""
    requests: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    """Path and body of each request for entities, as they came."""
    answered: list[str] = field(default_factory=list)
    """The texts whose entities were found, in that order."""


def find_entities(text: str) -> list[dict[str, Any]]:
    """Every name in `text`; labels and scores take turns."""
    return [
        {"text": m[0], "label": LABELS[i % 3], "start": m.start(), "end": m.end(), "score": SCORES[i % 3]}
        for i, m in enumerate(NAME.finditer(text))
    ]


def redact(text: str, entities: list[dict[str, Any]], way: str) -> dict[str, Any]:
    """The text with its entities replaced, and where the replacements stand."""
    pieces, spans, end, length = [], [], 0, 0
    for entity in entities:
        size = entity["end"] - entity["start"]
        new = {"mask": "█" * size, "label": f"[{entity['label']}]", "hash": f"[{entity['label']}:{size:04x}]"}[way]
        pieces += [text[end : entity["start"]], new]
        length += len(pieces[-2])
        spans.append({"start": length, "end": length + len(new), "label": entity["label"]})
        length, end = length + len(new), entity["end"]
    return {"text": "".join(pieces) + text[end:], "spans": spans}


def refuse(status: int, told: dict[str, Any], headers: dict[str, str]) -> Response:
    """A problem document."""
    problem = {"type": "about:blank", "title": "Refused", "status": status, "detail": "No.", "request_id": "r-1"} | told
    headers = {"x-request-id": "r-1"} | headers
    return JSONResponse(problem, status, headers, media_type="application/problem+json")


def build_app(endpoint: Endpoint) -> Starlette:
    """The page, its files, and as much of the API as the page uses."""

    def lacks_key(request: Request) -> bool:
        return bool(endpoint.key) and request.headers.get("authorization") != f"Bearer {endpoint.key}"

    unauthorized = {"title": "Unauthorized", "detail": "Send a key that this endpoint knows."}

    async def answer_entities(request: Request) -> Response:
        body = await request.json()
        endpoint.requests.append((request.url.path, body))
        if lacks_key(request):
            return refuse(401, unauthorized, {})
        text = body["text"]
        if endpoint.refusals:
            return refuse(*endpoint.refusals.pop(0))
        while "HOLD" in text and not endpoint.held.is_set():
            await asyncio.sleep(0.01)
        entities = find_entities(text)
        endpoint.answered.append(text)
        size = len(text.split())
        coverage = {"num_characters": len(text), "num_words": size, "num_tokens": 2 * size, "num_windows": 1}
        answer: dict[str, Any] = {"entities": entities, "coverage": coverage | {"fraction": 1.0}}
        if body.get("redact"):
            answer["redacted"] = redact(text, entities, body["redact"])
        if endpoint.answers:
            answer = endpoint.answers.pop(0)
        return JSONResponse(answer, headers={"x-request-id": "r-1", "server-timing": "queue;dur=1.5, engine;dur=20.25"})

    async def list_models(request: Request) -> Response:
        if lacks_key(request):
            return refuse(401, unauthorized, {})
        return JSONResponse({"default": endpoint.models[0], "models": endpoint.models, "loaded": endpoint.models[:1]})

    async def describe_model(request: Request) -> Response:
        told = {"name": request.path_params["name"], "labels": LABELS, "scheme": "BIO", "fingerprint": "f" * 16}
        told |= {"runtime": "openvino", "precision": "int8", "device": "cpu", "window": 512, "stride": 128}
        return JSONResponse(told | {"metrics": {}})

    async def show_page(request: Request) -> Response:
        name = request.path_params.get("name", "index.html")
        return FileResponse(PAGE / name, headers={"content-security-policy": POLICY, "cache-control": "no-store"})

    return Starlette(
        routes=[
            Route("/", show_page),
            Route("/page/{name}", show_page),
            Route("/v1/entities", answer_entities, methods=["POST"]),
            Route("/v1/models", list_models),
            Route("/v1/models/{name}", describe_model),
            Route("/v1/models/{name}/entities", answer_entities, methods=["POST"]),
        ]
    )


@contextmanager
def serve_page() -> Iterator[Endpoint]:
    """A running server, and what steers it."""
    endpoint = Endpoint()
    config = uvicorn.Config(
        build_app(endpoint), host="127.0.0.1", port=0, log_level="warning", lifespan="off", timeout_graceful_shutdown=1
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 20
    while not server.started:
        assert thread.is_alive()
        assert time.monotonic() < deadline, "the server did not start"
        time.sleep(0.01)
    endpoint.url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/"
    try:
        yield endpoint
    finally:
        endpoint.held.set()
        server.should_exit = True
        thread.join(10)
