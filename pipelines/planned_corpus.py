"""The lengths that a plan reckons with: of files, of prepared shards, or of a histogram that somebody else counted."""

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipelines.corpus.formats.files import find_files
from pipelines.corpus.formats.options import FormatOptions
from pipelines.corpus.lengths import count_lengths
from pipelines.corpus.shards import SHARDS_FILE, load_shards_info
from pipelines.job import progress_console
from pipelines.ner.encoders import EncoderError, find_encoder, load_tokenizer
from pipelines.ner.encoding import Encoder
from pipelines.planning.lengths import SPECIAL_TOKENS, Lengths
from pipelines.resources import read_lengths
from pipelines.settings import ConfigError

LEAST_VOCABULARY = 100
CHARACTERS_PER_TOKEN = 4
NO_TOKENIZER = (EncoderError, OSError, ValueError, KeyError)
"""What loading one raises where a model has none here."""


@dataclass(frozen=True)
class PlannedCorpus:
    """What a plan is made for."""

    names: Sequence[str]
    """Files, a folder of shards, or a histogram's file."""
    model: str
    """Whose tokenizer counts."""
    window: int
    stride: int

    def count(self) -> tuple[Lengths, int, int | None]:
        """The lengths of windows, the number of records, and of tags, where that is known."""
        [first] = self.names[:1]
        alone = len(self.names) == 1
        if alone and (Path(first) / SHARDS_FILE).is_file():
            info = load_shards_info(Path(first))
            split = "train" if info.splits["train"].num_records else "test"
            return read_lengths(info, split), info.splits[split].num_records, len(info.tags)
        if alone and first.endswith(".json") and (counts := _read_histogram(Path(first))):
            found = Lengths.from_records(counts, window=self.window, stride=self.stride, step=1)
            return found, sum(counts.values()), None
        census = count_lengths(find_files(self.names), self._build_counter(), FormatOptions())
        words = census.num_words / (census.num_tokens + SPECIAL_TOKENS * census.num_records)
        found = Lengths.from_records(census.histogram, window=self.window, stride=self.stride, words_per_token=words)
        return found, census.num_records, None

    def _build_counter(self) -> Callable[[Sequence[str]], int]:
        """Counts the sub-tokens of words with the model's tokenizer; without one by the characters."""
        try:
            tokenizer = load_tokenizer(find_encoder(self.model))
            if len(tokenizer) < LEAST_VOCABULARY:  # what is made of a configuration without a vocabulary
                raise ValueError("no vocabulary")
            return Encoder(tokenizer, window=self.window, stride=0, splitter="unicode").count_tokens
        except NO_TOKENIZER:
            progress_console.print("[yellow]![/] the model has no tokenizer here: four characters count as a sub-token")
            return lambda words: sum(max(1, round(len(word) / CHARACTERS_PER_TOKEN)) for word in words)


def find_longest(model: str, longest: int) -> int:
    """Sub-tokens that an encoder which reads so many (0: any number) takes with its tokenizer, where that is here."""
    try:
        return int(min(longest or sys.maxsize, load_tokenizer(find_encoder(model)).model_max_length))
    except NO_TOKENIZER:
        return longest


def _read_histogram(path: Path) -> dict[str, int] | None:
    """The counts of a histogram's file; None for another JSON file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(content, dict) or not content or not all(str(key).isdigit() for key in content):
        return None
    wrong = [f"{key}: {value}" for key, value in content.items() if not isinstance(value, int) or value < 0]
    if wrong or not sum(content.values()):
        rule = 'lengths in sub-tokens, and how many texts have them: `{"17": 300}`'
        raise ConfigError(
            "a histogram that cannot be read", where=str(path), rule=rule, value="; ".join(wrong[:3]) or "empty"
        )
    return content
