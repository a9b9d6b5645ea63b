"""How long the documents of files are in sub-tokens, counted in this process: enough for a plan, without shards."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from pipelines.corpus.formats.files import read_records
from pipelines.corpus.formats.options import FormatOptions
from pipelines.corpus.records import CorpusError, Record
from pipelines.ner.words import split_pieces, split_words

STEP = 16
"""Width of the histogram's bins, as in the sidecar of shards."""
TOKENIZED_RECORDS = 5000
"""Records that are split and tokenized; those after them are taken to have as many words and sub-tokens a character."""

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
    """The lengths of all readable records of the files, split into words as `prepare` does. Raises CorpusError if there
    is none.

    Args:
        count_tokens: sub-tokens of words.
    """
    census = LengthCensus()
    num_characters = num_words = num_tokens = 0  # of the records that are tokenized
    for path in paths:
        for item in read_records(path, reader):
            if not isinstance(item, Record):
                continue
            characters = sum(map(len, item.words if item.words is not None else (item.text or "").split()))
            if census.num_records < TOKENIZED_RECORDS or not num_characters:
                words = _split(item)
                found, length = len(words), count_tokens(words)
                num_characters += characters
                num_words += found
                num_tokens += length
            else:
                found, length = (round(characters * one / num_characters) for one in (num_words, num_tokens))
            census.num_records += 1
            census.num_words += found
            census.num_tokens += length
            census.histogram[str(length // STEP * STEP)] += 1
    if not census.num_tokens:
        raise CorpusError("the corpus has no words", where=", ".join(paths[:3]), remedy="give another corpus")
    return census


def _split(record: Record) -> list[str]:
    """The words that a model would see, where nobody chose a splitter and without the gold that cuts some."""
    if record.text is not None:
        return [record.text[start:end] for start, end in split_words(record.text, "punctuation")]
    return [piece for word in record.words or () for piece in split_pieces(word, "unicode")]
