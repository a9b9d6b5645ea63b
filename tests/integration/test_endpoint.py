"""The endpoint on Ray Serve: it scales, survives what is done to it, and is replaced while it answers."""

import json
import os
import signal
import time
from pathlib import Path

import pytest
import yaml

from pipelines.ner.engine import NerEngine
from tests.conftest import EXACT, ROOT, make_bundle
from tests.integration.endpoint import Endpoint, open_endpoint
from tests.integration.processes import wait_until

TEXTS = [json.loads(line)["text"] for line in (ROOT / "tests" / "data" / "twenty_documents.jsonl").open()]
SETTINGS = {"num_cpus": 1, "runtime": "torch", "precision": "fp32", "device": "cpu"}


@pytest.fixture(scope="module")
def bundles(tiny_encoder, tmp_path_factory) -> tuple[Path, Path]:
    """Two bundles whose answers differ."""
    folder = tmp_path_factory.mktemp("bundles")
    return make_bundle(tiny_encoder, folder / "one"), make_bundle(tiny_encoder, folder / "two", head="crf")


@pytest.fixture(scope="module")
def endpoint(bundles, tmp_path_factory):
    arguments = SETTINGS | {
        "model": str(bundles[0]),
        "models": {"second": str(bundles[1])},
        "min_replicas": 1,
        "max_replicas": 3,
        "target_queued_tokens": 200,
        "upscale_delay_s": 0,
        "downscale_delay_s": 2,
    }
    with open_endpoint(arguments, tmp_path_factory.mktemp("endpoint")) as one:
        yield one


def predict(bundle: Path, texts: list[str]) -> list[list[dict]]:
    found = NerEngine.load(bundle, **EXACT).predict(texts)
    names = ("text", "label", "start", "end", "score")
    return [[{name: getattr(entity, name) for name in names} for entity in one.entities] for one in found]


def assert_equal(answered: list[dict], expected: list[list[dict]]) -> None:
    for result, entities in zip(answered, expected, strict=True):
        assert [{**one, "score": None} for one in result["entities"]] == [{**one, "score": None} for one in entities]
        scores = [one["score"] for one in entities]
        assert [one["score"] for one in result["entities"]] == pytest.approx(scores, abs=1e-5)
        assert result["coverage"]["fraction"] == 1


def test_http_list_and_stream_answer_as_the_engine_does(endpoint: Endpoint, bundles):
    expected = predict(bundles[0], TEXTS)
    status, answer = endpoint.ask("/v1/entities", {"texts": TEXTS})
    assert status == 200
    assert_equal(answer["results"], expected)
    one_by_one = [endpoint.ask("/v1/entities", {"text": text})[1] for text in TEXTS]
    assert_equal(one_by_one, expected)
    lines = stream(endpoint, [{"text": text, "id": f"d{number}"} for number, text in enumerate(TEXTS)])
    assert [line["id"] for line in lines] == [f"d{number}" for number in range(len(TEXTS))]
    assert_equal(lines, expected)


def stream(endpoint: Endpoint, lines: list[dict]) -> list[dict]:
    import urllib.request

    body = "".join(json.dumps(line) + "\n" for line in lines).encode()
    headers = {"content-type": "application/x-ndjson"}
    request = urllib.request.Request(f"{endpoint.url}/v1/entities/stream", body, headers)
    with urllib.request.urlopen(request, timeout=60) as answer:
        return [json.loads(line) for line in answer.read().splitlines()]


def test_another_model_is_loaded_when_it_is_asked_for(endpoint: Endpoint, bundles):
    assert endpoint.ask("/v1/models")[1] == {
        "default": "default",
        "models": ["default", "second"],
        "loaded": ["default"],
    }
    status, answer = endpoint.ask("/v1/models/second/entities", {"texts": TEXTS[:3]})
    assert status == 200
    assert_equal(answer["results"], predict(bundles[1], TEXTS[:3]))
    assert endpoint.ask("/v1/models")[1]["loaded"] == ["default", "second"]


