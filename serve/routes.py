"""The HTTP application: routes, their documentation, and the page. Needs no Ray."""

import asyncio
import base64
import hashlib
import json
import re
from collections.abc import Awaitable, Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import fastapi_offline
from fastapi import FastAPI, Request, Response
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.openapi.utils import get_openapi
from starlette.exceptions import HTTPException
from starlette.staticfiles import StaticFiles

from serve.bodies import check_media_type, parse, read_body
from serve.border import Border
from serve.metrics import MEDIA_TYPE as FIGURES_TYPE
from serve.metrics import render_figures
from serve.problems import MEDIA_TYPE as PROBLEM_TYPE
from serve.problems import TITLES, Problem
from serve.replica import Replica, Timing
from serve.schemas import (
    EntitiesRequest,
    ModelInfo,
    ModelList,
    Result,
    Results,
    StreamLine,
    StreamProblem,
    StreamResult,
)
from serve.schemas import Problem as ProblemSchema
from serve.streaming import MEDIA_TYPE as STREAM_TYPE
from serve.streaming import StreamResponse

PAGE = Path(__file__).parent / "page"
DOCS_ASSETS = Path(fastapi_offline.__file__).parent / "static"
JSON = "application/json"
EXAMPLES = {
    "one text": {"value": {"text": "Angela Merkel visited Utrecht."}},
    "several texts, only people, redacted": {
        "value": {"texts": ["Ada met Grace in Paris.", "王小明住在台北。"], "labels": ["PER"], "redact": "label"}
    },
}
Figures = Callable[[], Awaitable[dict[str, Any]]]


def build_http(replica: Replica, gather_figures: Figures, version: str) -> FastAPI:
    """The application that answers from a replica.

    Args:
        gather_figures: the metrics of all replicas, by replica.
    """
    app = FastAPI(title="rayner", version=version, docs_url=None, redoc_url=None, redirect_slashes=False)
    app.add_middleware(Border, replica=replica)
    app.add_exception_handler(HTTPException, _handle_http_error)
    _add_entities(app, replica)
    _add_models(app, replica)
    _add_health(app, replica, gather_figures)
    _add_docs(app)
    if replica.arguments.page:
        _add_page(app)
    app.openapi = _remember(app, replica)  # type: ignore[method-assign]
    return app


def _remember(app: FastAPI, replica: Replica) -> Callable[[], dict[str, Any]]:
    """The OpenAPI document, made anew only where the limits have changed: it takes a while, and anybody may ask."""

    @lru_cache(maxsize=1)
    def describe(_: str) -> dict[str, Any]:
        """The document under given limits, which are the key alone."""
        return _describe(app, replica)

    return lambda: describe(replica.tuning.model_dump_json())


def _add_entities(app: FastAPI, replica: Replica) -> None:
    async def answer(request: Request, model: str | None) -> Response:
        """Check a request, and answer with its entities and their time. Raises Problem, or TimeoutError."""
        check_media_type(request, JSON)
        tuning = replica.tuning
        found = parse(EntitiesRequest, await read_body(request, tuning.max_body_kib))
        replica.check_request(found)
        timing = request.state.timing = Timing()
        if replica.arguments.log_texts:
            request.state.texts = found.texts or [found.text]
        async with asyncio.timeout(tuning.timeout_s):
            answered = await replica.answer(found, model, timing)
        spent = f"queue;dur={1000 * timing.queue_s:.1f}, engine;dur={1000 * timing.engine_s:.1f}"
        return Response(json.dumps(answered, ensure_ascii=False), media_type=JSON, headers={"server-timing": spent})

    async def answer_stream(request: Request, model: str | None) -> StreamResponse:
        """Check what can be before the first line, and answer line by line. Raises Problem."""
        check_media_type(request, STREAM_TYPE, "application/jsonl", "application/ndjson")
        async with replica.shelf.borrow(model or replica.arguments.model_name):
            pass  # what is wrong with the model is told before the first line
        timing = request.state.timing = Timing()
        return StreamResponse(request, replica, model, timing)

    spec = _document_entities()

    @app.post("/v1/entities", tags=["entities"], **spec)
    async def find_entities(request: Request) -> Response:
        """Entities of one text or of several, by the default model."""
        return await answer(request, None)

    @app.post("/v1/models/{name}/entities", tags=["entities"], **_add_name(spec))
    async def find_entities_by_model(request: Request) -> Response:
        """Entities of one text or of several, by a named model."""
        return await answer(request, request.path_params["name"])

    lines = _document_stream()

    @app.post("/v1/entities/stream", tags=["entities"], **lines)
    async def stream_entities(request: Request) -> Any:
        """Entities of a text a line, in the order of the lines, while they are still being sent."""
        return await answer_stream(request, None)

    @app.post("/v1/models/{name}/entities/stream", tags=["entities"], **_add_name(lines))
    async def stream_entities_by_model(request: Request) -> Any:
        """The same by a named model."""
        return await answer_stream(request, request.path_params["name"])


