"""What training takes of the cluster: how many workers, with what each, and whether there is room for them."""

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import ray
from ray.train import ScalingConfig

from pipelines.ner.errors import UserError
from pipelines.ner.machine import count_cores
from pipelines.training.config import TrainingError, TrainingHalted
from pipelines.training.strategies import ELASTIC

KIND = "accelerator_type:"
"""What Ray calls a node's kind of GPU by."""
_RANGE = re.compile(r"(\d+)(?:\.\.(\d+))?")


@dataclass(frozen=True)
class ResourcesConfig:
    """What training takes of the cluster."""

    num_workers: int | str | None = None
    """Data-parallel workers: a number, or `MIN..MAX` to grow and shrink with the cluster, at the same batches; default:
    one a GPU, or one where there is none."""
    cpus_per_worker: int | None = None
    """CPUs, and threads, of a worker; default: its share of the cores of the node."""
    use_gpu: bool | None = None
    """Whether each worker has a GPU; default: if the cluster has one."""
    accelerator: str | None = None
    """Kind of GPU, as Ray names it (`L4`); default: any, the same for all workers if there are several kinds."""
    resize_interval_s: float = 60.0
    """How often a run with `MIN..MAX` workers looks for room for more; each change costs the steps since the last
    checkpoint."""
    storage_patience_s: float = 600.0
    """How long training goes on while its checkpoints cannot be written."""
    auto: bool = True
    """Plan what is left out above: workers, strategy, sub-tokens of a pass, by what the model needs and the cluster
    has; and check what is given. false: the defaults, unplanned."""

    def read_num_workers(self) -> tuple[int, int] | None:
        """The least and the most workers; None if that is for the cluster to say, or not readable."""
        match = _RANGE.fullmatch(str(self.num_workers))
        return (int(match[1]), int(match[2] or match[1])) if match else None

    def find_idle(self) -> list[str]:
        """Settings given that change nothing in this run, each with its reason."""
        low, high = self.read_num_workers() or (1, 1)
        idle = []
        if self.accelerator is not None and self.use_gpu is False:
            idle.append("`resources.accelerator` has no effect: `resources.use_gpu` is false")
        if self.resize_interval_s != ResourcesConfig.resize_interval_s and low == high:
            idle.append("`resources.resize_interval_s` has no effect: `resources.num_workers` is not `MIN..MAX`")
        return idle

    def find_problems(self, strategy: str = "ddp") -> list[UserError]:
        """Every mistake in these settings, for workers that train by a strategy."""
        bounds = self.read_num_workers()
        low, high = bounds or (1, 1)
        checks = [
            (
                "num_workers",
                self.num_workers,
                "a number from 1, or `MIN..MAX`",
                (bounds is not None or self.num_workers is None) and 1 <= low <= high,
            ),
            (
                "cpus_per_worker",
                self.cpus_per_worker,
                "at least 1",
                self.cpus_per_worker is None or self.cpus_per_worker >= 1,
            ),
            ("resize_interval_s", self.resize_interval_s, "above 0", self.resize_interval_s > 0),
            ("storage_patience_s", self.storage_patience_s, "at least 0", self.storage_patience_s >= 0),
        ]
        problems: list[UserError] = [
            TrainingError("a value out of range", where=f"`resources.{name}`", rule=rule, value=value)
            for name, value, rule, holds in checks
            if not holds
        ]
        if low != high and strategy not in ELASTIC:
            problems.append(
                TrainingError(
                    f"`{strategy}` does not work with a changing number of workers",
                    where="`resources.num_workers`",
                    rule="`MIN..MAX` with " + ", ".join(ELASTIC),
                    value=self.num_workers,
                    remedy="give one number, or another `--parallel.strategy`",
                )
            )
        return problems


def plan_workers(resources: ResourcesConfig, *, may_grow: bool = False) -> ScalingConfig:
    """The worker group for the connected cluster. Raises TrainingError if it can never be placed.

    Args:
        may_grow: whether the cluster may make room.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    kind = f"{KIND}{resources.accelerator}" if resources.accelerator else None
    gpus = [int(node.get("GPU", 0)) if kind is None or kind in node else 0 for node in nodes]
    num_gpus = sum(gpus)
    use_gpu = resources.use_gpu if resources.use_gpu is not None else num_gpus > 0 or kind is not None
    usual = max(1, num_gpus) if use_gpu else 1
    low, high = resources.read_num_workers() or (usual, usual)
    gpus = gpus if use_gpu else [sys.maxsize for _ in nodes]
    cpus = resources.cpus_per_worker or choose_cpus(list_cores(), gpus, min(high, max(low, usual)))
    needs = {"CPU": float(cpus)} | ({"GPU": 1.0} if use_gpu else {})
    places = count_places([int(node.get("CPU", 0)) for node in nodes], gpus, cpus)
    may_grow = may_grow or ray._private.state.state.get_max_resources_from_cluster_config() is not None
    if places < low and not may_grow:
        other = ", leave `--resources.accelerator` out" if use_gpu and kind else ""
        raise TrainingHalted(
            "the cluster has no room for the workers, and does not grow",
            rule=f"{low} workers with {_render_needs(needs | ({kind: 1.0} if use_gpu and kind else {}))} each",
            value=f"room for {places}: " + "; ".join(_render_needs(node) for node in nodes),
            remedy=f"lower `--resources.num_workers` or `--resources.cpus_per_worker`{other}, or add nodes",
        )
    return ScalingConfig(
        num_workers=low if low == high else (low, high),
        use_gpu=use_gpu,
        accelerator_type=resources.accelerator if use_gpu else None,
        resources_per_worker=needs,
        elastic_resize_monitor_interval_s=resources.resize_interval_s,
    )


def choose_cpus(cores: Sequence[int], gpus: Sequence[int], num_workers: int) -> int:
    """The most CPUs a worker with which so many find a place on nodes of these cores and GPUs; 1 if they never do."""
    fitting = (cpus for cpus in range(max(cores, default=1), 1, -1) if count_places(cores, gpus, cpus) >= num_workers)
    return next(fitting, 1)


def count_places(cores: Sequence[int], gpus: Sequence[int], cpus: int) -> int:
    """How many workers with so many CPUs, and a GPU each, nodes of these cores and GPUs have room for."""
    return sum(min(core // cpus, gpu) for core, gpu in zip(cores, gpus, strict=True))


def list_cores() -> list[int]:
    """Cores of every living node; this machine may have been given more logical CPUs than it has."""
    alive = [node for node in ray.nodes() if node["Alive"]]
    here = ray.util.get_node_ip_address()
    real = [count_cores() if node["NodeManagerAddress"] == here else sys.maxsize for node in alive]
    return [min(int(node["Resources"].get("CPU", 0)), limit) for node, limit in zip(alive, real, strict=True)]


def _render_needs(needs: dict[str, float]) -> str:
    kinds = [f"({name.removeprefix(KIND)})" for name in needs if name.startswith(KIND)] if "GPU" in needs else []
    return " ".join([", ".join(f"{needs[name]:g} {name}" for name in ("CPU", "GPU") if name in needs), *kinds])
