"""Documents cut into chunks, and chunks on their way to an actor."""

import itertools
import random

import pyarrow as pa
import pytest

from pipelines.corpus import chunks
from pipelines.corpus.chunks import (
    build_column,
    count_characters,
    cut_chunks,
    name_chunk,
    pack_chunk,
    parse_chunk,
    read_items,
    unpack_chunk,
)
from pipelines.corpus.formats.options import FormatOptions
from pipelines.corpus.ledger import LedgerEntry
from pipelines.corpus.records import Record

REJECTED = LedgerEntry("a:2", "a:2", "rejected", "no_text", "nothing there")


def make_record(text=None, words=None, **extra):
    return Record(record_id="a:1", doc_id="d1", source="a:1", text=text, words=words, extra=extra)


def sizes(items, limit):
    return [[count_characters(item) for item in chunk] for chunk in cut_chunks(items, limit)]


def test_chunks_hold_as_many_documents_as_fit():
    records = [make_record("x" * size) for size in (4, 4, 3, 9, 1, 1)]
    assert sizes(records, 10) == [[4, 4], [3], [9, 1], [1]]


def test_document_larger_than_a_chunk_is_one_alone():
    records = [make_record("x" * size) for size in (2, 50, 3, 10, 3)]
    assert sizes(records, 10) == [[2], [50], [3], [10], [3]]


def test_number_of_documents_is_bounded_also_where_they_are_empty(monkeypatch):
    monkeypatch.setattr(chunks, "MAX_DOCUMENTS", 3)
    assert sizes([make_record("")] * 5 + [REJECTED] * 2, 10) == [[0, 0, 0], [0, 0, 0], [0]]


def test_chunks_do_not_depend_on_what_was_read_before():
    dice = random.Random(0)
    records = [make_record("x" * dice.randrange(30)) for _ in range(500)]
    found = list(cut_chunks(records, 100))
    assert list(itertools.chain.from_iterable(found)) == records
    first = len(list(itertools.chain.from_iterable(found[:7])))
    assert list(cut_chunks(records[first:], 100)) == found[7:]


def test_nothing_gives_no_chunk():
    assert list(cut_chunks([], 10)) == []


@pytest.mark.parametrize(("words", "expected"), [(["a", "bc"], 4), ([], 0), (["a"], 1)])
def test_words_count_as_their_text_joined_by_spaces(words, expected):
    assert count_characters(make_record(words=words)) == expected


def test_names_of_chunks_tell_their_place_and_sort_by_it():
    names = [name_chunk(0, 0), name_chunk(3, 12), name_chunk(3, 1_234_567), name_chunk(100_000, 0)]
    assert names[1] == "00003-000012"
    assert [parse_chunk(name) for name in names] == [(0, 0), (3, 12), (3, 1_234_567), (100_000, 0)]
    assert sorted(set(names), key=parse_chunk) == names


def test_chunk_arrives_as_it_was_sent():
    items = [make_record("👩‍💻 text", n=1), REJECTED, make_record(words=["São", "Paulo"], n=2)]
    rows = unpack_chunk(pa.py_buffer(pack_chunk(items, ["n", "absent"]))).to_pylist()
    assert [row["text"] for row in rows] == ["👩‍💻 text", None, None]
    assert [row["words"] for row in rows] == [None, None, ["São", "Paulo"]]
    assert [row["reason"] for row in rows] == [None, "no_text", None]
    assert [row["doc_id"] for row in rows] == ["d1", "a:2", "d1"]
    assert [row["source"] for row in rows] == ["a:1", "a:2", "a:1"]
    assert [row["keep.n"] for row in rows] == [1, None, 2]
    assert [row["keep.absent"] for row in rows] == [None] * 3


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1, None, 2], [1, None, 2]),
        ([1, 2.5], [1.0, 2.5]),
        ([1, "a", None, {"b": [1]}], ["1", "a", None, '{"b": [1]}']),
        ([2**70], [str(2**70)]),
        (["fine", "lone \ud800"], ["fine", "lone \\ud800"]),
        ([{"a": "\ud800"}], ['{"a": "\\ud800"}']),
        ([], []),
    ],
)
def test_columns_take_values_of_any_kind(values, expected):
    assert build_column(values).to_pylist() == expected


def test_damage_to_a_file_is_its_last_item(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "Ada"}\n{"text"\n\x00\n')
    *before, last = read_items(str(path), FormatOptions())
    assert [getattr(item, "text", None) or item.reason for item in before] == ["Ada", "broken_json"]
    assert (last.source, last.reason) == (str(path), "unreadable")
    assert "NUL" in last.detail
    assert "\n" not in last.detail


def test_repairs_are_no_items(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "Ada ", "entities": [[0, 4, "PER"]]}\n')
    [record] = read_items(str(path), FormatOptions())
    assert record.text == "Ada "


def test_empty_file_holds_nothing_and_is_not_damaged(tmp_path):
    path = tmp_path / "a.jsonl"
    path.touch()
    assert list(read_items(str(path), FormatOptions())) == []
