"""Lengths of corpora that are no shards."""

import json

import pytest

from pipelines.corpus.formats.options import FormatOptions
from pipelines.corpus.lengths import TOKENIZED_RECORDS, count_lengths
from pipelines.corpus.records import CorpusError


def count(words):
    return 2 * len(words)


def test_histogram_counts_records_by_sixteen(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": "one " * number}) + "\n" for number in (1, 7, 8, 20)))
    census = count_lengths([str(path)], count, FormatOptions())
    assert census.histogram == {"0": 2, "16": 1, "32": 1}
    assert (census.num_records, census.num_words, census.num_tokens) == (4, 36, 72)


def test_records_after_the_first_thousands_are_reckoned_by_their_characters(tmp_path):
    path = tmp_path / "a.jsonl"
    calls = []

    def count_and_note(words):
        calls.append(words)
        return count(words)

    path.write_text("".join(json.dumps({"text": "four five"}) + "\n" for _ in range(TOKENIZED_RECORDS + 50)))
    census = count_lengths([str(path)], count_and_note, FormatOptions())
    assert len(calls) == TOKENIZED_RECORDS
    assert census.num_tokens == 4 * (TOKENIZED_RECORDS + 50)


def test_text_without_spaces_is_counted_as_the_model_will_read_it(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": "张三在北京。" * 20}) + "\n" for _ in range(TOKENIZED_RECORDS + 50)))
    census = count_lengths([str(path)], count, FormatOptions())
    assert census.num_words == 120 * (TOKENIZED_RECORDS + 50)
    assert census.histogram == {"240": TOKENIZED_RECORDS + 50}


def test_words_that_the_splitter_cuts_are_counted_in_pieces(tmp_path):
    path = tmp_path / "a.conll"
    path.write_text("北京大学 B-ORG\nUtrecht O\n")
    census = count_lengths([str(path)], count, FormatOptions())
    assert (census.num_words, census.num_tokens) == (5, 10)


def test_corpus_without_words_is_refused(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": " "}\n')
    with pytest.raises(CorpusError):
        count_lengths([str(path)], count, FormatOptions())