def _add_models(app: FastAPI, replica: Replica) -> None:
    @app.get("/v1/models", tags=["models"], response_model=ModelList, responses=_list_problems(401))
    async def list_models() -> Any:
        """Which models there are, and which are loaded."""
        return replica.list_models()

    @app.get("/v1/model", tags=["models"], response_model=ModelInfo, responses=_list_problems(401, 503))
    async def describe_default_model() -> Any:
        """The default model."""
        return await replica.describe_model(None)

    named = _add_name({"responses": _list_problems(401, 404, 503)})

    @app.get("/v1/models/{name}", tags=["models"], response_model=ModelInfo, **named)
    async def describe_model(request: Request) -> Any:
        """A named model; it is loaded if it is not."""
        return await replica.describe_model(request.path_params["name"])


def _add_health(app: FastAPI, replica: Replica, gather_figures: Figures) -> None:
    @app.get("/healthz", tags=["health"])
    async def check_health() -> dict[str, str]:
        """Whether the process answers."""
        return {"status": "ok"}

    @app.get("/readyz", tags=["health"], responses=_list_problems(503))
    async def check_readiness() -> dict[str, str]:
        """Whether the default model is loaded and warm."""
        if not replica.is_ready:
            raise Problem(503, "the model is being loaded", headers={"retry-after": "1"})
        return {"status": "ready"}

    figures = {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}, **_list_problems(401)}

    @app.get("/metrics", tags=["health"], responses=figures, response_class=Response)
    async def get_metrics() -> Response:
        """The figures of all replicas, in Prometheus' form."""
        return Response(render_figures(await gather_figures()), headers={"content-type": FIGURES_TYPE})


def _add_docs(app: FastAPI) -> None:
    app.mount("/docs/assets", StaticFiles(directory=DOCS_ASSETS))
    page = get_swagger_ui_html(
        openapi_url="openapi.json",
        title="rayner",
        swagger_js_url="docs/assets/swagger-ui-bundle.js",
        swagger_css_url="docs/assets/swagger-ui.css",
        swagger_favicon_url="data:,",
    ).body
    scripts = re.findall(r"<script>(.*?)</script>", bytes(page).decode(), re.DOTALL)
    hashes = " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(one.encode()).digest()).decode()}'" for one in scripts)
    policy = (
        f"default-src 'none'; script-src 'self' {hashes}; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
        "connect-src 'self'; base-uri 'none'; frame-ancestors 'none'"
    )

    @app.get("/docs", include_in_schema=False)
    async def get_docs() -> Response:
        """The API's documentation, whose scripts the policy names by their hashes."""
        return Response(page, media_type="text/html", headers={"content-security-policy": policy})


def _add_page(app: FastAPI) -> None:
    app.mount("/page", StaticFiles(directory=PAGE))

    @app.get("/", include_in_schema=False)
    async def get_page() -> Response:
        """The page to try the model in."""
        return Response((PAGE / "index.html").read_bytes(), media_type="text/html")


