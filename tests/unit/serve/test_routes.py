"""Every answer of the contract through the real application: bodies, problem documents, headers, logs."""

import asyncio
import gc
import json
import logging
import re
import tracemalloc

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from serve import batching, bodies
from serve import replica as replicas
from serve.batching import Hung
from serve.border import MAX_ID, SECURITY_HEADERS
from serve.problems import TITLES
from serve.replica import Timing
from serve.routes import build_http
from serve.schemas import EntitiesRequest
from serve.settings import Arguments, Tuning
from tests.unit.serve.replicas import KEY, Talk, WatchedReplica, run, talk, wait_until

TEXT = "Angela Merkel visited 👩‍👩‍👧 in Utrecht .\r\n" * 5
GOOD = "a-good-key-of-many-characters"
JSON = {"content-type": "application/json"}


def check_problem(answer: httpx.Response, status: int) -> dict:
    """It is a whole problem document with this status; returns it."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    told = answer.json()
    assert told["status"] == status
    assert told["title"] == TITLES[status]
    assert told["type"] == "about:blank"
    assert told["detail"]
    assert told["request_id"] == answer.headers["x-request-id"]
    assert set(told) <= {"type", "title", "status", "detail", "request_id", "errors"}
    check_headers(answer)
    return told


def check_headers(answer: httpx.Response) -> None:
    """What every answer has."""
    assert answer.headers["x-request-id"]
    for name in SECURITY_HEADERS:
        assert answer.headers[name], name


def list_places(entities: list[dict]) -> list[tuple]:
    return [(one["start"], one["end"], one["label"], one["text"]) for one in entities]


# ---- answers


def test_one_text_is_answered_with_the_engines_entities_coverage_and_times(bundle):
    async def ask(with_: Talk) -> None:
        answer = await with_.ask({"text": TEXT})
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "application/json"
        check_headers(answer)
        told = answer.json()
        [wanted] = with_.replica.engine.predict([TEXT])
        assert list_places(told["entities"]) == [(e.start, e.end, e.label, e.text) for e in wanted.entities]
        assert len(wanted.entities) > 3
        assert [one["score"] for one in told["entities"]] == pytest.approx([e.score for e in wanted.entities], abs=1e-4)
        assert all(TEXT[one["start"] : one["end"]] == one["text"] for one in told["entities"])
        assert told["coverage"] == {
            "num_characters": len(TEXT),
            "num_words": wanted.coverage.num_words,
            "num_tokens": wanted.coverage.num_tokens,
            "num_windows": wanted.coverage.num_windows,
            "fraction": 1.0,
        }
        assert set(told) == {"entities", "coverage"}
        assert re.fullmatch(r"queue;dur=\d+\.\d, engine;dur=\d+\.\d", answer.headers["server-timing"])

    talk(bundle, ask)


def test_several_texts_are_answered_in_order_and_an_empty_one_too(bundle):
    texts = [TEXT, "", "Ada met Grace.", " \n"]

    async def ask(with_: Talk) -> None:
        told = (await with_.ask({"texts": texts})).json()
        assert set(told) == {"results"}
        for one, text in zip(told["results"], texts, strict=True):
            assert list_places(one["entities"]) == list_places((await with_.ask({"text": text})).json()["entities"])
            assert one["coverage"]["num_characters"] == len(text)
        assert told["results"][1] == {
            "entities": [],
            "coverage": {"num_characters": 0, "num_words": 0, "num_tokens": 0, "num_windows": 0, "fraction": 1.0},
        }

    talk(bundle, ask)


def test_labels_and_least_score_let_through_what_they_say(bundle):
    async def ask(with_: Talk) -> None:
        whole = (await with_.ask({"text": TEXT})).json()["entities"]
        label = whole[0]["label"]
        scores = sorted(one["score"] for one in whole)
        least = scores[len(scores) // 2]
        for options, wanted in [
            ({"labels": [label]}, [one for one in whole if one["label"] == label]),
            ({"labels": []}, []),
            ({"min_score": least}, [one for one in whole if one["score"] >= least]),
            ({"min_score": 0}, whole),
        ]:
            told = (await with_.ask({"text": TEXT, **options})).json()
            assert list_places(told["entities"]) == list_places(wanted), options
            assert told["coverage"]["num_characters"] == len(TEXT)

    talk(bundle, ask)


@pytest.mark.parametrize("options", [{}, {"redact": "mask"}])
def test_label_that_the_model_lacks_is_422_and_those_it_has_are_named(bundle, options):
    """Misspelt, it would let through what should be redacted."""

    async def ask(with_: Talk) -> None:
        for path in ("/v1/entities", "/v1/models/default/entities"):
            for given in ({"text": TEXT}, {"texts": [TEXT]}):
                told = check_problem(
                    await with_.ask({**given, "labels": ["PERSON", "LOC", "Org"], **options}, path), 422
                )
                assert [one["pointer"] for one in told["errors"]] == ["/labels/0", "/labels/2"]
                assert "`PERSON`" in told["detail"]
                assert "LOC, MISC, ORG, PER" in told["detail"]
        told = check_problem(await with_.ask({"text": TEXT, "labels": [f"L{at}" for at in range(999)]}), 422)
        assert len(told["errors"]) == bodies.MAX_MISTAKES
        first, second = (
            await with_.stream(b'{"text": "Ada", "labels": ["PERSON"], "id": 1}\n{"text": "Ada", "labels": ["PER"]}')
        ).text.splitlines()
        assert (json.loads(first)["error"]["status"], json.loads(first)["id"]) == (422, 1)
        assert "entities" in json.loads(second)

    talk(bundle, ask)


def test_endpoints_own_least_score_holds_unless_the_request_says_another(bundle):
    async def ask(with_: Talk) -> None:
        assert (await with_.ask({"text": TEXT})).json()["entities"] == []
        assert (await with_.ask({"text": TEXT, "min_score": 0})).json()["entities"]
        with_.replica.tune(Tuning(min_score=0))
        assert (await with_.ask({"text": TEXT})).json()["entities"]

    talk(bundle, ask, tuning={"min_score": 1.0})


@pytest.mark.parametrize("kind", ["mask", "label", "hash"])
def test_redacted_text_is_there_where_asked_for_and_of_the_entities_let_through(bundle, kind):
    async def ask(with_: Talk) -> None:
        label = (await with_.ask({"text": TEXT})).json()["entities"][0]["label"]
        told = (await with_.ask({"text": TEXT, "redact": kind, "labels": [label]})).json()
        redacted = told["redacted"]
        assert [span["label"] for span in redacted["spans"]] == [one["label"] for one in told["entities"]]
        read = written = 0
        for span, one in zip(redacted["spans"], told["entities"], strict=True):
            assert redacted["text"][written : span["start"]] == TEXT[read : one["start"]]
            read, written = one["end"], span["end"]
        assert redacted["text"][written:] == TEXT[read:]
        assert len({redacted["text"][s["start"] : s["end"]] for s in redacted["spans"]}) >= 1

    talk(bundle, ask)


def test_named_models_are_loaded_when_asked_for_and_listed(bundle, tmp_path):
    async def ask(with_: Talk) -> None:
        listed = (await with_.client.get("/v1/models")).json()
        assert listed == {"default": "main", "models": ["main", "other", "broken"], "loaded": ["main"]}
        answer = await with_.ask({"text": TEXT}, "/v1/models/other/entities")
        assert answer.json()["entities"]
        assert (await with_.client.get("/v1/models")).json()["loaded"] == ["main", "other"]
        told = (await with_.client.get("/v1/models/other")).json()
        assert told["name"] == "other"
        assert told["labels"] == ["LOC", "MISC", "ORG", "PER"]
        assert (await with_.client.get("/v1/model")).json() == told | {"name": "main"}
        for path in ("/v1/models/nobody", "/v1/models/..", "/v1/models/%00"):
            check_problem(await with_.client.get(path), 404)
        check_problem(await with_.ask({"text": TEXT}, "/v1/models/nobody/entities"), 404)
        check_problem(await with_.stream(b'{"text": "a"}', "/v1/models/nobody/entities/stream"), 404)
        for answer in (
            await with_.client.get("/v1/models/broken"),
            await with_.ask({"text": TEXT}, "/v1/models/broken/entities"),
            await with_.stream(b'{"text": "a"}', "/v1/models/broken/entities/stream"),
        ):
            assert str(tmp_path) not in check_problem(answer, 503)["detail"]
            assert int(answer.headers["retry-after"]) >= 1

    talk(bundle, ask, model_name="main", models={"other": str(bundle), "broken": str(tmp_path / "nowhere")})


def test_scores_of_a_bundle_that_are_no_numbers_break_no_answer(bundle):
    async def ask(with_: Talk) -> None:
        info = with_.replica.engine.info
        info.training.update({"f1": 0.5, "loss": float("nan"), "steps": 3, "best": True, "nested": {"a": 1}})
        try:
            told = (await with_.client.get("/v1/model")).json()
            assert told["metrics"]["f1"] == 0.5
            assert "nested" not in told["metrics"]
        finally:
            info.training.clear()

    talk(bundle, ask)


# ---- refusals


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b'{"text": "\\udfff"}', b"[" * 100_000])
def test_body_that_is_no_json_is_400(bundle, body):
    async def ask(with_: Talk) -> None:
        told = check_problem(await with_.client.post("/v1/entities", content=body, headers=JSON), 400)
        assert "errors" not in told

    talk(bundle, ask, is_started=False)


@pytest.mark.parametrize(
    ("body", "pointers"),
    [
        ({}, [""]),
        ({"text": 1, "labels": "PER"}, ["/labels", "/text"]),
        ({"texts": ["a", None]}, ["/texts/1"]),
        ({"text": "a" * 101}, ["/text"]),
        ({"texts": ["a", "b" * 101]}, ["/texts/1"]),
        ({"texts": ["a"] * 6}, ["/texts"]),
        ({"text": "a", "no such": 1}, ["/no such"]),
    ],
)
def test_broken_rule_is_422_with_pointers(bundle, body, pointers):
    async def ask(with_: Talk) -> None:
        told = check_problem(await with_.ask(body), 422)
        assert [one["pointer"] for one in told["errors"]] == pointers
        assert all(one["detail"] for one in told["errors"])

    talk(bundle, ask, is_started=False, tuning={"max_characters": 100, "max_texts": 5})


def test_characters_are_counted_as_code_points(bundle):
    async def ask(with_: Talk) -> None:
        assert (await with_.ask({"text": "🌍" * 10})).status_code == 200
        check_problem(await with_.ask({"text": "🌍" * 11}), 422)

    talk(bundle, ask, tuning={"max_characters": 10})


def test_body_above_the_limit_is_413_declared_or_not(bundle):
    async def send(num_bytes: int):  # type: ignore[no-untyped-def]
        for _ in range(num_bytes // 100):
            yield b" " * 100

    async def ask(with_: Talk) -> None:
        for content in (b" " * 1100, send(1100)):
            told = check_problem(await with_.client.post("/v1/entities", content=content, headers=JSON), 413)
            assert "1 KiB" in told["detail"]

    talk(bundle, ask, is_started=False, tuning={"max_body_kib": 1})


def test_body_that_stops_coming_is_408(bundle, monkeypatch):
    monkeypatch.setattr(bodies, "BODY_TIMEOUT_S", 0.05)

    async def send():  # type: ignore[no-untyped-def]
        yield b'{"text":'
        await asyncio.sleep(20)

    async def ask(with_: Talk) -> None:
        check_problem(await with_.client.post("/v1/entities", content=send(), headers=JSON), 408)

    talk(bundle, ask, is_started=False)


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"content-type": ""},
        {"content-type": "text/plain"},
        {"content-type": "application/x-www-form-urlencoded"},
        {"content-type": "application/json+x"},
        {"content-type": "application/json", "content-encoding": "gzip"},
    ],
)
def test_other_media_types_are_415(bundle, headers):
    async def ask(with_: Talk) -> None:
        for path in ("/v1/entities", "/v1/entities/stream", "/v1/models/default/entities"):
            check_problem(await with_.client.post(path, content=b'{"text": "a"}', headers=headers), 415)

    talk(bundle, ask, is_started=False)


def test_media_type_may_have_parameters_and_any_case(bundle):
    async def ask(with_: Talk) -> None:
        for given in ("application/json; charset=utf-8", "Application/JSON"):
            answer = await with_.client.post("/v1/entities", content=b'{"text": "a"}', headers={"content-type": given})
            assert answer.status_code == 200

    talk(bundle, ask)


@pytest.mark.parametrize("path", ["/nowhere", "/v1", "/v1/", "/v1/entities/", "/V1/entities", "//v1/models", "/%ff"])
def test_unknown_path_is_404_and_leads_nowhere_else(bundle, path):
    async def ask(with_: Talk) -> None:
        check_problem(await with_.client.get(path, headers={"host": "elsewhere.example"}), 404)

    talk(bundle, ask, is_started=False)


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/v1/entities", "POST"),
        ("PUT", "/v1/entities/stream", "POST"),
        ("DELETE", "/v1/models", "GET, HEAD"),
        ("POST", "/v1/models/default", "GET, HEAD"),
        ("OPTIONS", "/healthz", "GET, HEAD"),
        ("OPTIONS", "/v1/entities", "POST"),
        ("HEAD", "/v1/entities", "POST"),
        ("TRACE", "/metrics", "GET, HEAD"),
        ("NONSENSE", "/v1/entities", "POST"),
        ("POST", "/docs/assets/swagger-ui.css", "GET, HEAD"),
    ],
)
def test_other_methods_are_405_with_those_allowed(bundle, method, path, allowed):
    async def ask(with_: Talk) -> None:
        answer = await with_.client.request(method, path)
        assert answer.status_code == 405
        assert answer.headers["allow"] == allowed
        if method != "HEAD":
            check_problem(answer, 405)

    talk(bundle, ask, is_started=False)


@pytest.mark.parametrize(
    "path", ["/healthz", "/readyz", "/v1/models", "/v1/model", "/metrics", "/docs", "/openapi.json"]
)
def test_head_answers_as_get_does_without_the_body(bundle, path):
    async def ask(with_: Talk) -> None:
        got, headed = await with_.client.get(path), await with_.client.head(path)
        assert headed.status_code == got.status_code == 200
        assert headed.content == b""
        assert headed.headers["content-type"] == got.headers["content-type"]
        check_headers(headed)

    talk(bundle, ask)


def test_keys_guard_the_api_and_the_metrics_and_nothing_else(bundle, tmp_path):
    file = tmp_path / "keys"
    file.write_text(GOOD)

    async def ask(with_: Talk) -> None:
        guarded = ["/v1/models", "/v1/model", "/v1/models/default", "/metrics", "/v1/nowhere", "/nowhere"]
        for path in guarded:
            for headers in ({}, {"x-api-key": "wrong"}, {"authorization": f"Basic {GOOD}"}):
                answer = await with_.client.get(path, headers=headers)
                check_problem(answer, 401)
                assert answer.headers["www-authenticate"].startswith("Bearer")
        check_problem(await with_.ask({"text": TEXT}), 401)
        check_problem(await with_.stream(b'{"text": "a"}'), 401)
        for headers in ({"x-api-key": GOOD}, {"authorization": f"Bearer {GOOD}"}):
            assert (await with_.ask({"text": TEXT}, headers=headers)).status_code == 200
            for path in guarded[:4]:
                assert (await with_.client.get(path, headers=headers)).status_code == 200
        for path in ("/healthz", "/readyz", "/docs", "/openapi.json", "/docs/assets/swagger-ui.css"):
            assert (await with_.client.get(path)).status_code == 200, path

    talk(bundle, ask, api_keys_file=str(file))


def test_keys_guard_the_api_also_below_a_prefix(bundle, tmp_path):
    """Where Ray Serve routes `/ner` here, the path has the prefix in it."""
    file = tmp_path / "keys"
    file.write_text(GOOD)

    async def ask() -> None:
        replica = WatchedReplica(Arguments(model=str(bundle), page=False, api_keys_file=str(file)), KEY)
        app = build_http(replica, dict, "1")  # type: ignore[arg-type]
        transport = httpx.ASGITransport(app, root_path="/ner")
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
            for path in ("/ner/v1/models", "/ner/metrics", "/v1/models", "/ner/ner/v1/models", "/nerd"):
                assert (await client.get(path)).status_code == 401, path
            assert (await client.get("/ner/healthz")).status_code == 200
            assert (await client.get("/ner/v1/models", headers={"x-api-key": GOOD})).status_code == 200

    run(ask())


def test_full_queue_is_429_with_the_time_to_come_again(bundle):
    async def ask(with_: Talk) -> None:
        with_.replica.engine.gate.clear()
        asked = [asyncio.create_task(with_.ask({"text": TEXT * 20})) for _ in range(2)]
        await wait_until(lambda: with_.replica.count_load() > 500, "the queue is full")
        for body in ({"text": "Ada"}, {"texts": ["Ada", "Grace"]}, {"text": 1}):  # the last one: it is not even read
            answer = await with_.ask(body)
            check_problem(answer, 429)
            assert int(answer.headers["retry-after"]) >= 1
        with_.replica.engine.gate.set()
        # one finds room whatever its length; the other comes while it is encoded, which counts already
        assert sorted([(await one).status_code for one in asked]) == [200, 429]
        assert (await with_.ask({"text": "Ada"})).status_code == 200

    talk(bundle, ask, tuning={"max_queued_tokens": 100, "max_batch_tokens": 64})


def test_texts_that_do_not_fit_in_the_queue_together_are_answered(bundle):
    """The client would come again for ever."""

    async def ask(with_: Talk) -> None:
        answer = await with_.ask({"texts": [TEXT] * 30})
        assert answer.status_code == 200
        assert len(answer.json()["results"]) == 30

    talk(bundle, ask, tuning={"max_queued_tokens": 100})


def test_poisonous_text_is_500_without_a_traceback_and_the_log_has_its_id(bundle, caplog):
    async def ask(with_: Talk) -> None:
        with_.replica.engine.poison("Utrecht", "finish")
        told = check_problem(await with_.ask({"text": "Utrecht"}), 500)
        assert "poisonous" not in json.dumps(told)
        assert "Traceback" not in json.dumps(told)
        assert told["request_id"] in caplog.text
        assert "a poisonous text" in caplog.text
        told = check_problem(await with_.ask({"texts": ["Ada", "Utrecht", "Grace"]}), 500)
        assert [one["pointer"] for one in told["errors"]] == ["/texts/1"]
        assert "poisonous" not in json.dumps(told)
        assert (await with_.ask({"texts": ["Ada", "Grace"]})).status_code == 200
        await wait_until(lambda: with_.replica.count_load() == 0, "nothing is left")

    talk(bundle, ask)


def test_before_the_model_is_ready_readiness_is_503_and_health_is_200(bundle):
    async def ask(with_: Talk) -> None:
        answer = await with_.client.get("/readyz")
        check_problem(answer, 503)
        assert int(answer.headers["retry-after"]) >= 1
        assert (await with_.client.get("/healthz")).json() == {"status": "ok"}
        await with_.replica.start()
        assert (await with_.client.get("/readyz")).json() == {"status": "ready"}

    talk(bundle, ask, is_started=False)


def test_deadline_is_504_and_leaves_nothing_in_the_queue(bundle):
    async def ask(with_: Talk) -> None:
        with_.replica.engine.gate.clear()
        for body in ({"text": TEXT}, {"texts": [TEXT] * 3}):
            answer = await with_.ask(body)
            check_problem(answer, 504)
            assert int(answer.headers["retry-after"]) >= 1
        with_.replica.engine.gate.set()
        await wait_until(lambda: with_.replica.count_load() == 0, "nothing is left")
        with_.replica.tune(Tuning())
        assert (await with_.ask({"text": TEXT})).status_code == 200

    talk(bundle, ask, tuning={"timeout_s": 0.1})


def test_health_check_of_the_replica_fails_where_the_engine_does(bundle, monkeypatch):
    async def ask(with_: Talk) -> None:
        await with_.replica.check()
        with_.replica.engine.poison("Utrecht", "compute")
        with pytest.raises(RuntimeError):
            await with_.replica.check()

    talk(bundle, ask)


def test_health_check_of_a_busy_replica_fails_where_a_batch_does_not_end(bundle, monkeypatch):
    monkeypatch.setattr(replicas, "HUNG_S", 0.05)
    monkeypatch.setattr(batching, "HANG_FACTOR", 0.0)

    async def ask(with_: Talk) -> None:
        engine = with_.replica.engine
        for end_s, is_hung in ((0.0, True), (60.0, False)):
            with_.replica.tune(Tuning(timeout_s=max(end_s, 0.01)))
            engine.gate.clear()
            asked = asyncio.create_task(with_.replica.answer(EntitiesRequest(text=TEXT), None, Timing()))
            await wait_until(lambda: with_.replica.shelf.loaded["default"].batcher.num_running > 0, "it is computed")
            await asyncio.sleep(0.1)
            if is_hung:
                with pytest.raises(Hung, match="has not ended"):
                    await with_.replica.check()
            else:
                await with_.replica.check()
            engine.gate.set()
            await asked
            await with_.replica.check()

    talk(bundle, ask)


def test_batch_as_slow_as_those_before_it_is_not_taken_for_one_that_hangs(bundle, monkeypatch):
    monkeypatch.setattr(replicas, "HUNG_S", 0.01)

    async def ask(with_: Talk) -> None:
        engine, batcher = with_.replica.engine, with_.replica.shelf.loaded["default"].batcher
        engine.pause_s = 0.5
        await with_.replica.answer(EntitiesRequest(text=TEXT), None, Timing())
        engine.gate.clear()
        asked = asyncio.create_task(with_.replica.answer(EntitiesRequest(text=TEXT), None, Timing()))
        await wait_until(lambda: batcher.num_running > 0, "it is computed")
        await asyncio.sleep(0.05)
        await with_.replica.check()
        assert batcher.num_running > 0
        engine.gate.set()
        await asked

    talk(bundle, ask, tuning={"timeout_s": 0.01})


def test_health_check_of_a_busy_replica_fails_where_every_batch_does(bundle, monkeypatch):
    async def ask(with_: Talk) -> None:
        engine, batcher = with_.replica.engine, with_.replica.shelf.loaded["default"].batcher

        async def keep_asking() -> None:
            while True:
                await with_.ask({"text": "Utrecht"})

        engine.pause_s = 0.01
        engine.poison("Utrecht", "compute")
        clients = [asyncio.create_task(keep_asking()) for _ in range(4)]
        await wait_until(lambda: batcher.is_suspect, "batches have failed")
        engine.poison_token = None  # texts alone were wrong: the known text is answered
        await with_.replica.check()
        monkeypatch.setattr(engine, "compute", lambda windows: 1 / 0)
        await wait_until(lambda: batcher.is_suspect, "batches have failed")
        with pytest.raises(ZeroDivisionError):
            await with_.replica.check()
        for client in clients:
            client.cancel()
        await asyncio.wait(clients)

    talk(bundle, ask)


def test_health_check_of_the_replica_loads_no_model_and_counts_as_no_use(bundle):
    async def ask(with_: Talk) -> None:
        await with_.ask({"text": "Ada"}, "/v1/models/other/entities")
        await with_.replica.check()
        assert list(with_.replica.shelf.loaded) == ["other"]

    talk(bundle, ask, models={"other": str(bundle)}, max_models_mib=1)


# ---- ids, logs, metrics, pages


@pytest.mark.parametrize("given", ["abc-123", "x" * MAX_ID, "a b"])
def test_clients_request_id_is_taken_over(bundle, given):
    async def ask(with_: Talk) -> None:
        for path in ("/healthz", "/nowhere"):
            answer = await with_.client.get(path, headers={"x-request-id": given})
            assert answer.headers.get_list("x-request-id") == [given]

    talk(bundle, ask, is_started=False)


@pytest.mark.parametrize("given", [b"", b"x" * (MAX_ID + 1), "schön".encode("latin-1"), b"a\x7f", b"a\tb"])
def test_strange_request_id_is_replaced_by_one_of_ours(bundle, given):
    async def ask(with_: Talk) -> None:
        answer = await with_.client.get("/healthz", headers={b"x-request-id": given})
        assert re.fullmatch("[0-9a-f]{32}", answer.headers["x-request-id"])
        again = await with_.client.get("/healthz", headers={b"x-request-id": given})
        assert again.headers["x-request-id"] != answer.headers["x-request-id"]

    talk(bundle, ask, is_started=False)


@pytest.fixture
def access_lines(caplog):
    """The access log's lines so far."""
    caplog.set_level(logging.INFO)

    def read() -> list[dict]:
        return [json.loads(one.getMessage()) for one in caplog.records if one.name == "rayner.access"]

    return read


