"""The plan of a training: how many workers of what, by which strategy, and what that will take."""

import math
from collections.abc import Sequence
from dataclasses import asdict

from pipelines.planning.architecture import Architecture
from pipelines.planning.candidates import (
    KEPT,
    USABLE,
    Candidate,
    TrainingRequest,
    find_used,
    list_candidates,
)
from pipelines.planning.errors import PlanError
from pipelines.planning.fit import Bundle, explain_shortage
from pipelines.planning.inventory import Inventory
from pipelines.planning.lengths import Lengths
from pipelines.planning.plans import GIB, Limits, Plan, Rejected, render_money, render_seconds

WORTH = 0.3
"""Twice the workers must be 2 ** 0.3 = 1.23 times as fast, or half of them are taken."""
SLACK = 1.05
"""Of ways that are so nearly as good, the one with fewest workers is taken, and of those the plainest."""
TOLERATED = 1.1
"""What the user has settled may exceed the memory by so much in prediction, with a warning."""
MOST_REJECTED = 8
PARTS = {
    "compute": "the products of the {device}",
    "memory": "the memory of the {device}, through which activations pass",
    "optimizer": "the optimizer, which passes over all weights however short a step is",
    "communication": "the exchange between workers",
    "overhead": "starting operators and making batches: steps are short for this device",
}


def plan_training(
    inventory: Inventory,
    architecture: Architecture,
    lengths: Lengths,
    request: TrainingRequest,
    limits: Limits = Limits(),  # noqa: B008 - it is frozen
) -> Plan:
    """As many workers as are worth it, within the limits, on the nodes that are there if they do.

    Raises PlanError with what is missing where no way fits.
    """
    if limits.gpus == 0 and request.use_gpu:
        rule = "`limits.gpus` 0 or `resources.use_gpu` true, not both"
        raise PlanError("two settings that contradict each other", rule=rule)
    candidates, problems = list_candidates(inventory, architecture, lengths, request, limits)
    if not candidates:
        if problems:
            raise problems[0]
        raise _want_of_room(inventory, request, limits)
    chosen, warnings = _choose(candidates, limits)
    setup, bundle = chosen.setup, chosen.placement.bundle
    use_gpu = setup.device == "cuda"
    low, high = request.num_workers or (setup.num_workers, setup.num_workers)
    device = f"{'an ' if chosen.rates.name[:1] in 'AHL' else 'a '}{chosen.rates.name}" if use_gpu else "the CPU"
    settings = {
        "num_workers": setup.num_workers if low == high else f"{low}..{high}",
        "cpus_per_worker": int(bundle.cpus),
        "use_gpu": use_gpu,
        "accelerator": bundle.accelerator,
        "strategy": setup.strategy,
        "gradient_checkpointing": setup.gradient_checkpointing,
        "cpu_offload": setup.cpu_offload,
        "precision": setup.precision,
        "batch_tokens": request.batch_tokens,
        "device_batch_tokens": chosen.device_batch_tokens,
        "accumulation": setup.accumulation,
        "mesh": _describe_mesh(chosen),
        "unit": "worker",
    }
    parts = asdict(chosen.step)
    return Plan(
        task="train",
        settings=settings,
        placement=chosen.placement,
        summary=_summarize(chosen),
        memory=chosen.memory,
        memory_limit_bytes=chosen.memory_limit_bytes,
        predicted={
            "step_s": chosen.step.total,
            "num_steps": chosen.num_steps,
            "epoch_s": chosen.epoch_s,
            "total_s": chosen.total_s,
            "tokens_per_s": lengths.num_tokens / chosen.epoch_s if chosen.epoch_s else None,
            "price_per_hour": chosen.price_per_hour,
            "cost": chosen.cost,
            "memory_correction": chosen.corrections[0],
            "step_correction": chosen.corrections[1],
        },
        parts=parts,
        bottleneck=PARTS[max(parts, key=parts.__getitem__)].format(device=device.partition(" ")[2]),
        reasons=_give_reasons(chosen, candidates, request, inventory),
        rejected=[*_reject(chosen, candidates, limits), *(Rejected("some GPUs", one.what) for one in problems)],
        warnings=warnings,
        inventory=inventory,
        rates_source=f"{chosen.rates.name}, {chosen.rates.source}",
    )


