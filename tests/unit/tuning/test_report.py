"""The report: every picture and table on the page, nothing from outside, everything escaped."""

import json
import math
import re
from itertools import pairwise

import pytest
import yaml

from pipelines.evaluation.pictures import Line, draw_curves, draw_parallel, draw_scatter
from pipelines.training.config import TrainingConfig
from pipelines.training.optimizer import OptimizerConfig
from pipelines.tuning.domains import Domain
from pipelines.tuning.leaders import choose_leaders, describe_gain, gather_leaders
from pipelines.tuning.presets import render_preset
from pipelines.tuning.report import collect_tuning, render_tuning_html, render_tuning_markdown
from pipelines.tuning.trials import FAILED, FINISHED, STOPPED, Journal
from tests.unit.tuning.trials import write_trial

RATE = "training.optimizer.learning_rate"
SPACE = {RATE: Domain("loguniform", 1e-5, 1e-3), "model.head": Domain("choice", choices=("linear", "<crf>"))}


@pytest.fixture
def tuning(tmp_path):
    search, repeats = Journal(tmp_path / "trials"), Journal(tmp_path / "leaders")
    write_trial(search, {}, [0.2, 0.4, 0.5], FINISHED)
    for number in range(5):
        settings = {RATE: 1e-5 * 3**number, "model.head": ("linear", "<crf>")[number % 2]}
        f1s = [0.1 + 0.05 * number] if number % 2 else [0.1 + 0.05 * number, 0.3 + 0.05 * number, 0.4 + 0.05 * number]
        write_trial(search, settings, f1s, STOPPED if number % 2 else FINISHED)
    write_trial(search, {RATE: 1e-3, "model.head": "linear"}, [], FAILED)
    write_trial(repeats, {}, [0.45], FINISHED, seed=2)
    leaders = gather_leaders(choose_leaders(search.read_all(), 1), [1, 2], search, repeats)
    found = collect_tuning(
        search.read_all(),
        leaders,
        SPACE,
        {RATE: 1e-4, "model.head": "linear"},
        cost="none",
        repeats=repeats.read_all(),
        phases_s={"reading": 3.0},
    )
    return found | {
        "gain": describe_gain(leaders, 1),
        "preset": "model:\n  head: <crf>\n",
        "figures": [("dev F1 of the winner", "60.0", "one seed")],
        "notes": ["Mind <this>."],
        "facts": {"encoder": "tiny & small"},
    }


def test_importance_is_told_of_the_epoch_that_it_was_computed_at(tmp_path):
    search = Journal(tmp_path / "trials")
    write_trial(search, {}, [0.2], STOPPED)  # the recipe as it is, which importance leaves out
    for number in range(5):
        write_trial(search, {RATE: 1e-5 * 2**number, "model.head": "linear"}, [0.1, 0.2 + 0.05 * number], FINISHED)
    leaders = gather_leaders(choose_leaders(search.read_all(), 1), [1], search, None)
    found = collect_tuning(search.read_all(), leaders, SPACE, {}, cost="none", repeats=[], phases_s={})
    assert found["importance"]
    assert found["importance_epoch"] == 2


def test_page_shows_all_and_needs_nothing_else(tuning):
    page = render_tuning_html(json.loads(json.dumps(tuning)), "Tuning of <tiny>")
    assert page.count("<svg") == 3
    for part in ("What matters", "What was spent where", "Leaders, with several seeds", "Trials without a score"):
        assert part in page
    assert "Tuning of &lt;tiny&gt;" in page
    assert "tiny &amp; small" in page
    assert "<crf>" not in page
    assert not re.search(r"<script|<link|@import|(src|href)=", page)


def test_parallel_coordinates_have_every_axis_and_every_trial_with_a_score(tuning):
    page = render_tuning_html(tuning, "t")
    parallel = next(svg for svg in re.findall(r"<svg.*?</svg>", page, re.DOTALL) if "Settings and F1" in svg)
    for name in ("learning_rate", "head", "dev F1"):
        assert f"{name}</text>" in parallel
    assert parallel.count("stroke-linejoin") == 6


