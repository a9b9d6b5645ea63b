"""Gzip and zstd, by name and by content; and of damaged files every record before the damage."""

import gzip
import json
import random

import pyarrow as pa
import pytest

from pipelines.corpus.formats.files import detect_format, find_files, read_records
from pipelines.corpus.formats.opening import read_head, read_lines
from pipelines.corpus.records import CorpusError, Record

FORMATS = {
    "a.jsonl": lambda texts: "".join(json.dumps({"text": text}) + "\n" for text in texts),
    "a.txt": lambda texts: "".join(f"{text}\n" for text in texts),
    "a.csv": lambda texts: "text\n" + "".join(f'"{text}"\n' for text in texts),
    "a.conll": lambda texts: "".join(f"{text}\tO\n\n" for text in texts),
}


def compress(content, kind):
    return gzip.compress(content) if kind == "gz" else pa.compress(content, codec="zstd", asbytes=True)


def draw_texts(number):
    chooser = random.Random(5)
    return ["".join(chooser.choices("abcdefghijklmnopqrstuvwxyz", k=90)) for _ in range(number)]


def get_texts(items):
    return [item.text if item.words is None else item.words[0] for item in items]


def read_until_refused(path):
    items = []
    with pytest.raises(CorpusError) as caught:
        items.extend(read_records(str(path)))  # keeps what came before the error
    return get_texts([item for item in items if isinstance(item, Record)]), str(caught.value)


@pytest.mark.parametrize("kind", ["gz", "zst", "zstd", ""])
@pytest.mark.parametrize("codec", ["gz", "zst"])
@pytest.mark.parametrize("name", FORMATS)
def test_compression_is_known_by_name_or_by_content(tmp_path, name, kind, codec):
    if kind and not kind.startswith(codec):
        codec = "gz" if kind == "gz" else "zst"
    texts = draw_texts(3)
    path = tmp_path / (f"{name}.{kind}" if kind else name)
    path.write_bytes(compress(FORMATS[name](texts).encode(), codec))
    assert find_files([str(tmp_path)]) == [str(path)]
    assert detect_format(str(path)) == {"a.txt": "text"}.get(name, name[2:])
    assert get_texts(read_records(str(path))) == texts


@pytest.mark.parametrize("kind", ["gz", "zst"])
def test_every_member_and_frame_is_read(tmp_path, kind):
    parts = [f"{text}\n".encode() * 50 for text in draw_texts(40)]
    path = tmp_path / f"a.txt.{kind}"
    path.write_bytes(b"".join(compress(part, kind) for part in parts))
    assert "\n".join(read_lines(str(path))).encode() + b"\n" == b"".join(parts)


@pytest.mark.parametrize("kind", ["gz", "zst"])
def test_an_empty_compressed_file_is_empty(tmp_path, kind):
    path = tmp_path / f"a.txt.{kind}"
    for content in (b"", compress(b"", kind)):
        path.write_bytes(content)
        with pytest.raises(CorpusError, match="the file is empty"):
            list(read_records(str(path)))


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(("kind", "num_texts"), [("gz", 400), ("gz", 9_000), ("zst", 9_000)])
def test_a_truncated_file_gives_every_record_before_its_end(tmp_path, name, kind, num_texts):
    texts = draw_texts(num_texts)
    content = FORMATS[name](texts).encode()
    path = tmp_path / f"{name}.{kind}"
    path.write_bytes(compress(content, kind)[: len(content) // 3])
    head = b"".join(line.encode() + b"\n" for line in take_until_refused(read_lines(str(path))))
    assert content.startswith(head)
    found, message = read_until_refused(path)
    assert found == texts[: len(found)]
    assert len(found) >= num_texts // 3
    assert 0 <= num_complete(head, name) - len(found) <= 1
    assert f"the {'gzip' if kind == 'gz' else 'zstd'} file is damaged" in message
    assert f"{path}:{head.count(10) + 1}" in message


def take_until_refused(items):
    try:
        yield from items
    except CorpusError:
        return


def num_complete(head, name):
    return head.count(b"\n\n") if name == "a.conll" else head.count(b"\n") - (name == "a.csv")


def test_a_truncated_zstd_file_gives_all_its_whole_blocks(tmp_path):
    content = "\n".join(draw_texts(9_000)).encode()
    compressed = compress(content, "zst")
    path = tmp_path / "a.txt.zst"
    sizes = []
    for cut in (len(compressed) // 2, len(compressed) - 1):
        path.write_bytes(compressed[:cut])
        head = read_head(str(path), len(content))
        assert content.startswith(head)
        sizes.append(len(head))
    assert sizes[0] >= 131_072 * (len(content) // 2 // 131_072 - 1)
    assert sizes[1] >= len(content) - 131_072


@pytest.mark.parametrize("kind", ["gz", "zst"])
def test_a_gap_is_refused_after_the_records_before_it(tmp_path, kind):
    texts = draw_texts(9_000)
    content = compress(FORMATS["a.jsonl"](texts).encode(), kind)
    path = tmp_path / f"a.jsonl.{kind}"
    path.write_bytes(content[: len(content) // 2] + content[len(content) // 2 + 400 :])
    found, message = read_until_refused(path)
    assert found[:3_000] == texts[:3_000]
    assert "file is damaged" in message


def test_a_file_that_only_pretends_to_be_zstd_is_refused(tmp_path):
    path = tmp_path / "a.txt.zst"
    path.write_bytes(b"plain text\n")
    found, message = read_until_refused(path)
    assert found == []
    for fact in ("zstd file is damaged", f"{path}:1", "Unknown frame descriptor", "zstd -t"):
        assert fact in message


def test_a_line_may_be_very_long(tmp_path):
    text = "wort " * 1_000_000
    path = tmp_path / "a.txt.zst"
    path.write_bytes(compress(f"a\n{text}\nb\n".encode(), "zst"))
    assert get_texts(read_records(str(path))) == ["a", text, "b"]


def test_the_head_of_a_damaged_file_is_what_comes_before(tmp_path):
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(FORMATS["a.jsonl"](draw_texts(20)).encode())[:-40])
    assert read_head(str(path)).startswith(b'{"text": ')
    assert detect_format(str(path)) == "jsonl"
