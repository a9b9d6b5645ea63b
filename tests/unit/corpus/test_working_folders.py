"""Files by relative names, read by tasks of a cluster, which have another working folder than the driver."""

import os
from contextlib import chdir
from pathlib import Path

import pyarrow as pa
import pytest
import ray.data

from pipelines.corpus.census import take_census
from pipelines.corpus.formats.options import FormatOptions
from pipelines.corpus.inference import ActorPlan, InferenceConfig
from pipelines.corpus.labeller import LabellingJob
from pipelines.corpus.labelling import _read_chunks
from pipelines.corpus.reading import read_raw, stand_in


class Elsewhere:
    """Rows whose tasks run in the root folder."""

    def __init__(self, rows, **settings):
        self.rows = rows

    def map_batches(self, change, *, fn_kwargs, **settings):
        """What the tasks make of the rows."""
        with chdir("/"):
            made = change(pa.Table.from_pylist(self.rows), **fn_kwargs)
            tables = [made] if isinstance(made, pa.Table) else list(made)
            assert os.getcwd() == "/"
        return Elsewhere([row for table in tables for row in table.to_pylist()])

    def iter_rows(self):
        """As a dataset does."""
        return iter(self.rows)


@pytest.fixture
def here(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.jsonl").write_text('{"text": "Ada"}\n{"text": "Oslo"}\n')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ray.data, "from_items", Elsewhere)
    return tmp_path


def test_corpus_is_read_by_the_names_that_the_driver_has(here):
    rows = read_raw({"test": ["data/*.jsonl"]}, FormatOptions()).rows
    assert [(row["outcome"], row["text"]) for row in rows] == [("kept", "Ada"), ("kept", "Oslo")]
    assert [row["source"] for row in rows] == ["data/a.jsonl:1", "data/a.jsonl:2"]


def test_input_is_counted_and_read_by_the_names_that_the_driver_has(here):
    census = take_census(["data/a.jsonl"], FormatOptions(), 100)
    assert (census.num_records, census.num_rejected) == (2, 0)
    job = LabellingJob("m", InferenceConfig(), ActorPlan(1, 1, 0), FormatOptions(), (), 100, Path("work"), "run")
    counts = {"num_chunks": 1, "num_documents": 2, "num_characters": census.num_characters}
    file = {"file": 0, "path": "data/a.jsonl", "is_damaged": False, "done": []} | counts
    with chdir("/"):
        assert len(list(_read_chunks(pa.Table.from_pylist([file]), job))) == 1


def test_machine_without_the_folder_of_the_driver_stays_where_it_is(tmp_path):
    with stand_in(str(tmp_path / "none")):
        assert os.getcwd() != str(tmp_path / "none")