SECRET = "Geheimnis Mustermann"


async def ask_secrets(with_: Talk) -> None:
    await with_.ask({"text": SECRET, "redact": "mask"}, headers={"x-request-id": "mine"})
    await with_.ask({"texts": [SECRET]})
    await with_.ask({"texts": [SECRET, 1]})
    await with_.ask({"text": SECRET, "labels": SECRET})
    await with_.client.post("/v1/entities", content=json.dumps({"text": SECRET})[:-1], headers=JSON)
    await with_.stream(json.dumps({"text": SECRET}).encode() + b"\n" + json.dumps({"txet": SECRET}).encode())
    with_.replica.engine.poison(SECRET, "finish")
    await with_.ask({"text": SECRET})
    await with_.ask({"texts": [SECRET]})
    await with_.stream(json.dumps({"text": SECRET}).encode())


def test_no_text_is_logged_by_default(bundle, caplog, access_lines, capfd):
    talk(bundle, ask_secrets)
    assert [line["status"] for line in access_lines()] == [200, 200, 422, 422, 400, 200, 500, 500, 200]
    captured = capfd.readouterr()
    for logged in (caplog.text, captured.out, captured.err):
        assert "Geheimnis" not in logged
        assert "Mustermann" not in logged
    first = access_lines()[0]
    assert (first["request_id"], first["method"], first["route"]) == ("mine", "POST", "/v1/entities")
    assert first["num_tokens"] > 0
    assert {"time", "ms", "queue_ms", "engine_ms"} <= first.keys()


