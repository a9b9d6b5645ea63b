"""Intervals: against a slow reference, independent of order, honest about degenerate cases."""

import random

import numpy as np
import pytest

from pipelines.evaluation import bootstrap
from pipelines.evaluation.bootstrap import bootstrap_intervals, paired_bootstrap


def make_documents(num_documents, seed, skill=6):
    rng = random.Random(seed)
    documents = {}
    for index in range(num_documents):
        tallies = {}
        for label in rng.sample(["LOC", "ORG", "PER"], rng.randint(0, 3)):
            tp, fp, fn = rng.randint(0, skill), rng.randint(0, 2), rng.randint(0, 2)
            tallies[label] = [tp, fp, fn, tp, fp, fn + 1]
        documents[f"doc{index}"] = tallies
    return documents


def score(tallies, first):
    tp, fp, fn = tallies[first : first + 3]
    return 2 * tp / (2 * tp + fp + fn) if tp else 0.0


def resample_slowly(documents, first, num_samples):
    """Micro, macro and PER F1 of samples drawn one document at a time."""
    rng, ids, samples = random.Random(1), list(documents), []
    for _ in range(num_samples):
        total = {}
        for doc_id in rng.choices(ids, k=len(ids)):
            for label, tally in documents[doc_id].items():
                total[label] = [a + b for a, b in zip(total.get(label, [0] * 6), tally, strict=True)]
        micro = [sum(column) for column in zip(*total.values(), strict=True)]
        macro = sum(score(tally, first) for tally in total.values()) / len(total)
        samples.append((score(micro, first), macro, score(total["PER"], first)))
    return np.percentile(np.array(samples), [2.5, 97.5], axis=0).T


@pytest.mark.parametrize(("reading", "first"), [("strict", 0), ("lenient", 3)])
def test_intervals_agree_with_a_slow_reference(reading, first):
    documents = make_documents(60, seed=3)
    fast = bootstrap_intervals(documents, num_samples=4000)[reading]
    ours = [fast["micro"]["f1"], fast["macro"]["f1"], fast["labels"]["PER"]["f1"]]
    assert np.array(ours) == pytest.approx(resample_slowly(documents, first, 4000), abs=0.012)


def test_intervals_do_not_depend_on_the_order_of_documents():
    documents = make_documents(40, seed=1)
    assert bootstrap_intervals(documents) == bootstrap_intervals(dict(reversed(documents.items())))


def test_intervals_do_not_depend_on_the_chunks(monkeypatch):
    documents = make_documents(40, seed=1)
    whole = bootstrap_intervals(documents, num_samples=300)
    monkeypatch.setattr(bootstrap, "_CHUNK_NUMBERS", 1000)
    assert bootstrap_intervals(documents, num_samples=300) == whole


def test_equal_documents_have_an_interval_of_no_width():
    documents = {str(index): {"PER": [3, 1, 1, 3, 1, 1]} for index in range(10)}
    micro = bootstrap_intervals(documents)["strict"]["micro"]
    assert micro == {"precision": [0.75, 0.75], "recall": [0.75, 0.75], "f1": [0.75, 0.75]}


def test_a_rare_label_is_judged_by_the_samples_that_hold_it():
    documents = {str(index): {"PER": [1, 0, 0, 1, 0, 0]} for index in range(30)}
    documents["rare"] = {"LAW": [2, 0, 0, 2, 0, 0]}
    assert bootstrap_intervals(documents)["strict"]["labels"]["LAW"]["f1"] == [1.0, 1.0]


def test_a_label_of_one_reading_only_has_no_interval_in_the_other():
    intervals = bootstrap_intervals({"a": {"PER": [0, 0, 0, 1, 0, 0]}, "b": {"LOC": [1, 0, 0, 1, 0, 0]}})
    assert list(intervals["strict"]["labels"]) == ["LOC"]
    assert list(intervals["lenient"]["labels"]) == ["LOC", "PER"]


def test_no_documents_have_no_intervals():
    assert bootstrap_intervals({}) == {}


def test_paired_bootstrap_of_equal_systems_finds_nothing():
    documents = make_documents(50, seed=2)
    assert paired_bootstrap(documents, documents) == {"difference": 0.0, "low": 0.0, "high": 0.0, "p_value": 1.0}


def test_paired_bootstrap_sees_a_clear_difference_and_its_sign():
    good = {str(index): {"PER": [5, 0, 0, 5, 0, 0]} for index in range(40)}
    poor = {str(index): {"PER": [4 - index % 2, 1, 1 + index % 2, 4, 1, 1]} for index in range(40)}
    better, worse = paired_bootstrap(good, poor), paired_bootstrap(poor, good)
    assert better["difference"] > 0.1
    assert 0 < better["low"] <= better["difference"] <= better["high"]
    assert better["p_value"] < 0.01
    assert worse["difference"] == -better["difference"]


def test_paired_bootstrap_agrees_with_a_slow_reference():
    rng = random.Random(0)
    b = {str(index): {"PER": [rng.randint(0, 5), rng.randint(0, 2), 3, 0, 0, 0]} for index in range(50)}
    a = {key: {"PER": [t["PER"][0] + (key < "3"), t["PER"][1], 3 - (key < "3"), 0, 0, 0]} for key, t in b.items()}
    draws = random.Random(5)
    samples = []
    for _ in range(4000):
        keys = draws.choices(list(a), k=len(a))
        totals = [[sum(x[key]["PER"][i] for key in keys) for i in range(3)] for x in (a, b)]
        samples.append(score(totals[0], 0) - score(totals[1], 0))
    ours = paired_bootstrap(a, b, num_samples=4000)
    assert [ours["low"], ours["high"]] == pytest.approx(np.percentile(samples, [2.5, 97.5]), abs=0.01)


@pytest.mark.parametrize("other", [{"x": {}}, {"a": {"PER": [1, 0, 1, 0, 0, 0]}}])
def test_paired_bootstrap_refuses_other_documents_or_gold(other):
    with pytest.raises(ValueError, match=r"one of the two|different gold"):
        paired_bootstrap({"a": {"PER": [1, 0, 0, 0, 0, 0]}}, other)
