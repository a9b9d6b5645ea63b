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

pytestmark = pytest.mark.timeout(240)


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


def test_cluster_grows_for_predict_and_shrinks_afterwards(tiny_encoder, tmp_path):
    bundle = make_bundle(tiny_encoder, tmp_path / "bundle")
    command = ["--model", bundle, "--input", "sample:en-test.jsonl", "--output_dir", tmp_path / "out"]
    command += ["--resources.cpus_per_actor", 2, "--inference.runtime", "torch", "--inference.precision", "fp32"]
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "RAY_ADDRESS")}
    with run_growing_cluster({"CPU": 2}, max_nodes=1) as cluster, watch_nodes(cluster) as counts:
        arguments = [*command, "--cluster.address", cluster.address]
        done = subprocess.run(
            [sys.executable, "-m", "pipelines.predict", *map(str, arguments)],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=150,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        wait_until(lambda: cluster.count_nodes() == 1, "the node that was added has gone", 60)
    assert counts == [1, 2, 1]
    assert json.loads((tmp_path / "out" / "_SUCCESS").read_text())["num_documents"] == 49
