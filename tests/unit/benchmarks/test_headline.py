"""The first table of README.md is that of the results files."""

from benchmarks.headline import render
from benchmarks.tables import README, put_table


def test_the_table_of_the_readme_is_rendered_from_the_results():
    page = README.read_text(encoding="utf-8")
    assert put_table(page, render(), "headline") == page
    assert render() in page
