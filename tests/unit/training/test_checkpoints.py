"""Checkpoints: whole or not at all, any damage is found, the last two are kept, and no failure takes them along."""

import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from pipelines.training.checkpoints import (
    CheckpointWriter,
    find_last,
    list_checkpoints,
    load_state,
    read_step,
    save_state,
)
from pipelines.training.config import TrainingError
from pipelines.training.state import TrainingState


def make_state(step: int, **changes: object) -> TrainingState:
    weights = {"weight": torch.full((2000,), float(step))}
    facts = {"step": step, "epoch_step": step, "model": weights, "best_model": {"weight": torch.zeros(3)}}
    return TrainingState(**(facts | changes))


def write(folder: Path, *steps: int) -> CheckpointWriter:
    writer = CheckpointWriter(folder)
    for step in steps:
        writer.write(make_state(step))
    writer.wait()
    return writer


@contextmanager
def files_of_at_most(num_bytes: int) -> Iterator[None]:
    """What a quota does to a writer."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_the_last_two_are_kept_and_read_back_as_they_were(tmp_path):
    writer = write(tmp_path, 5, 10, 100_000_000)
    last, before = list_checkpoints(tmp_path)
    assert [read_step(last), read_step(before)] == [100_000_000, 10]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted((before.name, last.name))
    assert find_last(tmp_path) == (last, [])
    state = load_state(before)
    assert (state.step, state.epoch_step, state.done) == (10, 10, False)
    assert torch.equal(state.model["weight"], torch.full((2000,), 10.0))
    assert torch.equal(state.best_model["weight"], torch.zeros(3))
    assert [row["step"] for row in writer.written] == [5, 10, 100_000_000]


def test_the_best_weights_are_stored_once_where_they_are_the_present_ones(tmp_path):
    state = make_state(7, epoch=2, best_epoch=2, epoch_step=0, best_model={"weight": torch.full((2000,), 7.0)})
    other = make_state(8, epoch=2, best_epoch=1, epoch_step=0, best_model={"weight": torch.full((2000,), 3.0)})
    writer = CheckpointWriter(tmp_path)
    writer.write(state)
    writer.write(other)
    writer.wait()
    big, small = list_checkpoints(tmp_path)
    assert small.stat().st_size < 0.7 * big.stat().st_size
    assert torch.equal(load_state(small).best_model["weight"], state.model["weight"])
    assert torch.equal(load_state(big).best_model["weight"], other.best_model["weight"])


@pytest.mark.parametrize("place", [0, 40, 0.3, 0.5, 0.9, -1])
def test_any_flipped_bit_is_found(tmp_path, place):
    write(tmp_path, 5, 10)
    last, before = list_checkpoints(tmp_path)
    content = bytearray(last.read_bytes())
    content[int(place * len(content)) if isinstance(place, float) else place] ^= 4
    last.write_bytes(content)
    renamed = last.with_suffix(".damaged")
    assert find_last(tmp_path) == (before, [renamed])
    assert list_checkpoints(tmp_path) == [before]
    write(tmp_path, 11)
    assert [read_step(path) for path in list_checkpoints(tmp_path)] == [11, 5]
    assert not renamed.exists()


@pytest.mark.parametrize("size", [0, 1, 5000])
def test_a_cut_file_is_found(tmp_path, size):
    write(tmp_path, 5, 10)
    last, before = list_checkpoints(tmp_path)
    with last.open("r+b") as file:
        file.truncate(size)
    assert find_last(tmp_path)[0] == before


def test_a_file_that_is_gone_leaves_the_one_before(tmp_path):
    write(tmp_path, 5, 10)
    last, before = list_checkpoints(tmp_path)
    last.unlink()
    assert find_last(tmp_path) == (before, [])


def test_all_damaged_is_refused_and_left_as_it_is(tmp_path):
    write(tmp_path, 5, 10)
    paths = list_checkpoints(tmp_path)
    for path in paths:
        path.write_bytes(b"")
    with pytest.raises(TrainingError, match="no checkpoint is as it was written") as caught:
        find_last(tmp_path)
    assert all(str(path) in str(caught.value) for path in paths)
    assert "--fresh" in str(caught.value)
    assert list_checkpoints(tmp_path) == paths


def test_an_empty_folder_has_none_and_a_missing_one_is_refused(tmp_path):
    assert find_last(tmp_path) == (None, [])
    for gone in (tmp_path / "gone", tmp_path / "file"):
        (tmp_path / "file").touch()
        with pytest.raises(TrainingError, match="cannot be read") as caught:
            find_last(gone)
        assert str(gone) in str(caught.value)


def test_the_state_is_that_of_the_call_though_the_model_moves_on(tmp_path):
    state = make_state(5)
    writer = CheckpointWriter(tmp_path)
    writer.write(state)
    state.model["weight"].zero_()
    state.step = 6
    writer.wait()
    (path,) = list_checkpoints(tmp_path)
    assert torch.equal(load_state(path).model["weight"], torch.full((2000,), 5.0))


def test_a_quota_costs_one_checkpoint_and_leaves_nothing_half_written(tmp_path):
    writer = write(tmp_path, 5, 10)
    before = list_checkpoints(tmp_path)
    with files_of_at_most(3000):
        writer.write(make_state(15))
        writer.wait()
    assert writer.error is not None
    assert list(tmp_path.iterdir()) == before or sorted(tmp_path.iterdir()) == sorted(before)
    writer.write(make_state(20))
    writer.wait()
    assert writer.error is None
    assert [read_step(path) for path in list_checkpoints(tmp_path)] == [20, 10]


def test_a_folder_that_is_away_costs_checkpoints_and_is_not_made_anew(tmp_path):
    folder, away = tmp_path / "checkpoints", tmp_path / "away"
    folder.mkdir()
    writer = write(folder, 5)
    folder.rename(away)
    writer.write(make_state(10))
    writer.wait()
    assert isinstance(writer.error, FileNotFoundError)
    assert not folder.exists()
    folder.touch()  # and now no folder
    writer.write(make_state(10))
    writer.wait()
    assert isinstance(writer.error, NotADirectoryError)
    folder.unlink()
    away.rename(folder)
    assert [read_step(path) for path in list_checkpoints(folder)] == [5]


def test_a_temporary_folder_that_takes_no_file_costs_one_checkpoint(tmp_path, monkeypatch):
    writer = write(tmp_path, 5)
    with monkeypatch.context() as full:
        full.setattr("tempfile.tempdir", str(tmp_path / "gone"))
        writer.write(make_state(10))
    assert "gone" in str(writer.error)
    writer.write(make_state(15))
    writer.wait()
    assert writer.error is None
    assert [read_step(path) for path in list_checkpoints(tmp_path)] == [15, 5]


def test_what_killed_writers_have_left_is_removed(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    (folder / "step-00000003-x.partial").touch()
    (folder / "of the user").touch()
    writer = CheckpointWriter(folder)
    (tmp_path / f"{writer.prefix}left").touch()
    (tmp_path / "rayner-another-run").touch()
    write(folder, 5)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoints", "rayner-another-run"]
    names = [path.name for path in folder.iterdir() if not path.name.startswith("step-00000005-")]
    assert names == ["of the user"]


@pytest.mark.parametrize("average", [{}, {"weights": {"w": torch.ones(9)}, "count": 3}])
def test_saved_state_has_the_best_weights_once_where_they_are_the_present_ones(average, tmp_path):
    present = {"w": torch.zeros(9)}
    best = average.get("weights", present)
    state = TrainingState(epoch=2, best_epoch=2, best_f1=0.5, model=present, average=average, best_model=best)
    save_state(state, tmp_path / "state.pt")
    found = load_state(tmp_path / "state.pt")
    assert torch.equal(found.best_model["w"], best["w"])
    assert torch.equal(found.model["w"], present["w"])
    assert found.average.keys() == average.keys()
    assert (found.best_model is found.model) == (not average)
