"""Nodes and storage fail under training, and come back: it ends as an undisturbed run."""

import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from pipelines.training.checkpoints import find_last, list_checkpoints, read_step
from pipelines.training.config import TrainingError
from pipelines.training.job import TrainingJob, TrainingResult
from pipelines.training.resources import ResourcesConfig
from pipelines.training.trainer import fit
from tests.integration.gates import Gate
from tests.integration.nodes import Node
from tests.integration.processes import wait_until
from tests.integration.trainings import TRAINING, check_same_run, read

pytestmark = [pytest.mark.usefixtures("ray_session"), pytest.mark.timeout(900)]

HEAD_CPUS = 8


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "5")
    monkeypatch.setenv("RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S", "0.2")


def fit_and_disturb(
    job: TrainingJob, resources: ResourcesConfig, folder: Path, gate: Gate, disturb: Callable[[], None]
) -> TrainingResult:
    """Train, and meanwhile disturb it; at the end of the disturbance every gate is open."""

    def disturb_and_open() -> None:
        try:
            disturb()
        finally:
            gate.open_all()

    with ThreadPoolExecutor(1) as pool:
        disturbance = pool.submit(disturb_and_open)
        try:
            return fit(replace(job, load_windows=gate.wrap(job.load_windows)), resources, folder)
        finally:
            disturbance.result()


def list_steps(folder: Path) -> list[int]:
    return [read_step(path) for path in list_checkpoints(folder / "checkpoints")]


@pytest.mark.long
def test_workers_grow_with_a_node_and_shrink_without_it(make_job, undisturbed, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    gate = Gate(tmp_path, (7, 1), (13, 2))

    def disturb() -> None:
        gate.wait(7)
        wait_until(lambda: list_steps(run), "the first checkpoint")
        node = Node(num_cpus=5)
        try:
            gate.wait(13)
            wait_until(lambda: 10 in list_steps(run), "a checkpoint of both workers")
        finally:
            node.kill()

    resources = ResourcesConfig(num_workers="1..2", cpus_per_worker=5, resize_interval_s=1.0)
    result = fit_and_disturb(make_job(), resources, run, gate, disturb)
    check_same_run(run, result, undisturbed)
    sizes = [len(row["worker_s"]) if "worker_s" in row else 1 for row in read(run, "step")]
    assert sizes == [1] * sizes.index(2) + [2] * sizes.count(2) + [1] * (len(sizes) - sizes.index(2) - sizes.count(2))
    assert 5 <= sizes.index(2) <= 6
    assert 10 <= sizes.index(2) + sizes.count(2) <= 12


@pytest.mark.long
def test_node_taken_with_notice_and_node_lost_without_change_nothing(make_job, undisturbed, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    job = make_job()
    job = replace(job, training=replace(TRAINING, checkpoint_every_steps=1000))  # but for epochs and emergencies
    per_epoch = read(undisturbed[0], "epoch")[0]["step"]
    gate = Gate(tmp_path, *range(3, per_epoch), per_epoch + 4)
    nodes = [Node(HEAD_CPUS + 1)]  # the head has no room for the worker
    emergency: list[int] = []

    def disturb() -> None:
        gate.wait(3)
        nodes[0].drain(seconds=60)
        for step in range(3, per_epoch - 1):
            gate.open(step)
            gate.wait(step + 1)
            with suppress(AssertionError):
                wait_until(lambda: list_steps(run), "an emergency checkpoint", 1)
                break
        emergency.extend(list_steps(run))
        nodes.append(Node(HEAD_CPUS + 1))
        nodes[0].kill()
        gate.open_all(below=per_epoch)
        gate.wait(per_epoch + 4)
        wait_until(lambda: per_epoch in list_steps(run), "the checkpoint of the epoch")
        nodes[1].kill()
        wait_until(lambda: len(read(run, "notice")) == 3, "the loss of the second node is told")

    def disturb_and_replace() -> None:
        try:
            disturb()
        finally:
            nodes.append(Node(HEAD_CPUS + 1))

    resources = ResourcesConfig(num_workers=1, cpus_per_worker=HEAD_CPUS + 1)
    try:
        result = fit_and_disturb(job, resources, run, gate, disturb_and_replace)
    finally:
        for node in nodes:
            node.kill()
    check_same_run(run, result, undisturbed)
    assert [row["step"] for row in read(run, "start")] == [per_epoch], "it did not resume from the end of the epoch"
    assert len(emergency) == 1
    assert 3 <= emergency[0] < per_epoch
    taken, died, lost = [row["text"] for row in read(run, "notice")]
    assert "a node is about to be taken" in taken
    gone = "worker 0 is gone, or its node: training starts again from the last checkpoint"
    assert (died, lost) == (gone, gone)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 80 MiB of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=80m", "tmpfs", folder], capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"no right to mount a file system: {made.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.mark.long
def test_full_storage_is_outlived_lost_storage_told_and_a_damaged_checkpoint_left_out(
    make_job, undisturbed, small_disk, tmp_path
):
    run, away, filler = small_disk / "run", small_disk / "away", small_disk / "filler"
    run.mkdir()
    gate = Gate(tmp_path, 7, 17, 27)
    seen: list[list[int]] = []

    def disturb() -> None:
        gate.wait(7)
        wait_until(lambda: list_steps(run), "the first checkpoint")
        with suppress(OSError), filler.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(1 << 16))
        gate.open(7)
        gate.wait(17)
        seen.append(list_steps(run))
        filler.unlink()
        gate.open(17)
        gate.wait(27)
        wait_until(lambda: list_steps(run)[0] >= 25, "checkpoints are written again")
        seen.append(list_steps(run))
        run.rename(away)

    resources = ResourcesConfig(num_workers=1, cpus_per_worker=1, storage_patience_s=6.0)
    with pytest.raises(TrainingError, match="the run folder cannot be written") as caught:
        fit_and_disturb(make_job(), resources, run, gate, disturb)
    assert "No such file or directory" in str(caught.value)
    assert "the same command goes on" in str(caught.value)
    assert seen[0] == [5]
    assert len(seen[1]) == 2

    away.rename(run)
    last, before = list_checkpoints(run / "checkpoints")
    assert find_last(run / "checkpoints") == (last, [])
    content = bytearray(last.read_bytes())
    content[len(content) // 2] ^= 1
    last.write_bytes(content)
    result = fit(make_job(), resources, run)
    check_same_run(run, result, undisturbed)
    assert [row["step"] for row in read(run, "start")] == [read_step(before)]
    full, again, damaged = [row["text"] for row in read(run, "notice")]
    assert "a checkpoint cannot be written (No space left on device): training goes on" in full
    assert again == "checkpoints are written again"
    assert f"the checkpoint of step {read_step(last)} is damaged, and kept as {last.stem}.damaged" in damaged
    assert f"goes on from step {read_step(before)}" in damaged