def test_texts_are_logged_where_it_is_asked_for(bundle, access_lines):
    talk(bundle, ask_secrets, log_texts=True)
    assert access_lines()[0]["texts"] == [SECRET]
    assert access_lines()[1]["texts"] == [SECRET]


def test_access_log_can_be_off(bundle, access_lines):
    talk(bundle, ask_secrets, access_log=False)
    assert access_lines() == []


def test_failed_line_of_a_stream_is_logged_with_the_id_of_its_request(bundle, caplog):
    async def ask(with_: Talk) -> None:
        with_.replica.engine.poison("Utrecht", "finish")
        told = (await with_.stream(b'{"text": "Utrecht"}')).json()
        assert told["error"]["status"] == 500
        assert told["error"]["request_id"] in caplog.text
        assert "a poisonous text" in caplog.text

    talk(bundle, ask)


def test_metrics_count_requests_by_route_and_status(bundle):
    async def ask(with_: Talk) -> None:
        await with_.ask({"text": TEXT})
        await with_.ask({"text": 1})
        await with_.client.get("/v1/models/nobody")
        for at in range(3):
            await with_.client.get(f"/made-up-{at}")
        answer = await with_.client.get("/metrics")
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/plain; version=")
        families = {family.name: family for family in text_string_to_metric_families(answer.text)}
        counts = {
            (sample.labels["route"], sample.labels["status"]): sample.value
            for sample in families["rayner_requests"].samples
        }
        assert counts == {
            ("/v1/entities", "200"): 1,
            ("/v1/entities", "422"): 1,
            ("/v1/models/{name}", "404"): 1,
            ("other", "404"): 3,
        }
        assert families["rayner_queued_tokens"].samples[0].value == 0
        assert families["rayner_models_loaded"].samples[0].value == 1
        assert families["rayner_resident_bytes"].samples[0].value > 10**7

    talk(bundle, ask)


