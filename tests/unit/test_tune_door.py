"""What `rayner tune` tells of settings without effect, and how it leaves presets."""

from types import SimpleNamespace

import pytest

from pipelines import tune, tuned_presets
from pipelines.training.resources import ResourcesConfig
from pipelines.tune import TuneConfig
from pipelines.tuning.config import SearchConfig
from tests.unit.tuning.trials import make_trial


@pytest.mark.parametrize(
    ("search", "resources", "name"),
    [
        ({"cpus_per_trial": 2}, {"cpus_per_worker": 4}, "cpus_per_worker"),
        ({"gpus_per_trial": 0.0}, {"use_gpu": True}, "use_gpu"),
        ({"gpus_per_trial": 0.5}, {"use_gpu": False}, "use_gpu"),
        ({}, {"num_workers": "1..2"}, "num_workers"),
    ],
)
def test_resources_that_the_search_overrides_are_told(search, resources, name):
    config = TuneConfig(search=SearchConfig(**search), resources=ResourcesConfig(**resources))
    [told] = tune._find_idle(config)
    assert f"`resources.{name}`" in told
    assert "has no effect" in told


@pytest.mark.parametrize(
    ("search", "resources"),
    [
        ({}, {}),
        ({}, {"cpus_per_worker": 4, "use_gpu": True}),
        ({"cpus_per_trial": 4, "gpus_per_trial": 1.0}, {"cpus_per_worker": 4, "use_gpu": True}),
    ],
)
def test_resources_that_hold_are_not_told(search, resources):
    assert tune._find_idle(TuneConfig(search=SearchConfig(**search), resources=ResourcesConfig(**resources))) == []


def test_planner_has_what_the_search_says_of_gpus(monkeypatch):
    asked = []
    monkeypatch.setattr(tune, "plan_search", lambda settings, *args, **more: asked.append(settings.resources))
    monkeypatch.setattr(tune, "_count_parameters", lambda prepared: 0)
    config = TuneConfig(search=SearchConfig(gpus_per_trial=0.0), resources=ResourcesConfig(use_gpu=True))
    prepared = SimpleNamespace(encoder="e", info=SimpleNamespace(window=1))
    assert tune._follow_plan(config, [prepared], None, None) is None
    assert [resources.use_gpu for resources in asked] == [False]


def test_front_that_cannot_be_written_leaves_the_one_that_was_there(tmp_path, monkeypatch):
    monkeypatch.setattr(tuned_presets, "render_run", lambda jobs, slots, number, settings, run: f"trial {number}")
    tuned_presets.write_front(tmp_path, [make_trial(1, [0.5]), make_trial(2, [0.6])], None, None)
    tuned_presets.write_front(tmp_path, [make_trial(2, [0.6]), make_trial(3, [0.7])], None, None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["trial-0002.yaml", "trial-0003.yaml"]
    monkeypatch.setattr(tuned_presets, "render_run", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        tuned_presets.write_front(tmp_path, [make_trial(4, [0.8])], None, None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["trial-0002.yaml", "trial-0003.yaml"]
