"""Bytes that are not UTF-8: by default they refuse the file, and on request they reject the one record."""

import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.corpus.formats.files import FormatOptions, read_records
from pipelines.corpus.ledger import Ledger
from pipelines.corpus.records import CorpusError, Record, to_table

REJECT = FormatOptions(bad_encoding="reject_record")


def write(path, content):
    path.write_bytes(content)
    return str(path)


def split(items):
    items = list(items)
    records = [item for item in items if isinstance(item, Record)]
    return [record.text for record in records], [item for item in items if not isinstance(item, Record)]


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize(
    ("name", "content", "line", "offset"),
    [
        ("a.jsonl", b'{"text": "a"}\n{"text": "b\xe9"}\n{"text": "c"}\n', 2, 25),
        ("a.txt", b"a\nb\xe9\nc\n", 2, 3),
        ("a.txt", b"\xef\xbb\xbfa\r\n\xe9\r\nc\r\n", 2, 6),
        ("a.txt", b"a\ntorn \xe4\xb8\nc", 2, 7),
        ("a.txt", b"a\nsurrogate \xed\xa0\x80\nc", 2, 12),
        ("a.csv", b"id,text\n1,a\n2,b\xe9\n3,c\n", 3, 15),
    ],
)
def test_only_the_record_is_rejected_on_request(tmp_path, name, content, line, offset, zipped):
    path = write(tmp_path / (name + ".gz" * zipped), gzip.compress(content) if zipped else content)
    texts, [entry] = split(read_records(path, REJECT))
    assert texts == ["a", "c"]
    position = f"{path}:{line}"
    assert (entry.source, entry.record_id) == (position, position)
    assert (entry.outcome, entry.reason) == ("rejected", "invalid_utf8")
    assert f"at byte offset {offset} (line {line})" in entry.detail
    ledger = Ledger()
    ledger.add(entry)
    assert Ledger.from_table(ledger.to_table()) == ledger


def test_by_default_the_file_is_refused_after_the_records_before(tmp_path):
    records = read_records(write(tmp_path / "a.jsonl", b'{"text": "a"}\n{"text": "\xe9"}\n'))
    assert next(records).text == "a"
    with pytest.raises(CorpusError, match="0xe9 at byte offset 24"):
        next(records)


def test_a_csv_row_is_rejected_whole_where_one_of_its_lines_is_bad(tmp_path):
    content = b'text\na\n"b\n\xff\n\xfe\n"\nc\n"d" e\xff\nf\n'
    path = write(tmp_path / "a.csv", content)
    texts, [row, broken] = split(read_records(path, REJECT))
    assert texts == ["a", "c", "f"]
    assert (row.source, row.reason) == (f"{path}:3", "invalid_utf8")
    assert "0xff at byte offset 10 (line 4)" in row.detail
    assert (broken.source, broken.reason) == (f"{path}:8", "broken_csv")


def test_a_csv_header_that_is_not_utf8_refuses_the_file(tmp_path):
    path = write(tmp_path / "a.csv", b"text,caf\xe9\na,b\n")
    with pytest.raises(CorpusError, match="0xe9 at byte offset 8"):
        list(read_records(path, REJECT))


def test_a_document_a_file_is_rejected_whole(tmp_path):
    path = write(tmp_path / "a.txt", b"one\ntwo \xe9\n")
    texts, [entry] = split(read_records(path, FormatOptions(document_per="file", bad_encoding="reject_record")))
    assert texts == []
    assert (entry.source, entry.reason) == (f"{path}:1", "invalid_utf8")
    assert "byte offset 8 (line 2)" in entry.detail


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.txt", b"a\n\0\n", "binary"),
        ("a.jsonl", b'{"text": "\0"}\n', "binary"),
        ("a.txt", "ab".encode("utf-16"), "UTF-16"),
        ("a.conll", b"caf\xe9\tO\n", "0xe9"),
        ("a.json", b'[{"text": "\xe9"}]', "0xe9"),
    ],
)
def test_files_that_have_no_good_lines_or_no_lines_are_refused_either_way(tmp_path, name, content, told):
    with pytest.raises(CorpusError, match=told):
        list(read_records(write(tmp_path / name, content), REJECT))


def write_bad_parquet(path):
    offsets = pa.py_buffer(b"".join(n.to_bytes(4, "little") for n in (0, 1, 3, 4)))
    texts = pa.Array.from_buffers(pa.string(), 3, [None, offsets, pa.py_buffer(b"a\xff\xfec")])
    pq.write_table(pa.table({"text": texts}), path)
    return str(path)


def test_a_parquet_row_is_rejected_or_refuses_the_file(tmp_path):
    path = write_bad_parquet(tmp_path / "a.parquet")
    texts, [entry] = split(read_records(path, REJECT))
    assert texts == ["a", "c"]
    assert (entry.source, entry.reason) == (f"{path}:2", "invalid_utf8")
    assert "0xff at byte offset 0" in entry.detail
    records = read_records(path)
    assert next(records).text == "a"
    with pytest.raises(CorpusError, match=r"damaged[^$]*a\.parquet:2"):
        next(records)


def test_no_surrogate_reaches_arrow(tmp_path):
    rows = [
        {"text": "a", "note": "\ud800"},
        {"text": "a", "note": {"deep": [{"\udfff": 1}]}},
        {"text": "\udc80", "note": ""},
        {"text": "good", "note": {"deep": ["é"]}},
    ]
    path = write(tmp_path / "a.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())
    items = list(read_records(path, FormatOptions(extra_columns=("note",), bad_encoding="reject_record")))
    records = [item for item in items if isinstance(item, Record)]
    assert [record.text for record in records] == ["good"]
    assert {item.reason for item in items if not isinstance(item, Record)} == {"invalid_unicode"}
    assert to_table(records)["text"].to_pylist() == ["good"]


def test_bad_rows_of_every_kind_are_single_rejections(tmp_path):
    lines = [
        b'{"text": "good"}',
        b'{"text": null}',
        b'{"txt": "a"}',
        b'{"text": 5}',
        b'{"text": ["a"]}',
        b'{"text": "a"',
        b'"just text"',
        b"17",
        b'{"text": "\xff"}',
        b'{"text": "\\ud800"}',
        b'{"text": ' + b"[" * 100_000,
        b'{"text": "last"}',
    ]
    path = write(tmp_path / "a.jsonl", b"\n".join(lines))
    texts, entries = split(read_records(path, REJECT))
    assert texts == ["good", "last"]
    assert [(entry.source.rpartition(":")[2], entry.reason) for entry in entries] == [
        ("2", "no_text"),
        ("3", "no_text"),
        ("4", "bad_text"),
        ("5", "bad_text"),
        ("6", "broken_json"),
        ("7", "bad_row"),
        ("8", "bad_row"),
        ("9", "invalid_utf8"),
        ("10", "invalid_unicode"),
        ("11", "broken_json"),
    ]
