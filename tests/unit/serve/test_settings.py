"""What an endpoint can be told: command lines' strings are read, contradictions and nonsense are refused."""

import importlib.util
import math
from importlib.machinery import ModuleSpec

import pytest
from pydantic import ValidationError

from serve.settings import Arguments, Tuning


def test_strings_of_a_command_line_are_read():
    found = Arguments.model_validate(
        {"model": "m", "models": "a=x/y, b = z=1 ,", "num_cpus": "2", "page": "false", "max_replicas": "3"}
    )
    assert found.models == {"a": "x/y", "b": "z=1"}
    assert (found.num_cpus, found.page, found.max_replicas) == (2.0, False, 3)


def test_defaults_are_one_replica_without_secrets_in_logs():
    found = Arguments(model="m")
    assert (found.min_replicas, found.max_replicas, found.log_texts, found.tracing) == (1, 1, False, False)
    assert found.tuning == Tuning()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("min_score", -0.1),
        ("min_score", 1.1),
        ("min_score", math.nan),
        ("max_batch_tokens", 15),
        ("max_queued_tokens", 0),
        ("max_wait_s", 0),
        ("max_wait_s", math.inf),
        ("timeout_s", 0),
        ("timeout_s", 3601),
        ("timeout_s", math.inf),
        ("timeout_s", math.nan),
        ("max_body_kib", 0),
        ("max_texts", 0),
        ("max_characters", 0),
        ("max_character", 5),
    ],
)
def test_tuning_that_makes_no_sense_is_refused_by_name(name, value):
    with pytest.raises(ValidationError) as refused:
        Tuning.model_validate({name: value})
    assert [mistake["loc"] for mistake in refused.value.errors()] == [(name,)]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"min_replicas": 2}, "above max_replicas"),
        ({"min_replicas": -1}, "min_replicas"),
        ({"max_replicas": 0}, "max_replicas"),
        ({"num_gpus": 1.5}, "whole number"),
        ({"num_gpus": -1}, "num_gpus"),
        ({"num_gpus": math.inf}, "num_gpus"),
        ({"num_gpus": math.nan}, "num_gpus"),
        ({"num_cpus": 0}, "num_cpus"),
        ({"num_cpus": math.inf}, "num_cpus"),
        ({"upscale_delay_s": math.inf}, "upscale_delay_s"),
        ({"downscale_delay_s": -1}, "downscale_delay_s"),
        ({"target_queued_tokens": 0}, "target_queued_tokens"),
        ({"max_models_mib": 0}, "max_models_mib"),
        ({"model_name": "a b"}, "model_name"),
        ({"model_name": ""}, "model_name"),
        ({"model_name": "x" * 65}, "model_name"),
        ({"model_name": "../x"}, "model_name"),
        ({"models": {"default": "x"}}, "two models are named `default`"),
        ({"models": {"a/b": "x"}}, "models"),
        ({"models": {"a": ""}}, "models"),
        ({"models": "a"}, "models"),
        ({"models": "a=x,a=y"}, "same name"),
        ({"models": "=x"}, "models"),
        ({"tuning": {"timeout_s": -1}}, "timeout_s"),
        ({"modle": "x"}, "modle"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(given, told):
    with pytest.raises(ValidationError, match=told):
        Arguments.model_validate({"model": "m", **given})


def test_model_must_be_given():
    with pytest.raises(ValidationError, match="model"):
        Arguments.model_validate({})


@pytest.mark.parametrize("share", [0, 0.25, 1, 2])
def test_shares_of_gpus_that_ray_can_give_are_taken(share):
    assert Arguments(model="m", num_gpus=share).num_gpus == share


def test_tracing_without_its_extra_is_refused_although_ray_brings_other_parts_of_opentelemetry(monkeypatch):
    assert Arguments(model="m", tracing=True).tracing

    def find_spec(name: str) -> ModuleSpec | None:
        """As where `opentelemetry.exporter.prometheus` alone is installed."""
        if name.startswith("opentelemetry.exporter.otlp"):
            raise ModuleNotFoundError(name)
        return importlib.util.find_spec(name)

    monkeypatch.setattr("serve.settings.find_spec", find_spec)
    with pytest.raises(ValidationError, match="extra `tracing`"):
        Arguments(model="m", tracing=True)
