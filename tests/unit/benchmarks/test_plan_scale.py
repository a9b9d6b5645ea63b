"""The tables of docs/scale.md are those of the results file, and the results are what the planner says."""

import json

import pytest

from benchmarks.plan_scale import CLUSTERS, PAGE, RESULTS, plan_all, put_tables


def read_results():
    return json.loads(RESULTS.read_text(encoding="utf-8"))


def test_the_tables_of_the_page_are_rendered_from_the_results():
    page = PAGE.read_text(encoding="utf-8")
    assert put_tables(page, read_results()) == page


def test_the_results_are_what_the_planner_says_now(monkeypatch: pytest.MonkeyPatch):
    results = read_results()
    monkeypatch.setattr("benchmarks.plan_scale.count_sample", lambda: results["corpus"]["histogram"])
    now = json.loads(json.dumps(plan_all()))
    for plans in (results, now):
        for plan in [*plans["train"]["recipe"].values(), *plans["train"]["growing"].values()]:
            del plan["planning_s"]
        for task in ("predict", "serve"):
            for plan in plans[task].values():
                del plan["planning_s"]
    assert now == results


@pytest.mark.parametrize("task", ["predict", "serve"])
def test_a_bottleneck_is_named_at_each_size(task):
    results = read_results()
    assert results[task].keys() == CLUSTERS.keys()
    assert all(plan["bottleneck"] for plan in results[task].values())
