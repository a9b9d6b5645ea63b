"""Low-resource runs with augmentation: recipes are settings of training, which part is taken, table and plot."""

import json
from xml.etree import ElementTree

import pyarrow as pa
import pytest

from benchmarks.augmentation import (
    CHINESE,
    NONE,
    NUM_SCORINGS,
    PASSES,
    PLOT,
    RECIPES,
    RESULTS,
    plan_passes,
    render_plot,
    render_table,
    take_part,
)
from benchmarks.tables import README, put_table
from pipelines.corpus.augmentation.config import TECHNIQUES
from pipelines.settings import parse_settings
from pipelines.train import TrainConfig
from tests.unit.benchmarks.test_quality_table import make_run

RESULT = {
    "1": {NONE: {"1": make_run(0.25, 1), "2": make_run(0.25, 1)}, "masking": {"1": make_run(0.5, 2)}},
    "25": {NONE: {"1": make_run(0.75, 3)}, "masking": {"1": make_run(1.0, 4), "2": make_run(1.0, 4)}},
}


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_is_made_of_settings_of_augmentation(recipe):
    config = parse_settings("train", TrainConfig, [*RECIPES[recipe], "--corpus.train", "x"], "")
    assert bool(config.corpus.augmentation.rates) == (recipe != NONE)
    assert config.corpus.augmentation.find_problems() == []
    assert recipe not in TECHNIQUES or config.corpus.augmentation.rates == {recipe: 1.0}


def test_every_technique_that_an_english_corpus_can_have_is_measured():
    assert set(TECHNIQUES) - set(RECIPES) == set(CHINESE)


def test_a_part_is_of_whole_documents_and_lies_within_a_larger_one():
    rows = [{"record_id": f"/x/r{at:03d}", "doc_id": f"/x/d{at // 2}"} for at in range(400)]
    records = pa.Table.from_pylist(rows)
    small, large, other = (take_part(records, *which) for which in ((1, 1), (25, 1), (25, 2)))
    ids = [set(part["record_id"].to_pylist()) for part in (small, large, other)]
    assert [len(some) for some in ids] == [4, 100, 100]
    assert ids[0] < ids[1] != ids[2]
    assert len(set(large["doc_id"].to_pylist())) == 50
    assert set(large["split"].to_pylist()) == {"train"}
    assert take_part(records, 100, 3).drop_columns("split").equals(records)


@pytest.mark.parametrize("passes", [0.4, 1, 3.6, 8, 17, 29.5, 60])
def test_passes_are_kept_to_about_and_dev_is_scored_often_enough_and_not_too_often(passes):
    repeats, num_epochs = plan_passes(passes)
    assert repeats * num_epochs == pytest.approx(max(1, passes), rel=0.15)
    assert num_epochs <= 2 * NUM_SCORINGS


def test_the_table_tells_f1_by_part_and_the_difference_to_the_same_seeds_without():
    head, _, none, masking = render_table(RESULT).splitlines()
    assert head == "| augmentation | 1 %: test F1 | difference (p) | 25 %: test F1 | difference (p) |"
    assert none == "| none | 25.0 ± 0.0 |  | 75.0 |  |"
    assert masking.startswith("| masking | 50.0 | +26.7 (")  # 2 and 1 of 4 entities: F1 66.7 and 40.0
    assert "| 100.0 ± 0.0 | +14.3 (" in masking


def test_the_plot_has_a_line_of_gains_for_every_recipe_that_was_run():
    svg = ElementTree.fromstring(render_plot(RESULT))
    texts = [text.text for text in svg.iter("{http://www.w3.org/2000/svg}text")]
    assert {NONE, "masking", "1 %", "25 %"} <= set(texts)
    assert "typo_noise" not in texts
    assert len(list(svg.iter("{http://www.w3.org/2000/svg}circle"))) == 4


def test_the_table_of_the_readme_and_the_plot_are_rendered_from_the_results():
    page = README.read_text(encoding="utf-8")
    results = json.loads(RESULTS.read_text(encoding="utf-8"))
    assert put_table(page, render_table(results), "augmentation") == page
    assert PLOT.read_text(encoding="utf-8") == render_plot(results) + "\n"
    assert results.keys() <= {str(percent) for percent in PASSES}
