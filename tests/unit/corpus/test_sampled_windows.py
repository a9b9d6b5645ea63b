"""Windows for a run of so many steps: a fixed random order, repeated where the corpus is small."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.corpus.records import CorpusError
from pipelines.corpus.shards import read_windows, sample_windows
from pipelines.training.batches import BatchPlan, TrainingWindows


@pytest.fixture
def write(tmp_path):
    """Writes windows of these lengths as a training split, each a record of its own; -n: of n, without words."""

    def write_split(lengths):
        def window(length):
            starts = list(range(max(0, length - 2)))
            ids = list(range(abs(length)))
            return {"input_ids": ids, "word_starts": starts, "tag_ids": [0 for _ in starts]} | {
                "starts_document": True,
                "ends_document": True,
            }

        rows = [{"record_id": f"r{n:03d}", "windows": [window(length)]} for n, length in enumerate(lengths)]
        (tmp_path / "records" / "split=train").mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "records" / "split=train" / "0.parquet")
        return tmp_path

    return write_split


def count_steps(table, batch_tokens):
    windows = TrainingWindows(table)
    plan = BatchPlan(
        windows.num_tokens, windows.usable, batch_tokens=batch_tokens, device_batch_tokens=batch_tokens, seed=1
    )
    return len(plan.plan_epoch(0))


@pytest.mark.parametrize("batch_tokens", [5, 30, 64, 500])
@pytest.mark.parametrize("num_steps", [1, 15, 40])
def test_there_are_enough_windows_for_the_steps_and_few_more(write, batch_tokens, num_steps):
    folder = write([3 + 7 * n % 23 for n in range(60)])
    found = count_steps(sample_windows(folder, num_steps, batch_tokens, 1), batch_tokens)
    assert num_steps <= found <= 2 * num_steps + 1


def test_a_larger_sample_begins_with_the_smaller_and_holds_every_window_once_before_any_twice(write):
    folder = write(range(4, 24))
    small, large = (sample_windows(folder, steps, 30, 1)["record_id"].to_pylist() for steps in (3, 30))
    assert large[: len(small)] == small
    assert sorted(large[:20]) == sorted(read_windows(folder)["record_id"].to_pylist())
    assert large[20:40] == large[:20]
    assert sample_windows(folder, 30, 30, 2)["record_id"].to_pylist() != large


def test_windows_without_words_are_left_out_and_nothing_else_is_an_error(write):
    folder = write([5, -4, 6, -2])
    assert set(sample_windows(folder, 10, 20, 1)["record_id"].to_pylist()) == {"r000", "r002"}


def test_a_corpus_without_words_is_refused(write):
    with pytest.raises(CorpusError, match="no words"):
        sample_windows(write([-3]), 10, 20, 1)


def test_a_worker_that_does_not_see_the_shards_says_so(tmp_path):
    with pytest.raises(CorpusError, match="that every machine of the cluster sees") as caught:
        read_windows(tmp_path / "elsewhere")
    assert caught.value.where == str(tmp_path / "elsewhere")
