"""The gate: what it lets through, what it stops, and with which reason."""

import pytest

from pipelines.compression.config import Tolerance
from pipelines.compression.gate import LEAST_DOCUMENTS, judge
from pipelines.compression.page import choose_variant, describe

LABELS = ("LOC", "PER")


def make_documents(num_found: int, *, label: str = "PER", num_documents: int = 200):
    """Documents with an entity of each label; of one label only so many are found."""
    return {
        f"d{number}": {
            name: [1, 0, 0, 1, 0, 0] if name != label or number < num_found else [0, 0, 1, 0, 0, 1] for name in LABELS
        }
        for number in range(num_documents)
    }


def test_equal_models_pass_whatever_is_tolerated():
    start = make_documents(180)
    verdict = judge(start, start, Tolerance(0.1, 0.1))
    assert verdict.passes
    assert (verdict.overall.difference, verdict.overall.low, verdict.overall.high) == (0, 0, 0)
    assert set(verdict.labels) == set(LABELS)


def test_loss_that_is_not_excluded_is_stopped_with_its_interval():
    verdict = judge(make_documents(180), make_documents(170), Tolerance(1.0, 50.0))
    assert not verdict.passes
    [reason] = verdict.reasons
    assert f"{verdict.overall.difference:+.2f} points" in reason
    assert verdict.overall.low < verdict.overall.difference < verdict.overall.high < 0
    assert judge(make_documents(180), make_documents(170), Tolerance(5.0, 50.0)).passes


def test_label_that_is_shown_to_lose_stops_a_model_that_is_good_overall():
    verdict = judge(make_documents(180), make_documents(140), Tolerance(30.0, 5.0))
    assert [reason.split()[0] for reason in verdict.reasons] == ["PER"]
    assert verdict.labels["LOC"].difference == 0
    assert verdict.labels["PER"].high < -5


def test_rare_label_that_may_have_lost_does_not():
    """One entity of 6 lost: its interval reaches zero, and nothing is shown."""
    start, variant = (make_documents(found, num_documents=6) for found in (6, 5))
    verdict = judge(start, variant, Tolerance(100.0, 5.0))
    assert verdict.labels["PER"].difference < -5
    assert verdict.passes


def test_label_that_lost_nothing_is_not_refused_where_nothing_may_be_lost():
    start = make_documents(180)
    assert judge(start, start, Tolerance(1.0, 0.0)).passes


@pytest.mark.parametrize("num_documents", [1, 2, LEAST_DOCUMENTS - 1])
def test_equal_models_do_not_pass_on_documents_too_few_to_show_anything(num_documents):
    start = make_documents(num_documents, num_documents=num_documents)
    start |= {f"empty{number}": {} for number in range(20)} | {"false": {"PER": [0, 1, 0, 0, 1, 0]}}
    verdict = judge(start, start, Tolerance(100.0, 100.0))
    assert verdict.overall.low == verdict.overall.high == 0, "an interval without width"
    [reason] = verdict.reasons
    assert f"entities in {num_documents} documents" in reason
    start["one more"] = {"PER": [0, 0, 1, 0, 0, 1]}
    assert judge(start, start, Tolerance(100.0, 100.0)).passes == (num_documents == LEAST_DOCUMENTS - 1)


def make_variant(name, tokens_per_s, size_mib, passes=True):
    verdict = None if name == "start" else {"passes": passes, "reasons": []}
    return {"name": name, "tokens_per_s": tokens_per_s, "size_mib": size_mib, "verdict": verdict, "f1": 0.5}


@pytest.mark.parametrize(
    ("variants", "name"),
    [
        ([("1-vocabulary", 995.0, 50)], "1-vocabulary"),
        ([("1-vocabulary", 850.0, 50)], "start"),
        ([("1-prune", 2000.0, 80), ("2-vocabulary", 1990.0, 40)], "2-vocabulary"),
        ([("1-prune", 2000.0, 80), ("2-exits", 2500.0, 90)], "2-exits"),
        ([("1-int8", 5000.0, 20, False)], "start"),
        ([("1-same", 1005.0, 90)], "1-same"),
        ([("1-larger", 1005.0, 110)], "start"),
    ],
)
def test_of_what_is_good_enough_the_fastest_is_chosen_and_of_as_fast_ones_the_smallest(variants, name):
    found = [make_variant("start", 1000.0, 100), *(make_variant(*one) for one in variants)]
    chosen = choose_variant(found)
    assert chosen["name"] == name
    if name == "start":
        told = describe({"start": "start", "chosen": name, "variants": found})
        assert ("faster or smaller" in told) == (len(variants[0]) == 3)
