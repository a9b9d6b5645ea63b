"""Output folders: files whole or not at all, and none of another door's taken."""

import json
from pathlib import Path

import pytest

from pipelines.folders import check_own
from pipelines.ner.files import write_text
from pipelines.settings import ConfigError


def write_run(folder: Path, verb: str) -> None:
    """As a door does at its end."""
    (folder / "run.json").write_text(json.dumps({"verb": verb, "config": {}, "versions": {}}))


def test_text_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "best.yaml"
    write_text(path, "one")
    monkeypatch.setattr(Path, "replace", lambda *names: (_ for _ in ()).throw(OSError("no room")))
    with pytest.raises(OSError, match="no room"):
        write_text(path, "two")
    assert path.read_text() == "one"


def test_folder_of_another_door_is_refused(tmp_path):
    write_run(tmp_path, "train")
    with pytest.raises(ConfigError, match="holds another run") as caught:
        check_own(tmp_path, "evaluate")
    assert caught.value.value == "a run of `rayner train`"
    assert caught.value.remedy == "give another `--output_dir`"


def test_folder_of_a_run_that_is_not_finished_is_refused(tmp_path):
    (tmp_path / "settings.json").write_text(json.dumps({"corpus": {}, "model": {}, "training": {}}))
    with pytest.raises(ConfigError, match="holds another run"):
        check_own(tmp_path, "evaluate")


def test_own_folder_and_files_of_other_programs_are_let_be(tmp_path):
    (tmp_path / "run.json").write_text("[]")
    check_own(tmp_path, "evaluate")
    write_run(tmp_path, "evaluate")
    check_own(tmp_path, "evaluate")
