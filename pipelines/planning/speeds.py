"""Whose speed a plan reckons with: the table's, for a kind of GPU, or what was measured on this machine."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from pipelines.planning.calibration import describe_machine, load_correction, load_rates, record_outcome
from pipelines.planning.errors import PlanError
from pipelines.planning.inventory import Node
from pipelines.planning.measurements import choose_precision
from pipelines.planning.rates import Rates, estimate_cpu_rates, find_rates

BETWEEN_NODES = 1.25e9
"""Bytes a second between nodes that do not tell: 10 Gbit/s, which common cloud machines have at least for a while."""


def find_node_rates(node: Node, cpus: float, precision: str, *, gpus: float = 0.0) -> Rates:
    """Of one worker on this node. Raises PlanError for a GPU of unknown kind."""
    if gpus:
        if node.accelerator is None:
            raise PlanError(
                "a GPU of unknown kind",
                where=f"node `{node.name}`",
                rule="a kind that Ray tells (`accelerator_type:L4`, or the label `ray.io/accelerator-type`)",
                remedy="describe the cluster: `--cluster '1x(8cpu,32GiB,1xL4)'`",
            )
        found = find_rates(node.accelerator)
        measured = _load_here(node, resolve_precision(precision, node, found), "cuda")
        return measured or found
    if is_here(node):
        measured = _load_here(node, resolve_precision(precision, node, None), "cpu")
        if measured is not None:
            return _scale_cpu(measured, cpus / max(1.0, node.cores))
    return estimate_cpu_rates(max(1, int(cpus)), node.memory_bytes or 16 * 2**30)


def resolve_precision(precision: str, node: Node, gpu: Rates | None) -> str:
    """What `auto` means there, as training does it: bf16 where the hardware computes it faster."""
    if precision != "auto":
        return precision
    if gpu is not None:
        return "bf16" if gpu.flops.get("bf16", 0) > gpu.flops["fp32"] else "fp32"  # older ones emulate it
    return choose_precision(torch.device("cpu")) if is_here(node) else "fp32"


def slow_down_between_nodes(rates: Rates, nodes: Sequence[Node]) -> Rates:
    """The rates of workers on these nodes: on several they exchange no faster than the slowest network between them."""
    if len(nodes) < 2:
        return rates
    between = min(node.network_bytes_per_s or BETWEEN_NODES for node in nodes)
    return replace(rates, network_bytes_per_s=min(rates.network_bytes_per_s, between))


def find_corrections(node: Node, rates: Rates, precision: str) -> tuple[float, float]:
    """By what predictions of memory and of a step's time are to be multiplied there, as earlier runs have shown."""
    if not is_here(node) or (rates.device == "cuda" and not torch.cuda.is_available()):
        return 1.0, 1.0
    machine = describe_machine(torch.device(rates.device))
    return load_correction("memory", machine, precision), load_correction("step", machine, precision)


def record_run(
    device: str, precision: str, memory: tuple[float, float] | None, step: tuple[float, float] | None
) -> None:
    """Keep (predicted before corrections, measured) of a run on this machine, for the next plan."""
    machine = describe_machine(torch.device(device))
    for kind, pair in (("memory", memory), ("step", step)):
        if pair is not None:
            record_outcome(kind, machine, precision, *pair)


def is_here(node: Node) -> bool:
    """Whether a node is the machine that this process runs on."""
    return node.real_cpus is not None


def _load_here(node: Node, precision: str, device: str) -> Rates | None:
    """What a calibration of this machine found, if that is the node."""
    if not is_here(node) or (device == "cuda" and not torch.cuda.is_available()):
        return None
    return load_rates(precision, device=device)


def _scale_cpu(rates: Rates, share: float) -> Rates:
    """Rates of a part of the cores; memory is shared by all of them anyway."""
    return replace(rates, flops={name: value * min(1.0, share) for name, value in rates.flops.items()})
