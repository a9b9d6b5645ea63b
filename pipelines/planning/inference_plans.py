"""Plans of labelling and serving: what an actor or a replica takes, how many there are, and what holds them up."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from pipelines.planning.architecture import Architecture
from pipelines.planning.errors import PlanError
from pipelines.planning.fit import Bundle, explain_shortage, round_up_share, settle_added
from pipelines.planning.inventory import Inventory
from pipelines.planning.lengths import Lengths
from pipelines.planning.placing import fill, list_used
from pipelines.planning.plans import GIB, Limits, Plan, Rejected, price_nodes, render_money, render_seconds
from pipelines.planning.pools import HOST_TOKENS_PER_S, KEPT, USABLE, InferenceRequest, Pool, list_pools

ENOUGH = 0.95
"""Fewer actors are taken if they reach this share of the best speed."""
WORTH_S = 5.0
"""Seconds of labelling for which an actor is started: about what it takes to import torch and load a model."""
MOST_LOAD = 0.7
"""Share of a server's speed above which queues grow long."""


def plan_prediction(
    inventory: Inventory,
    architecture: Architecture,
    lengths: Lengths,
    request: InferenceRequest,
    limits: Limits = Limits(),  # noqa: B008 - it is frozen
) -> Plan:
    """The fastest pool of actors that fits, or one of as few as have some seconds of work each.

    Raises PlanError with what is missing.

    Args:
        lengths: of all that is to be labelled.
    """
    pools, problems = list_pools(inventory, architecture, lengths, request, limits)
    try:
        chosen = _choose(pools, problems, inventory, request, limits, lengths)
    except PlanError:
        if not inventory.groups:
            raise
        pools, problems = list_pools(inventory, architecture, lengths, request, limits, may_add=True)
        chosen = _choose(pools, problems, inventory, request, limits, lengths)
    reasons = []
    total_s = lengths.num_tokens / chosen.tokens_per_s
    worthwhile = max(1, math.ceil(total_s * chosen.placement.number / WORTH_S))
    if request.num_actors is None and worthwhile < chosen.placement.number:
        reasons.append(f"more would start for less than {WORTH_S:g} s of work each; `--resources.num_actors` adds some")
        chosen = _shrink(chosen, worthwhile, inventory)
        total_s = lengths.num_tokens / chosen.tokens_per_s
    cost = None if chosen.price_per_hour is None else chosen.price_per_hour * total_s / 3600
    return _build_plan(
        "predict",
        chosen,
        inventory,
        {"num_actors": chosen.placement.number, "cpus_per_actor": _as_number(chosen.placement.bundle.cpus)},
        {
            "total_s": total_s,
            "tokens_per_s": chosen.tokens_per_s,
            "cost": cost,
            "price_per_hour": chosen.price_per_hour,
        },
        [_reject(one, chosen) for one in pools if one.placement.bundle != chosen.placement.bundle][:6]
        + [Rejected("some GPUs", one.what) for one in problems],
        reasons,
    )