def _choose(candidates: Sequence[Candidate], limits: Limits) -> tuple[Candidate, list[str]]:
    fitting = _leave_out_needless([one for one in candidates if one.overflow <= 1])
    warnings: list[str] = []
    if not fitting:
        best = min(candidates, key=lambda one: one.overflow)
        told = f"{best.memory.total / GIB:.1f} GiB a worker, of {(best.memory_limit_bytes or 0) / GIB:.1f} GiB"
        if best.overflow * USABLE > TOLERATED:
            raise PlanError(
                "the model does not fit into the memory",
                where=best.describe(),
                rule="weights, gradients, moments, activations and the device's context fit on each worker",
                value=told,
                remedy="more workers with `--parallel.strategy fsdp`, shorter windows, or devices with more memory",
            )
        warnings.append(f"memory will be scarce: {told} predicted")
        fitting = [best]
    within = [one for one in fitting if _find_excess(one, limits) is None]
    if not within:
        raise _beyond_limits(fitting, limits)
    within = [one for one in within if not one.placement.added] or within
    within = [one for one in within if one.setup.device == "cuda"] or within  # GPUs are there to be used
    if limits.hours is not None:
        return min(within, key=lambda one: (_weigh(one), one.total_s)), warnings
    least = min(map(rank, within))
    good = [one for one in within if rank(one) <= SLACK * least]
    return min(good, key=lambda one: (one.setup.num_workers, one.complexity, one.total_s)), warnings


