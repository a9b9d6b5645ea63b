"""The planner's predictions in README.md are those of the results file, and within the bounds that they are held to."""

import json

from benchmarks.plan import CONFIGURATIONS, MEMORY_BOUND, RESULTS, TIME_BOUND, render_table
from benchmarks.tables import README, put_table

results = json.loads(RESULTS.read_text(encoding="utf-8"))


def test_table_is_that_of_the_results_file():
    page = README.read_text(encoding="utf-8")
    assert put_table(page, render_table(results), "plan") == page


def test_predictions_are_within_their_bounds():
    found = results["configurations"]
    assert len(found) == len(CONFIGURATIONS)
    assert max(abs(one["memory_mib"]["ratio"] - 1) for one in found) <= MEMORY_BOUND
    assert max(abs(one["step_s"]["ratio"] - 1) for one in found) <= TIME_BOUND
