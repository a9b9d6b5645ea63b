"""Two models on one test set: how far they differ in strict F1, overall and by label, and whether that is chance."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from pipelines.evaluation.bootstrap import paired_bootstrap
from pipelines.evaluation.metrics import Tallies, rate

OVERALL = "all (micro)"
HEADER = ("", "strict F1", "of the other", "difference", "95 % interval", "p")

Documents = Mapping[str, Tallies]
"""Tallies by `doc_id`."""


def compare(first: Documents, second: Documents, name: str) -> dict[str, Any]:
    """Plain JSON: `overall` and by `labels` the strict F1 of `first`, of the `other`, and what `paired_bootstrap` says.

    Args:
        name: of the second model.
    """
    both = (*first.values(), *second.values())
    labels = sorted({label for tallies in both for label, tally in tallies.items() if any(tally[:3])})
    return {
        "compared_to": name,
        "overall": _compare(first, second),
        "labels": {label: _compare(select_label(first, label), select_label(second, label)) for label in labels},
    }


def list_comparison_rows(comparison: Mapping[str, Any]) -> list[list[str]]:
    """Rows under `HEADER`, in points; the labels first."""
    found = [*comparison["labels"].items(), (OVERALL, comparison["overall"])]
    return [
        [
            name,
            *(f"{100 * one[key]:.1f}" for key in ("f1", "other_f1")),
            f"{100 * one['difference']:+.1f}",
            f"{100 * one['low']:+.1f} to {100 * one['high']:+.1f}",
            f"{one['p_value']:.3f}",
        ]
        for name, one in found
    ]


def _compare(first: Documents, second: Documents) -> dict[str, float]:
    return {"f1": _count_f1(first), "other_f1": _count_f1(second), **paired_bootstrap(first, second)}


def _count_f1(documents: Documents) -> float:
    tallies = [tally[:3] for labels in documents.values() for tally in labels.values()]
    return float(rate(np.array([[0, 0, 0], *tallies], float).sum(0))[2])


def select_label(documents: Documents, label: str) -> Documents:
    """The tallies of one label alone."""
    return {doc_id: {label: tallies[label]} if label in tallies else {} for doc_id, tallies in documents.items()}
