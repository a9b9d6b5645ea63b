"""Whose speed a plan reckons with: the table's, for a kind of GPU, or what was measured on this machine."""

from dataclasses import replace

import torch

from pipelines.planning.calibration import load_rates
from pipelines.planning.errors import PlanError
from pipelines.planning.inventory import Node
from pipelines.planning.rates import Rates, estimate_cpu_rates, find_rates

BETWEEN_NODES = 1.25e9
"""Bytes a second between nodes: 10 Gbit/s, which common cloud machines have at least for a while."""


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
        return find_rates(node.accelerator)
    if node.real_cpus is not None:
        measured = load_rates(resolve_precision(precision, node, None))
        if measured is not None:
            return _scale_cpu(measured, cpus / max(1.0, node.cores))
    return estimate_cpu_rates(max(1, int(cpus)), node.memory_bytes or 16 * 2**30)


def resolve_precision(precision: str, node: Node, gpu: Rates | None) -> str:
    """What `auto` means there, as training does it: bf16 where the hardware computes it faster."""
    if precision != "auto":
        return precision
    if gpu is not None:
        return "bf16" if "bf16" in gpu.flops else "fp32"
    has_bf16 = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bf16" if node.real_cpus is not None and has_bf16 else "fp32"


def slow_down_between_nodes(rates: Rates, num_nodes: int) -> Rates:
    """The rates of workers on several nodes: they exchange no faster than the network between them."""
    if num_nodes < 2:
        return rates
    return replace(rates, network_bytes_per_s=min(rates.network_bytes_per_s, BETWEEN_NODES))


def _scale_cpu(rates: Rates, share: float) -> Rates:
    """Rates of a part of the cores; memory is shared by all of them anyway."""
    return replace(rates, flops={name: value * min(1.0, share) for name, value in rates.flops.items()})