def _leave_out_needless(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Without those that save memory by more work where the same does without, whatever is predicted of their time."""

    def name(one: Candidate) -> tuple[object, ...]:
        bundle = one.placement.bundle
        return one.setup.num_workers, bundle.gpus, bundle.accelerator, one.setup.strategy

    plainest: dict[tuple[object, ...], int] = {}
    for one in candidates:
        plainest[name(one)] = min(one.complexity, plainest.get(name(one), one.complexity))
    return [one for one in candidates if one.complexity == plainest[name(one)]]


def rank(candidate: Candidate) -> float:
    """How good a way is, less is better: its time, and a little for each worker."""
    return candidate.total_s * float(candidate.setup.num_workers**WORTH)


def _weigh(candidate: Candidate) -> float:
    """What a candidate costs: money, or where prices are not known the time of its workers."""
    return candidate.cost if candidate.cost is not None else candidate.total_s * candidate.setup.num_workers


def _find_excess(candidate: Candidate, limits: Limits) -> str | None:
    """Which limit a candidate exceeds, and how."""
    if limits.hours is not None and candidate.total_s > limits.hours * 3600:
        return f"takes {render_seconds(candidate.total_s)}, of {limits.hours:g} h"
    if limits.price is not None and candidate.cost is None:
        return "what it costs is not known"
    if limits.price is not None and candidate.cost is not None and candidate.cost > limits.price:
        return f"costs {render_money(candidate.cost)}, of {render_money(limits.price)}"
    return None


def _beyond_limits(candidates: Sequence[Candidate], limits: Limits) -> PlanError:
    if limits.price is not None and all(one.cost is None for one in candidates):
        remedy = "`--node_price`, or a price in the description: `--cluster '4x(8cpu,1xL4,0.8/h)'`"
        return PlanError("no price is known to hold the limit against", where="`limits.price`", remedy=remedy)
    fastest = min(candidates, key=lambda one: one.total_s)
    cheapest = min(candidates, key=_weigh)
    told = [f"the fastest way ({fastest.describe()}) takes {render_seconds(fastest.total_s)}"]
    if fastest.cost is not None and cheapest.cost is not None:
        told[0] += f" and costs {render_money(fastest.cost)}"
        told.append(f"the cheapest ({cheapest.describe()}) takes {render_seconds(cheapest.total_s)} and costs")
        told[1] += f" {render_money(cheapest.cost)}"
    return PlanError(
        "the run cannot be done within the limits",
        rule=limits.describe(),
        value="; ".join(told),
        remedy="more time or money, fewer epochs, a smaller model, or more and faster nodes",
    )


def _want_of_room(inventory: Inventory, request: TrainingRequest, limits: Limits) -> PlanError:
    low = request.num_workers[0] if request.num_workers else 1
    wants_gpu = request.use_gpu or request.accelerator is not None
    bundle = Bundle(float(request.cpus_per_worker or 1), 1.0 * wants_gpu, accelerator=request.accelerator)
    capped = wants_gpu and limits.gpus is not None and limits.gpus < low
    return PlanError(
        "the cluster has no room for the workers, and cannot grow enough",
        rule=f"{low} worker{'s' * (low > 1)} with {bundle.describe()} each",
        value=f"a limit of {limits.gpus} GPUs" if capped else explain_shortage(bundle, low, inventory, KEPT),
        remedy="fewer or smaller workers (`--resources.num_workers`, `--resources.cpus_per_worker`), or more nodes",
    )


def _summarize(chosen: Candidate) -> str:
    setup, bundle = chosen.setup, chosen.placement.bundle
    number, nodes = setup.num_workers, len(chosen.placement.counts)
    each = f"{bundle.cpus:g} CPU{'s' * (bundle.cpus != 1)}"
    each += f" and {chosen.rates.name}" if bundle.gpus else ""
    where = f" on {nodes} nodes" if nodes > 1 else ""
    variant = f", {chosen.variant}" if chosen.variant else ""
    passes = f", {setup.accumulation} passes a step" if setup.accumulation > 1 else ""
    return f"{number} worker{'s' * (number > 1)} with {each}{where}, {setup.precision}{variant}{passes}"


def _describe_mesh(chosen: Candidate) -> str:
    setup = chosen.setup
    return f"{setup.num_workers // setup.num_slices} x {setup.num_slices} (copies x slices)"


def _give_reasons(
    chosen: Candidate, candidates: Sequence[Candidate], request: TrainingRequest, inventory: Inventory
) -> list[str]:
    setup, bundle = chosen.setup, chosen.placement.bundle
    told = []
    if request.num_workers:
        told.append(f"{setup.num_workers} workers: as `resources.num_workers` says")
    else:
        more = [one for one in candidates if one.setup.num_workers > setup.num_workers and one.overflow <= 1]
        best = min(more, key=lambda one: one.total_s, default=None)
        if best is None:
            told.append(f"{setup.num_workers} worker{'s' * (setup.num_workers > 1)}: the most that there is room for")
        else:
            share = math.ceil(request.batch_tokens / best.setup.num_shares)
            gain = chosen.total_s / best.total_s
            speed = f"{gain:.2f} times as fast" if gain > 1 else "no faster"
            told.append(
                f"{setup.num_workers} worker{'s' * (setup.num_workers > 1)}: {best.setup.num_workers} would each read "
                f"{share:,} of a step's {request.batch_tokens:,} sub-tokens, and be {speed}"
            )
    kept = [KEPT.on(node) for node in find_used(inventory, chosen.placement)]
    left = "1 of each node is left to reading and writing" if any(kept) else "its nodes are too small to spare one"
    told.append(f"{bundle.cpus:g} CPUs a worker: {left}; workers score dev themselves")
    told.append(f"{setup.precision}: " + _explain_precision(chosen, request))
    if setup.accumulation > 1:
        told.append(f"{setup.accumulation} passes a step of {setup.batch_tokens:,} sub-tokens: more do not fit at once")
    else:
        told.append(f"up to {chosen.device_batch_tokens:,} padded sub-tokens a pass: a worker's share of a step in one")
    return told


def _explain_precision(chosen: Candidate, request: TrainingRequest) -> str:
    if request.precision != "auto":
        return "as `training.precision` says"
    if chosen.setup.precision == "bf16":
        return f"{chosen.rates.name} computes it faster"
    has_fp16 = chosen.setup.device == "cuda" and "fp16" in chosen.rates.flops
    more = "; `--training.precision fp16` would be faster on this GPU, with scaled gradients" if has_fp16 else ""
    return f"no faster bf16 on this device{more}"


def _reject(chosen: Candidate, candidates: Sequence[Candidate], limits: Limits) -> list[Rejected]:
    """Other strategies, other numbers of workers, other devices, and why they were not taken."""
    best: dict[tuple[object, ...], Candidate] = {}
    for one in candidates:
        same_device = one.placement.bundle.accelerator == chosen.placement.bundle.accelerator
        same_device &= one.setup.device == chosen.setup.device
        same_number = one.setup.num_workers == chosen.setup.num_workers
        if one.describe() == chosen.describe():
            continue
        kind = (one.variant,) if same_device and same_number else (one.setup.num_workers,) if same_device else ()
        key = (same_device, same_number, one.rates.name if one.setup.device == "cuda" else "cpu", *kind)
        known = best.get(key)
        if known is None or (one.overflow > 1, one.total_s) < (known.overflow > 1, known.total_s):
            best[key] = one
    ranked = sorted(best.values(), key=lambda one: (one.overflow > 1, abs(math.log(_ratio(one, chosen)))))
    return [Rejected(one.describe(), _explain_rejection(one, chosen, limits)) for one in ranked[:MOST_REJECTED]]


def _ratio(one: Candidate, chosen: Candidate) -> float:
    return max(one.total_s, 1e-9) / max(chosen.total_s, 1e-9)


def _explain_rejection(one: Candidate, chosen: Candidate, limits: Limits) -> str:
    if one.overflow > 1:
        return f"needs {one.memory.total / GIB:.1f} GiB a worker, of {(one.memory_limit_bytes or 0) / GIB:.1f}"
    excess = _find_excess(one, limits)
    if excess:
        return excess
    ratio = _ratio(one, chosen)
    speed = f"{ratio:.2f} times as long" if ratio >= 1 else f"{1 / ratio:.2f} times as fast"
    cost = f", for {one.cost / chosen.cost:.2f} times the money" if one.cost and chosen.cost else ""
    more = f"; needs {sum(one.placement.added.values())} more nodes" if one.placement.added else ""
    return speed + cost + more
