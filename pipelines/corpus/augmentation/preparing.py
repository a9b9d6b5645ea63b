"""Augmentation as a step of preparing a corpus: what it needs to know, told early, and what it has made, counted."""

import pickle
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import ray.data

from pipelines.corpus.augmentation.config import AugmentationConfig
from pipelines.corpus.augmentation.pools import Counts, check_gazetteer, read_gazetteer
from pipelines.corpus.augmentation.siblings import Augmenter, add_siblings, count_samples
from pipelines.corpus.reading import Corpus
from pipelines.ner.encoders import is_uncased
from pipelines.ner.encoding import EncodingError

USING_POOLS = ("mention_replacement", "word_replacement")
WANTS = {
    "mention_replacement": "a label with two different mentions",
    "word_replacement": "a tag with two different words",
    "segment_shuffling": "two different words beside each other in a mention, or outside",
    "masking": "a word",
    "word_swap": "two different words beside each other outside mentions",
    "word_duplication": "a word outside mentions",
    "case_noise": "a letter that has a capital",
    "typo_noise": "a word of four letters",
    "width_forms": "Chinese characters with letters, digits or punctuation that have another width",
    "script_forms": "Chinese characters that have another form",
}
"""What a record must have for a technique to make a sibling of it."""


def check_mask_token(config: AugmentationConfig, tokenizer: Any) -> None:
    """Raise EncodingError if words are to be masked and the tokenizer has no token for it."""
    if config.masking > 0 and tokenizer.mask_token is None:
        raise EncodingError(
            "the encoder has no mask token",
            where="`corpus.augmentation.masking`",
            rule="a tokenizer with a mask token",
            value=type(tokenizer).__name__,
            remedy="leave `--corpus.augmentation.masking` out",
        )


def augment_corpus(
    corpus: Corpus, config: AugmentationConfig, tokenizer: Any, *, splitter: str, casing: bool
) -> tuple[ray.data.Dataset, AugmentationConfig, list[str]]:
    """The records with their siblings, the settings that they were made by, and what is to be told.

    Raises CorpusError, EncodingError.

    Args:
        splitter: cuts texts into words.
        casing: whether the model learns the case of words.
    """
    check_mask_token(config, tokenizer)
    notes = []
    counts = Counts()
    reading = {"splitter": splitter, "scheme": corpus.scheme}
    if config.mention_replacement > 0 and config.gazetteer:
        given = read_gazetteer(config.gazetteer, splitter)
        lacking = check_gazetteer(given, corpus.labels["train"], config.gazetteer)
        if lacking:
            unknown = ", ".join(f"`{label}`" for label in lacking)
            notes.append(f"labels of the gazetteer that train lacks, left out: {unknown}")
        for label in given.keys() - lacking:
            for mention in given[label]:
                counts.add_mention(label, mention)
    if config.case_noise > 0 and is_uncased(tokenizer) and not casing:
        notes.append("`corpus.augmentation.case_noise` has no effect: the model reads no case")
        config = replace(config, case_noise=0.0)
    if any(name in config.rates for name in USING_POOLS):
        blocks = corpus.records.map_batches(count_samples, fn_kwargs=reading, batch_size=None, batch_format="pyarrow")
        for row in blocks.iter_rows():
            counts.merge(pickle.loads(row["counts"]))
    augmenter = Augmenter(config, pools=counts.freeze(), mask_token=tokenizer.mask_token or "", **reading)
    records = corpus.records.map_batches(
        add_siblings, fn_kwargs={"augmenter": augmenter}, batch_size=None, batch_format="pyarrow"
    )
    return records, config, notes


def list_idle_techniques(config: AugmentationConfig, siblings: Mapping[str, int]) -> list[str]:
    """A sentence for each technique that has made no sibling although it has a rate."""
    return [
        f"`corpus.augmentation.{name}` has made no sibling: it takes a record with {WANTS[name]}"
        for name in config.rates
        if not siblings.get(name)
    ]
