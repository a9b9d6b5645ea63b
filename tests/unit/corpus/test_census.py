"""What a file holds, and what of it ends a job before it begins."""

import json

import pytest

from pipelines.corpus.census import MAX_PARTITIONS, Census, FileCensus, count_file
from pipelines.corpus.formats.options import FormatOptions
from pipelines.corpus.ledger import check_bad_fraction
from pipelines.corpus.records import CorpusError
from pipelines.ner.errors import UserErrors

GOOD = FileCensus("a.jsonl", 99, 1, 1000, 3, False, ["a.jsonl:7: no_text"], ["lang"], [])


def write(path, *lines):
    path.write_text("".join(f"{line}\n" for line in lines))
    return str(path)


def test_file_is_counted(tmp_path):
    path = write(tmp_path / "a.jsonl", '{"text": "Ada", "lang": "en"}', "{", '{"text": "Oslo"}', '{"text": ""}')
    found = count_file(path, FormatOptions(extra_columns=("lang", "year")), 5, ["lang"])
    assert (found.num_records, found.num_rejected, found.num_characters, found.num_chunks) == (3, 1, 7, 2)
    assert found.is_damaged is False
    assert found.kept == ["lang"]
    assert found.partitions == ["lang=__HIVE_DEFAULT_PARTITION__", "lang=en"]
    assert [entry.split(":")[2].strip() for entry in found.entries] == ["broken_json"]


def test_damaged_file_is_counted_up_to_its_damage_and_the_damage_as_one(tmp_path):
    path = write(tmp_path / "a.jsonl", '{"text": "Ada"}', *["{"] * 15, "\0")
    found = count_file(path, FormatOptions(), 100)
    assert (found.num_records, found.num_rejected, found.is_damaged) == (1, 16, True)
    assert len(found.entries) == 11
    assert "unreadable" in found.entries[-1]


def test_census_adds_up_and_survives_json():
    census = Census([GOOD, GOOD], ["lang"])
    assert (census.num_records, census.num_rejected, census.num_documents, census.num_characters) == (198, 2, 200, 2000)
    assert Census.from_dict(json.loads(json.dumps(census.to_dict()))) == census
    census.check(0.01)


def change(**fields):
    return FileCensus(**{**GOOD.__dict__, **fields})


def test_too_many_rejections_are_told_with_the_first_ten():
    entries = [f"a.jsonl:{n}: no_text" for n in range(10)]
    with pytest.raises(CorpusError) as caught:
        Census([change(num_rejected=11, entries=entries), GOOD]).check(0.05)
    assert str(caught.value).startswith("12 of 210 documents cannot be used:\n    a.jsonl:0: no_text\n")
    assert "… and 2 more" in str(caught.value)
    assert caught.value.value == "5.71%"


def test_limit_itself_is_allowed():
    check_bad_fraction(1, 100, "documents", [], 0.01)
    with pytest.raises(CorpusError):
        check_bad_fraction(2, 100, "documents", [], 0.01)


def test_damaged_files_are_judged_by_their_share_of_the_files():
    damaged = change(path="b.gz", is_damaged=True, entries=["b.gz: unreadable: cut short"])
    with pytest.raises(CorpusError) as caught:
        Census([GOOD, damaged]).check(0.4)
    assert "1 of 2 files cannot be read to their end:\n    b.gz: unreadable: cut short" in str(caught.value)
    Census([GOOD, damaged]).check(0.5)
    Census([GOOD] * 100 + [damaged]).check(0.01)


def test_no_documents_and_absent_columns_are_refused():
    empty = change(num_records=0, num_rejected=0, entries=[], kept=[])
    with pytest.raises(CorpusError, match="no documents"):
        Census([empty], ["lang"]).check(0.5)
    with pytest.raises(CorpusError, match="no document has a column `year`"):
        Census([GOOD, empty], ["lang", "year"]).check(0.5)


def test_value_too_long_for_a_folder_is_refused(tmp_path):
    rows = [{"text": "Ada", "lang": "en", "topic": "中" * number} for number in (27, 30)]
    path = write(tmp_path / "a.jsonl", *map(json.dumps, rows))
    reader = FormatOptions(extra_columns=("lang", "topic"))
    fits, too_long = count_file(path, reader, 100, ["lang", "topic"]).partitions
    for place in (fits, f"{fits}/{'a' * 255}"):
        (tmp_path / place).mkdir(parents=True)
        Census([change(path=path, partitions=[place])]).check(0.5)
    with pytest.raises(OSError, match="File name too long"):
        (tmp_path / too_long).mkdir(parents=True)
    with pytest.raises(CorpusError, match="too long for the name of a folder") as caught:
        Census([GOOD, change(path=path, partitions=[fits, too_long])]).check(0.5)
    assert (caught.value.where, caught.value.value) == (path, f"276 bytes: topic={'中' * 30}")


def test_several_mistakes_are_told_at_once():
    many = [f"lang={n}" for n in range(MAX_PARTITIONS)]
    Census([change(partitions=many)], ["lang"]).check(0.5)
    with pytest.raises(UserErrors) as caught:
        Census([change(partitions=many), change(partitions=["lang=one more"])], ["lang", "year"]).check(0.5)
    assert "too many partitions" in str(caught.value)
    assert "`year`" in str(caught.value)