def test_documentation_loads_nothing_from_elsewhere(bundle):
    async def ask(with_: Talk) -> None:
        page = await with_.client.get("/docs")
        assert page.status_code == 200
        assert page.headers["content-type"].startswith("text/html")
        assert "http://" not in page.text
        assert "https://" not in page.text
        assert "//" not in re.sub(r"<script>.*?</script>", "", page.text, flags=re.DOTALL).replace("<!--", "")
        wanted = re.findall(r'(?:src|href)="([^"]+)"', page.text)
        assert len([one for one in wanted if not one.startswith("data:")]) == 2
        for one in wanted:
            if not one.startswith("data:"):
                assert (await with_.client.get(f"/{one}")).status_code == 200
        assert "url: 'openapi.json'" in page.text or '"openapi.json"' in page.text
        policy = page.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; script-src 'self' 'sha256-")
        assert "unsafe-eval" not in policy
        assert "script-src 'self' 'unsafe-inline'" not in policy

    talk(bundle, ask, is_started=False)


@pytest.mark.parametrize(
    "path", ["/docs/assets/../../routes.py", "/docs/assets/%2e%2e/x", "/docs/assets/%00", "/docs/assets/"]
)
def test_only_the_documentations_own_files_are_served(bundle, path):
    async def ask(with_: Talk) -> None:
        check_problem(await with_.client.get(path), 404)

    talk(bundle, ask, is_started=False)


