"""Two models on the same documents: differences add up, and belong to their labels."""

import pytest

from pipelines.evaluation.bootstrap import paired_bootstrap
from pipelines.evaluation.comparison import OVERALL, compare, list_comparison_rows

FIRST = {"a": {"PER": [3, 0, 1, 0, 0, 0], "LOC": [1, 1, 0, 0, 0, 0]}, "b": {"PER": [2, 0, 0, 0, 0, 0]}, "c": {}}
SECOND = {"a": {"PER": [2, 0, 2, 0, 0, 0], "LOC": [1, 0, 0, 0, 0, 0]}, "b": {"PER": [2, 0, 0, 0, 0, 0]}, "c": {}}


def test_differences_are_those_of_the_scores_and_of_the_paired_bootstrap():
    found = compare(FIRST, SECOND, "other")
    assert found["compared_to"] == "other"
    assert found["overall"]["f1"] == pytest.approx(12 / 14)
    assert found["overall"]["other_f1"] == pytest.approx(10 / 12)
    for one in (found["overall"], *found["labels"].values()):
        assert one["difference"] == pytest.approx(one["f1"] - one["other_f1"])
    assert {name: found["overall"][name] for name in ("low", "high", "p_value")} == {
        name: value for name, value in paired_bootstrap(FIRST, SECOND).items() if name != "difference"
    }
    assert (found["labels"]["PER"]["f1"], found["labels"]["LOC"]["f1"]) == pytest.approx((10 / 11, 2 / 3))
    assert [row[0] for row in list_comparison_rows(found)] == ["LOC", "PER", OVERALL]
    assert list_comparison_rows(found)[1][1:4] == ["90.9", "80.0", "+10.9"]


def test_label_that_one_model_alone_predicts_is_compared_and_one_of_lenient_gold_alone_is_not():
    first, second = {"a": {"MISC": [0, 2, 0, 0, 2, 0]}}, {"a": {"ODD": [0, 0, 0, 0, 0, 1]}}
    found = compare(first, second, "other")
    assert list(found["labels"]) == ["MISC"]
    assert found["labels"]["MISC"] == {
        "f1": 0.0, "other_f1": 0.0, "difference": 0.0, "low": 0.0, "high": 0.0, "p_value": 1.0
    }  # fmt: skip


def test_documents_of_another_corpus_are_refused():
    with pytest.raises(ValueError, match="one of the two evaluations only"):
        compare(FIRST, {"a": SECOND["a"]}, "other")