async def _handle_http_error(request: Request, error: Exception) -> Response:
    """What the router finds wrong: no such path, or no such method there."""
    assert isinstance(error, HTTPException)
    details = {404: "there is nothing at this path; `/docs` lists what there is", 405: "not with this method"}
    problem = Problem(error.status_code, details.get(error.status_code, str(error.detail)))
    headers = {name.lower(): value for name, value in (error.headers or {}).items()} | {"content-type": PROBLEM_TYPE}
    if headers.get("allow") == "GET":
        headers["allow"] = "GET, HEAD"
    return Response(problem.render(request.state.request_id), error.status_code, headers=headers)


def _list_problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    schema = {"$ref": f"#/components/schemas/{ProblemSchema.__name__}"}
    content = {PROBLEM_TYPE: {"schema": schema}}
    return {status: {"description": TITLES[status], "content": content} for status in statuses}


def _document_entities() -> dict[str, Any]:
    body = {"schema": EntitiesRequest.model_json_schema(), "examples": EXAMPLES}
    return {
        "responses": {
            200: {"model": Result | Results, "description": "A `Result` for `text`, `Results` for `texts`."},
            **_list_problems(400, 401, 408, 413, 415, 422, 429, 503, 504),
        },
        "openapi_extra": {"requestBody": {"required": True, "content": {JSON: body}}},
        "response_class": Response,
    }


def _document_stream() -> dict[str, Any]:
    lines = {"schema": {"type": "string"}, "example": '{"id": 1, "text": "Ada met Grace."}\n{"id": 2, "text": "Hi."}\n'}
    told = f"{StreamLine.__name__} a line in, {StreamResult.__name__} or {StreamProblem.__name__} a line out."
    return {
        "responses": {
            200: {"description": told, "content": {STREAM_TYPE: {"schema": {"type": "string"}}}},
            **_list_problems(401, 415, 429, 503),
        },
        "openapi_extra": {"requestBody": {"required": True, "content": {STREAM_TYPE: lines}}},
        "response_class": Response,
        "response_model": None,
    }


def _add_name(spec: dict[str, Any]) -> dict[str, Any]:
    """The same for a path with a model's name in it."""
    name = {"name": "name", "in": "path", "required": True}
    extra = {**spec.get("openapi_extra", {}), "parameters": [name]}
    return {**spec, "responses": {**spec["responses"], **_list_problems(404)}, "openapi_extra": extra}


def _describe(app: FastAPI, replica: Replica) -> dict[str, Any]:
    """The OpenAPI document, with the limits that hold now and the models there are."""
    document: dict[str, Any] = get_openapi(
        title=app.title,
        version=app.version,
        routes=app.routes,
        description="Named entities of texts. Offsets are Unicode code points; errors are RFC 9457 documents.",
    )
    components = document.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    for one in (ProblemSchema, StreamLine, StreamResult, StreamProblem):  # which FastAPI does not see
        schemas[one.__name__] = one.model_json_schema(ref_template="#/components/schemas/{model}")
    _lift_definitions(components["schemas"])
    for path in document["paths"].values():
        for operation in path.values():
            body = operation.get("requestBody", {}).get("content", {}).get(JSON)
            if body:
                body["schema"] = _limit(body["schema"], replica)
            for parameter in operation.get("parameters", []):
                parameter["schema"] = {"type": "string", "enum": list(replica.shelf.paths)}
            if replica.keys and "401" not in operation["responses"]:
                operation["security"] = []
    if replica.keys:
        components["securitySchemes"] = {
            "bearer": {"type": "http", "scheme": "bearer"},
            "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
        }
        document["security"] = [{"bearer": []}, {"key": []}]
    return document


def _lift_definitions(schemas: dict[str, Any]) -> None:
    for schema in list(schemas.values()):
        schemas.update(schema.pop("$defs", {}))


def _limit(schema: dict[str, Any], replica: Replica) -> dict[str, Any]:
    properties = schema["properties"]
    text = {"maxLength": replica.tuning.max_characters}
    texts = {"maxItems": replica.tuning.max_texts, "items": {"type": "string", **text}}
    limited = {"text": properties["text"] | text, "texts": properties["texts"] | texts}
    return {**schema, "properties": {**properties, **limited}}
