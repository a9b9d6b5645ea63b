"""Counts that add over records, blocks and workers, and the scores they give.

Two readings stand side by side. `strict` compares with the gold spans whose tags are exactly those the scheme demands
(seqeval's `mode="strict"`); `lenient` with the gold as conlleval reads it (seqeval's default). Predicted spans are
always legal, so both readings see the same predictions.

Shape suffixes: S samples (or one point), L labels, C = (tp, fp, fn), R = (precision, recall, f1).
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from pipelines.evaluation.matching import KINDS, Match, match_spans
from pipelines.ner.entities import Span
from pipelines.ner.labels import OUTSIDE, read_spans, read_strict_spans

READINGS = ("strict", "lenient")
RATES = ("precision", "recall", "f1")

Seen = Callable[[str, str], bool]
"""`(mention, label)` → whether training saw this surface with this label."""
Tallies = dict[str, list[int]]
"""Label → strict tp, fp, fn, lenient tp, fp, fn."""
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Scored:
    """A record with its gold and predicted spans: ranges of `words`, or of the characters of `text`."""

    doc_id: str
    source: str
    """`path:line`."""
    gold: Sequence[Span]
    """As conlleval reads the tags: nothing labelled is lost."""
    gold_strict: Sequence[Span]
    """Only what the scheme allows; equal to `gold` where the corpus has character spans."""
    predicted: Sequence[Span]
    text: str | None = None
    words: Sequence[str] | None = None

    def __post_init__(self) -> None:
        """Refuse a record that has both contents, or none."""
        if (self.text is None) == (self.words is None):
            raise ValueError(f"{self.source}: a scored record has either `text` or `words`")

    @classmethod
    def from_text(
        cls, doc_id: str, source: str, text: str, gold: Sequence[Span], predicted: Sequence[Span]
    ) -> "Scored":
        """A record whose spans are ranges of characters."""
        return cls(doc_id, source, gold, gold, predicted, text=text)

    @classmethod
    def from_tags(
        cls, doc_id: str, source: str, words: Sequence[str], tags: Sequence[str], scheme: str, predicted: Sequence[Span]
    ) -> "Scored":
        """A record with gold tags, taken in both readings."""
        gold, strict = read_spans(tags, scheme), read_strict_spans(tags, scheme)
        return cls(doc_id, source, gold, strict, predicted, words=words)

    @classmethod
    def from_row(cls, row: Mapping[str, Any], scheme: str) -> "Scored":
        """A record as a row: `doc_id`, `source`, `text` or `words` (the other None), `tags` (None for text), `spans`,
        and `predicted` if it has been predicted; spans as objects with `start`, `end`, `label` and perhaps `score`."""
        predicted = [Span(**span) for span in row.get("predicted") or ()]
        if row["text"] is not None:
            gold = [Span(**span) for span in row["spans"]]
            return cls.from_text(row["doc_id"], row["source"], row["text"], gold, predicted)
        return cls.from_tags(row["doc_id"], row["source"], row["words"], row["tags"], scheme, predicted)

    @property
    def content(self) -> str | Sequence[str]:
        """What the spans are ranges of."""
        return self.text if self.text is not None else self.words or []


@dataclass(slots=True)
class Counts:
    """What was counted; `a + b` is the count of both."""

    labels: Tallies = field(default_factory=dict)
    seen: list[int] | None = None
    """tp, fp, fn of mentions that training saw with this label (lenient reading); None where nobody said."""
    unseen: list[int] | None = None
    errors: Counter[str] = field(default_factory=Counter)
    """Kind → how many, of gold in the lenient reading; see `match_spans`."""
    confusion: Counter[tuple[str, str]] = field(default_factory=Counter)
    """(gold label, predicted label) → how many; `O` where a span has no counterpart."""
    num_records: int = 0
    num_gold: int = 0
    num_gold_strict: int = 0
    num_predicted: int = 0

    def __add__(self, other: "Counts") -> "Counts":
        """The count of both, as a new object."""
        total = Counts()
        total += self
        total += other
        return total

    def __iadd__(self, other: "Counts") -> "Counts":
        """Add the other's counts to these."""
        add_tallies(self.labels, other.labels)
        self.seen = _add_optional(self.seen, other.seen)
        self.unseen = _add_optional(self.unseen, other.unseen)
        self.errors.update(other.errors)
        self.confusion.update(other.confusion)
        self.num_records += other.num_records
        self.num_gold += other.num_gold
        self.num_gold_strict += other.num_gold_strict
        self.num_predicted += other.num_predicted
        return self

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON; `from_dict` reads it back."""
        return {
            "labels": {label: {"strict": c[:3], "lenient": c[3:]} for label, c in sorted(self.labels.items())},
            "seen": self.seen,
            "unseen": self.unseen,
            "errors": dict(self.errors),
            "confusion": nest_confusion(self.confusion),
            "num_records": self.num_records,
            "num_gold": self.num_gold,
            "num_gold_strict": self.num_gold_strict,
            "num_predicted": self.num_predicted,
        }

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> "Counts":
        """The inverse of `to_dict`."""
        labels = {label: [*c["strict"], *c["lenient"]] for label, c in plain["labels"].items()}
        confusion = {(gold, guess): n for gold, row in plain["confusion"].items() for guess, n in row.items()}
        rest = {**plain, "labels": labels, "errors": Counter(plain["errors"]), "confusion": Counter(confusion)}
        return cls(**rest)


def get_surface(content: str | Sequence[str], span: Span) -> str:
    """The mention as it stands in a text, or its words joined by spaces."""
    part = content[span.start : span.end]
    return part if isinstance(part, str) else " ".join(part)


def count_record(scored: Scored, seen: Seen | None = None, matches: Sequence[Match] | None = None) -> Counts:
    """The counts of one record; pass `matches` where `match_spans` has been asked already."""
    strict, gold, predicted = (_edges(spans) for spans in (scored.gold_strict, scored.gold, scored.predicted))
    counts = Counts(num_records=1, num_gold=len(gold), num_gold_strict=len(strict), num_predicted=len(predicted))
    for offset, reference in ((0, strict), (3, gold)):
        for column, keys in enumerate((predicted & reference, predicted - reference, reference - predicted)):
            for _, _, label in keys:
                counts.labels.setdefault(label, [0] * 6)[offset + column] += 1
    if seen:
        counts.seen, counts.unseen = [0, 0, 0], [0, 0, 0]
        for column, keys in enumerate((predicted & gold, predicted - gold, gold - predicted)):
            for start, end, label in keys:
                known = seen(get_surface(scored.content, Span(start, end, label)), label)
                (counts.seen if known else counts.unseen)[column] += 1
    for match in match_spans(scored.gold, scored.predicted) if matches is None else matches:
        counts.errors[match.kind] += 1
        pair = (match.gold.label if match.gold else OUTSIDE, match.predicted.label if match.predicted else OUTSIDE)
        counts.confusion[pair] += 1
    return counts


def count(records: Iterable[Scored], seen: Seen | None = None) -> Counts:
    """The counts of all records."""
    total = Counts()
    for scored in records:
        total += count_record(scored, seen)
    return total


def count_documents(records: Iterable[Scored]) -> dict[str, Tallies]:
    """Tallies by `doc_id`, for the bootstrap: records of one document belong together."""
    documents: dict[str, Tallies] = {}
    for scored in records:
        add_tallies(documents.setdefault(scored.doc_id, {}), count_record(scored).labels)
    return documents


def add_tallies(total: Tallies, more: Tallies) -> None:
    """Add `more` to `total`, label by label."""
    for label, tally in more.items():
        before = total.get(label)
        total[label] = list(tally) if before is None else [a + b for a, b in zip(before, tally, strict=True)]


def scores(counts: Counts) -> dict[str, Any]:
    """Precision, recall, F1 and support, each in [0, 1], and what went wrong.

    `strict` and `lenient` hold `micro`, `macro` (the plain mean over labels that occur in gold or predictions) and
    `labels`. `seen` and `unseen` are None where nobody said what training saw. Zero divisions are 0.0.
    """
    labels = sorted(counts.labels)
    result: dict[str, Any] = {}
    for number, reading in enumerate(READINGS):
        tallies_LC = np.array([counts.labels[label][3 * number : 3 * number + 3] for label in labels], float)
        rates = rate_labels(tallies_LC.reshape(1, len(labels), 3))
        support = {label: sum(counts.labels[label][3 * number :: 2][:2]) for label in labels}
        result[reading] = {
            **{name: _named(rates[name][0], sum(support.values())) for name in ("micro", "macro")},
            "labels": {
                label: _named(rates["labels"][0, index], support[label])
                for index, label in enumerate(labels)
                if not np.isnan(rates["labels"][0, index]).any()
            },
        }
    for name, tally in (("seen", counts.seen), ("unseen", counts.unseen)):
        result[name] = None if tally is None else _named(rate(np.array(tally, float)), tally[0] + tally[2])
    result["errors"] = {kind: counts.errors[kind] for kind in KINDS}
    result["confusion"] = nest_confusion(counts.confusion)
    return result


def rate(tallies_C: Floats) -> Floats:
    """Tallies `[…, C]` → rates `[…, R]`; a zero division is 0.0."""
    tp, fp, fn = np.moveaxis(tallies_C, -1, 0)
    over = np.stack([tp + fp, tp + fn, 2 * tp + fp + fn], axis=-1)
    rates: Floats = np.divide(np.stack([tp, tp, 2 * tp], axis=-1), over, out=np.zeros_like(over), where=over > 0)
    return rates


def rate_labels(tallies_SLC: Floats) -> dict[str, Floats]:
    """`micro` and `macro` as `[S, R]`, `labels` as `[S, L, R]`, NaN for a label that does not occur in a sample."""
    rates_SLR = rate(tallies_SLC)
    occurs_SL1 = (tallies_SLC.sum(-1) > 0)[..., None]
    num_labels_S1 = np.maximum(occurs_SL1.sum(1), 1)
    return {
        "micro": rate(tallies_SLC.sum(1)),
        "macro": rates_SLR.sum(1) / num_labels_S1,
        "labels": np.where(occurs_SL1, rates_SLR, np.nan),
    }


def nest_confusion(confusion: Counter[tuple[str, str]]) -> dict[str, dict[str, int]]:
    """Gold label → predicted label → how many."""
    nested: dict[str, dict[str, int]] = {}
    for (gold, predicted), number in sorted(confusion.items()):
        nested.setdefault(gold, {})[predicted] = number
    return nested


def _named(rates_R: Floats, support: int) -> dict[str, Any]:
    return {**{name: float(value) for name, value in zip(RATES, rates_R, strict=True)}, "support": support}


def _edges(spans: Sequence[Span]) -> set[tuple[int, int, str]]:
    return {(span.start, span.end, span.label) for span in spans}


def _add_optional(a: list[int] | None, b: list[int] | None) -> list[int] | None:
    if a is None:
        return None if b is None else list(b)
    if b is None:
        return list(a)
    return [x + y for x, y in zip(a, b, strict=True)]
