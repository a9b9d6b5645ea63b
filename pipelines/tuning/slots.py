"""How many trials run at a time, and what each one holds of the cluster."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray

from pipelines.training.resources import ResourcesConfig, list_cores
from pipelines.tuning.config import SearchConfig, TuneError

MOST_CPUS = 4
"""Threads of a trial: small steps gain little from more, and other trials run meanwhile."""
GRAIN = 1e-4
"""Ray counts resources in such parts, and cuts off what is less: 0.3334 as a binary fraction becomes 0.3333."""
KIND_SHARE = 0.001
"""What a trial takes of the one that a node has of its kind of GPU, so that it lies there."""
SMALL = 0.01
"""CPUs of a trial whose workers are placed by Ray Train, outside of what Ray Tune knows."""

Growth = Sequence[tuple[Mapping[str, Any], int]]
"""What a node has that an autoscaler may add, and how many of them."""


@dataclass(frozen=True)
class Slots:
    """Places for trials."""

    num_workers: int
    """Of a trial; one trains in the trial's own process, several by Ray Train."""
    cpus: int
    """Of each worker."""
    gpus: float
    """Of each worker."""
    concurrent: int
    """Trials at a time."""
    accelerator: str | None = None
    """Kind of its GPU; None: any."""
    filler_cpus: float = 0.0
    """Logical CPUs that a trial holds besides, so that no more trials fit than `concurrent`."""
    must_count: bool = False
    """Whether more would fit nevertheless, and trials have to be counted, paused ones too."""
    may_grow: bool = False
    """Whether an autoscaler may make room for them."""

    @property
    def is_alone(self) -> bool:
        """Whether a trial trains in its own process."""
        return self.num_workers == 1

    def list_bundles(self) -> list[dict[str, float]]:
        """What Ray Tune reserves for a trial; the trial's process has the first bundle."""
        if not self.is_alone:
            return [{"CPU": SMALL}]
        own = {"CPU": float(self.cpus)} | ({"GPU": self.gpus} if self.gpus else {})
        own |= {f"accelerator_type:{self.accelerator}": KIND_SHARE} if self.gpus and self.accelerator else {}
        return [own, {"CPU": self.filler_cpus + GRAIN / 2}] if self.filler_cpus else [own]

    def describe(self) -> str:
        """In words."""
        trials = "one trial" if self.concurrent == 1 else f"{self.concurrent} trials"
        cpus = "one CPU" if self.cpus == 1 else f"{self.cpus} CPUs"
        gpus = f" and {self.gpus:g} GPU" if self.gpus else ""
        each = f"{self.num_workers} workers with {cpus}{gpus} each" if not self.is_alone else f"{cpus}{gpus}"
        return f"{trials} at a time, {'each ' if self.concurrent > 1 else ''}with {each}"


