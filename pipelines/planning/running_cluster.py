"""The cluster that runs, or this machine: what it has and may get. The only module of this room that knows Ray."""

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipelines.ner.machine import count_cores, read_memory_bytes
from pipelines.planning.inventory import GROUP_LABEL, Inventory, Limit, Node, NodeGroup, build_groups, find_accelerator

HEAD_RESOURCE = "node:__internal_head__"
ID_LENGTH = 12
"""Digits of a node's id that name it."""
MONITORS = ("autoscaler/_private/monitor.py", "autoscaler/v2/monitor.py")
HEAD_TIMEOUT_S = 30.0
KUBERAY_START, NO_MONITOR = "KUBERAY_GEN_RAY_START_CMD", "--no-monitor"
"""How KubeRay's operator starts Ray in its containers, and what it tells a head that has its autoscaler beside it."""
LOCAL_MEMORY = 0.7
"""Share of a machine's memory that Ray leaves to workers; its object store has the rest."""


def read_this_machine() -> Inventory:
    """This machine as a cluster of its own, as a door would start one; Ray is not started for it."""
    import torch
    from ray._private.accelerators import NvidiaGPUAcceleratorManager

    cores = count_cores()
    gpus = torch.cuda.device_count()
    kind = NvidiaGPUAcceleratorManager.get_current_node_accelerator_type() if gpus else None
    spare = 2  # logical CPUs of a local cluster, which read and write
    memory = int(read_memory_bytes() * LOCAL_MEMORY)
    node = Node("here", float(cores + spare), memory, gpus, kind, real_cpus=float(cores))
    return Inventory((node,), source="this machine")


def read_running_cluster(*, is_private: bool = False) -> Inventory:
    """The cluster that this process is connected to.

    Args:
        is_private: it was started for this run alone, so what is taken there is taken by this run, and given back.
    """
    import ray
    from ray._private.state import state

    available = {} if is_private else state.available_resources_per_node()
    draining = set(state.get_draining_nodes())
    here = ray.util.get_node_ip_address()
    nodes = [
        _read_node(node, available.get(node["NodeID"]), node["NodeID"] in draining, node["NodeManagerAddress"] == here)
        for node in ray.nodes()
        if node["Alive"]
    ]
    groups, may_grow, most = ((), False, None) if is_private else _read_groups(nodes)
    return Inventory(tuple(nodes), groups, "this machine" if is_private else "the running cluster", may_grow, most)


def _read_node(node: dict[str, Any], available: Mapping[str, float] | None, is_draining: bool, is_here: bool) -> Node:
    has, labels = node["Resources"], dict(node.get("Labels") or {})
    used = {name: has.get(name, 0) - (available.get(name, 0) if available else has.get(name, 0)) for name in has}
    return Node(
        name=node["NodeID"][:ID_LENGTH],
        cpus=has.get("CPU", 0.0),
        memory_bytes=int(has.get("memory", 0)),
        gpus=int(has.get("GPU", 0)),
        accelerator=find_accelerator(has, labels),
        labels=labels,
        used_cpus=max(0.0, used.get("CPU", 0.0)),
        used_gpus=max(0.0, used.get("GPU", 0.0)),
        used_memory_bytes=max(0, int(used.get("memory", 0))),
        is_draining=is_draining,
        group=labels.get(GROUP_LABEL),
        real_cpus=float(count_cores()) if is_here else None,
    )


def _read_groups(nodes: Sequence[Node]) -> tuple[tuple[NodeGroup, ...], bool, int | None]:
    """What the autoscaler may add, whether there is one, and how many nodes of all groups together.

    Ray knows the limits only where a platform has published them; else they stand in the file that the autoscaler on
    the head node was started with. The autoscaler of KubeRay runs in a container of its own, and tells nobody: there
    the cluster may grow to what is not known. (Give its manifest to plan for that.)
    """
    import ray
    from ray._private.state import state

    published = state.get_cluster_config()
    if published is not None and published.node_group_configs:
        found: list[Limit] = [
            (one.name, dict(one.resources), {}, one.max_count if one.max_count >= 0 else sys.maxsize)
            for one in published.node_group_configs
        ]
        return build_groups(found, nodes, None), True, None
    config = _read_autoscaling_config()
    if config is None:
        return (), NO_MONITOR in os.environ.get(KUBERAY_START, ""), None
    types = config.get("available_node_types") or {}
    head, limit = config.get("head_node_type"), config.get("max_workers")
    found = [
        (name, one.get("resources") or {}, one.get("labels") or {}, int(one.get("max_workers", limit or 0)))
        for name, one in types.items()
        if name != head
    ]
    heads = {node["NodeID"][:ID_LENGTH] for node in ray.nodes() if HEAD_RESOURCE in node["Resources"]}
    present = [node for node in nodes if node.group != head and node.name not in heads]  # not each head has its label
    if limit is None:
        return build_groups(found, present, None), True, None
    return build_groups(found, present, int(limit)), True, max(0, int(limit) - len(present))


def _read_autoscaling_config() -> dict[str, Any] | None:
    """The configuration of the autoscaler, from the head node."""
    import ray

    address = ray.get_runtime_context().gcs_address
    if not address:
        return None
    [head] = [node for node in ray.nodes() if node["Alive"] and HEAD_RESOURCE in node["Resources"]][:1] or [None]
    if head is None:
        return None
    if head["NodeManagerAddress"] == ray.util.get_node_ip_address():
        return find_autoscaling_config(address)
    read = ray.remote(num_cpus=0, resources={HEAD_RESOURCE: 0.001}, max_retries=0)(find_autoscaling_config)
    try:
        found: dict[str, Any] | None = ray.get(read.remote(address), timeout=HEAD_TIMEOUT_S)
    except ray.exceptions.RayError:  # a head that runs no tasks
        return None
    return found


def find_autoscaling_config(address: str) -> dict[str, Any] | None:
    """What the autoscaler of the cluster at this address, a process of this machine, was started with."""
    import yaml

    for command in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            arguments = command.read_bytes().decode(errors="replace").split("\0")
        except OSError:  # it has ended, or is another user's
            continue
        given = dict(one.split("=", 1) for one in arguments if one.startswith("--") and "=" in one)
        if any(one.endswith(MONITORS) for one in arguments) and given.get("--gcs-address") == address:
            path = given.get("--autoscaling-config")
            try:
                config = yaml.safe_load(Path(path).expanduser().read_text(encoding="utf-8")) if path else None
            except (OSError, yaml.YAMLError):
                return None
            return config if isinstance(config, dict) else None
    return None


def request_nodes(bundles: Sequence[Mapping[str, float]]) -> None:
    """Ask the autoscaler for nodes on which these bundles fit together; it holds until the next request."""
    from ray.autoscaler.sdk import request_resources

    request_resources(bundles=[dict(bundle) for bundle in bundles])