def plan_serving(
    inventory: Inventory,
    architecture: Architecture,
    lengths: Lengths,
    request: InferenceRequest,
    limits: Limits = Limits(),  # noqa: B008 - it is frozen
) -> Plan:
    """The fewest replicas that bear the load, or as many as fit. Raises PlanError with what is missing.

    Args:
        lengths: of texts as they are asked.
    """
    pools, problems = list_pools(inventory, architecture, lengths, request, limits)
    chosen = _choose(pools, problems, inventory, request, limits, None)
    one = chosen.tokens_per_s / chosen.placement.number
    reasons = [f"a replica reads {one:,.0f} sub-tokens/s when its batches are full"]
    if request.tokens_per_s is not None:
        needed = -(-request.tokens_per_s // (one * MOST_LOAD))
        if needed > chosen.placement.number:
            raise PlanError(
                "the cluster does not bear the load",
                rule=f"{request.tokens_per_s:,.0f} sub-tokens/s at 70 % of the replicas' speed: {needed:,.0f} replicas",
                value=f"room for {chosen.placement.number} replicas, {chosen.tokens_per_s:,.0f} sub-tokens/s",
                remedy="more or faster nodes, or a smaller model",
            )
        chosen = _shrink(chosen, int(max(1, needed)), inventory)
        reasons.append(f"{needed:,.0f} bear {request.tokens_per_s:,.0f} sub-tokens/s with 70 % of their speed")
    settings = {"max_replicas": chosen.placement.number, "num_cpus": _as_number(chosen.placement.bundle.cpus)}
    predicted = {"tokens_per_s": chosen.tokens_per_s, "price_per_hour": chosen.price_per_hour}
    rejected = [_reject(other, chosen) for other in pools if other.placement.bundle != chosen.placement.bundle][:6]
    return _build_plan("serve", chosen, inventory, settings, predicted, rejected, reasons)


def _choose(
    pools: Sequence[Pool],
    problems: Sequence[PlanError],
    inventory: Inventory,
    request: InferenceRequest,
    limits: Limits,
    lengths: Lengths | None,
) -> Pool:
    if not pools:
        if problems:
            raise problems[0]
        bundle = Bundle(request.cpus_per_actor or 1.0, request.gpus_per_actor or 0.0)
        number = request.num_actors or 1
        raise PlanError(
            "no room for an actor",
            rule=f"{number} with {bundle.describe()}, its model in memory, and a CPU of the node left for reading",
            value=explain_shortage(bundle, number, inventory, KEPT),
            remedy="lower `--resources.cpus_per_actor` or `--resources.gpus_per_actor`, or add nodes",
        )
    within = pools
    if lengths is not None:
        within = [pool for pool in pools if not limits.are_exceeded(*_reckon(pool, lengths))]
    best = max(pool.tokens_per_s for pool in within or pools)
    good = [pool for pool in within or pools if pool.tokens_per_s >= ENOUGH * best]
    chosen = min(good, key=lambda pool: (pool.placement.number, -pool.tokens_per_s))
    if lengths is not None:
        seconds, cost = _reckon(chosen, lengths)
        if not within:
            told = f"{chosen.describe()} each take {render_seconds(seconds)}"
            raise PlanError(
                "the run cannot be done within the limits",
                rule=limits.describe(),
                value=told
                + (f" and cost {render_money(cost)}" if cost is not None else ", at a price that is not known"),
                remedy="more time or money, a smaller model, or more and faster nodes",
            )
    return chosen


def _reckon(pool: Pool, lengths: Lengths) -> tuple[float, float | None]:
    """Seconds of labelling all, and its price."""
    seconds = lengths.num_tokens / pool.tokens_per_s
    return seconds, None if pool.price_per_hour is None else pool.price_per_hour * seconds / 3600


def _shrink(pool: Pool, number: int, inventory: Inventory) -> Pool:
    """The same processes, at most so many, on the fewest nodes."""
    found = fill(pool.placement.bundle, number, pool.nodes, KEPT)
    nodes = list_used(pool.nodes, found)
    placement = settle_added(found, inventory)
    return replace(
        pool,
        placement=placement,
        nodes=nodes,
        tokens_per_s=pool.tokens_per_s / pool.placement.number * placement.number,
        price_per_hour=price_nodes(nodes, pool.rates.price_per_hour),
    )


def _build_plan(
    task: str,
    pool: Pool,
    inventory: Inventory,
    settings: dict[str, Any],
    predicted: dict[str, float | None],
    rejected: Sequence[Rejected],
    reasons: Sequence[str] = (),
) -> Plan:
    bundle = pool.placement.bundle
    name = "actor" if task == "predict" else "replica"
    gpus = "gpus_per_actor" if task == "predict" else "num_gpus"
    settings |= {
        gpus: _as_number(bundle.gpus),
        f"{name}s_per_gpu": round(1 / bundle.gpus) if 0 < bundle.gpus <= 1 else None,
        "accelerator": bundle.accelerator,
        "precision": pool.precision,
        "max_batch_tokens": pool.batch_tokens,
        "unit": name,
    }
    device = pool.rates.name if bundle.gpus else "the CPUs"
    why = [f"1 CPU of each node is left to {'reading and writing' if task == 'predict' else 'the way in'}"]
    if bundle.gpus:
        needed = pool.memory.total / (pool.rates.memory_bytes * USABLE)
        why.append(
            f"{bundle.gpus:g} GPU: the model needs {needed:.2f} of its memory, rounded up {round_up_share(needed):g}; "
            f"one process tokenizes and decodes {HOST_TOKENS_PER_S:,} sub-tokens/s, the GPU reads "
            f"{pool.device_tokens_per_s:,.0f}"
        )
    number = pool.placement.number
    where = f" on {len(pool.placement.counts)} nodes" if len(pool.placement.counts) > 1 else ""
    return Plan(
        task=task,
        settings=settings,
        placement=pool.placement,
        summary=f"{number} {name}{'s' * (number > 1)} with {replace(bundle, memory_bytes=0).describe()}{where}, "
        f"{pool.precision}, up to {pool.batch_tokens:,} sub-tokens a pass",
        memory=pool.memory,
        memory_limit_bytes=pool.memory_limit_bytes,
        predicted=predicted,
        bottleneck="tokenizing and decoding, one core a process"
        if pool.is_host_bound
        else f"the forward pass on {device}",
        reasons=[*why, *reasons],
        rejected=rejected,
        inventory=inventory,
        rates_source=f"{pool.rates.name}, {pool.rates.source}",
    )


def _reject(pool: Pool, chosen: Pool) -> Rejected:
    ratio = pool.tokens_per_s / chosen.tokens_per_s
    return Rejected(pool.describe(), f"{ratio:.2f} of the speed, {pool.memory.total / GIB:.2f} GiB each")


def _as_number(value: float) -> float:
    return int(value) if float(value).is_integer() else value
