"""Whether a smaller model is as good as needed: its F1 on dev against that of the model it was made from."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from pipelines.compression.config import Tolerance
from pipelines.evaluation.bootstrap import paired_bootstrap
from pipelines.evaluation.comparison import select_label
from pipelines.evaluation.metrics import Tallies

Documents = Mapping[str, Tallies]
"""Tallies by `doc_id`."""
LEAST_DOCUMENTS = 6
"""With entities. That five go the same way happens once in 16 times by chance: no interval of 95 % can be had, and
where they are equal the bootstrap's has no width at all."""
FEW_DOCUMENTS = 30
"""Of fewer the bootstrap's intervals are narrower than they should be."""


@dataclass(frozen=True)
class Difference:
    """F1 of the smaller model minus that of the start, in points, with its 95 % interval."""

    difference: float
    low: float
    high: float


@dataclass(frozen=True)
class Verdict:
    """What the gate says of a model."""

    overall: Difference
    labels: dict[str, Difference]
    reasons: list[str]
    """Why it is not good enough; none if it is."""

    @property
    def passes(self) -> bool:
        """Whether the model may be published."""
        return not self.reasons

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self) | {"passes": self.passes}


def judge(start: Documents, variant: Documents, tolerance: Tolerance) -> Verdict:
    """Compare a variant's tallies with those of the start, on the same documents.

    Overall it must be shown not to lose more than allowed (non-inferiority). Labels are often too rare to show that, so
    one of them stops a variant only if it is shown to lose more. Of too few documents nothing is shown.
    """
    overall = _compare(start, variant)
    names = sorted({label for tallies in start.values() for label in tallies})
    labels = {name: _compare(select_label(start, name), select_label(variant, name)) for name in names}
    reasons = []
    num_documents = sum(any(tp + fn for tp, _, fn, *_ in tallies.values()) for tallies in start.values())
    if num_documents < LEAST_DOCUMENTS:
        reasons.append(
            f"dev has entities in {num_documents} documents: the interval shows nothing of fewer than {LEAST_DOCUMENTS}"
        )
    if overall.low <= -tolerance.f1:
        reasons.append(
            f"strict F1 {overall.difference:+.2f} points, 95 % interval {overall.low:+.2f} to {overall.high:+.2f}: "
            f"a loss of {tolerance.f1:g} is not excluded"
        )
    for name, found in labels.items():
        if found.high < -tolerance.label:
            reasons.append(
                f"{name} {found.difference:+.2f} points, interval {found.low:+.2f} to {found.high:+.2f}: it loses more "
                f"than {tolerance.label:g}"
            )
    return Verdict(overall, labels, reasons)


def _compare(start: Documents, variant: Documents) -> Difference:
    found = paired_bootstrap(variant, start)
    return Difference(*(round(100 * found[name], 4) for name in ("difference", "low", "high")))