@pytest.mark.parametrize("body", [b"[" * 1_000_000, b'{"text": [' + b"1," * 500_000 + b"1]}", b" " * 1_100_000])
@pytest.mark.parametrize("path", ["/v1/entities", "/v1/entities/stream"])
def test_refused_body_is_gone_at_once_and_does_not_wait_for_the_collector(bundle, path, body):
    """A cycle of frames and errors would hold each of them until Python looks for cycles, which is seldom."""

    async def ask(with_: Talk) -> None:
        async def send() -> None:
            if path.endswith("stream"):
                await with_.stream(body, path)
            else:
                await with_.client.post(path, content=body, headers=JSON)

        await send()
        gc.collect()
        gc.disable()
        tracemalloc.start()
        try:
            for _ in range(3):
                await send()
            assert tracemalloc.get_traced_memory()[0] < 500_000
        finally:
            tracemalloc.stop()
            gc.enable()

    talk(bundle, ask, tuning={"max_body_kib": 1024})


# ---- clients that leave


async def call(replica: WatchedReplica, messages: list[dict], path: str, media_type: str) -> list[dict]:
    """The application's own messages for a request whose messages are given; after them, nothing comes."""
    app = build_http(replica, dict, "1")  # type: ignore[arg-type]
    waiting = iter(messages)
    sent: list[dict] = []

    async def receive():  # type: ignore[no-untyped-def]
        message = next(waiting, None)
        return message or await asyncio.sleep(60)

    async def send(message):  # type: ignore[no-untyped-def]
        sent.append(message)

    headers = [(b"content-type", media_type.encode())]
    scope = {"type": "http", "method": "POST", "path": path, "raw_path": path.encode(), "query_string": b""}
    await app({**scope, "headers": headers, "http_version": "1.1", "scheme": "http"}, receive, send)
    return sent


