"""Documents cut into chunks, and chunks on their way to an actor."""

import gzip
import io
import itertools
import json
import random
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.corpus import chunks
from pipelines.corpus.census import count_file
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
from pipelines.corpus.labelling import _read_file
from pipelines.corpus.ledger import LedgerEntry
from pipelines.corpus.records import CorpusError, Record

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
        ([{}, None, {}], ["{}", None, "{}"]),
        ([{"tags": {}}], ['{"tags": {}}']),
        ([[{"meta": {"tags": {}}, "n": 1}]], ['[{"meta": {"tags": {}}, "n": 1}]']),
        ([{}, {"a": {"b": 1}}], ["{}", '{"a": {"b": 1}}']),
        ([[{"a": 1}], [], [{"b": 1}]], ['[{"a": 1}]', "[]", '[{"b": 1}]']),
        ([{"b": [{"a": 1}], "c": None}, None, {"c": {"d": 2}, "b": []}],) * 2,
    ],
)
def test_columns_take_values_of_any_kind(values, expected):
    column = build_column(values)
    assert column.to_pylist() == expected
    pq.write_table(pa.table({"column": column}), io.BytesIO())


def test_objects_whose_keys_are_data_take_no_more_than_their_text():
    values = [{f"user {number}": number} for number in range(chunks.MAX_DOCUMENTS)]
    column = build_column(values)
    assert column.type == chunks.JSON_TYPE
    assert [json.loads(text) for text in column.to_pylist()] == values
    assert column.nbytes < 1 << 18
    assert build_column([1, {"a": 1}]).type == pa.string()


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


@pytest.mark.parametrize(
    ("name", "content"),
    [
        *(
            (name, b"")
            for name in ("a.jsonl", "a.json", "a.txt", "a.csv", "a.tsv", "a.conll", "a.parquet", "a.csv.zst")
        ),
        *(("a.jsonl.gz", content) for content in (b"", gzip.compress(b"", mtime=0), gzip.compress(b" \n", mtime=0))),
        *((name, b"\n \n\r\n") for name in ("a.jsonl", "a.json", "a.txt", "a.csv", "a.tsv", "a.conll")),
        *(("a.csv", content) for content in (b"text\n", b"id,text", b"\n\nid,text\r\n")),
        ("a.json", b"[]"),
    ],
)
def test_file_without_documents_holds_nothing_and_is_not_damaged(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    for place in (str(path), path.as_uri()):
        assert list(read_items(place, FormatOptions())) == []


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", b"sentence\n"),
        ("a.csv", b"text\rAda\r"),
        ("a.jsonl.gz", gzip.compress(b"{}", mtime=0)[:5]),
        ("a.parquet", b"P"),
    ],
)
def test_file_that_lacks_something_is_not_taken_for_an_empty_one(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    [entry] = read_items(str(path), FormatOptions())
    assert (entry.outcome, entry.reason) == ("rejected", "unreadable")


def test_nanoseconds_of_a_kept_column_stay():
    exact = pa.array([1_000_000_001, None], pa.timestamp("ns"))
    assert build_column(exact.to_pylist()).equals(exact)


def begin_reading(path, chunk_characters=40):
    """What a reader is told of a file, and what it is to read."""
    counted = count_file(str(path), FormatOptions(), chunk_characters)
    row = {"path": str(path), "num_chunks": counted.num_chunks, "is_damaged": counted.is_damaged, "done": []}
    row["num_documents"] = counted.num_records + counted.num_rejected
    row["num_characters"] = counted.num_characters
    return row, SimpleNamespace(reader=FormatOptions(), chunk_characters=chunk_characters)


def test_file_that_changed_is_told_before_its_last_chunk_is_labelled(tmp_path):
    path = tmp_path / "a.jsonl"
    line = '{"text": "Angela Merkel"}\n'
    path.write_text(line * 3)
    one_chunk, several = begin_reading(path, 1000), begin_reading(path, 15)
    assert [number for number, _ in _read_file(*several)] == [0, 1, 2]
    path.write_text(line * 4)
    with pytest.raises(CorpusError, match="a file was changed") as caught:
        list(_read_file(*one_chunk))
    assert "3 documents before, 4 now" in str(caught.value)
    path.write_text(line * 2)
    path.write_text(line * 2 + '{"text": "Angela D. Merkel"}\n')
    with pytest.raises(CorpusError, match="39 characters before, 42 now"):
        list(_read_file(*one_chunk))
    path.write_text(line * 2)
    found = []
    with pytest.raises(CorpusError, match="it is shorter now"):
        found.extend(number for number, _ in _read_file(*several))
    path.write_text(line + '{"text": "Utrecht"}\n' * 4)
    with pytest.raises(CorpusError, match="a file was changed"):
        list(_read_file(*several))


def test_file_that_could_not_be_read_to_its_end_and_can_be_now_has_changed(tmp_path):
    path = tmp_path / "a.jsonl.gz"
    whole = gzip.compress(b'{"text": "Angela Merkel"}\n' * 50, mtime=0)
    path.write_bytes(whole[:-9])
    row, job = begin_reading(path, 100_000)
    assert row["is_damaged"]
    assert len(list(_read_file(row, job))) == 1
    path.write_bytes(whole)
    with pytest.raises(CorpusError, match="can be now"):
        list(_read_file(row, job))
