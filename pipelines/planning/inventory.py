"""What a cluster has, node by node, and what its autoscaler may add. The only module of this room that knows Ray.

Totals are of no use for planning: eight CPUs on eight nodes hold no worker that needs two. So an inventory is a list of
nodes, each with what it has and what of that is taken, and of groups of nodes that may yet come.
"""

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pipelines.planning.errors import PlanError

ACCELERATOR_LABEL = "ray.io/accelerator-type"
GROUP_LABEL = "ray.io/node-group"
HEAD_RESOURCE = "node:__internal_head__"
Limit = tuple[str, Mapping[str, Any], Mapping[str, str], int]
"""A group's name, the resources and labels of its nodes, and how many there may be."""
ID_LENGTH = 12
"""Digits of a node's id that name it."""
MONITORS = ("autoscaler/_private/monitor.py", "autoscaler/v2/monitor.py")
HEAD_TIMEOUT_S = 30.0
LOCAL_MEMORY = 0.7
"""Share of a machine's memory that Ray leaves to workers; its object store has the rest."""


@dataclass(frozen=True)
class Node:
    """A machine: what it has, and what of that others have taken."""

    name: str
    cpus: float
    """Logical CPUs, as Ray counts them."""
    memory_bytes: int = 0
    """0: not known, and not planned with."""
    gpus: int = 0
    accelerator: str | None = None
    """Kind of its GPUs, as Ray names it: `L4`, `A100`."""
    labels: Mapping[str, str] = field(default_factory=dict)
    used_cpus: float = 0.0
    used_gpus: float = 0.0
    used_memory_bytes: int = 0
    is_draining: bool = False
    """About to be taken away: nothing new is placed there."""
    group: str | None = None
    """The group of the autoscaler that it belongs to."""
    real_cpus: float | None = None
    """Cores where fewer than the logical CPUs (a local cluster has two more than its machine); None: as many."""
    price_per_hour: float | None = None
    network_bytes_per_s: float | None = None
    """To other nodes; None: not known."""

    @property
    def cores(self) -> float:
        """CPUs that compute at the same time."""
        return self.cpus if self.real_cpus is None else min(self.cpus, self.real_cpus)


@dataclass(frozen=True)
class NodeGroup:
    """Equal nodes that the autoscaler may add."""

    node: Node
    """What one of them has."""
    max_count: int
    """How many more than there are."""

    @property
    def name(self) -> str:
        """Name of the group."""
        return self.node.group or self.node.name


@dataclass(frozen=True)
class Inventory:
    """The living nodes of a cluster, and those that may be added."""

    nodes: tuple[Node, ...]
    groups: tuple[NodeGroup, ...] = ()
    source: str = "described"
    """Where it was read."""
    may_grow: bool = False
    """Whether an autoscaler adds nodes, also where its limits (`groups`) are not known."""

    def list_accelerators(self) -> list[str | None]:
        """Kinds of GPU that the cluster has or may get, in the order met; None among them: of an unknown kind."""
        shapes = [*self.nodes, *(group.node for group in self.groups)]
        return list(dict.fromkeys(node.accelerator for node in shapes if node.gpus))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON: totals, and the nodes and groups in words."""
        ready = [node for node in self.nodes if not node.is_draining]
        return {
            "source": self.source,
            "num_nodes": len(self.nodes),
            "num_draining": len(self.nodes) - len(ready),
            "cpus": sum(node.cpus for node in ready),
            "gpus": sum(node.gpus for node in ready),
            "used_cpus": sum(node.used_cpus for node in ready),
            "used_gpus": sum(node.used_gpus for node in ready),
            "nodes": describe_nodes(self.nodes),
            "may_add": [f"{group.max_count} x {describe_node(group.node)}" for group in self.groups],
            "may_grow": self.may_grow,
        }


def describe_node(node: Node) -> str:
    """`(8cpu,32GiB,1xL4)`, as a cluster is described on the command line."""
    parts = [f"{node.cpus:g}cpu"]
    if node.memory_bytes:
        parts.append(f"{node.memory_bytes / 2**30:.4g}GiB")
    if node.gpus:
        parts.append(f"{node.gpus}x{node.accelerator or 'gpu'}")
    return f"({','.join(parts)})"


def describe_nodes(nodes: Sequence[Node]) -> list[str]:
    """Equal nodes together: `4 x (8cpu,32GiB,1xL4), 1 of them draining`."""
    counts: dict[str, list[Node]] = {}
    for node in nodes:
        counts.setdefault(describe_node(node), []).append(node)
    told = []
    for shape, equal in counts.items():
        draining = sum(node.is_draining for node in equal)
        busy = sum(node.used_cpus + node.used_gpus > 0 for node in equal)
        notes = [f"{number} {word}" for number, word in ((draining, "draining"), (busy, "busy")) if number]
        told.append(f"{len(equal)} x {shape}" + (f", {' and '.join(notes)}" if notes else ""))
    return told


def read_this_machine() -> Inventory:
    """This machine as a cluster of its own, as a door would start one; Ray is not started for it."""
    import torch
    from ray._private.accelerators import NvidiaGPUAcceleratorManager

    cores = len(os.sched_getaffinity(0))
    gpus = torch.cuda.device_count()
    kind = NvidiaGPUAcceleratorManager.get_current_node_accelerator_type() if gpus else None
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    spare = 2  # logical CPUs of a local cluster, which read and write
    node = Node("here", float(cores + spare), int(memory * LOCAL_MEMORY), gpus, kind, real_cpus=float(cores))
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
    groups, may_grow = ((), False) if is_private else _read_groups(nodes)
    return Inventory(tuple(nodes), groups, "this machine" if is_private else "the running cluster", may_grow)


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
        real_cpus=float(len(os.sched_getaffinity(0))) if is_here else None,
    )


def find_accelerator(resources: Mapping[str, Any], labels: Mapping[str, str]) -> str | None:
    """The kind of GPU by Ray's label, or by its resource `accelerator_type:L4`."""
    by_resource = (name.partition(":")[2] for name in resources if name.startswith("accelerator_type:"))
    return labels.get(ACCELERATOR_LABEL) or next(by_resource, None)


