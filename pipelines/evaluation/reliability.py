"""What a score says: how often mentions of a score are right, and what a threshold on scores costs and gives.

Right is what the strict reading counts as right. Shape suffixes: B bins of equal width, T = (mentions, sum of their
scores in millionths, right ones).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from pipelines.evaluation.calibration import NUM_BINS
from pipelines.evaluation.curves import render_curves_svg
from pipelines.evaluation.metrics import RATES, Scored, rate

THRESHOLDS = (0.0, 0.5, 0.7, 0.8, 0.9, 0.95)
"""Of `min_score`; edges of bins."""
MIN_SHOWN = 10
"""Mentions of a bin that is drawn: the share of fewer says little."""
_MILLION = 1_000_000


@dataclass
class Reliability:
    """Predicted mentions counted by score; whole numbers, so that blocks add up to the same in any order."""

    tallies_BT: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros((NUM_BINS, 3), np.int64))

    def add(self, scored: Scored) -> None:
        """Count a record."""
        gold = {(span.start, span.end, span.label) for span in scored.gold_strict}
        predicted = {(span.start, span.end, span.label): span.score for span in scored.predicted}
        for mention, score in predicted.items():
            number = min(int(score * NUM_BINS), NUM_BINS - 1)
            self.tallies_BT[number] += (1, round(score * _MILLION), mention in gold)

    def merge(self, other: "Reliability") -> None:
        """Count what another one has counted."""
        self.tallies_BT += other.tallies_BT

    def to_dict(self, num_gold: int) -> dict[str, Any]:
        """Plain JSON: the expected calibration `error`, `bins`, and rates by `thresholds`, of so many gold mentions."""
        numbers_B, sums_B, right_B = self.tallies_BT.T
        gaps_B = np.abs(right_B - sums_B / _MILLION)
        bins = [
            {
                "low": number / NUM_BINS,
                "high": (number + 1) / NUM_BINS,
                "num_predicted": int(numbers_B[number]),
                "mean_score": float(sums_B[number] / numbers_B[number] / _MILLION),
                "share_right": float(right_B[number] / numbers_B[number]),
            }
            for number in np.flatnonzero(numbers_B).tolist()
        ]
        thresholds = [self._rate(threshold, num_gold) for threshold in THRESHOLDS]
        return {"error": float(gaps_B.sum() / max(1, numbers_B.sum())), "bins": bins, "thresholds": thresholds}

    def _rate(self, threshold: float, num_gold: int) -> dict[str, Any]:
        """Strict micro scores of the mentions with at least this score."""
        num_kept, _, num_right = (int(number) for number in self.tallies_BT[round(threshold * NUM_BINS) :].sum(0))
        rates = rate(np.array([num_right, num_kept - num_right, num_gold - num_right], float))
        named = {name: float(value) for name, value in zip(RATES, rates, strict=True)}
        return {"min_score": threshold, "num_predicted": num_kept, **named}


def draw_reliability(calibration: Mapping[str, Any]) -> str:
    """Mean score against share right, beside the line on which a score is exactly what it says."""
    found = [
        (one["mean_score"], one["share_right"]) for one in calibration["bins"] if one["num_predicted"] >= MIN_SHOWN
    ]
    series = {"mentions by score": found, "as scored": [(0.0, 0.0), (1.0, 1.0)]}
    return render_curves_svg(series, "mean score", "share right", "Share of right mentions by score")
