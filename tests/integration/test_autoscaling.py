"""A cluster grows for what a door asks for, and shrinks when it is done."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.conftest import ROOT, make_bundle
from tests.integration.heads import GrowingCluster, run_growing_cluster
from tests.integration.processes import wait_until

pytestmark = pytest.mark.timeout(900)


@contextmanager
def watch_nodes(cluster: GrowingCluster) -> Iterator[list[int]]:
    """How many nodes there are, each change of it, while the block runs and at its end."""
    counts = [cluster.count_nodes()]
    ended = threading.Event()

    def watch() -> None:
        is_over = False
        while not is_over:
            is_over = ended.wait(0.2)  # one more look at the end
            number = cluster.count_nodes()
            if number != counts[-1]:
                counts.append(number)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield counts
    finally:
        ended.set()
        thread.join()


def run_door(name: str, cluster: GrowingCluster, *arguments: object) -> None:
    """Run a door on the cluster; it must succeed."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "RAY_ADDRESS")}
    done = subprocess.run(
        [sys.executable, "-m", f"pipelines.{name}", *map(str, arguments), "--cluster.address", cluster.address],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.long
def test_cluster_grows_for_predict_and_shrinks_afterwards(tiny_encoder, tmp_path):
    bundle = make_bundle(tiny_encoder, tmp_path / "bundle")
    command = ["--model", bundle, "--input", "sample:en-test.jsonl", "--output_dir", tmp_path / "out"]
    command += ["--resources.cpus_per_actor", 2, "--inference.runtime", "torch", "--inference.precision", "fp32"]
    with run_growing_cluster({"CPU": 2}, max_nodes=1) as cluster, watch_nodes(cluster) as counts:
        run_door("predict", cluster, *command)
        wait_until(lambda: cluster.count_nodes() == 1, "the node that was added has gone", 300)
    assert counts == [1, 2, 1]
    assert json.loads((tmp_path / "out" / "_SUCCESS").read_text())["num_documents"] == 49


@pytest.mark.long
def test_cluster_grows_for_tune_and_shrinks_afterwards(tiny_encoder, tmp_path):
    splits = ("train", "dev", "test")
    command = [part for split in splits for part in (f"--corpus.{split}", f"sample:en-{split}.jsonl")]
    command += ["--model.encoder", tiny_encoder, "--training.precision", "fp32", "--training.num_epochs", "1"]
    command += ["--space.training.optimizer.learning_rate", "1e-3", "2e-3", "--search.num_trials", "2"]
    command += ["--search.cpus_per_trial", "2", "--search.num_leaders", "1", "--search.num_seeds", "1"]
    with run_growing_cluster({"CPU": 2}, max_nodes=1) as cluster, watch_nodes(cluster) as counts:
        run_door("tune", cluster, *command, "--output_dir", tmp_path / "tuning")
        wait_until(lambda: cluster.count_nodes() == 1, "the node that was added has gone", 300)
    assert counts == [1, 2, 1]
    trials = json.loads((tmp_path / "tuning" / "tuning.json").read_text())["trials"]
    assert [trial["status"] for trial in trials] == ["finished", "finished"]
