"""How `rayner prepare` fills its output folder, without Ray."""

import json
import os
from contextlib import nullcontext

import pytest

from pipelines import prepare
from pipelines.corpus.preparation import stage_folder
from pipelines.corpus.records import CorpusError
from pipelines.corpus.shards import SHARDS_FILE
from pipelines.replacement import STAGING_FOLDER, replace_content
from tests.unit.shards import make_info
from tests.unit.users import as_nobody

INFO = make_info(ledger={"kept": 1, "repaired": 0, "rejected": 0, "reasons": {}})


def write_shards(folder):
    """As `prepare_shards` does."""
    with stage_folder(folder) as staging:
        (staging / "records").mkdir()
        (staging / "records" / "one.parquet").touch()
        (staging / SHARDS_FILE).write_text(json.dumps(INFO.to_dict()))
    return INFO


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Prepares into a folder `out`, with shards that are made at once."""

    def make(corpus, encoding, model, folder, **settings):
        return write_shards(folder)

    monkeypatch.setattr(prepare, "prepare_shards", make)
    monkeypatch.setattr(prepare, "connect", lambda config: nullcontext())
    flags = ["--corpus.train", "sample:en-dev.jsonl", "--output_dir", str(tmp_path / "out")]
    return lambda *more: prepare.main([*flags, *more])


def list_names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_shards_are_written_where_only_the_output_folder_can_be(tmp_path):
    around = tmp_path / "around"
    (around / "out").mkdir(parents=True)
    (around / "out").chmod(0o777)
    around.chmod(0o555)
    with as_nobody(tmp_path):
        with replace_content(around / "out", last=SHARDS_FILE) as made:
            write_shards(made)
        assert list_names(around / "out") == ["records", SHARDS_FILE]
    around.chmod(0o755)


def test_prepared_shards_take_the_place_of_all_that_was_there(tmp_path, run):
    assert run() == 0
    assert list_names(tmp_path / "out") == ["records", "run.json", SHARDS_FILE]
    (tmp_path / "out" / "records" / "old.parquet").touch()
    assert run() == 2
    assert run("--fresh") == 0
    assert list_names(tmp_path / "out") == ["records", "run.json", SHARDS_FILE]
    assert list_names(tmp_path / "out" / "records") == ["one.parquet"]
    assert list_names(tmp_path) == ["out"]


def test_shards_that_cannot_be_made_leave_what_was_there(tmp_path, run, monkeypatch):
    assert run() == 0
    before = list_names(tmp_path / "out")

    def fail(corpus, encoding, model, folder, **settings):
        with stage_folder(folder) as staging:
            (staging / "records").mkdir()
            raise CorpusError("damaged")

    monkeypatch.setattr(prepare, "prepare_shards", fail)
    assert run("--fresh") == 2
    assert list_names(tmp_path / "out") == before


@pytest.mark.parametrize("is_moving", [False, True])
def test_killed_preparation_is_done_again(tmp_path, run, is_moving):
    (tmp_path / "out" / STAGING_FOLDER / "out").mkdir(parents=True)
    if is_moving:  # without what says that all is there
        (tmp_path / "out" / "records").mkdir()
        assert run() == 2
    assert run(*["--fresh"] * is_moving) == 0
    assert list_names(tmp_path / "out") == ["records", "run.json", SHARDS_FILE]
    assert os.listdir(tmp_path / "out" / "records") == ["one.parquet"]
