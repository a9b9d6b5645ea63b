"""What is noted of a variant's scores."""

import json
from contextlib import nullcontext
from types import SimpleNamespace

import pytest

from pipelines import variants
from pipelines.evaluation.calibration import cross_fit_error, fit_temperatures, gather_scores, join_scores
from pipelines.evaluation.metrics import Scored
from pipelines.ner.entities import Span


def make_dev() -> list[Scored]:
    """Documents whose scores are too sure, each in another way."""
    records = []
    for number in range(6):
        predicted = [Span(at, at + 1, "PER", 0.95 - 0.1 * (at % 3)) for at in range(60)]
        gold = [span for span in predicted if span.start % (number + 2)]
        records.append(Scored.from_text(f"d{number}", f"f:{number}", "x" * 60, gold, predicted))
    return records


@pytest.mark.parametrize("name", ["start", "variant"])
def test_calibration_is_measured_on_documents_that_it_was_not_fitted_on(tmp_path, monkeypatch, name):
    dev, told = make_dev(), []
    monkeypatch.setattr(variants, "annotate_bundle", lambda bundle, training, **facts: told.append(facts))
    bench = SimpleNamespace(
        start=tmp_path / "start",
        record=SimpleNamespace(phase=lambda *names: nullcontext()),
        _predict_dev=lambda bundle: dev,
    )
    folder = tmp_path / "noted"
    folder.mkdir()
    found = variants.Bench.score(bench, folder, tmp_path / name)
    given = gather_scores(dev)
    before = join_scores(given).error
    if name == "start":
        assert found["calibration_error"] == [before, before]
        assert told == []
    else:
        assert found["calibration_error"] == [before, cross_fit_error(dev)]
        assert cross_fit_error(dev) != join_scores(given, fit_temperatures(given)).error
        assert told[-1] == {"temperatures": fit_temperatures(given)}
    assert json.loads((folder / variants.VARIANT_FILE).read_text())["calibration_error"] == found["calibration_error"]
