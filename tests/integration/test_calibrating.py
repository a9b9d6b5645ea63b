"""Measuring this machine where training runs."""

import os
from functools import partial

import pytest

from pipelines.calibrating import measure_machine
from pipelines.planning.calibration import Probe, calibrate, load_rates
from pipelines.planning.errors import PlanError
from pipelines.training.trainer import run_alone

TINY = (Probe(1, 32, 16, 2, (8,) * 4), Probe(2, 64, 32, 4, (32,) * 2), Probe(1, 32, 16, 4, (16, 12)))


@pytest.mark.usefixtures("ray_session")
def test_lone_worker_answers_from_a_process_of_its_own():
    assert run_alone(os.getpid) != os.getpid()


@pytest.mark.usefixtures("ray_session")
def test_rates_that_a_worker_measured_are_kept_here(tmp_path, monkeypatch):
    monkeypatch.setattr("pipelines.calibrating.calibrate", partial(calibrate, probes=TINY))
    rates = measure_machine("fp32", folder=tmp_path)
    assert rates.source == "calibration"
    assert rates.parameter_s is not None
    assert load_rates("fp32", tmp_path) == rates


@pytest.mark.usefixtures("ray_session")
def test_cache_that_cannot_be_written_is_one_clear_error(tmp_path, monkeypatch):
    monkeypatch.setattr("pipelines.calibrating.calibrate", partial(calibrate, probes=TINY))
    (tmp_path / "file").write_text("")
    with pytest.raises(PlanError, match="XDG_CACHE_HOME"):
        measure_machine("fp32", folder=tmp_path / "file")


def test_where_a_cluster_is_meant_this_process_measures(tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    monkeypatch.setattr("pipelines.calibrating.calibrate", partial(calibrate, probes=TINY))
    assert measure_machine("fp32", folder=tmp_path).parameter_s is not None
