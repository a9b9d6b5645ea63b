"""Clusters that are described, or read off the files that make them."""

from pathlib import Path

import pytest

from pipelines.planning.descriptions import parse_cluster
from pipelines.planning.errors import PlanError
from pipelines.planning.inventory import describe_node
from pipelines.planning.manifests import read_manifest

GIB = 2**30
CLUSTER = """
cluster_name: ner
max_workers: 6
provider: {type: aws, region: us-east-1}
head_node_type: head
available_node_types:
  head: {resources: {CPU: 0}, node_config: {InstanceType: m6i.xlarge}, max_workers: 0}
  data: {resources: {CPU: 8}, node_config: {InstanceType: m6i.2xlarge}, min_workers: 1, max_workers: 4}
  training:
    node_config: {InstanceType: g6.2xlarge}
    labels: {ray.io/market-type: spot}
    min_workers: 0
    max_workers: 10
"""
KUBERAY = """
apiVersion: v1
kind: Secret
---
apiVersion: ray.io/v1
kind: KIND
spec:
  WRAP
    enableInTreeAutoscaling: true
    headGroupSpec:
      rayStartParams: {num-cpus: "0"}
      template: {spec: {containers: [{name: head, resources: {limits: {cpu: "2", memory: 8Gi}}}]}}
    workerGroupSpecs:
      - groupName: gpu
        replicas: 1
        minReplicas: 0
        maxReplicas: 5
        template:
          spec:
            nodeSelector: {cloud.google.com/gke-accelerator: nvidia-l4}
            containers: [{name: worker, resources: {limits: {cpu: 7500m, memory: 28Gi, nvidia.com/gpu: 1}}}]
"""


def test_description_names_nodes_gpus_labels_prices_and_what_may_be_added():
    found = parse_cluster(" 4 x (8cpu, 32GiB, 1xL4, zone=a, 0.8/h, 25Gbit) + 0..8x(16cpu,64GB) + (2cpu) ")
    assert len(found.nodes) == 5
    first = found.nodes[0]
    assert (first.cpus, first.memory_bytes, first.gpus, first.accelerator) == (8, 32 * GIB, 1, "L4")
    assert (first.labels, first.price_per_hour) == ({"zone": "a"}, 0.8)
    assert first.network_bytes_per_s == 25e9 / 8
    [group] = found.groups
    assert (group.max_count, group.node.cpus, group.node.memory_bytes) == (8, 16, 64 * 10**9)
    assert found.may_grow
    assert len({node.name for node in found.nodes}) == 5


def test_description_of_a_node_is_read_back_as_that_node():
    [node] = parse_cluster("(8cpu,32GiB,2xA100)").nodes
    assert describe_node(node) == "(8cpu,32GiB,2xA100)"
    assert parse_cluster(describe_node(node)).nodes[0] == node


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", ""),
        ("four nodes", "fournodes"),
        ("4x(8cpu", "4x(8cpu"),
        ("4x(8 dogs)", "8dogs"),
        ("4x(32GiB)", "32GiB"),
        ("4x(0cpu)", "0cpu"),
        ("0x(8cpu)", "0x(8cpu)"),
        ("5..2x(8cpu)", "5..2x(8cpu)"),
        ("4x(8cpu,,1xL4)", "nothing between"),
        ("4x(8cpu)+", ""),
        ("4x(8cpu,1.5gpu)", "1.5gpu"),
        ("999999999x(8cpu)", "999999999x"),
    ],
)
def test_description_that_cannot_be_read_is_refused_with_an_example(text, value):
    with pytest.raises(PlanError, match="cannot be read") as caught:
        parse_cluster(text)
    assert value in str(caught.value.value)
    assert "--cluster '4x(8cpu" in str(caught.value)


@pytest.fixture
def write(tmp_path: Path):
    def write(text: str) -> Path:
        path = tmp_path / "cluster.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def test_cluster_file_gives_the_head_the_least_workers_and_what_may_be_added(write):
    found = read_manifest(write(CLUSTER))
    assert {node.name: node.cpus for node in found.nodes} == {"head.1": 0, "data.1": 8}
    assert found.nodes[1].price_per_hour == 0.384
    groups = {group.name: group for group in found.groups}
    assert groups["data"].max_count == 3
    training = groups["training"].node
    assert (training.cpus, training.gpus, training.accelerator, training.price_per_hour) == (8, 1, "L4", 0.9776)
    assert training.labels == {"ray.io/market-type": "spot"}
    assert groups["training"].max_count == 5, "of six workers one is there"


@pytest.mark.parametrize(
    ("kind", "wrap"),
    [("RayCluster", ""), ("RayJob", "rayClusterSpec:"), ("RayService", "rayClusterConfig:")],
)
def test_kuberay_manifest_gives_pods_their_limits_and_groups_their_growth(write, kind, wrap):
    text = KUBERAY.replace("KIND", kind).replace("  WRAP\n", f"  {wrap}\n" if wrap else "")
    text = text if wrap else text.replace("\n    ", "\n  ")
    found = read_manifest(write(text))
    head, worker = found.nodes
    assert (head.cpus, head.memory_bytes) == (0, 8 * GIB)
    assert (worker.cpus, worker.memory_bytes, worker.gpus, worker.accelerator) == (7.5, 28 * GIB, 1, "L4")
    [group] = found.groups
    assert (group.name, group.max_count) == ("gpu", 4)


def test_kuberay_without_its_autoscaler_does_not_grow(write):
    text = KUBERAY.replace("KIND", "RayCluster").replace("  WRAP\n", "").replace("\n    ", "\n  ")
    found = read_manifest(write(text.replace("enableInTreeAutoscaling: true", "enableInTreeAutoscaling: false")))
    assert found.groups == ()
    assert not found.may_grow


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[unclosed", "cannot be read"),
        ("just words", "names no kinds of node"),
        ("provider: {type: local, head_ip: 10.0.0.1, worker_ips: []}", "names no kinds of node"),
        ("kind: RayCluster\nspec: {}", "describes no Ray cluster"),
        (CLUSTER.replace("g6.2xlarge", "z9.huge"), "does not say what a node of `training` has"),
        (
            KUBERAY.replace("KIND", "RayJob").replace("WRAP", "rayClusterSpec:").replace("28Gi", "28 apples"),
            "an amount",
        ),
    ],
)
def test_file_that_describes_no_cluster_is_refused(write, text, told):
    path = write(text)
    with pytest.raises(PlanError, match=told) as caught:
        read_manifest(path)
    assert str(path) in str(caught.value)


def test_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(PlanError, match="No such file"):
        read_manifest(tmp_path / "nowhere.yaml")
