"""Siblings of training records: which records get some, and the rows that they become beside the original ones.

A sibling is a row of its own split, `augmented`, so that whoever reads `train` reads the original corpus: its counts,
its mentions, its ledger. Only what trains reads both. `record_id` is the original's with the technique and a number,
and `doc_id` the original's, so that documents stay whole wherever they are split or counted.
"""

import hashlib
import pickle
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa

from pipelines.corpus.augmentation import forms, techniques
from pipelines.corpus.augmentation.config import AugmentationConfig
from pipelines.corpus.augmentation.pools import Counts, Pools
from pipelines.corpus.augmentation.samples import Sample, read_sample

AUGMENTED = "augmented"
"""The split of siblings."""
MARKS = [("original", pa.string()), ("technique", pa.string())]
"""Columns that tell of a sibling which record it comes from, and how; null for other records."""

Technique = Callable[[Sample, random.Random], Sample]


@dataclass(frozen=True)
class Augmenter:
    """Makes the siblings of one record after another; the same ones wherever and in whatever order it meets them."""

    config: AugmentationConfig
    splitter: str
    scheme: str
    """Of the corpus's tags."""
    pools: Pools
    mask_token: str

    def list_siblings(self, record_id: str, sample: Sample) -> Iterator[tuple[str, int, Sample]]:
        """Technique, number and sibling, each different from the record and from those before.

        What happens to a record depends on the seed, its name without its folder, its content and the pools alone; a
        higher rate adds siblings to those of a lower one.
        """
        seen = {sample}
        for name, rate in self.config.rates.items():
            change = self.find_technique(name)
            for number in range(1, self.count_tries(record_id, name, rate) + 1):
                sibling = change(sample, self.seed_random(record_id, name, number))
                if sibling not in seen:
                    seen.add(sibling)
                    yield name, number, sibling

    def count_tries(self, record_id: str, technique: str, rate: float) -> int:
        """How many siblings a record gets by a technique: the rate, rounded up as often as its fraction says."""
        whole = int(rate)
        return whole + (self.seed_random(record_id, technique, 0).random() < rate - whole)

    def seed_random(self, record_id: str, technique: str, number: int) -> random.Random:
        """The source of randomness of one sibling; number 0 is that of whether there is a last one."""
        name = record_id.rsplit("/", 1)[-1]
        content = "\x1f".join((str(self.config.seed), technique, str(number), name))
        digest = hashlib.blake2b(content.encode("utf-8", "replace"), digest_size=8).digest()
        return random.Random(int.from_bytes(digest, "big"))

    def find_technique(self, name: str) -> Technique:
        """A technique by its name in `AugmentationConfig`."""
        strength = self.config.strength
        found: dict[str, Technique] = {
            "mention_replacement": partial(techniques.replace_mentions, strength=strength, pools=self.pools),
            "word_replacement": partial(techniques.replace_words, strength=strength, pools=self.pools),
            "segment_shuffling": partial(techniques.shuffle_segments, strength=strength),
            "masking": partial(techniques.mask_words, strength=strength, mask_token=self.mask_token),
            "word_swap": partial(techniques.swap_words, strength=strength),
            "word_duplication": partial(techniques.duplicate_words, strength=strength),
            "case_noise": forms.change_case,
            "typo_noise": partial(forms.mistype_words, strength=strength),
            "width_forms": forms.change_width,
            "script_forms": forms.change_script,
        }
        return found[name]


def add_siblings(table: pa.Table, augmenter: Augmenter) -> pa.Table:
    """The records of a block, and after them the siblings of those that are for training; with `MARKS`."""
    for name, kind in MARKS:
        table = table.append_column(name, pa.nulls(len(table), kind))
    rows = [
        {**row, **sibling.to_row(), "record_id": f"{row['record_id']}~{technique}.{number}", "split": AUGMENTED}
        | {"original": row["record_id"], "technique": technique}
        for row, sample in read_samples(table, augmenter.splitter, augmenter.scheme)
        for technique, number, sibling in augmenter.list_siblings(row["record_id"], sample)
    ]
    return pa.concat_tables([table, pa.Table.from_pylist(rows, schema=table.schema)])


def count_samples(table: pa.Table, splitter: str, scheme: str) -> dict[str, Any]:
    """What the training records of a block have to exchange, pickled: a row of a dataset."""
    counts = Counts()
    for _, sample in read_samples(table, splitter, scheme):
        counts.add_sample(sample)
    return {"counts": [pickle.dumps(counts)]}


def read_samples(table: pa.Table, splitter: str, scheme: str) -> Iterator[tuple[Mapping[str, Any], Sample]]:
    """The training records of a block."""
    for row in table.to_pylist():
        if row["split"] == "train":
            yield row, read_sample(row, splitter, scheme)
