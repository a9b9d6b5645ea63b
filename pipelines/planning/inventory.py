"""What a cluster has, node by node, and what its autoscaler may add.

Totals are of no use for planning: eight CPUs on eight nodes hold no worker that needs two. So an inventory is a list of
nodes, each with what it has and what of that is taken, and of groups of nodes that may yet come.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pipelines.planning.errors import PlanError

ACCELERATOR_LABEL = "ray.io/accelerator-type"
GROUP_LABEL = "ray.io/node-group"
Limit = tuple[str, Mapping[str, Any], Mapping[str, str], int]
"""A group's name, the resources and labels of its nodes, and how many there may be."""


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
    most_added: int | None = None
    """How many nodes may be added of all groups together; None: as many as the groups have."""

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


def find_accelerator(resources: Mapping[str, Any], labels: Mapping[str, str]) -> str | None:
    """The kind of GPU by Ray's label, or by its resource `accelerator_type:L4`."""
    by_resource = (name.partition(":")[2] for name in resources if name.startswith("accelerator_type:"))
    return labels.get(ACCELERATOR_LABEL) or next(by_resource, None)


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


def set_price(inventory: Inventory, price_per_hour: float) -> Inventory:
    """The inventory at one price for each node."""
    if price_per_hour < 0:
        raise PlanError("a price below nothing", rule="0 or more", value=price_per_hour)
    nodes = tuple(replace(node, price_per_hour=price_per_hour) for node in inventory.nodes)
    groups = tuple(
        replace(group, node=replace(group.node, price_per_hour=price_per_hour)) for group in inventory.groups
    )
    return replace(inventory, nodes=nodes, groups=groups)
