"""How long the documents of files are in sub-tokens, counted in this process: enough for a plan, without shards."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from pipelines.corpus.formats.files import read_records
from pipelines.corpus.formats.options import FormatOptions
from pipelines.corpus.records import CorpusError, Record

STEP = 16
"""Width of the histogram's bins, as in the sidecar of shards."""
TOKENIZED_RECORDS = 5000
"""Records that are tokenized; those after them are taken to have as many sub-tokens a character."""

CountTokens = Callable[[Sequence[str]], int]


@dataclass
class LengthCensus:
    """Lengths of records, in sub-tokens without special ones."""

    histogram: Counter[str] = field(default_factory=Counter)
    """Lower edge of the length (steps of 16) → records."""
    num_records: int = 0
    num_words: int = 0
    num_tokens: int = 0


def count_lengths(paths: Sequence[str], count_tokens: CountTokens, reader: FormatOptions) -> LengthCensus:
    """The lengths of all readable records of the files. Raises CorpusError if there is none.

    Args:
        count_tokens: sub-tokens of words.
    """
    census = LengthCensus()
    num_characters = 0
    ratio = 0.25
    for path in paths:
        for item in read_records(path, reader):
            if not isinstance(item, Record):
                continue
            words = item.words if item.words is not None else (item.text or "").split()
            characters = sum(map(len, words))
            if census.num_records < TOKENIZED_RECORDS or not num_characters:
                length = count_tokens(words)
                num_characters += characters
            else:
                length = round(characters * ratio)
            census.num_records += 1
            census.num_words += len(words)
            census.num_tokens += length
            census.histogram[str(length // STEP * STEP)] += 1
            if census.num_records == TOKENIZED_RECORDS:
                ratio = census.num_tokens / max(1, num_characters)
    if not census.num_tokens:
        raise CorpusError("the corpus has no words", where=", ".join(paths[:3]), remedy="give another corpus")
    return census
