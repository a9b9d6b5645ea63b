"""What a corpus holds, summed up block by block."""

from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from pipelines.corpus.ledger import Ledger

SPLITS = ("train", "dev", "test")
SHOWN_SOURCES = 5


@dataclass
class Summary:
    """What a corpus holds; summaries of blocks add up."""

    ledger: Ledger = field(default_factory=Ledger)
    unreadable: list[dict[str, str]] = field(default_factory=list)
    tags_seen: Counter[str] = field(default_factory=Counter)
    """Observations from which the tag scheme is told."""
    raw_tags: dict[str, dict[str, str]] = field(default_factory=dict)
    """Split → tags of its records with words → the source of a record that has it."""
    span_labels: dict[str, set[str]] = field(default_factory=dict)
    """Split → labels of its records with character spans."""
    num_texts: int = 0
    num_without_gold: int = 0
    without_gold: list[str] = field(default_factory=list)
    """The sources of the first of those."""
    hashes: dict[str, list[np.ndarray]] = field(default_factory=dict)
    """Split → hashes of its records' contents."""

    def add(self, other: "Summary") -> None:
        """Add another summary's counts to these."""
        self.ledger.merge(other.ledger)
        self.unreadable += other.unreadable
        self.tags_seen += other.tags_seen
        self.num_texts += other.num_texts
        self.num_without_gold += other.num_without_gold
        self.without_gold = (self.without_gold + other.without_gold)[:SHOWN_SOURCES]
        for split, tags in other.raw_tags.items():
            self.raw_tags[split] = tags | self.raw_tags.get(split, {})
        for split, labels in other.span_labels.items():
            self.span_labels.setdefault(split, set()).update(labels)
        for split, hashes in other.hashes.items():
            self.hashes.setdefault(split, []).extend(hashes)

    def count_duplicates(self) -> dict[str, int]:
        """`train & test` → how many distinct records stand in both."""
        distinct = {split: np.unique(np.concatenate(hashes)) for split, hashes in self.hashes.items()}
        splits = [split for split in SPLITS if split in distinct]
        pairs = [(a, b) for i, a in enumerate(splits) for b in splits[i + 1 :]]
        found = {f"{a} & {b}": len(np.intersect1d(distinct[a], distinct[b])) for a, b in pairs}
        return {pair: number for pair, number in found.items() if number}