@pytest.mark.parametrize(
    ("path", "media_type"),
    [("/v1/entities", "application/json"), ("/v1/entities/stream", "application/x-ndjson")],
)
def test_client_that_leaves_while_it_sends_is_no_error_of_ours(bundle, caplog, access_lines, path, media_type):
    async def ask(with_: Talk) -> None:
        messages = [{"type": "http.request", "body": b'{"text": "Ada"}\n{"te', "more_body": True}]
        await call(with_.replica, [*messages, {"type": "http.disconnect"}], path, media_type)

    talk(bundle, ask)
    assert [line["status"] for line in access_lines()] == [499]
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


def test_request_that_is_cancelled_leaves_nothing_in_the_queue(bundle, access_lines):
    """Ray Serve cancels the request of a client that left."""

    async def ask(with_: Talk) -> None:
        with_.replica.engine.gate.clear()
        waiting = 0
        for body in ({"text": TEXT * 10}, {"texts": [TEXT] * 20}):
            asked = asyncio.create_task(with_.ask(body))
            await wait_until(lambda least=waiting: with_.replica.count_load() > least, "it is under way")
            asked.cancel()
            await asyncio.wait([asked])
            waiting = with_.replica.count_load()  # what threads already have
        with_.replica.engine.gate.set()
        await wait_until(lambda: with_.replica.count_load() == 0, "nothing is left")

    talk(bundle, ask)
    assert [line["status"] for line in access_lines()] == [499, 499]
