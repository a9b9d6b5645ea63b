"""Clusters of their own: a head node in processes that end with the test, and one whose autoscaler adds nodes.

Ray's own cluster for tests of autoscaling ends with `ray stop`, which ends every Ray of the machine.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import ray
from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID, FAKE_HEAD_NODE_TYPE

from serve.ingress import find_free_ports
from tests.integration.processes import kill, list_descendants, wait_until

LOOPBACK = "127.0.0.1"
PROVIDER = "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider"
IDLE_S = 3.0
OBJECT_STORE_BYTES = 100 << 20


@contextmanager
def run_head(*options: object, environment: Mapping[str, str]) -> Iterator[Path]:
    """A head node on this machine alone, for the time of the block; yields its folder."""
    folder = Path(tempfile.mkdtemp(prefix="rh"))  # short: sockets have their paths in it
    arguments = ["--head", "--node-ip-address", LOOPBACK, "--temp-dir", folder, "--disable-usage-stats", "--block"]
    with (folder / "start.log").open("w") as log:
        process = subprocess.Popen(
            [Path(sys.executable).with_name("ray"), "start", *map(str, [*arguments, *options])],
            env=dict(environment),
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield folder
    finally:
        below = list_descendants(process.pid)  # before their parents are gone
        kill([process.pid, *below])
        process.wait()
        shutil.rmtree(folder, ignore_errors=True)


class GrowingCluster:
    """A head that takes no work worth the name, and an autoscaler that adds real raylets on this machine."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.gcs = ray._raylet.GcsClient(address=address)

    def count_nodes(self) -> int:
        """Nodes that are alive, the head among them; 0 while there is no answer."""
        try:
            return sum(node.state == 0 for node in self.gcs.get_all_node_info().values())
        except Exception:  # whatever its C++ side raises while nothing listens
            return 0


@contextmanager
def run_growing_cluster(node: Mapping[str, int], max_nodes: int) -> Iterator[GrowingCluster]:
    """A cluster of a head with one CPU, that grows by up to `max_nodes` with the resources of `node`."""
    port, agent, grpc, client = find_free_ports(4)
    config = {
        "cluster_name": "test",
        "max_workers": max_nodes,
        "idle_timeout_minutes": IDLE_S / 60,
        "upscaling_speed": 10.0,
        "provider": {
            "type": "external",  # under its own name Ray looks for a file that its package lacks
            "module": PROVIDER,
            "use_node_id_as_ip": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
            "launch_multiple": True,
            "head_node_id": FAKE_HEAD_NODE_ID,
            "gcs_address": f"{LOOPBACK}:{port}",
        },
        "head_node_type": FAKE_HEAD_NODE_TYPE,
        "available_node_types": {
            FAKE_HEAD_NODE_TYPE: {"resources": {"CPU": 1}, "node_config": {}, "max_workers": 0},
            "worker": {
                "resources": {**node, "object_store_memory": OBJECT_STORE_BYTES},
                "node_config": {},
                "min_workers": 0,
                "max_workers": max_nodes,
            },
        },
    }
    lists = ("initialization", "setup", "head_setup", "worker_setup", "head_start_ray", "worker_start_ray")
    config |= {f"{name}_commands": [] for name in lists}
    config |= {"auth": {}, "docker": {}, "file_mounts": {}, "cluster_synced_files": [], "rsync_exclude": []}
    config |= {"rsync_filter": [], "file_mounts_sync_continuously": False}
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "RAY_ADDRESS")}
    environment |= {
        "RAY_FAKE_CLUSTER": "1",
        "RAY_enable_autoscaler_v2": "1",
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID,
        "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID,
    }
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        json.dump(config, file)  # which YAML can read
        file.flush()
        options = ["--port", port, "--dashboard-agent-listen-port", agent, "--dashboard-agent-grpc-port", grpc]
        options += ["--ray-client-server-port", client, "--include-dashboard", "false", "--num-cpus", 1]
        options += ["--object-store-memory", OBJECT_STORE_BYTES, "--autoscaling-config", file.name]
        with run_head(*options, environment=environment):
            cluster = GrowingCluster(f"{LOOPBACK}:{port}")
            wait_until(lambda: cluster.count_nodes() == 1, "the head is up")
            yield cluster
