"""Whether scores are the shares of entities that are right, and the temperatures that make them so.

A label's scores are brought to `sigmoid(logit(score) / temperature)` (temperature scaling, Guo et al. 2017): what is
found stays the same, and so does the order of a label's entities.

Shape: E predicted entities.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pipelines.evaluation.metrics import Floats, Scored
from pipelines.ner.decoding import scale_scores

MIN_ENTITIES = 50
"""Of a label; one with fewer predicted ones takes the temperature of all together."""
TEMPERATURES = np.geomspace(0.25, 8.0, 241)
NUM_BINS = 20
_SMALLEST = 1e-6


@dataclass(frozen=True)
class Scores:
    """The scores of predicted entities, and which of them are right."""

    scores_E: Floats
    is_right_E: Floats

    @property
    def error(self) -> float:
        """The expected calibration error (Naeini et al. 2015): share right less mean score, over equal bins."""
        if not len(self.scores_E):
            return 0.0
        bins_E = np.minimum((self.scores_E * NUM_BINS).astype(int), NUM_BINS - 1)
        gaps = np.bincount(bins_E, self.is_right_E - self.scores_E, NUM_BINS)
        return float(np.abs(gaps).sum() / len(self.scores_E))

    def scale(self, temperature: float) -> "Scores":
        """The same entities with other scores."""
        return Scores(scale_scores(self.scores_E, temperature), self.is_right_E)

    def fit(self) -> float:
        """The temperature under which what is right is most likely; 1 without entities, or of one kind alone."""
        if len(np.unique(self.is_right_E)) < 2:
            return 1.0
        return float(TEMPERATURES[np.argmin([self.scale(one)._cost for one in TEMPERATURES])])

    @property
    def _cost(self) -> float:
        scores_E = self.scores_E.clip(_SMALLEST, 1 - _SMALLEST)
        return -float((self.is_right_E * np.log(scores_E) + (1 - self.is_right_E) * np.log(1 - scores_E)).sum())


def gather_scores(records: Iterable[Scored]) -> dict[str, Scores]:
    """Label → the scores of its predicted entities, strictly compared with gold."""
    found: dict[str, list[tuple[float, bool]]] = {}
    for record in records:
        gold = {(span.start, span.end, span.label) for span in record.gold_strict}
        for span in record.predicted:
            is_right = (span.start, span.end, span.label) in gold
            found.setdefault(span.label, []).append((span.score, is_right))
    return {label: Scores(*np.array(pairs, float).T) for label, pairs in sorted(found.items())}


def fit_temperatures(found: Mapping[str, Scores]) -> dict[str, float]:
    """Label → temperature, for the labels of which something was predicted."""
    together = join_scores(found).fit()
    return {
        label: round(one.fit() if len(one.scores_E) >= MIN_ENTITIES else together, 4) for label, one in found.items()
    }


def cross_fit_error(records: Sequence[Scored]) -> float:
    """The calibration error that temperatures leave on documents which they were not fitted on.

    They are fitted on one half of the documents and measured on the other, both ways.
    """
    places = {doc_id: place for place, doc_id in enumerate(sorted({record.doc_id for record in records}))}
    none_yet = dict.fromkeys(gather_scores(records), Scores(np.empty(0), np.empty(0)))  # both halves know all labels
    halves = [
        none_yet | gather_scores(record for record in records if places[record.doc_id] % 2 == half) for half in (0, 1)
    ]
    fitted = [fit_temperatures(half) for half in reversed(halves)]
    scaled = [join_scores(half, temperatures) for half, temperatures in zip(halves, fitted, strict=True)]
    return join_scores({str(number): one for number, one in enumerate(scaled)}).error


def join_scores(found: Mapping[str, Scores], temperatures: Mapping[str, float] | None = None) -> Scores:
    """All labels' scores together, brought to their temperatures if any are given."""
    scaled = [one.scale((temperatures or {}).get(label, 1.0)) for label, one in found.items()]
    empty = np.empty(0)
    return Scores(
        np.concatenate([empty, *(one.scores_E for one in scaled)]),
        np.concatenate([empty, *(one.is_right_E for one in scaled)]),
    )
