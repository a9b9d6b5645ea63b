"""Scores that are too sure are brought to what they mean; what is found and its order stay."""

import numpy as np
import pytest

from pipelines.evaluation.calibration import (
    MIN_ENTITIES,
    Scores,
    cross_fit_error,
    fit_temperatures,
    gather_scores,
    join_scores,
)
from pipelines.evaluation.metrics import Scored
from pipelines.ner.decoding import scale_scores
from pipelines.ner.entities import Span


def draw(temperature: float, count: int = 20_000, seed: int = 0) -> Scores:
    """Scores that would be true if scaled by a temperature."""
    generator = np.random.default_rng(seed)
    scores = generator.uniform(0.02, 0.98, count)
    return Scores(scores, (generator.random(count) < scale_scores(scores, temperature)).astype(float))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
def test_temperature_is_found_again_and_takes_the_error_away(temperature):
    found = draw(temperature)
    assert found.fit() == pytest.approx(temperature, rel=0.08)
    assert found.scale(found.fit()).error < 0.02
    if temperature != 1:
        assert found.error > 0.05


def test_error_is_the_gap_of_each_bin_by_its_share():
    scores = Scores(np.array([0.95, 0.95, 0.95, 0.95, 0.31]), np.array([1.0, 1.0, 0.0, 0.0, 1.0]))
    assert scores.error == pytest.approx((4 * 0.45 + 0.69) / 5)
    assert Scores(np.empty(0), np.empty(0)).error == 0


def test_scaling_keeps_the_order_the_middle_and_the_ends():
    scores = np.array([0.0, 0.1, 0.5, 0.9, 1.0])
    scaled = scale_scores(scores, 3.0)
    assert scaled[[0, 2, 4]].tolist() == [0, 0.5, 1]
    assert np.all(np.diff(scaled) > 0)
    assert 0.5 < scaled[3] < 0.9
    assert scale_scores(scores, 1.0) is scores


def test_rare_label_takes_the_temperature_of_all():
    common, rare = draw(2.0, 5000), draw(0.5, MIN_ENTITIES - 1)
    found = fit_temperatures({"LOC": common, "PER": rare})
    assert found["PER"] == pytest.approx(join_scores({"LOC": common, "PER": rare}).fit(), abs=1e-3)
    assert found["LOC"] != found["PER"]


def test_scores_are_compared_strictly_with_gold_and_one_kind_alone_says_nothing():
    gold, predicted = [Span(0, 1, "PER"), Span(3, 5, "LOC")], [Span(0, 1, "PER", 0.9), Span(3, 4, "LOC", 0.8)]
    found = gather_scores([Scored("d", "f:1", gold, gold, predicted, words=list("abcde"))])
    assert (found["PER"].is_right_E.tolist(), found["LOC"].is_right_E.tolist()) == ([1], [0])
    assert found["PER"].fit() == 1
    assert fit_temperatures({}) == {}


def test_gold_that_the_scheme_does_not_allow_is_read_as_strictly_as_in_reports():
    predicted = [Span(0, 1, "PER", 0.9), Span(2, 3, "PER", 0.9)]
    record = Scored.from_tags("d", "f:1", list("abc"), ["I-PER", "O", "B-PER"], "BIO", predicted)
    assert gather_scores([record])["PER"].is_right_E.tolist() == [0, 1]


def make_documents(temperatures, label="PER"):
    """A document of many mentions for each temperature."""
    records = []
    for number, temperature in enumerate(temperatures):
        drawn = draw(temperature, 3000, seed=number)
        predicted = [Span(at, at + 1, label, score) for at, score in enumerate(drawn.scores_E)]
        gold = [span for span, is_right in zip(predicted, drawn.is_right_E, strict=True) if is_right]
        records.append(Scored.from_text(f"d{number}", f"f:{number}", "x" * 3000, gold, predicted))
    return records


def test_cross_fitted_error_is_measured_on_documents_that_were_not_fitted_on():
    like, unlike = make_documents([2.0, 2.0]), make_documents([3.0, 0.4])
    assert cross_fit_error(like) < 0.03 < join_scores(gather_scores(like)).error
    found = gather_scores(unlike)
    assert join_scores(found, fit_temperatures(found)).error < 0.1 < cross_fit_error(unlike)
    assert cross_fit_error(like[::-1]) == pytest.approx(cross_fit_error(like))


def test_label_of_one_half_alone_takes_the_temperature_of_all_of_the_other():
    first, second = make_documents([2.0], "PER")[0], make_documents([2.0, 2.0], "LOC")[1]
    assert cross_fit_error([first, second]) < 0.03


def test_one_document_has_no_other_half_to_be_fitted_on():
    record = make_documents([2.0])
    assert cross_fit_error(record) == join_scores(gather_scores(record)).error
    assert cross_fit_error([]) == 0
