"""Patterns to files, files to records, and the message for everything that is not readable."""

import gzip
import os

import pytest

from pipelines.corpus.formats.files import (
    SAMPLE_FOLDER,
    FormatOptions,
    detect_format,
    find_files,
    locate_files,
    read_records,
)
from pipelines.corpus.formats.opening import read_lines
from pipelines.corpus.ledger import LedgerEntry
from pipelines.corpus.records import CorpusError, Record
from tests.unit.users import as_nobody


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder that is the working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
    return str(path)


def get_message(function, *arguments):
    with pytest.raises(CorpusError) as caught:
        list(function(*arguments))
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.conll", "a O\n", "conll"),
        ("a.bio", "a O\n", "conll"),
        ("a.IOB2", "a O\n", "conll"),
        ("a.txt", "Angela B-PER\nsmiles O\n", "conll"),
        ("a.txt", "Angela smiles.\nSo do I.\n", "text"),
        ("a.txt", '{"text": "a"}\n', "text"),
        ("a.tsv", "a\tO\n", "conll"),
        ("a.tsv", "text\tO\nand\tO\n", "conll"),
        ("a.tsv", "id\ttext\n1\ta\n", "csv"),
        ("a.csv", "text\na\n", "csv"),
        ("a.parquet", "", "parquet"),
        ("a.ann", "T1\tPER 0 6\tAngela\n", "brat"),
        ("a.ann", "", "brat"),
        ("a.PubTator", "1|t|Angela\n", "pubtator"),
        ("a.PubTator.txt", "\n1|t|Angela\n", "pubtator"),
        ("a", "1|t|Angela\n", "pubtator"),
        ("a.json", '[{"text": "a"}]', "json"),
        ("a.json", '{"text": "a"}\n{"text": "b"}', "jsonl"),
        ("a.jsonl", '{"text": "a"}', "jsonl"),
        ("a.jsonl", '[\n{"text": "a"}\n]', "json"),
        ("a.ndjson", '{"text": "a"}', "jsonl"),
        ("a", '{"text": "a"}', "jsonl"),
        ("a", '[{"text": "a"}]', "json"),
        ("a", "a\tO\n", "conll"),
        ("a.train", "[ O\na O\n", "conll"),
        ("a", "prose", "text"),
        ("a", b"PAR1\0", "parquet"),
    ],
)
@pytest.mark.parametrize("compress", [False, True])
def test_detect_format_by_extension_and_content(tmp_path, name, content, expected, compress):
    content = content if isinstance(content, bytes) else content.encode()
    path = tmp_path / (name + ".gz" * compress)
    path.write_bytes(gzip.compress(content) if compress else content)
    assert detect_format(str(path)) == expected


def test_detect_format_looks_at_the_head_of_a_long_file(tmp_path):
    assert detect_format(write(tmp_path / "a.txt", "wort\tO\n" * 50_000)) == "conll"


CONLL = "Angela B-PER\nsmiles O\n\nSo O\n"


@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("name", ["a.conll", "a.txt"])
def test_marks_line_ends_and_compression_change_nothing(tmp_path, bom, end, compress, name):
    content = bom + CONLL.replace("\n", end).encode()
    path = tmp_path / (name + ".gz" * compress)
    path.write_bytes(gzip.compress(content) if compress else content)
    one, two = read_records(str(path))
    assert (one.words, one.tags, two.words) == (["Angela", "smiles"], ["B-PER", "O"], ["So"])
    assert (one.source, two.source) == (f"{path}:1", f"{path}:4")


def test_gzip_is_known_by_its_content_too(tmp_path):
    assert len(list(read_records(write(tmp_path / "a.conll", gzip.compress(CONLL.encode()))))) == 2


@pytest.mark.parametrize("exotic", ["\u2028", "\u2029", "\x85", "\x0c", "\x0b", "\x1c", "\x1d", "\x1e", "\r"])
def test_only_lf_and_crlf_end_a_line(tmp_path, exotic):
    path = write(tmp_path / "a.txt", f"a{exotic}b\r\nc\n")
    assert [record.text for record in read_records(path)] == [f"a{exotic}b", "c"]
    path = write(tmp_path / "a.conll", f"a{exotic}b\tO\nc\tO\n")
    (record,) = read_records(path)
    assert record.words == [f"a{exotic}b", "c"]


