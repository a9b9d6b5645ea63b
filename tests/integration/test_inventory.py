"""The inventory of a running Ray: nodes as they are, busy, draining, gone; and the limits of its autoscaler."""

import subprocess
import sys
from pathlib import Path

import pytest
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipelines.planning.fit import Bundle, count_places, place
from pipelines.planning.inventory import Node as PlannedNode
from pipelines.planning.inventory import build_groups
from pipelines.planning.running_cluster import find_autoscaling_config, read_running_cluster
from tests.integration.nodes import Node
from tests.integration.processes import wait_until

pytestmark = pytest.mark.usefixtures("ray_session")


@ray.remote(num_cpus=1)
class Holder:
    def ping(self) -> bool:
        return True


def read(number: int, **options: bool) -> PlannedNode | None:
    """The node with so many CPUs."""
    return next((node for node in read_running_cluster(**options).nodes if node.cpus == number), None)


def test_node_that_joins_is_seen_with_what_is_taken_and_takes_nothing_once_it_drains(monkeypatch):
    [before] = read_running_cluster(is_private=True).nodes
    assert before.cpus == 8
    assert before.cores <= before.cpus
    assert before.memory_bytes > 0
    assert not read_running_cluster().may_grow
    monkeypatch.setenv("KUBERAY_GEN_RAY_START_CMD", "ray start --head --num-cpus=0")
    assert not read_running_cluster().may_grow
    # whose autoscaler tells nobody that it is there
    monkeypatch.setenv("KUBERAY_GEN_RAY_START_CMD", "ray start --head --no-monitor --num-cpus=0")
    assert read_running_cluster().may_grow
    assert not read_running_cluster().groups
    added = Node(2)
    try:
        there = NodeAffinitySchedulingStrategy(added.id, soft=False)
        holder = Holder.options(scheduling_strategy=there).remote()
        assert ray.get(holder.ping.remote())
        wait_until(lambda: read(2).used_cpus == 1, "an actor is counted")
        assert read(2, is_private=True).used_cpus == 0
        assert count_places(read(2), Bundle(1)) == 1
        added.drain(60)  # it stays while the actor does
        wait_until(lambda: read(2).is_draining, "the node drains")
        assert count_places(read(2), Bundle(1)) == 0
        nodes = read_running_cluster(is_private=True).nodes
        assert place(Bundle(1, fills_cores=False), 7, nodes).counts == {before.name: 7}
    finally:
        added.kill()
    assert read(2) is None


def test_limits_of_the_autoscaler_are_read_from_the_file_that_its_process_was_started_with(tmp_path: Path):
    file = tmp_path / "cluster.yaml"
    file.write_text("max_workers: 5\navailable_node_types: {worker: {resources: {CPU: 4}}}\n")
    command = ["import time; time.sleep(60)", "ray/autoscaler/v2/monitor.py", "--gcs-address=10.9.8.7:6"]
    process = subprocess.Popen([sys.executable, "-c", *command, f"--autoscaling-config={file}"])
    try:
        wait_until(lambda: find_autoscaling_config("10.9.8.7:6") is not None, "the process is there")
        assert find_autoscaling_config("10.9.8.7:6")["max_workers"] == 5
        assert find_autoscaling_config("10.9.8.7:60") is None
    finally:
        process.kill()
        process.wait()


def test_groups_have_room_for_what_is_not_there_yet():
    nodes = read_running_cluster(is_private=True).nodes
    limits = [("gpu", {"CPU": 8, "GPU": 1, "accelerator_type:L4": 1}, {}, 10), ("none", {"CPU": 4}, {}, 0)]
    [group] = build_groups(limits, nodes, 4)
    assert (group.name, group.max_count, group.node.accelerator) == ("gpu", 3, "L4")
