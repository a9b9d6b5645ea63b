"""The actors of a job compute in one way, the one that the first of them has chosen."""

import errno
import json
import os

import pytest

from pipelines.corpus.agreement import load_agreed, read_agreements
from pipelines.corpus.inference import ActorPlan, InferenceConfig, load_engine
from pipelines.ner.runtimes.runtime import RuntimeUnavailable
from tests.conftest import make_bundle

PLAN = ActorPlan(num_actors=1, num_cpus=1, num_gpus=0)
AUTO = InferenceConfig(device="cpu")


@pytest.fixture(scope="module")
def bundle(tiny_encoder, tmp_path_factory):
    return str(make_bundle(tiny_encoder, tmp_path_factory.mktemp("bundle") / "linear"))


def load(work, bundle, config=AUTO, loader=load_engine):
    engine = load_agreed(work, bundle, config, PLAN, loader)
    return engine.runtime.name, engine.runtime.precision


def agree_on(work, runtime, precision):
    (work / "engine-cpu.json").write_text(json.dumps({"runtime": runtime, "precision": precision}))


def test_first_engine_is_written_down_with_the_figures_of_its_choice(bundle, tmp_path):
    chosen = load(tmp_path, bundle)
    [told] = read_agreements(tmp_path)
    assert (told["runtime"], told["precision"]) == chosen
    assert {one["runtime"] for one in told["candidates"]} >= {"torch", "packed"}
    assert [path.name for path in tmp_path.iterdir()] == ["engine-cpu.json"]


@pytest.mark.parametrize("choice", [("torch", "bf16"), ("packed", "fp32")])
def test_later_engines_follow_the_first(choice, bundle, tmp_path):
    agree_on(tmp_path, *choice)
    assert load(tmp_path, bundle) == choice


def test_engine_whose_machine_lacks_the_runtime_chooses_for_itself(bundle, tmp_path):
    def load_without_packed(model, config, plan):
        if config.runtime == "packed":
            raise RuntimeUnavailable("the runtime is not here")
        return load_engine(model, config, plan)

    agree_on(tmp_path, "packed", "fp32")
    config = InferenceConfig(device="cpu", runtime="torch", precision="fp32")
    assert load(tmp_path, bundle, config, load_without_packed) == ("torch", "fp32")
    [told] = read_agreements(tmp_path)
    assert told["runtime"] == "packed"
    with pytest.raises(RuntimeUnavailable):
        load(tmp_path / "elsewhere", bundle, InferenceConfig(device="cpu", runtime="packed"), load_without_packed)


@pytest.mark.parametrize("code", [errno.EPERM, errno.ENOTSUP])
def test_first_engine_is_written_down_where_there_are_no_hard_links(code, bundle, tmp_path, monkeypatch):
    def refuse(source, target):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "link", refuse)
    first = InferenceConfig(device="cpu", runtime="torch", precision="fp32")
    assert load(tmp_path, bundle, first) == ("torch", "fp32")
    assert load(tmp_path, bundle, InferenceConfig(device="cpu", runtime="packed")) == ("torch", "fp32")
    assert [path.name for path in tmp_path.iterdir()] == ["engine-cpu.json"]


def test_choice_that_is_just_being_written_is_none_yet(bundle, tmp_path):
    (tmp_path / "engine-cpu.json").touch()
    config = InferenceConfig(device="cpu", runtime="torch", precision="fp32")
    assert load(tmp_path, bundle, config) == ("torch", "fp32")
    assert read_agreements(tmp_path) == []


def test_engine_that_was_a_little_later_loads_what_the_first_has_written_meanwhile(bundle, tmp_path):
    loaded = []

    def load_slowly(model, config, plan):
        engine = load_engine(model, config, plan)
        loaded.append(config.runtime)
        if len(loaded) == 1:
            agree_on(tmp_path, "packed", "fp32")  # by another actor, while this one was measuring
        return engine

    config = InferenceConfig(device="cpu", runtime="torch", precision="fp32")
    assert load(tmp_path, bundle, config, load_slowly) == ("packed", "fp32")
    assert loaded == ["torch", "packed"]