def test_what_was_spent_adds_up(tuning):
    spent = {row["what"]: row for row in tuning["spent"]}
    assert {name: row["number"] for name, row in spent.items()} == {
        "trials that came to their end": 4,
        "trials stopped early": 2,
        "trials that failed": 1,
        "leaders with other seeds": 1,
        "reading": 0,
    }
    assert spent["trials stopped early"]["seconds"] == pytest.approx(2 * 3.0)
    assert spent["trials that came to their end"]["seconds"] == pytest.approx(4 * 9.0)


def test_markdown_has_the_same_tables(tuning):
    text = render_tuning_markdown(tuning, "Tuning")
    assert text.startswith("# Tuning\n")
    for part in ("## Leaders", "## Trials", "## Importance", "## What was spent", "| trial 6 |", tuning["gain"]):
        assert part in text


def test_search_without_any_score_has_a_page_too(tuning):
    empty = tuning | {"trials": [], "leaders": [], "front": [], "importance": {}, "spent": []}
    assert render_tuning_html(empty, "t").count("<svg") == 0


def test_pictures_of_one_trial_and_of_equal_scores_are_finite():
    line = Line("a", 1.0, True, [(1, 0.5)], {"x": 1})
    axis = {"path": "x", "is_log": False, "choices": [], "low": 1.0, "high": 2.0}
    for svg in (
        draw_curves([line], "t", "x", "y"),
        draw_scatter([line, line], [0], "t", "x", "y"),
        draw_parallel([line], [axis], "t"),
    ):
        assert "nan" not in svg
        assert "inf" not in svg
        assert line.name in svg


def test_trial_outside_an_axis_is_left_out_of_parallel_coordinates():
    axis = {"path": "x", "is_log": True, "choices": [], "low": 1.0, "high": 2.0}
    inside, outside = (
        Line(name, 1.0, False, [(1, 0.5)], {"x": value}) for name, value in (("in", 1.5), ("out", math.pi))
    )
    svg = draw_parallel([inside, outside, Line("none", 1.0, False, [(1, 0.5)], {"x": None})], [axis], "t")
    assert svg.count("stroke-linejoin") == 1


def test_preset_has_what_differs_and_reads_back():
    training = TrainingConfig(num_epochs=3, optimizer=OptimizerConfig(learning_rate=0.0001235))
    text = render_preset({"training": training, "resources": {"num_workers": 1}, "corpus": {}}, ["Found."])
    assert text.startswith("# Found.\n")
    assert yaml.safe_load(text) == {
        "training": {"num_epochs": 3, "optimizer": {"learning_rate": 0.0001235}},
        "resources": {"num_workers": 1},
    }


def test_steps_of_a_front_pass_below_what_was_reached():
    """Of a cost: what costs less is worse until the next dot; of a gain: what is faster is worse beyond the last."""
    lines = [Line(name, 1.0, True, [point]) for name, point in (("a", (1.0, 60.0)), ("b", (4.0, 50.0)))]
    cost = draw_scatter(lines[::-1], [1, 0], "t", "x", "y")
    gain = draw_scatter(lines, [0, 1], "t", "x", "y", more_is_better=True)
    assert re.search(r"M[\d.]+ [\d.]+H[\d.]+V", cost)
    assert re.search(r"M[\d.]+ [\d.]+V[\d.]+H", gain)


def test_nearly_equal_points_look_equal_where_a_height_is_asked_for():
    lines = [Line(name, 1.0, False, [point]) for name, point in (("a", (1.0, 59.793)), ("b", (4.0, 59.805)))]

    def measure(**height: float) -> float:
        picture = draw_scatter(lines, [], "t", "x", "y", **height)
        first, second = (float(y) for y in re.findall(r'cy="([0-9.]+)"', picture))
        return abs(first - second)

    assert measure() > 100
    assert measure(least_height=1.0) < 5


def test_labels_of_dots_in_one_place_lie_one_above_the_other():
    lines = [Line(name, 1.0, False, [(4.0, 59.8)], label=name) for name in "abc"]
    heights = [float(y) for y in re.findall(r'y="([0-9.]+)"[^>]*>[abc]<', draw_scatter(lines, [], "t", "x", "y"))]
    assert len(heights) == 3
    assert min(a - b for a, b in pairwise(sorted(heights, reverse=True))) >= 12
