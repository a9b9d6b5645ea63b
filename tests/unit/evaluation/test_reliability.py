"""Scores against shares of right mentions, and what thresholds cost and give."""

import json
import re

import pytest

from pipelines.evaluation.calibration import gather_scores, join_scores
from pipelines.evaluation.metrics import Scored
from pipelines.evaluation.reliability import MIN_SHOWN, THRESHOLDS, Reliability, draw_reliability
from pipelines.evaluation.report import EvaluationReport
from pipelines.ner.entities import Span

WIDE, NARROW = Span(0, 3, "PER"), Span(0, 2, "PER")


def make_records(pairs):
    """A record for each (score, whether it is right)."""
    return [
        Scored.from_text(f"d{at}", f"f:{at}", "abc", [WIDE], [Span(0, 3 if right else 2, "PER", score)])
        for at, (score, right) in enumerate(pairs)
    ]


PAIRS = [(0.95, True)] * 30 + [(0.92, False)] * 10 + [(0.6123456, at % 2) for at in range(20)] + [(1.0, True)] * 3


def fill(records):
    report = EvaluationReport(num_samples=10)
    for scored in records:
        report.add(scored)
    return report


def test_thresholds_give_the_scores_of_the_mentions_that_they_leave():
    records = make_records(PAIRS)
    found = fill(records).to_dict()
    assert [row["min_score"] for row in found["calibration"]["thresholds"]] == list(THRESHOLDS)
    for row in found["calibration"]["thresholds"]:
        left = [
            Scored.from_text(
                one.doc_id,
                one.source,
                "abc",
                one.gold,
                [span for span in one.predicted if span.score >= row["min_score"]],
            )
            for one in records
        ]
        expected = fill(left).to_dict()
        assert row["num_predicted"] == expected["num_predicted"]
        for name in ("precision", "recall", "f1"):
            assert row[name] == pytest.approx(expected["strict"]["micro"][name])


def test_error_is_that_of_calibration_and_bins_say_what_is_right():
    records = make_records(PAIRS)
    found = json.loads(json.dumps(fill(records).to_dict()["calibration"]))
    assert found["error"] == pytest.approx(join_scores(gather_scores(records)).error, abs=1e-6)
    assert [(one["low"], one["num_predicted"], one["share_right"]) for one in found["bins"]] == [
        (0.6, 20, 0.5),
        (0.9, 10, 0.0),
        (0.95, 33, 1.0),
    ]
    assert found["bins"][0]["mean_score"] == pytest.approx(0.612346)


def test_parts_add_up_to_the_same_in_any_order():
    records = make_records(PAIRS)
    parts = [Reliability() for _ in range(3)]
    for at, scored in enumerate(records):
        parts[at % 3].add(scored)
    total = Reliability()
    for part in reversed(parts):
        total.merge(part)
    assert total.to_dict(63) == fill(records).to_dict()["calibration"]


def test_a_mention_given_twice_counts_once_and_illegal_gold_is_not_right():
    reliability = Reliability()
    reliability.add(Scored.from_tags("d", "f:1", ["a", "b", "c"], ["I-PER", "I-PER", "O"], "BIO", [NARROW, NARROW]))
    assert reliability.tallies_BT.sum(0).tolist() == [1, 1_000_000, 0]


def test_nothing_predicted_is_no_error_and_no_picture(tmp_path):
    report = fill([Scored.from_text("d", "f:1", "abc", [WIDE], [])])
    assert report.to_dict()["calibration"]["error"] == 0
    assert report.to_dict()["calibration"]["thresholds"][0]["f1"] == 0
    assert 'id="thresholds"' not in report.write(tmp_path, "T", {})["report.html"].read_text(encoding="utf-8")


def test_picture_has_a_dot_at_mean_score_and_share_of_each_bin_that_has_enough(tmp_path):
    few = [(0.31, True)] * (MIN_SHOWN - 1)
    calibration = fill(make_records(PAIRS + few)).to_dict()["calibration"]
    svg = draw_reliability(calibration)
    dots = [(float(x), float(y)) for x, y in re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)"', svg)]
    *shown, (left, floor), (right, top) = dots  # the line on which a score is the share right
    assert [
        (round((x - left) / (right - left), 2), round((floor - y) / (floor - top), 2)) for x, y in shown
    ] == [(0.61, 0.5), (0.92, 0.0), (0.95, 1.0)]  # fmt: skip
    paths = fill(make_records(PAIRS)).write(tmp_path, "T", {})
    page = paths["report.html"].read_text(encoding="utf-8")
    assert '<a href="#thresholds">' in page
    assert '<th scope="row">0.95</th><td>33</td><td>100.0</td><td>52.4</td>' in page
    assert "| 0.95 | 33 | 100.0 | 52.4 |" in paths["report.md"].read_text(encoding="utf-8")
    assert json.loads(paths["report.json"].read_text())["calibration"]["thresholds"][5]["num_predicted"] == 33
