"""Which tag scheme a corpus is read with, and what is made of its files."""

import pickle

import pyarrow as pa
import pytest

from pipelines.corpus.ledger import Ledger
from pipelines.corpus.reading import RAW_SCHEMA, _summarize, check_records, choose_scheme, find_all_files
from pipelines.corpus.records import CorpusError, Record, to_table
from pipelines.corpus.summary import Summary
from pipelines.ner.labels import observe_tags


def summarize(*tags):
    return Summary(
        tags_seen=observe_tags(tags), raw_tags={"train": {tag: f"a.bio:{1 + tags.index(tag)}" for tag in tags}}
    )


@pytest.mark.parametrize(("tags", "place"), [(tuple(map(str, range(30))), "`0` in a.bio:1"), (("B_LOC", "O"), "B_LOC")])
def test_a_column_that_holds_no_tags_is_refused_with_its_place(tags, place):
    with pytest.raises(CorpusError) as caught:
        choose_scheme(summarize(*tags), "auto")
    assert place in caught.value.where
    assert "`--corpus.scheme`" in caught.value.remedy
    assert choose_scheme(summarize(*tags), "IO") == "IO"


def test_bare_labels_are_read_as_io():
    assert choose_scheme(summarize("PER", "PER", "O", "LOC"), "auto") == "IO"


def test_a_file_that_two_patterns_mean_is_read_once_a_split(tmp_path):
    path = tmp_path / "a.conll"
    path.write_text("a O\n")
    names = [str(path), f"{tmp_path}/*.conll", f"{tmp_path}/./a.conll"]
    found = [{"path": str(path), "split": split} for split in ("train", "test")]
    assert find_all_files({"train": names, "test": names[:1]}) == found


def test_a_corpus_without_records_or_gold_is_refused():
    with pytest.raises(CorpusError, match="holds no records"):
        check_records(Summary(), needs_gold=False)
    with pytest.raises(CorpusError, match="2 records have no annotation"):
        check_records(Summary(Ledger(num_kept=3), num_without_gold=2), needs_gold=True)
    check_records(Summary(Ledger(num_kept=3), num_without_gold=2), needs_gold=False)


def test_records_without_gold_are_told_with_their_places():
    sources = [f"a.jsonl:{number}" for number in range(1, 8)]
    records = [
        Record(source, source, source, text="one", spans=None if source[-1] != "2" else []) for source in sources
    ]
    kept = {"split": "train", "outcome": "kept", "reason": None, "detail": None}
    block = pa.Table.from_pylist([row | kept for row in to_table(records).to_pylist()], RAW_SCHEMA)
    summary = Summary()
    for table in (block, block):
        summary.add(pickle.loads(_summarize(table)["summary"][0]))
    with pytest.raises(CorpusError, match="12 records have no annotation") as caught:
        check_records(summary, needs_gold=True)
    assert caught.value.where == "a.jsonl:1, a.jsonl:3, a.jsonl:4, a.jsonl:5, a.jsonl:6 …"
    assert caught.value.value == "12 of 14 records"