def plan_slots(
    search: SearchConfig, resources: ResourcesConfig, num_trials: int, growth: Growth | None = None
) -> Slots:
    """Places on the connected cluster, counted node by node. Raises TuneError if there is none."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return fit_slots(nodes, list_cores(), search, resources, num_trials, growth)


def fit_slots(
    nodes: Sequence[Mapping[str, Any]],
    cores: Sequence[int],
    search: SearchConfig,
    resources: ResourcesConfig,
    num_trials: int,
    growth: Growth | None = None,
) -> Slots:
    """Places on nodes with these resources and cores. Raises TuneError if there is none.

    Args:
        cores: of each node; where a machine declares more logical CPUs than it has, fewer than those.
        growth: nodes that an autoscaler may add; none, where there is one whose limits are not known.
    """
    num_workers = (resources.read_num_workers() or (1, 1))[0]
    kind = resources.accelerator
    nodes = [_keep_kind(node, kind) for node in nodes]
    growth = growth and [(_keep_kind(node, kind), count) for node, count in growth]
    shapes = [*nodes, *(node for node, _ in growth or ())]
    sizes = [*cores, *(int(node.get("CPU", 0)) for node, _ in growth or ())]
    gpus = _choose_gpus(search, resources, shapes)
    cpus = search.cpus_per_trial or resources.cpus_per_worker or _choose_cpus(shapes, sizes, gpus)
    own = [_count_places(cores[at], node.get("GPU", 0), cpus, gpus) for at, node in enumerate(nodes)]
    added = [count * _count_places(node.get("CPU", 0), node.get("GPU", 0), cpus, gpus) for node, count in growth or ()]
    places = (sum(own) + sum(added)) // num_workers
    if growth is not None and not growth:
        places = max(places, 1)
    if not places:
        needs = f"{cpus} CPU" + (f", {gpus:g} GPU" if gpus else "")
        raise TuneError(
            "the cluster has no room for a trial",
            rule=f"{num_workers} workers with {needs} each" if num_workers > 1 else f"a node with {needs}",
            value="; ".join(
                f"{core} CPU, {node.get('GPU', 0):g} GPU" for core, node in zip(sizes, shapes, strict=True)
            ),
            remedy="lower `--search.cpus_per_trial` or `--search.gpus_per_trial`, or add nodes",
        )
    concurrent = min(places, search.max_concurrent or places, max(1, num_trials))
    declared = [float(node.get("CPU", 0)) for node in nodes]
    natural = [
        _count_places(there, node.get("GPU", 0), cpus, gpus) for there, node in zip(declared, nodes, strict=True)
    ]
    if num_workers > 1 or growth is not None:
        return Slots(num_workers, cpus, gpus, concurrent, kind, must_count=True, may_grow=growth is not None)
    by_gpu = [_count_by_gpu(node.get("GPU", 0), gpus) for node in nodes]
    size = float(cpus) if sum(natural) == concurrent else _size_slot(declared, by_gpu, cpus, concurrent)
    if size is None:
        return Slots(num_workers, cpus, gpus, concurrent, kind, must_count=True)
    return Slots(num_workers, cpus, gpus, concurrent, kind, round(size - cpus, 4))


def _keep_kind(node: Mapping[str, Any], kind: str | None) -> Mapping[str, Any]:
    """What a node has, without GPUs that are of another kind."""
    return node if kind is None or f"accelerator_type:{kind}" in node else {**node, "GPU": 0}


def _count_places(cpus_there: float, gpus_there: float, cpus: int, gpus: float) -> int:
    return int(min(cpus_there // cpus, _count_by_gpu(gpus_there, gpus)))


def _count_by_gpu(there: float, gpus: float) -> float:
    """Places on a node as far as its GPUs go; without end for those that need none."""
    if not gpus:
        return math.inf
    return int(there) * int(1 / gpus + 1e-9) if gpus < 1 else int(there // gpus)


def _choose_gpus(search: SearchConfig, resources: ResourcesConfig, nodes: Sequence[Mapping[str, Any]]) -> float:
    has_any = any(node.get("GPU", 0) >= 1 for node in nodes)
    if search.gpus_per_trial is not None:
        return search.gpus_per_trial
    return 1.0 if (has_any if resources.use_gpu is None else resources.use_gpu) else 0.0


def _choose_cpus(nodes: Sequence[Mapping[str, Any]], cores: Sequence[int], gpus: float) -> int:
    if gpus:
        shares = [core * gpus / node["GPU"] for core, node in zip(cores, nodes, strict=True) if node.get("GPU", 0) >= 1]
        return max(1, min(MOST_CPUS, int(max(shares, default=1))))
    return max(1, min(MOST_CPUS, max(cores, default=1) // 2))


def _size_slot(declared: list[float], by_gpu: list[float], cpus: int, concurrent: int) -> float | None:
    """The fewest CPUs, from `cpus` on, of which exactly so many slots fit on the nodes; None if none does.

    A node has no more than its GPUs hold: without them it has none, however many CPUs are there.
    No more than that: a cluster on which something else holds a CPU would have no room for a slot that takes all.
    """
    counts = [(there, count) for there in declared for count in range(1, int(there // cpus) + 1)]
    just_more = (round((math.floor(there / count / GRAIN + 1e-6) + 1) * GRAIN, 4) for there, count in counts)
    for size in sorted({float(cpus), *(size for size in just_more if size >= cpus)}):
        fitting = sum(min(math.floor(there / size + 1e-9), most) for there, most in zip(declared, by_gpu, strict=True))
        if fitting <= concurrent:
            return size if fitting == concurrent else None
    return None