def test_text_is_a_document_a_line_or_a_file(tmp_path):
    path = write(tmp_path / "a.txt", "\ufeffone\r\n\n \ntwo ")
    assert [(r.text, r.record_id, r.doc_id) for r in read_records(path)] == [
        ("one", f"{path}:1", f"{path}:1"),
        ("two ", f"{path}:4", f"{path}:4"),
    ]
    (record,) = read_records(path, FormatOptions(document_per="file"))
    assert (record.text, record.doc_id, record.spans) == ("one\r\n\n \ntwo ", path, None)


def test_text_is_a_document_a_paragraph(tmp_path):
    path = write(tmp_path / "a.txt", "one\ntwo\n \n\nthree\n\nfour")
    records = read_records(path, FormatOptions(document_per="paragraph"))
    assert [(r.text, r.doc_id) for r in records] == [
        ("one\ntwo\n", f"{path}:1"),
        ("three\n", f"{path}:5"),
        ("four", f"{path}:7"),
    ]


def test_format_option_goes_before_detection(tmp_path):
    path = write(tmp_path / "a.conll", "a O\n")
    (record,) = read_records(path, FormatOptions(format="text"))
    assert record.text == "a O"


def test_relative_names_stay_relative(folder):
    write(folder / "sub/a.conll", CONLL)
    assert find_files(["sub/a.conll"]) == ["sub/a.conll"]
    assert [record.source for record in read_records("sub/a.conll")] == ["sub/a.conll:1", "sub/a.conll:4"]


def test_broken_json_line_is_rejected_and_not_fatal(tmp_path):
    path = write(tmp_path / "a.jsonl", '{"text": "a"}\n{"text"\n{"text": "b"}\n')
    one, bad, two = read_records(path)
    assert isinstance(one, Record)
    assert isinstance(two, Record)
    assert (bad.source, bad.reason) == (f"{path}:2", "broken_json")


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.conll", b"", ["the file is empty"]),
        ("a.conll.gz", gzip.compress(b"", mtime=0), ["the file is empty"]),
        ("a.conll", b"\n \n\t\n", ["the file holds no records", "read as `conll`"]),
        ("a.jsonl", b"\n\n", ["the file holds no records"]),
        ("a.json", b"[]", ["the file holds no records"]),
        ("a.csv", b"text\n", ["the file holds no records"]),
        ("a.conll", b"a O\nb\0 O\n", ["the file is binary", "a.conll:2", "NUL byte at byte offset 5 (line 2)"]),
        ("a.txt", b"\x89PNG\r\n\x1a\n\0\0", ["not UTF-8", "0x89", "byte offset 0 (line 1)"]),
        ("a.conll", "a O\ncafé O\n".encode("latin-1"), ["not UTF-8", "0xe9 at byte offset 7 (line 2)", "iconv"]),
        ("a.conll", b"\xef\xbb\xbfa O\n\xff O\n", ["0xff at byte offset 7 (line 2)"]),
        ("a.conll", b"\xef\xbb\xbf\xff O\n", ["0xff at byte offset 3 (line 1)"]),
        ("a.txt", "ab".encode("utf-16"), ["UTF-16", "iconv -f UTF-16"]),
        ("a.conll.gz", gzip.compress(CONLL.encode() * 99, mtime=0)[:-12], ["gzip file is damaged", "gzip -t"]),
        ("a.conll.gz", CONLL.encode(), ["gzip file is damaged", "Not a gzipped file"]),
        ("a.json", b'[{"text": "a"},\n{"text" "b"}]', ["not valid JSON", "a.json:2"]),
        ("a.csv", b"a,b\n1,2\n", ["no column holds the text", "`a`, `b`"]),
    ],
)
def test_unreadable_files_are_refused_with_what_and_where(tmp_path, name, content, told):
    path = write(tmp_path / name, content)
    message = get_message(read_records, path)
    for fact in [str(tmp_path), *told]:
        assert fact in message