def test_figures_of_every_replica_are_on_one_page(endpoint: Endpoint):
    status, page = endpoint.ask("/metrics")
    assert status == 200
    assert "rayner_requests_total{" in page
    assert 'route="/v1/entities"' in page


def test_replicas_follow_the_load_and_no_request_fails(endpoint: Endpoint, tmp_path):
    assert endpoint.count_replicas() == 1
    with endpoint.load(tmp_path, "--connections", "48", "--seconds", "60", texts=TEXTS) as report:
        wait_until(lambda: sum(endpoint.tell_replicas().values()) > 1, "another replica is being started", 10)
        wait_until(lambda: endpoint.count_replicas() > 1, "another replica runs", 300)
    assert report["statuses"].keys() == {"200"}
    assert report["errors"] == {}
    wait_until(lambda: endpoint.count_replicas() == 1, "the endpoint shrinks to one replica", 300)


def test_a_killed_replica_costs_no_accepted_request_and_is_replaced(endpoint: Endpoint, tmp_path):
    wait_until(lambda: len(endpoint.list_replicas()) == 1, "superfluous replicas have ended", 300)
    before = endpoint.list_replicas()
    with endpoint.load(tmp_path, "--connections", "8", "--seconds", "14", texts=TEXTS) as report:
        time.sleep(4)
        os.kill(before[0], signal.SIGKILL)
    assert set(report["statuses"]) <= {"200", "503"}
    assert report["errors"] == {}
    wait_until(lambda: endpoint.ask("/readyz")[0] == 200, "a replica is back", 300)
    assert before[0] not in endpoint.list_replicas()
    assert endpoint.ask("/v1/entities", {"text": TEXTS[0]})[0] == 200


def test_another_bundle_takes_over_under_load_without_a_failed_request(endpoint: Endpoint, bundles, tmp_path):
    arguments = SETTINGS | {"model": str(bundles[1]), "min_replicas": 1, "max_replicas": 1}
    with endpoint.load(tmp_path, "--connections", "6", "--seconds", "20", texts=TEXTS) as report:
        time.sleep(3)
        endpoint.order({"deploy": arguments})
    assert report["statuses"].keys() == {"200"}
    assert report["errors"] == {}
    _, answer = endpoint.ask("/v1/entities", {"texts": TEXTS[:2]})
    assert_equal(answer["results"], predict(bundles[1], TEXTS[:2]))


def test_thresholds_change_without_a_restart(endpoint: Endpoint, bundles):
    arguments = SETTINGS | {"model": str(bundles[1]), "access_log": False}
    config = yaml.safe_load((ROOT / "serve" / "config.yaml").read_text())
    [application] = config["applications"]
    application["args"] = arguments
    [deployment] = application["deployments"]
    endpoint.order({"configure": config})
    wait_until(lambda: len(endpoint.list_replicas()) == 1, "the replicas of before have ended", 300)
    assert endpoint.ask("/v1/entities", {"text": TEXTS[0]})[1]["entities"] != []
    before = endpoint.list_replicas()
    deployment["user_config"]["min_score"] = 1.0
    endpoint.order({"configure": config})
    wait_until(lambda: endpoint.ask("/v1/entities", {"text": TEXTS[0]})[1]["entities"] == [], "no entity is sure")
    assert endpoint.list_replicas() == before


def test_two_replicas_share_a_gpu(bundles, tmp_path):
    arguments = SETTINGS | {"model": str(bundles[0]), "num_gpus": 0.5, "min_replicas": 2, "max_replicas": 2}
    one_gpu = {"RAY_OVERRIDE_RESOURCES": json.dumps({"GPU": 1})}
    with open_endpoint(arguments, tmp_path, ingress="python", environment=one_gpu) as endpoint:
        assert endpoint.count_replicas() == 2
        assert endpoint.ask("/v1/entities", {"text": TEXTS[0]})[0] == 200
