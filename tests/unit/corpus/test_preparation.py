"""What is checked of a corpus before it is written, and of what was written."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.corpus.preparation import check_splits, check_written
from pipelines.corpus.reading import Corpus
from pipelines.corpus.records import CorpusError
from pipelines.corpus.summary import SPLITS, Summary


def write_split(folder, split, num_records):
    (folder / "records" / f"split={split}").mkdir(parents=True)
    ids = [f"{split}:{number}" for number in range(num_records)]
    pq.write_table(pa.table({"record_id": ids}), folder / "records" / f"split={split}" / "one.parquet")


def test_all_that_was_read_is_found_again(tmp_path):
    write_split(tmp_path, "train", 3)
    write_split(tmp_path, "test", 1)
    check_written(tmp_path, {"train": 3, "test": 1})


@pytest.mark.parametrize("seen", [0, 2])
def test_records_that_another_machine_has_kept_to_itself_are_missed(tmp_path, seen):
    write_split(tmp_path, "train", 3)
    if seen:
        write_split(tmp_path, "dev", seen)
    with pytest.raises(CorpusError, match="do not hold the dev split as it was read") as caught:
        check_written(tmp_path, {"train": 3, "dev": 5})
    assert (caught.value.where, caught.value.value) == (str(tmp_path), f"{seen} records, as this machine sees them")
    assert caught.value.rule == "5 records"
    assert "every machine of the cluster" in caught.value.remedy


def make_corpus(**labels):
    return Corpus(None, Summary(), "BIO", labels, dict.fromkeys(SPLITS, 9))


def test_label_that_only_a_split_made_by_rayner_has_gets_a_remedy_that_one_can_follow():
    corpus = make_corpus(train={"PER"}, dev={"PER", "LAW"}, test={"PER"})
    with pytest.raises(CorpusError, match="the dev split has labels") as caught:
        check_splits(corpus, SPLITS, {"dev": 0.1, "test": 0.1})
    assert "`LAW`" in caught.value.value
    assert "`--corpus.dev_fraction`" in caught.value.remedy
    assert "`--corpus.dev`" in caught.value.remedy
    with pytest.raises(CorpusError) as caught:
        check_splits(corpus, SPLITS, {"test": 0.1})
    assert "move such records into train" in caught.value.remedy
