"""Texts to label: sentences of real corpora, and documents made of them with lengths as in the wild."""

import json
import random
from collections.abc import Iterator
from pathlib import Path

from pipelines.corpus.formats.files import read_records
from pipelines.corpus.records import Record

FILES = ("wnut17/train.conll", "wnut17/dev.conll", "wnut17/test.conll", "ncbi_disease/train.tsv")
MAX_CHARACTERS = 20_000
MEDIAN_CHARACTERS = 900
SPREAD = 1.1
"""Standard deviation of the logarithm of a document's length: from tweets to long articles."""


def read_sentences(data: Path) -> list[str]:
    """The sentences of the corpora, words joined by spaces, in a seeded order."""
    records = (record for file in FILES for record in read_records(str(data / file)))
    sentences = [" ".join(record.words or ()) for record in records if isinstance(record, Record)]
    random.Random(0).shuffle(sentences)
    return sentences


def generate_documents(sentences: list[str], num_characters: int, seed: int = 0) -> Iterator[str]:
    """Documents of about so many characters in all; their lengths are log-normal, up to `MAX_CHARACTERS`."""
    dice = random.Random(seed)
    left = num_characters
    while left > 0:
        wanted = min(MAX_CHARACTERS, int(MEDIAN_CHARACTERS * dice.lognormvariate(0, SPREAD)))
        parts: list[str] = []
        size = 0
        while size < wanted:
            parts.append(dice.choice(sentences))
            size += len(parts[-1]) + 1
        text = " ".join(parts)[:MAX_CHARACTERS]
        left -= len(text)
        yield text


def write_jsonl(path: Path, documents: Iterator[str]) -> int:
    """Write documents as a corpus; returns how many."""
    count = 0
    with path.open("w", encoding="utf-8") as file:
        for count, text in enumerate(documents, 1):
            file.write(json.dumps({"doc_id": f"d{count}", "text": text}, ensure_ascii=False) + "\n")
    return count
