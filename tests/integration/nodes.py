"""Nodes that join the tests' Ray and leave it, with notice or without."""

import os
import subprocess
import sys
import time
from pathlib import Path

import ray
from ray.core.generated import autoscaler_pb2

from tests.integration.processes import kill, list_descendants, wait_until


class Node:
    """A raylet of its own on this machine, with so many logical CPUs."""

    def __init__(self, num_cpus: int) -> None:
        before = list_alive()
        options = ["--num-cpus", num_cpus, "--object-store-memory", 100 << 20, "--disable-usage-stats", "--block"]
        address = ray.get_runtime_context().gcs_address
        self.process = subprocess.Popen(
            [Path(sys.executable).with_name("ray"), "start", "--address", address, *map(str, options)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"},
            start_new_session=True,
        )
        wait_until(lambda: list_alive() - before, "a new node")
        (self.id,) = list_alive() - before

    def kill(self) -> None:
        """All its processes at once, as when the machine is switched off."""
        below = list_descendants(self.process.pid)
        kill([self.process.pid, *below])
        self.process.wait()
        wait_until(lambda: self.id not in list_alive(), "the node is gone")

    def drain(self, seconds: float) -> None:
        """Tell the cluster that it will be taken after so many seconds."""
        client = ray._raylet.GcsClient(address=ray.get_runtime_context().gcs_address)
        reason = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
        accepted, why_not = client.drain_node(self.id, reason, "test", int((time.time() + seconds) * 1000))
        assert accepted, why_not


def list_alive() -> set[str]:
    return {node["NodeID"] for node in ray.nodes() if node["Alive"]}
