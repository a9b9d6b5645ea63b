"""Files behind URIs: found, read and refused as local ones are; `file://` goes the way of every other store."""

import gzip
import json
import os
from datetime import timedelta

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.corpus.formats.files import FormatOptions, detect_format, find_files, read_records
from pipelines.corpus.formats.listing import find_in_store
from pipelines.corpus.formats.stores import join_uri, open_store, split_uri
from pipelines.corpus.records import CorpusError

REFUSED = "s3://bucket/{}?region=us-east-1&scheme=http&endpoint_override=127.0.0.1:9"


def write(path, content=b"x"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def get_message(function, *arguments):
    with pytest.raises(CorpusError) as caught:
        list(function(*arguments))
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "options"),
    [
        ("a.jsonl", b'{"text": "a"}\n{"text": "b"}\n', {}),
        ("a.jsonl.gz", gzip.compress(b'{"text": "a"}\n{"text": "b"}\n', mtime=0), {}),
        ("a.jsonl.zst", pa.compress(b'{"text": "a"}\n{"text": "b"}\n', codec="zstd", asbytes=True), {}),
        ("a.json", b'[{"text": "a"}, {"text": "b"}]', {}),
        ("a.txt", b"a\nb\n", {}),
        ("a.csv", b"text\na\nb\n", {}),
        ("a", b"a\nb\n", {"format": "text"}),
    ],
)
def test_every_format_is_read_with_uris_as_sources(tmp_path, name, content, options):
    write(tmp_path / name, content)
    uri = f"file://{tmp_path}/{name}"
    assert find_files([uri]) == [uri]
    one, two = read_records(uri, FormatOptions(**options))
    first = 2 if name == "a.csv" else 1
    assert (one.text, one.source, one.record_id) == ("a", f"{uri}:{first}", f"{uri}:{first}")
    assert (two.text, two.doc_id) == ("b", f"{uri}:{first + 1}")


def test_parquet_and_iob2_are_read_and_detected(tmp_path):
    pq.write_table(pa.table({"text": ["a", "b"]}), tmp_path / "a.parquet")
    uri = f"file://{tmp_path}/a.parquet"
    assert [record.source for record in read_records(uri)] == [f"{uri}:1", f"{uri}:2"]
    write(tmp_path / "b.iob2.gz", gzip.compress(b"# newdoc\n# text\n1\tAngela\tB-PER\n", mtime=0))
    uri = f"file://{tmp_path}/b.iob2.gz"
    assert detect_format(uri) == "conll"
    (record,) = read_records(uri)
    assert (record.words, record.tags, record.doc_id) == (["Angela"], ["B-PER"], f"{uri}#doc1")


@pytest.fixture
def tree(tmp_path):
    """A folder of shards with all that searches pass over."""
    for name in (
        "part-1/x1.jsonl.zst",
        "part-1/x2.jsonl.zst",
        "part-1/y.jsonl.zst",
        "part-2/x1.jsonl",
        "part-2/deep/x.jsonl",
        "other/a.txt",
        "README.txt",
        "_SUCCESS.txt",
        "notes.md",
        ".git/a.txt",
    ):
        write(tmp_path / name)
    return tmp_path


@pytest.mark.parametrize(
    "pattern",
    [
        "",
        "part-1",
        "part-*/x*.jsonl.zst",
        "part-[2]/*",
        "**/x*.jsonl",
        "part-2/**",
        "**",
        "*",
        "*/y.jsonl.zst",
        "*.md",
        "part-*",
    ],
)
def test_a_store_is_searched_as_a_local_folder_is(tree, pattern):
    local = find_files([os.path.join(tree, pattern)])
    assert find_files([f"file://{tree}/{pattern}"]) == [f"file://{name}" for name in local]
    assert local


def test_hidden_names_are_found_when_asked_for(tree):
    write(tree / "_temporary/a.txt")
    assert not any("_temporary" in uri for uri in find_files([f"file://{tree}/*", f"file://{tree}/**"]))
    assert find_files([f"file://{tree}/_temp*/*.txt"]) == [f"file://{tree}/_temporary/a.txt"]
    assert find_files([f"file://{tree}/.git/a.txt"]) == [f"file://{tree}/.git/a.txt"]


def test_names_are_quoted_in_uris_and_read_back(tmp_path):
    names = ["a b.txt", "é.txt", "100%.txt", "x[1].txt", "x*.txt", "a#b.txt", "a?b.txt"]
    for name in names:
        write(tmp_path / "d" / name, name.encode())
    found = find_files([f"file://{tmp_path}/d"])
    assert find_files(found) == found
    assert sorted(record.text for uri in found for record in read_records(uri)) == sorted(names)
    assert find_files([f"file://{tmp_path}/d/é*"]) == [f"file://{tmp_path}/d/%C3%A9.txt"]
    assert [record.text for record in read_records(f"file://{tmp_path}/d/a b.txt")] == ["a b.txt"]


