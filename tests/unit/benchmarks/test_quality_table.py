"""Recipes of training: that each is a setting of `rayner train`, how runs are compared, and the table."""

import json
import statistics

import pytest

from benchmarks.quality import DEFAULTS, PEER, RECIPES, RESULTS, compare, pack_tallies, render_table, unpack_tallies
from benchmarks.tables import README, put_table
from pipelines.settings import parse_settings
from pipelines.train import TrainConfig, _find_problems


def make_run(f1: float, found: int, cpu_s: float = 100.0) -> dict:
    """Four documents with one entity each, of which the first `found` are found."""
    documents = pack_tallies({f"doc {at}": {"LOC": [int(at < found), 0, int(at >= found)] * 2} for at in range(4)})
    return {"test_strict_f1": f1, "dev_strict_f1": f1, "cpu_s": cpu_s, "documents": documents}


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_is_made_of_settings_that_training_takes(recipe):
    config = parse_settings("train", TrainConfig, [*RECIPES[recipe], "--corpus.train", "sample:en-train.jsonl"], "")
    assert _find_problems(config) == []
    assert (config == parse_settings("train", TrainConfig, ["--corpus.train", "sample:en-train.jsonl"], "")) == (
        recipe == DEFAULTS
    )


def test_runs_are_compared_over_the_documents_of_the_seeds_that_both_have():
    runs, others = {"1": make_run(1.0, 4), "2": make_run(1.0, 4)}, {"2": make_run(0.4, 1), "3": make_run(0.4, 1)}
    found = compare(runs, others)
    assert found["difference"] == pytest.approx(1.0 - 0.4)
    assert compare(runs, {"3": make_run(0.4, 1)}) is None
    same = compare(runs, runs)
    assert (same["difference"], same["p_value"]) == (0.0, 1.0)


def test_a_document_without_gold_may_have_predictions_in_one_run_only():
    runs, others = {"1": make_run(0.8, 4)}, {"1": make_run(1.0, 4)}
    runs["1"]["documents"] += " 9:0,1,0"
    assert compare(runs, others)["difference"] == pytest.approx(8 / 9 - 1)


def test_tallies_are_packed_by_place_and_documents_with_nothing_left_out():
    documents = {"a": {"LOC": [1, 0, 2, 1, 0, 2], "PER": [1, 1, 0, 1, 1, 0]}, "b": {}, "c": {"LOC": [0, 0, 1] * 2}}
    packed = pack_tallies(documents)
    assert packed == "0:2,1,2 2:0,0,1"
    assert unpack_tallies(packed) == {"0": [2, 1, 2], "2": [0, 0, 1]}
    assert unpack_tallies("") == {}


def test_the_table_tells_mean_deviation_difference_and_cost():
    results = {"wnut17": {DEFAULTS: {"1": make_run(0.4, 1), "2": make_run(0.5, 1)}, "FGM": {"1": make_run(1, 4, 210)}}}
    *_, defaults, fgm = render_table(results).splitlines()
    assert defaults == "| defaults | 45.0 ± 7.1 | 45.0 |  | 100 s |"
    assert fgm.startswith("| FGM | 100.0 | 100.0 | +60.0 (")
    assert fgm.endswith("| 2.10 × |")


def test_the_table_of_the_readme_is_rendered_from_the_results():
    page = README.read_text(encoding="utf-8")
    results = json.loads(RESULTS.read_text(encoding="utf-8"))
    assert put_table(page, render_table(results), "quality") == page


def test_defaults_reach_the_bar_on_wnut_in_fp32_and_bf16_costs_nothing_that_can_be_shown():
    found = json.loads(RESULTS.read_text(encoding="utf-8"))
    means = {
        (corpus, recipe): statistics.mean(run["test_strict_f1"] for run in found[corpus][recipe].values())
        for corpus in found
        for recipe in (DEFAULTS, "fp32")
        if sorted(found[corpus][recipe]) == ["1", "2", "3"]
    }
    assert len(means) == 4
    assert means["wnut17", "fp32"] >= 0.45
    assert means["wnut17", DEFAULTS] >= 0.445
    for corpus in found:
        compared = compare(found[corpus][DEFAULTS], found[corpus]["fp32"])
        assert compared["p_value"] > 0.05


def test_a_crf_over_bioes_beats_the_tuned_trainer_on_ncbi_disease_by_more_than_one_and_a_half_points():
    found = json.loads(RESULTS.read_text(encoding="utf-8"))["ncbi_disease"]
    one, other = (
        statistics.mean(run["test_strict_f1"] for run in found[recipe].values()) for recipe in ("CRF, BIOES", PEER)
    )
    assert one - other >= 0.015
