"""`serve/config.yaml` and `serve/grafana.json` say only what Ray, the application and the metrics know."""

import json
import re

import pytest
import yaml
from pydantic import BaseModel
from ray.serve.config import AutoscalingConfig
from ray.serve.schema import DeploymentSchema, ServeApplicationSchema, ServeDeploySchema

from serve.app import DEPLOYMENT, MAX_ONGOING, plan_scaling
from serve.ingress import GRPC_SERVICER, choose_grpc_environment
from serve.metrics import Metrics
from serve.settings import Arguments, Tuning
from tests.conftest import ROOT


@pytest.fixture(scope="module")
def config() -> dict:
    return yaml.safe_load((ROOT / "serve" / "config.yaml").read_text(encoding="utf-8"))


def find_unknown(given: dict, schema: type[BaseModel]) -> set[str]:
    return given.keys() - schema.model_fields.keys()


def test_ray_takes_the_configuration_and_knows_every_key(config):
    """Ray itself passes over keys that it does not know."""
    ServeDeploySchema.model_validate(config)
    [application] = config["applications"]
    [deployment] = application["deployments"]
    assert find_unknown(config, ServeDeploySchema) == set()
    assert find_unknown(application, ServeApplicationSchema) == set()
    assert find_unknown(deployment, DeploymentSchema) == set()
    assert find_unknown(deployment["autoscaling_config"], AutoscalingConfig) == set()
    assert deployment["name"] == DEPLOYMENT


def test_the_application_takes_its_arguments_and_thresholds(config):
    [application] = config["applications"]
    Arguments.model_validate(application["args"])
    [deployment] = application["deployments"]
    assert Tuning.model_validate(deployment["user_config"]) == Tuning.model_validate({})
    assert deployment["max_ongoing_requests"] == MAX_ONGOING


def test_scaling_is_that_of_the_door(config):
    [application] = config["applications"]
    [deployment] = application["deployments"]
    given = AutoscalingConfig(**deployment["autoscaling_config"])
    planned = plan_scaling(Arguments(model="bundle", max_replicas=given.max_replicas))
    assert given.model_dump() == planned.model_dump()


def test_it_listens_to_this_machine_alone(config):
    assert config["http_options"]["host"] == "127.0.0.1"
    assert config["controller_options"]["runtime_env"]["env_vars"] == choose_grpc_environment()
    assert config["grpc_options"]["grpc_servicer_functions"] == [GRPC_SERVICER]


def test_the_dashboard_asks_for_metrics_that_there_are():
    dashboard = json.loads((ROOT / "serve" / "grafana.json").read_text(encoding="utf-8"))
    suffixes = {"counter": ["_total"], "gauge": [""], "histogram": ["_bucket", "_count", "_sum"]}
    known = {family.name + suffix for family in Metrics().collect() for suffix in suffixes[family.type]}
    asked = {
        name
        for panel in dashboard["panels"]
        for target in panel["targets"]
        for name in re.findall(r"rayner_\w+", target["expr"])
    }
    assert asked
    assert asked <= known
