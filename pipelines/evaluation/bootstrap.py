"""How far the scores would move on another sample of documents: percentile bootstrap (Efron 1979).

Documents are drawn with replacement, whole: records of one document are not independent. Documents with equal tallies
are drawn as one group, which changes nothing but the cost.

Shape suffixes: U groups of equal documents, F counted numbers, S samples, L labels, C = (tp, fp, fn), R = rates.
"""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from pipelines.evaluation.metrics import RATES, READINGS, Floats, Tallies, rate, rate_labels

PERCENTILES = (2.5, 97.5)
_CHUNK_NUMBERS = 4_000_000


def bootstrap_intervals(documents: Mapping[str, Tallies], num_samples: int = 1000, seed: int = 0) -> dict[str, Any]:
    """95 % intervals `[low, high]` in the shape of `scores`: `strict.micro.f1`, `lenient.labels.PER.recall`, …

    Args:
        documents: `doc_id` → tallies (`count_documents`, or `Counts.labels` of each document). Their order is
            irrelevant.

    A label's interval is over the samples in which it occurs. Empty without documents.
    """
    if not documents:
        return {}
    labels = sorted({label for tallies in documents.values() for label in tallies})
    position = {label: index for index, label in enumerate(labels)}
    groups = Counter(
        tuple(sorted((position[label], *tally) for label, tally in tallies.items())) for tallies in documents.values()
    )
    keys = sorted(groups)
    table = np.zeros((len(keys), len(labels), 6))
    for row, key in enumerate(keys):
        for index, *tally in key:
            table[row, index] = tally
    sums = _resample(table.reshape(len(keys), -1), [groups[key] for key in keys], num_samples, seed)
    sums_SLRC = sums.reshape(num_samples, len(labels), len(READINGS), 3)
    return {
        reading: _find_intervals(sums_SLRC[:, :, number], labels, table[:, :, 3 * number : 3 * number + 3].any((0, 2)))
        for number, reading in enumerate(READINGS)
    }


def paired_bootstrap(
    a: Mapping[str, Tallies], b: Mapping[str, Tallies], num_samples: int = 1000, seed: int = 0
) -> dict[str, float]:
    """Strict micro F1 of `a` minus that of `b` on the same documents: `difference`, `low`, `high`, `p_value`.

    The p value is two-sided: how often the resampled difference strays from the observed one at least as far as that
    stands from zero (Berg-Kirkpatrick et al. 2012). Raises ValueError where the documents or their gold differ.
    """
    if a.keys() != b.keys():
        raise ValueError(f"{len(a.keys() ^ b.keys())} documents are in one of the two evaluations only")
    groups = Counter((_sum_strict(a[doc_id]), _sum_strict(b[doc_id])) for doc_id in a)
    if any(x[0] + x[2] != y[0] + y[2] for x, y in groups):
        raise ValueError("the two evaluations have different gold in the same documents")
    if not groups:
        return {"difference": 0.0, "low": 0.0, "high": 0.0, "p_value": 1.0}
    keys = sorted(groups)
    table, sizes = np.array(keys, float).reshape(len(keys), 6), np.array([groups[key] for key in keys])
    observed = float(_subtract(sizes @ table))
    differences = _subtract(_resample(table, sizes, num_samples, seed))
    low, high = np.percentile(differences, PERCENTILES)
    strays = int((np.abs(differences - observed) >= abs(observed) - 1e-12).sum())
    p_value = (strays + 1) / (num_samples + 1)
    return {"difference": observed, "low": float(low), "high": float(high), "p_value": p_value}


def _resample(table_UF: Floats, sizes_U: Any, num_samples: int, seed: int) -> Floats:
    """Sums `[S, F]` over documents drawn with replacement, a bounded number of samples at a time."""
    sizes_U = np.asarray(sizes_U)
    num_documents = int(sizes_U.sum())
    generator = np.random.default_rng(seed)
    chunk = max(1, _CHUNK_NUMBERS // len(sizes_U))
    sums = [
        generator.multinomial(num_documents, sizes_U / num_documents, size=min(chunk, num_samples - start)) @ table_UF
        for start in range(0, num_samples, chunk)
    ]
    return np.concatenate(sums)


def _find_intervals(sums_SLC: Floats, labels: list[str], occurs: Any) -> dict[str, Any]:
    rates = rate_labels(sums_SLC)
    return {
        **{name: _interval(rates[name]) for name in ("micro", "macro")},
        "labels": {label: _interval(rates["labels"][:, i]) for i, label in enumerate(labels) if occurs[i]},
    }


def _interval(rates_SR: Floats) -> dict[str, list[float]]:
    known = rates_SR[~np.isnan(rates_SR).any(1)]
    if not len(known):
        return {name: [0.0, 1.0] for name in RATES}
    bounds = np.percentile(known, PERCENTILES, axis=0)
    return {name: [float(bounds[0, index]), float(bounds[1, index])] for index, name in enumerate(RATES)}


def _sum_strict(tallies: Tallies) -> tuple[int, int, int]:
    rows = [tally[:3] for tally in tallies.values()]
    tp, fp, fn = (sum(column) for column in zip(*rows, strict=True)) if rows else (0, 0, 0)
    return tp, fp, fn


def _subtract(sums_F: Floats) -> Floats:
    return np.asarray(rate(sums_F[..., :3])[..., 2] - rate(sums_F[..., 3:])[..., 2])
