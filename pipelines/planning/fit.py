"""Where bundles of resources fit: counted node by node, never by totals.

A bundle lies on one node whole. Some CPUs of each node are kept for those who read and write beside the bundles: Ray
Data has of a node what is left, in whole CPUs, divided by the datasets read at once, and hangs where that is none.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from pipelines.planning.inventory import Inventory, Node, NodeGroup, describe_node, describe_nodes

SHARES = (1, 2, 4, 5, 8, 10)
"""Bundles of a GPU whose fraction is a short decimal: three thirds, rounded up, would be more than one GPU."""
TOLERANCE = 1e-6
MANY = 1_000_000
"""Places on a node that nothing limits."""


@dataclass(frozen=True)
class Bundle:
    """What one worker, actor, replica or trial needs, on one node."""

    cpus: float = 1.0
    gpus: float = 0.0
    """A fraction below 1, or a whole number."""
    memory_bytes: int = 0
    accelerator: str | None = None
    """Kind of GPU; None: any."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """Labels of the node."""
    fills_cores: bool = True
    """Its CPUs compute all the time, so they are counted by the cores of the node; else by its logical CPUs."""

    def to_resources(self) -> dict[str, float]:
        """As Ray takes it."""
        kind = {f"accelerator_type:{self.accelerator}": 0.001} if self.accelerator and self.gpus else {}
        found = {"CPU": self.cpus, "GPU": self.gpus, "memory": float(self.memory_bytes)} | kind
        return {name: amount for name, amount in found.items() if amount}

    def describe(self) -> str:
        """`2 CPUs, 0.5 GPU (L4)`."""
        kind = f" ({self.accelerator})" if self.accelerator else ""
        parts = [f"{self.cpus:g} CPU{'s' * (self.cpus != 1)}"] if self.cpus else []
        parts += [f"{self.gpus:g} GPU{'s' * (self.gpus > 1)}{kind}"] if self.gpus else []
        parts += [f"{self.memory_bytes / 2**30:.1f} GiB"] if self.memory_bytes else []
        parts += [f"{key}={value}" for key, value in self.labels.items()]
        return ", ".join(parts) or "nothing"


@dataclass(frozen=True)
class Kept:
    """CPUs of a node that are left to reading and writing."""

    cpus: float = 0.0
    """One for each dataset that is read while the bundles are there."""
    smallest: float = 0.0
    """Nodes with fewer CPUs keep none."""

    def on(self, node: Node) -> float:
        """Of this node."""
        return self.cpus if node.cpus >= self.smallest else 0.0


NOTHING = Kept()


@dataclass(frozen=True)
class Placement:
    """How many bundles lie on which node."""

    bundle: Bundle
    counts: Mapping[str, int]
    """Node → bundles, above 0."""
    added: Mapping[str, int] = field(default_factory=dict)
    """Group → nodes that the autoscaler has yet to add; each named `GROUP+1`, `GROUP+2`, … in `counts`."""

    @property
    def number(self) -> int:
        """Bundles in all."""
        return sum(self.counts.values())


def count_places(node: Node, bundle: Bundle, kept: Kept = NOTHING) -> int:
    """Bundles that fit on a node beside what is taken there."""
    if not _is_meant(node, bundle):
        return 0
    places = [MANY]
    if bundle.cpus > 0:
        free = node.cpus - node.used_cpus - kept.on(node)
        if bundle.fills_cores:
            free = min(free, node.cores - node.used_cpus)
        places.append(_divide(free, bundle.cpus))
    if bundle.gpus > 0:
        whole = math.floor(node.gpus - node.used_gpus + TOLERANCE)  # where a used fraction lies is not known
        places.append(whole * _divide(1, bundle.gpus) if bundle.gpus < 1 else _divide(whole, bundle.gpus))
    if bundle.memory_bytes > 0 and node.memory_bytes:
        places.append(_divide(node.memory_bytes - node.used_memory_bytes, bundle.memory_bytes))
    return max(0, min(places))


def count_all_places(nodes: Sequence[Node], bundle: Bundle, kept: Kept = NOTHING) -> int:
    """Bundles that fit on all nodes together."""
    return sum(count_places(node, bundle, kept) for node in nodes)


def place(bundle: Bundle, number: int, nodes: Sequence[Node], kept: Kept = NOTHING) -> Placement | None:
    """A place for each of `number` bundles, on few nodes; None if they do not all fit.

    The roomiest nodes are filled first, and the last bundles go where they leave least.
    """
    room = sorted(((count_places(node, bundle, kept), node.name) for node in nodes), key=lambda one: -one[0])
    counts: dict[str, int] = {}
    left = number
    for at, (places, name) in enumerate(room):
        if left <= places:
            last = max(one for one in range(at, len(room)) if room[one][0] >= left)
            name, places = room[last][1], left
        if left > 0 and places > 0:
            counts[name] = places
            left -= places
    if left > 0:
        return None
    return Placement(bundle, counts)


def place_growing(bundle: Bundle, number: int, inventory: Inventory, kept: Kept = NOTHING) -> Placement | None:
    """As `place`; where that has no room, on nodes too that the autoscaler adds, the cheapest for a bundle first."""
    found = place(bundle, number, inventory.nodes, kept)
    if found is not None:
        return found
    left = number - count_all_places(inventory.nodes, bundle, kept)
    nodes, most = list(inventory.nodes), MANY if inventory.most_added is None else inventory.most_added
    for group in sorted(inventory.groups, key=lambda group: _price_place(group, bundle, kept)):
        places = count_places(group.node, bundle, kept)
        if places and left > 0:
            added = min(group.max_count, math.ceil(left / places), most)
            left, most = left - added * places, most - added
            nodes += list_added(group, added)
    found = place(bundle, number, nodes, kept)
    if found is None and inventory.most_added is not None:  # the cheapest are too many: the roomiest
        found = place(bundle, number, limit_added(list_all_nodes(inventory), inventory, bundle, kept), kept)
    return found and settle_added(found, inventory)


def settle_added(placement: Placement, inventory: Inventory) -> Placement:
    """The placement with how many nodes of each group it adds: equal ones, so those it uses are the first of them."""
    there = {node.name for node in inventory.nodes}
    counts = {name: count for name, count in placement.counts.items() if name in there}
    added: dict[str, int] = {}
    for name, count in placement.counts.items():
        if name not in there:
            group = name.rpartition("+")[0]
            added[group] = added.get(group, 0) + 1
            counts[f"{group}+{added[group]}"] = count
    return replace(placement, counts=counts, added=added)


def list_added(group: NodeGroup, number: int) -> list[Node]:
    """So many nodes of a group, as they will be."""
    return [replace(group.node, name=f"{group.name}+{one}") for one in range(1, number + 1)]


def list_all_nodes(inventory: Inventory, at_most: int = 1024) -> list[Node]:
    """The nodes that are there and all that may be added."""
    added = [node for group in inventory.groups for node in list_added(group, min(group.max_count, at_most))]
    return [*inventory.nodes, *added]


def limit_added(nodes: Sequence[Node], inventory: Inventory, bundle: Bundle, kept: Kept = NOTHING) -> list[Node]:
    """The nodes without those beyond what may be added, all groups together: those that hold most bundles stay."""
    if inventory.most_added is None:
        return list(nodes)
    there = {node.name for node in inventory.nodes}
    added = [(count_places(node, bundle, kept), node.name) for node in nodes if node.name not in there]
    roomiest = sorted(added, key=lambda one: -one[0])[: inventory.most_added]
    chosen = there | {name for places, name in roomiest if places}
    return [node for node in nodes if node.name in chosen]


def round_up_share(fraction: float) -> float:
    """The smallest share of a GPU that holds this fraction, and of which whole numbers fit; above 1, whole GPUs."""
    if fraction > 1:
        return float(math.ceil(fraction - TOLERANCE))
    return next(1 / number for number in reversed(SHARES) if 1 / number >= fraction - TOLERANCE)


def explain_shortage(bundle: Bundle, number: int, inventory: Inventory, kept: Kept = NOTHING) -> str:
    """What there is and what is missing for `number` bundles."""
    now = count_all_places(inventory.nodes, bundle, kept)
    grown = count_all_places(limit_added(list_all_nodes(inventory), inventory, bundle, kept), bundle, kept)
    told = f"room for {now}" + (f", and for {grown} once the cluster has grown to its most" if grown > now else "")
    shapes = "; ".join(describe_nodes(inventory.nodes)) or "no nodes"
    best = max(list_all_nodes(inventory), key=lambda node: count_places(node, bundle, kept), default=None)
    hint = ""
    if best is not None and not count_places(best, bundle, kept):
        hint = "; no node holds one: " + _explain_node(best, bundle, kept)
    elif number > grown:
        hint = f"; missing: {number - grown} x ({bundle.describe()})"
    return f"{told} ({shapes}){hint}"


def _explain_node(node: Node, bundle: Bundle, kept: Kept) -> str:
    """Why a bundle does not fit on a node."""
    if node.is_draining:
        return f"{describe_node(node)} is draining"
    if bundle.gpus and bundle.accelerator and node.accelerator != bundle.accelerator:
        return f"{describe_node(node)} has no {bundle.accelerator}"
    if any(node.labels.get(key) != value for key, value in bundle.labels.items()):
        return f"{describe_node(node)} has other labels"
    if node.gpus - node.used_gpus + TOLERANCE < bundle.gpus:
        return f"{describe_node(node)} has {node.gpus - node.used_gpus:g} GPUs free"
    if node.memory_bytes and node.memory_bytes - node.used_memory_bytes < bundle.memory_bytes:
        return f"{describe_node(node)} has {(node.memory_bytes - node.used_memory_bytes) / 2**30:.1f} GiB free"
    free = node.cpus - node.used_cpus - kept.on(node)
    keeps = f", for {kept.on(node):g} is kept for reading and writing" if kept.on(node) else ""
    return f"{describe_node(node)} has {max(0.0, free):g} CPUs free{keeps}"


def _is_meant(node: Node, bundle: Bundle) -> bool:
    """Whether a node is one for the bundle, by its state, its GPUs and its labels."""
    if node.is_draining:
        return False
    if bundle.gpus and bundle.accelerator and node.accelerator != bundle.accelerator:
        return False
    return all(node.labels.get(key) == value for key, value in bundle.labels.items())


def _price_place(group: NodeGroup, bundle: Bundle, kept: Kept) -> tuple[float, float, float]:
    """Price of a bundle's place on a group's node; where it is not known, what the node has besides."""
    places = count_places(group.node, bundle, kept)
    if not places:
        return math.inf, 0, 0
    price = group.node.price_per_hour
    return (price if price is not None else MANY) / places, group.node.gpus / places, group.node.cpus / places


def _divide(amount: float, part: float) -> int:
    return max(0, math.floor(amount / part + TOLERANCE))
