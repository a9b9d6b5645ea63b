"""What a calibration finds and keeps, and how past runs correct predictions."""

import json

import numpy as np
import pytest
import torch

from pipelines.planning import calibration, measurements
from pipelines.planning.calibration import (
    BOUNDS,
    Probe,
    calibrate,
    describe_machine,
    explain_steps,
    load_correction,
    load_rates,
    record_outcome,
    save_rates,
    solve,
)
from pipelines.planning.errors import PlanError
from pipelines.planning.rates import estimate_cpu_rates
from pipelines.training.probes import train_probe

TINY = (Probe(1, 32, 16, 2, (8,) * 4), Probe(2, 64, 32, 4, (32,) * 2), Probe(1, 32, 16, 4, (16, 12)))
CPU = torch.device("cpu")


def test_calibration_by_real_steps_is_kept_and_found_again(tmp_path, monkeypatch):
    monkeypatch.setattr(measurements, "PRODUCT_S", 0.01)
    monkeypatch.setattr(measurements, "COPIED_BYTES", 2**20)
    rates = calibrate(train_probe, precision="fp32", probes=TINY, folder=tmp_path)
    assert rates.source == "calibration"
    assert rates.flops["fp32"] > 1e8
    assert rates.memory_bytes_per_s > 1e7
    assert rates.parameter_s is not None
    assert sum(rates.element_s.values()) + rates.operator_s > 0
    assert load_rates("fp32", tmp_path) == rates
    assert load_rates("bf16", tmp_path) is None


def test_a_precision_without_fast_products_is_refused_before_anything_is_measured(monkeypatch):
    monkeypatch.setattr("pipelines.planning.calibration.list_precisions", lambda device: ["fp32", "int8"])
    monkeypatch.setattr("pipelines.planning.calibration.measure_products", lambda *given: pytest.fail("measured"))
    with pytest.raises(PlanError, match="computes no faster") as caught:
        calibrate(train_probe, precision="bf16", probes=TINY)
    assert caught.value.value == "bf16"


def test_rates_of_another_torch_are_not_taken(tmp_path, monkeypatch):
    rates = calibrate_nothing()
    save_rates(rates, "fp32", tmp_path)
    assert load_rates("fp32", tmp_path) == rates
    monkeypatch.setattr(torch, "__version__", "9.9")
    assert load_rates("fp32", tmp_path) is None


def test_a_torn_calibration_counts_as_none(tmp_path):
    path = save_rates(calibrate_nothing(), "fp32", tmp_path)
    path.write_text(path.read_text()[:40])
    assert load_rates("fp32", tmp_path) is None
    path.write_text(json.dumps({"rates": {"from": "another version"}}))
    assert load_rates("fp32", tmp_path) is None


def test_a_cache_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(PlanError, match="XDG_CACHE_HOME"):
        save_rates(calibrate_nothing(), "fp32", tmp_path / "file")


def calibrate_nothing():
    rates = estimate_cpu_rates(2)
    return type(rates)(**{**vars(rates), "name": describe_machine(CPU), "source": "calibration"})


def test_solving_finds_the_seconds_that_made_the_rows():
    generator = np.random.default_rng(1)
    work = generator.uniform(1, 10, (12, 4)) * [1e9, 1e6, 1e3, 1]
    seconds = np.array([1e-11, 2e-9, 0, 1e-3])
    assert solve(work, work @ seconds) == pytest.approx(seconds, rel=1e-6, abs=1e-12)


def test_solving_gives_no_negative_seconds():
    work = np.array([[1.0, 1.0], [1.0, 2.0], [1.0, 3.0]])
    found = solve(work, np.array([3.0, 2.0, 1.0]))
    assert min(found) >= 0
    assert found[0] > 0


def test_the_slowest_step_explains_nothing():
    """One that something else took time from says nothing."""
    rates = estimate_cpu_rates(2)
    quiet = [[{"seconds": s, "parts_s": {"optimizer": s / 10}} for _ in range(9)] for s in (0.1, 0.4, 0.2)]
    busy = [[row if at != 5 else {**row, "seconds": row["seconds"] * 5} for at, row in enumerate(run)] for run in quiet]
    assert explain_steps(rates, TINY, busy, "fp32") == explain_steps(rates, TINY, quiet, "fp32")


def test_a_correction_is_the_median_of_what_runs_showed(tmp_path):
    assert load_correction("memory", "m", "fp32", tmp_path) == 1.0
    for measured in (110, 120, 130, 900):
        record_outcome("memory", "m", "fp32", 100, measured, tmp_path)
    assert load_correction("memory", "m", "fp32", tmp_path) == pytest.approx(1.2)
    assert load_correction("step", "m", "fp32", tmp_path) == 1.0
    assert load_correction("memory", "other", "fp32", tmp_path) == 1.0


def test_one_odd_run_moves_a_prediction_half_way_at_most(tmp_path):
    record_outcome("step", "m", "fp32", 1.0, 1.4, tmp_path)
    assert load_correction("step", "m", "fp32", tmp_path) == pytest.approx(1.2)


@pytest.mark.parametrize(("measured", "bound"), [(1e6, BOUNDS[1]), (1e-6, BOUNDS[0])])
def test_a_correction_stays_within_bounds(tmp_path, measured, bound):
    for _ in range(5):
        record_outcome("step", "m", "fp32", 1.0, measured, tmp_path)
    assert load_correction("step", "m", "fp32", tmp_path) == bound


def test_old_outcomes_are_forgotten(tmp_path):
    for ratio in [3.0] * calibration.MOST_OUTCOMES + [1.5] * calibration.MOST_OUTCOMES:
        record_outcome("step", "m", "fp32", 1.0, ratio, tmp_path)
    assert load_correction("step", "m", "fp32", tmp_path) == 1.5
