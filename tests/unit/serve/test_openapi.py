"""The OpenAPI document: whole, true to the routes, with the limits that hold now."""

import json
import re
from typing import Any

import pytest
from fastapi.routing import APIRoute
from jsonschema import Draft202012Validator

from serve.routes import build_http
from serve.schemas import EntitiesRequest
from serve.settings import Arguments, Tuning
from tests.unit.serve.replicas import KEY, Talk, WatchedReplica, talk

GOOD = "a-good-key-of-many-characters"


def make_document(**arguments: Any) -> dict[str, Any]:
    async def gather_figures() -> dict[str, Any]:
        return {}

    replica = WatchedReplica(Arguments(model="m", page=False, **arguments), KEY)
    return build_http(replica, gather_figures, "1.2.3").openapi()


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return make_document()


def list_operations(document: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    return [(path, method, told) for path, methods in document["paths"].items() for method, told in methods.items()]


def find_all(node: Any, key: str) -> list[Any]:
    """Every value of the key, however deep."""
    if isinstance(node, dict):
        own = [node[key]] if key in node else []
        return own + [found for value in node.values() for found in find_all(value, key)]
    return [found for value in node for found in find_all(value, key)] if isinstance(node, list) else []


def resolve(document: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    """A schema that can be used by itself."""
    return {**schema, "components": document["components"]}


def test_document_is_served_and_is_json_of_version_3_1(bundle):
    async def ask(with_: Talk) -> None:
        answer = await with_.client.get("/openapi.json")
        assert answer.status_code == 200
        document = answer.json()
        assert document["openapi"].startswith("3.1")
        assert document["info"]["version"] == "1.2.3"
        assert document == json.loads(json.dumps(with_.replica and make_document()))

    talk(bundle, ask, is_started=False)


def test_every_schema_is_a_json_schema_and_every_reference_leads_somewhere(document):
    schemas = [*find_all(document["paths"], "schema"), *document["components"]["schemas"].values()]
    assert len(schemas) > 15
    for schema in schemas:
        Draft202012Validator.check_schema(schema)
    references = find_all(document, "$ref")
    assert references
    for reference in references:
        node: Any = document
        for part in reference.removeprefix("#/").split("/"):
            node = node[part]


def test_lines_of_a_stream_are_described(document):
    schemas = document["components"]["schemas"]
    [told] = [
        operation["responses"]["200"]["description"]
        for path, _, operation in list_operations(document)
        if path == "/v1/entities/stream"
    ]
    names = re.findall(r"Stream\w+", told)
    assert sorted(names) == ["StreamLine", "StreamProblem", "StreamResult"]
    assert set(names) <= schemas.keys()
    assert {"line", "id", "error"} <= schemas["StreamProblem"]["properties"].keys()


def test_every_route_is_documented_and_no_other(document):
    async def gather_figures() -> dict[str, Any]:
        return {}

    app = build_http(WatchedReplica(Arguments(model="m", page=False), KEY), gather_figures, "1")
    served = {
        (route.path, method.lower())
        for route in app.routes
        if isinstance(route, APIRoute) and route.path != "/docs"
        for method in route.methods
    }
    assert {(path, method) for path, method, _ in list_operations(document)} == served
    assert len(served) >= 10


def test_operations_have_names_of_their_own_descriptions_and_documented_problems(document):
    operations = list_operations(document)
    assert len({told["operationId"] for _, _, told in operations}) == len(operations)
    for path, _, told in operations:
        assert told["description"], path
        assert all(answer["description"] for answer in told["responses"].values()), path
        for status, answer in told["responses"].items():
            if int(status) >= 400:
                assert "application/problem+json" in answer["content"], (path, status)
        assert [one["name"] for one in told.get("parameters", [])] == ["name"] * ("{name}" in path), path


@pytest.mark.parametrize(
    ("body", "is_valid"),
    [
        ({"text": "a"}, True),
        ({"texts": ["a", "b"], "labels": ["PER"], "min_score": 0.5, "redact": "hash"}, True),
        ({"text": "a", "labels": None, "min_score": None, "redact": None}, True),
        ({"text": "a", "texts": None}, True),
        ({"text": None, "texts": ["a"]}, True),
        ({"text": "a", "min_score": 1}, True),
        ({}, False),
        ({"text": None}, False),
        ({"text": None, "texts": None}, False),
        ({"text": "a", "texts": ["b"]}, False),
        ({"text": 1}, False),
        ({"texts": []}, False),
        ({"texts": [1]}, False),
        ({"text": "a", "min_score": 2}, False),
        ({"text": "a", "labels": ["x" * 257]}, False),
        ({"text": "a", "other": 1}, False),
        ({"text": "a" * 11}, False),
        ({"texts": ["a"] * 4}, False),
        ({"texts": ["a" * 11]}, False),
    ],
)
def test_document_and_endpoint_agree_on_what_a_request_may_be(bundle, body, is_valid):
    async def ask(with_: Talk) -> None:
        document = (await with_.client.get("/openapi.json")).json()
        content = document["paths"]["/v1/entities"]["post"]["requestBody"]["content"]["application/json"]
        assert Draft202012Validator(resolve(document, content["schema"])).is_valid(body) == is_valid
        answer = await with_.ask(body)
        assert answer.status_code == (200 if is_valid else 422)

    talk(bundle, ask, tuning={"max_characters": 10, "max_texts": 3})


def test_examples_are_valid(document):
    for path in ("/v1/entities", "/v1/models/{name}/entities"):
        content = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]
        assert len(content["examples"]) > 1
        for example in content["examples"].values():
            Draft202012Validator(resolve(document, content["schema"])).validate(example["value"])
            EntitiesRequest.model_validate(example["value"])


def test_limits_follow_the_tuning_of_a_running_replica(bundle):
    async def ask(with_: Talk) -> None:
        for limit in (7, 9):
            with_.replica.tune(Tuning(max_characters=limit, max_texts=limit + 1))
            document = (await with_.client.get("/openapi.json")).json()
            for path in ("/v1/entities", "/v1/models/{name}/entities"):
                schema = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
                assert limit in find_all(schema["properties"]["text"], "maxLength")
                assert limit in find_all(schema["properties"]["texts"], "maxLength")
                assert limit + 1 in find_all(schema["properties"]["texts"], "maxItems")

    talk(bundle, ask, is_started=False)


def test_answers_are_as_the_document_says(bundle):
    async def ask(with_: Talk) -> None:
        document = (await with_.client.get("/openapi.json")).json()
        asked = [
            ("POST", "/v1/entities", {"text": "Ada met Grace in Paris.", "redact": "label"}, 200),
            ("POST", "/v1/entities", {"texts": ["Ada", ""]}, 200),
            ("POST", "/v1/entities", {"texts": ["Ada", 1]}, 422),
            ("GET", "/v1/models", None, 200),
            ("GET", "/v1/model", None, 200),
            ("GET", "/healthz", None, 200),
            ("GET", "/readyz", None, 200),
        ]
        for method, path, body, status in asked:
            answer = await with_.client.request(method, path, json=body)
            assert answer.status_code == status
            told = document["paths"][path][method.lower()]["responses"][str(answer.status_code)]
            schema = told["content"][answer.headers["content-type"].partition(";")[0]]["schema"]
            Draft202012Validator(resolve(document, schema)).validate(answer.json())

    talk(bundle, ask)


def test_keys_are_documented_where_they_are_asked_for(document, tmp_path):
    assert "security" not in document
    file = tmp_path / "keys"
    file.write_text(GOOD)
    guarded = make_document(api_keys_file=str(file))
    assert set(guarded["components"]["securitySchemes"]) == {name for one in guarded["security"] for name in one}
    for path, _, told in list_operations(guarded):
        is_guarded = path.startswith("/v1") or path == "/metrics"
        assert ("401" in told["responses"]) == is_guarded, path
        assert (told.get("security") == []) != is_guarded, path


def test_names_of_models_are_in_the_document():
    document = make_document(models={"other": "x"})
    for path in ("/v1/models/{name}", "/v1/models/{name}/entities", "/v1/models/{name}/entities/stream"):
        for told in document["paths"][path].values():
            [parameter] = told["parameters"]
            assert parameter["schema"]["enum"] == ["default", "other"]