def test_a_damaged_gzip_is_refused_when_its_middle_is_reached(tmp_path):
    content = bytearray(gzip.compress(os.urandom(400_000).hex().encode()))
    content[200_000:200_400] = b"\0" * 400
    path = write(tmp_path / "a.txt.gz", bytes(content))
    assert "gzip file is damaged" in get_message(read_lines, path)


def test_a_forbidden_file_is_refused(tmp_path):
    path = write(tmp_path / "a.conll", CONLL)
    os.chmod(path, 0)
    with as_nobody(tmp_path):
        message = get_message(read_records, path)
    assert "cannot be read" in message
    assert "Permission denied" in message
    assert "chmod a+r" in message


def test_a_forbidden_subfolder_is_not_passed_over(tmp_path):
    write(tmp_path / "d/a.conll", CONLL)
    (tmp_path / "d/e").mkdir(mode=0)
    with as_nobody(tmp_path):
        assert "Permission denied" in get_message(find_files, [str(tmp_path / "d")])


def test_a_missing_file_is_refused_when_read(tmp_path):
    assert "No such file" in get_message(read_records, str(tmp_path / "none.conll"))


def test_find_files_keeps_the_order_given_sorts_within_and_drops_repeats(folder):
    for name in ("b.conll", "a.conll", "c/d.jsonl", "c/e/f.txt.gz"):
        write(folder / name, "x")
    assert find_files(["b.conll", "*.conll", "c"]) == ["b.conll", "a.conll", "c/d.jsonl", "c/e/f.txt.gz"]
    assert find_files(["**/*.jsonl"]) == ["c/d.jsonl"]


def test_find_files_takes_known_extensions_from_folders(folder):
    for name in ("a.conll", "a.md", "README.txt", "LICENSE", "_SUCCESS.txt", ".hidden.txt", ".git/a.txt", "x.png"):
        write(folder / "d" / name, "x")
    assert find_files(["d"]) == ["d/a.conll"]
    assert find_files(["d/*"]) == ["d/a.conll"]
    assert find_files(["d/a.md"]) == ["d/a.md"]
    assert find_files(["d/*.md"]) == ["d/a.md"]


def test_find_files_takes_a_file_whose_name_looks_like_a_glob(folder):
    write(folder / "a[1].conll", "x")
    assert find_files(["a[1].conll"]) == ["a[1].conll"]


def test_find_files_tells_of_a_link_that_leads_nowhere(folder):
    write(folder / "a.conll", "x")
    (folder / "b.conll").symlink_to("gone")
    assert find_files(["*.conll"]) == ["a.conll", "b.conll"]
    assert "No such file" in get_message(read_records, "b.conll")


def test_find_files_follows_links_to_folders_and_reads_each_once(folder):
    for name in ("d/z/a.conll", "e/b.conll", "e/f/c.conll"):
        write(folder / name, "x")
    for link, target in (("d/again", "z"), ("d/e", "../e"), ("d/e2", "../e"), ("e/loop", "../d"), ("e/f/self", ".")):
        (folder / link).symlink_to(target)
    assert find_files(["d"]) == ["d/e/b.conll", "d/e/f/c.conll", "d/z/a.conll"]


def test_find_files_takes_a_file_by_several_names_once(folder):
    write(folder / "a.conll", "x")
    (folder / "b.conll").symlink_to("a.conll")
    assert find_files(["./a.conll", "*.conll", str(folder / "a.conll")]) == ["./a.conll"]
    assert find_files(["*.conll"]) == ["a.conll"]


def test_find_files_resolves_the_home_folder(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder))
    write(folder / "a.conll", "x")
    assert find_files(["~/a.conll"]) == [str(folder / "a.conll")]


