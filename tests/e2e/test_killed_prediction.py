"""The driver, an actor or a node of an offline job is killed; it ends as an undisturbed one, bit for bit."""

import json
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ray._raylet import GcsClient

from tests.conftest import make_bundle
from tests.e2e.jobs import SEED, crash, finish, list_parts, make_documents, start_predict
from tests.integration.labelling import build_command, read_rows, run_predict, write_rows
from tests.integration.processes import kill, list_descendants, wait_until

NUM_DOCUMENTS, NUM_CHUNKS = 1200, 40
SMALL = ("--chunk_characters", 6_000, "--resources.cpus_per_actor", 1, "--keep", "text", "number")
TWO_ACTORS = ("--resources.num_actors", 2)
LOCAL = ("--cluster.num_cpus", 4, "--cluster.object_store_mib", 100)


@pytest.fixture(scope="module")
def bundle(tiny_encoder: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tiny_encoder, tmp_path_factory.mktemp("bundle") / "linear")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("input")
    documents = make_documents(NUM_DOCUMENTS)
    write_rows(folder / "a.jsonl", documents[:900])
    write_rows(folder / "b.jsonl", documents[900:])
    return folder


@pytest.fixture(scope="module")
def undisturbed(
    ray_session: None, bundle: Path, source: Path, tmp_path_factory: pytest.TempPathFactory
) -> list[dict[str, Any]]:
    """The rows of a job that nothing disturbed."""
    rows = run_predict(bundle, source, tmp_path_factory.mktemp("undisturbed") / "out", *SMALL)
    assert [row["doc_id"] for row in rows] == [one["id"] for one in make_documents(NUM_DOCUMENTS)]
    return rows


def check_output(folder: Path, undisturbed: list[dict[str, Any]]) -> None:
    """Every document once, and everything as in the undisturbed job."""
    rows = read_rows(folder)
    ids = Counter(row["doc_id"] for row in rows)
    assert set(ids.values()) == {1}
    assert set(ids) == {row["doc_id"] for row in undisturbed}
    assert rows == undisturbed
    facts = json.loads((folder / "_SUCCESS").read_text())
    assert facts["num_documents"] == NUM_DOCUMENTS
    assert not (folder / ".work").exists()


def is_running(job: subprocess.Popen[str]) -> bool:
    assert job.poll() is None, job.communicate()[0]
    return True


@pytest.mark.long
@pytest.mark.timeout(1500)
def test_driver_killed_at_ten_random_moments(bundle, source, undisturbed, tmp_path):
    folder = tmp_path / "out"
    dice = random.Random(SEED)
    command = build_command(bundle, source, folder, *SMALL, *LOCAL)
    for moment in [*["start"] * 3, "labelling", "labelling", "start", "start", "labelling", "start", "finish"]:
        before = list_parts(folder)
        job = start_predict(*command)
        try:
            if moment == "start":
                time.sleep(dice.uniform(0, 5))
            elif moment == "labelling":
                wanted = dice.randint(1, 4)
                wait_until(more_parts(job, folder, len(before) + wanted), f"{wanted} more parts")
                time.sleep(dice.uniform(0, 0.05))
            else:
                wait_until(is_finishing(job, folder), "the finish")
                time.sleep(dice.uniform(0, 0.2))
            assert is_running(job)
        finally:
            crash(job)
        after = list_parts(folder)
        assert before <= after
        assert (len(after) == NUM_CHUNKS) == (moment == "finish")
        assert not (folder / "_SUCCESS").exists()
    told = finish(start_predict(*command))
    assert f"{NUM_DOCUMENTS:,} of {NUM_DOCUMENTS:,} documents were done already" in told
    check_output(folder, undisturbed)
    sessions = json.loads((folder / "run.json").read_text())["bill"]["num_sessions"]
    assert sessions >= 3 + 1 + 1


def is_finishing(job: subprocess.Popen[str], folder: Path) -> Callable[[], bool]:
    """Tells whether a job that is just started has come to its finish, perhaps after another one had."""
    sessions, begun = folder / ".work" / "sessions.jsonl", folder / ".work" / "assembled"
    before = sessions.read_bytes()
    return lambda: is_running(job) and begun.exists() and sessions.read_bytes() != before


def more_parts(job: subprocess.Popen[str], folder: Path, number: int) -> Callable[[], bool]:
    return lambda: is_running(job) and len(list_parts(folder)) >= number


@pytest.mark.timeout(900)
def test_actor_killed_while_it_labels_and_driver_interrupted(bundle, source, undisturbed, tmp_path):
    folder = tmp_path / "out"
    command = build_command(bundle, source, folder, *SMALL, *TWO_ACTORS, *LOCAL)
    job = start_predict(*command)
    try:
        wait_until(more_parts(job, folder, 3), "3 parts")
        actors = list_descendants(job.pid, "ChunkLabeller")
        assert actors
        kill(actors[:1])
        number = len(list_parts(folder))
        wait_until(more_parts(job, folder, number + 3), "3 more parts, after an actor was killed")
        job.send_signal(signal.SIGINT)
        told, _ = job.communicate(timeout=600)
    finally:
        kill([*list_descendants(job.pid), job.pid])
    assert job.returncode == 130, told
    assert "stopped; the same command goes on" in told
    assert "Traceback" not in told
    told = finish(start_predict(*command))
    assert "documents were done already" in told
    check_output(folder, undisturbed)


@pytest.fixture
def cluster() -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """The address of a small cluster, and its second node."""
    folder = tempfile.mkdtemp(prefix="r")
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    head = start_node("--head", f"--port={port}", f"--temp-dir={folder}", "--include-dashboard=false")
    node = None
    try:
        address = f"127.0.0.1:{port}"
        wait_until(lambda: can_connect(port), "the head listens")
        node = start_node(f"--address={address}")
        wait_until(lambda: len(GcsClient(address=address).get_all_node_info()) == 2, "the second node has joined")
        yield address, node
    finally:
        for one in (node, head):
            if one is not None:
                end_group(one)
        shutil.rmtree(folder, ignore_errors=True)


def start_node(*arguments: str) -> subprocess.Popen[bytes]:
    given = ("--num-cpus=2", "--object-store-memory=100000000", "--disable-usage-stats", "--block")
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", *given, *arguments]
    quiet = subprocess.DEVNULL
    return subprocess.Popen(command, stdout=quiet, stderr=quiet, start_new_session=True)


def end_group(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL for a node with all its processes."""
    below = list_descendants(process.pid)
    kill([process.pid, *below])
    process.wait()


def can_connect(port: int) -> bool:
    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.long
@pytest.mark.timeout(900)
def test_node_killed_while_its_actors_label(cluster, bundle, source, undisturbed, tmp_path):
    address, node = cluster
    folder = tmp_path / "out"
    job = start_predict(*build_command(bundle, source, folder, *SMALL, *TWO_ACTORS, "--cluster.address", address))
    try:
        wait_until(more_parts(job, folder, 3), "3 parts")
        wait_until(
            lambda: is_running(job) and list_descendants(node.pid, "ChunkLabeller"), "an actor on the second node"
        )
        end_group(node)
        assert len(list_parts(folder)) < NUM_CHUNKS
        finish(job)
    finally:
        kill([*list_descendants(job.pid), job.pid])
    check_output(folder, undisturbed)
