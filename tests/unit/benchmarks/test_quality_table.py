"""The numbers in README.md are those of the results file."""

import json

import pytest

from benchmarks.quality import RESULTS, render_table
from benchmarks.tables import README, put_table


def test_the_table_of_the_readme_is_rendered_from_the_results():
    page = README.read_text(encoding="utf-8")
    results = json.loads(RESULTS.read_text(encoding="utf-8"))
    assert put_table(page, render_table(results), "quality") == page


def test_wnut_reaches_the_bar_of_plain_fine_tuning():
    result = json.loads(RESULTS.read_text(encoding="utf-8"))["wnut17"]
    assert sorted(result["runs"]) == ["1", "2", "3"]
    assert result["test_strict_f1_mean"] >= 0.418
    assert result["test_strict_f1_mean"] == pytest.approx(
        sum(run["test_strict_f1"] for run in result["runs"].values()) / len(result["runs"])
    )