def test_located_files_are_found_from_elsewhere_and_addresses_stay(folder, monkeypatch):
    here = folder / "[2024] ?"
    write(here / "a.conll", "a O\n")
    write(here / "b[1].conll", "a O\n")
    monkeypatch.chdir(here)
    patterns = ["a.conll", "*.conll", "b[1].conll", str(folder / "x.txt"), "~/c.txt"]
    located = [locate_files(pattern) for pattern in patterns]
    monkeypatch.chdir("/")
    assert find_files(located[:1]) == [str(here / "a.conll")]
    assert find_files(located[1:2]) == [str(here / "a.conll"), str(here / "b[1].conll")]
    assert find_files(located[2:3]) == [str(here / "b[1].conll")]
    assert located[3:] == [str(folder / "x.txt"), os.path.expanduser("~/c.txt")]
    for address in ("s3://bucket/a-*.jsonl", "hf:name:train", "sample:", "sample:en-test.jsonl"):
        assert locate_files(address) == address


def test_find_files_resolves_the_sample():
    assert (SAMPLE_FOLDER.parent.name, SAMPLE_FOLDER.name) == ("pipelines", "sample")
    message = get_message(find_files, ["sample:no-such-corpus.conll"])
    assert "sample:no-such-corpus.conll" in message
    assert str(SAMPLE_FOLDER) in message


def test_the_sample_is_readable():
    if not SAMPLE_FOLDER.is_dir() or not any(SAMPLE_FOLDER.iterdir()):
        pytest.skip("the sample corpus is not written yet")
    for path in find_files(["sample:"]):
        assert all(isinstance(item, Record) for item in read_records(path))


@pytest.mark.parametrize(
    ("pattern", "told"),
    [
        (
            "d/trian.conll",
            ["there is no such file", "nothing named `trian.conll` in `d`", "did you mean `d/train.conll`?"],
        ),
        ("e/train.conll", ["nothing named `e` in `.`", "`.` holds 2 entries"]),
        ("dd/train.conll", ["did you mean `d`?"]),
        ("d/*.jsonl", ["the pattern matches no file", "`d` holds 1 entries: `train.conll`", "quote it"]),
        ("empty", ["the folder holds no corpus files", "it is empty", "`*.conll`", "`save_to_disk`"]),
        ("http://host/a.conll", ["the URI is not understood", "`s3://`", "mount it"]),
        (
            "",
            [
                "there is no such file",
                "`s3://bucket/…`",
                "`save_to_disk`",
                "`hf:name[:config][:split]`",
                "`sample:name`",
            ],
        ),
    ],
)
def test_find_files_refuses_patterns_that_mean_nothing(folder, pattern, told):
    write(folder / "d/train.conll", "x")
    (folder / "empty").mkdir()
    message = get_message(find_files, [pattern])
    for fact in told:
        assert fact in message


def test_corpus_errors_of_reading_are_raised_while_reading_and_not_before(tmp_path):
    records = read_records(write(tmp_path / "a.conll", b"a O\n\nb\0 O\n"))
    assert next(records).words == ["a"]
    with pytest.raises(CorpusError, match="binary"):
        next(records)


TABLE = "id\tbody\n1\tAngela Merkel visited Utrecht.\n2\tAda met Grace.\n"


def test_table_with_a_text_column_of_any_name_is_no_conll(tmp_path):
    path = write(tmp_path / "docs.tsv", TABLE)
    records = list(read_records(path, FormatOptions(text_column="body")))
    assert [record.text for record in records] == ["Angela Merkel visited Utrecht.", "Ada met Grace."]
    with pytest.raises(CorpusError, match="column"):
        list(read_records(path))


def test_quote_that_is_left_open_costs_as_many_rows_as_it_swallows(tmp_path):
    rows = [f"{number},text {number}" for number in range(1, 101)]
    rows[49] = '50,"an unclosed quote'
    found = list(read_records(write(tmp_path / "a.csv", "\n".join(["id,text", *rows]))))
    lost = [one for one in found if isinstance(one, LedgerEntry)]
    assert (len(found) - len(lost), len(lost)) == (49, 51)
    assert {one.reason for one in lost} == {"broken_csv"}