def _read_groups(nodes: Sequence[Node]) -> tuple[tuple[NodeGroup, ...], bool]:
    """What the autoscaler may add, and whether there is one.

    Ray knows the limits only where a platform has published them; else they stand in the file that the autoscaler on
    the head node was started with. (The autoscaler of KubeRay runs in a container of its own, and tells nobody: give
    its manifest.)
    """
    import ray
    from ray._private.state import state

    published = state.get_cluster_config()
    if published is not None and published.node_group_configs:
        found: list[Limit] = [
            (one.name, dict(one.resources), {}, one.max_count if one.max_count >= 0 else sys.maxsize)
            for one in published.node_group_configs
        ]
        return build_groups(found, nodes, None), True
    config = _read_autoscaling_config()
    if config is None:
        return (), False
    types = config.get("available_node_types") or {}
    head, limit = config.get("head_node_type"), config.get("max_workers")
    found = [
        (name, one.get("resources") or {}, one.get("labels") or {}, int(one.get("max_workers", limit or 0)))
        for name, one in types.items()
        if name != head
    ]
    heads = {node["NodeID"][:ID_LENGTH] for node in ray.nodes() if HEAD_RESOURCE in node["Resources"]}
    present = [node for node in nodes if node.group != head and node.name not in heads]  # not each head has its label
    return build_groups(found, present, None if limit is None else int(limit)), True


def build_groups(found: Sequence[Limit], nodes: Sequence[Node], limit: int | None) -> tuple[NodeGroup, ...]:
    """Groups of (name, resources, labels, most nodes), less the nodes that are there already.

    Args:
        limit: most nodes of all groups together.
    """
    groups = []
    room = sys.maxsize if limit is None else max(0, limit - len(nodes))
    for name, resources, labels, most in found:
        left = min(room, most - sum(node.group == name for node in nodes))
        shape = Node(
            name=name,
            cpus=float(resources.get("CPU", 0)),
            memory_bytes=int(resources.get("memory", 0)),
            gpus=int(resources.get("GPU", 0)),
            accelerator=find_accelerator(resources, labels),
            labels=dict(labels),
            group=name,
        )
        if left > 0:
            groups.append(NodeGroup(shape, left))
    return tuple(groups)


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


def set_price(inventory: Inventory, price_per_hour: float) -> Inventory:
    """The inventory at one price for each node."""
    if price_per_hour < 0:
        raise PlanError("a price below nothing", rule="0 or more", value=price_per_hour)
    nodes = tuple(replace(node, price_per_hour=price_per_hour) for node in inventory.nodes)
    groups = tuple(
        replace(group, node=replace(group.node, price_per_hour=price_per_hour)) for group in inventory.groups
    )
    return replace(inventory, nodes=nodes, groups=groups)