def test_uris_come_apart_and_together():
    parts = ("s3", "bucket", "/a#b/c", "region=x&y=a/b?c")
    assert split_uri(join_uri(*parts)) == parts
    assert split_uri("s3://bucket") == ("s3", "bucket", "", "")


@pytest.mark.parametrize(
    ("pattern", "told"),
    [
        (
            "part-1/x1.josnl.zst",
            ["there is no such file", "nothing named `x1.josnl.zst`", "did you mean `x1.jsonl.zst`"],
        ),
        ("part-3/x.txt", ["nothing named `part-3`", "did you mean `part-"]),
        ("QQQQ/like/it", ["nothing named `QQQQ`", "holds 5 entries: `README.txt`, `notes.md`, `other`"]),
        ("part-1/*.csv", ["the pattern matches no file", "holds 3 entries: `x1.jsonl.zst`"]),
        ("part-7/*.csv", ["the pattern matches no file", "holds 5 entries"]),
    ],
)
def test_a_uri_that_means_nothing_is_refused_with_what_there_is(tree, pattern, told):
    message = get_message(find_files, [f"file://{tree}/{pattern}"])
    for fact in [f"file://{tree}/{pattern}", *told]:
        assert fact in message


def test_a_folder_without_corpora_is_refused_with_what_there_is(tmp_path):
    write(tmp_path / "d/.keep")
    message = get_message(find_files, [f"file://{tmp_path}/d"])
    for fact in ("the folder holds no corpus files", "`*.jsonl`", "1 entries: `.keep`"):
        assert fact in message


def test_a_dataset_folder_in_a_store_is_refused(tree):
    write(tree / "saved/state.json", b"{}")
    message = get_message(find_files, [f"file://{tree}"])
    for fact in ("written by `save_to_disk`", f"file://{tree}/saved\n", "`to_parquet`"):
        assert fact in message


@pytest.mark.parametrize(
    ("uri", "told"),
    [
        ("ftp://host/a.txt", ["the URI is not understood", "ftp", "`s3://`"]),
        ("s3://bucket/a.txt?regoin=x", ["the URI is not understood", "'regoin'"]),
        ("file://host/a.txt", ["the URI is not understood", "hostname"]),
        ("s3://", ["the URI is not understood", "bucket"]),
        ("file://", ["the URI is not understood"]),
        ("file:///100%.txt", ["the URI is not understood", "`%25`"]),
    ],
)
@pytest.mark.parametrize("function", [find_in_store, read_records])
def test_a_uri_that_is_none_is_refused(function, uri, told):
    message = get_message(function, uri)
    for fact in [uri, *told]:
        assert fact in message


def test_a_password_in_a_path_is_refused_and_not_repeated():
    message = get_message(find_files, ["s3://KEY:hidden@bucket/a.txt"])
    assert "the path holds a password" in message
    assert "s3://KEY:…@bucket/a.txt" in message
    assert "hidden" not in message


def test_a_missing_file_is_refused_when_read(tmp_path):
    for name in ("none.jsonl", "none.parquet", "none"):
        uri = f"file://{tmp_path}/{name}"
        message = get_message(read_records, uri)
        assert "there is no such file" in message
        assert uri in message


def test_damage_behind_a_uri_is_told_with_its_line(tmp_path):
    lines = "".join(json.dumps({"text": str(number)}) + "\n" for number in range(1000)).encode()
    write(tmp_path / "a.jsonl.gz", gzip.compress(lines, mtime=0)[:-20])
    uri, records = f"file://{tmp_path}/a.jsonl.gz", []
    with pytest.raises(CorpusError, match="gzip file is damaged") as caught:
        records.extend(read_records(uri))  # keeps what came before the error
    assert len(records) > 900
    assert f"{uri}:{len(records) + 1}\n" in str(caught.value)


@pytest.mark.parametrize(("query", "seconds"), [("", 7), ("?retry_limit_seconds=3", 3)])
def test_google_is_not_asked_for_a_quarter_of_an_hour(query, seconds):
    store, name = open_store(f"gs://anonymous@bucket/a.txt{query}", 7)
    _, (settings,) = store.__reduce__()
    assert (name, settings["retry_time_limit"]) == ("bucket/a.txt", timedelta(seconds=seconds))


@pytest.mark.timeout(200)
def test_a_store_that_does_not_answer_is_told_in_one_message(monkeypatch):
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    uri = REFUSED.format("a.jsonl")
    message = get_message(find_files, [uri])
    for fact in (
        "cannot be read from its storage",
        uri,
        "Could not connect",
        "`AWS_ACCESS_KEY_ID`",
        "endpoint_override",
    ):
        assert fact in message
    assert len(message.splitlines()) == 4
