"""The plan of a search: what a trial takes, and how many run at once."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

from pipelines.planning.architecture import Architecture
from pipelines.planning.candidates import USABLE, TrainingRequest, thin
from pipelines.planning.errors import PlanError
from pipelines.planning.fit import (
    Bundle,
    Kept,
    Placement,
    count_all_places,
    count_places,
    explain_shortage,
    limit_added,
    round_up_share,
    settle_added,
)
from pipelines.planning.inventory import Inventory, Node
from pipelines.planning.lengths import Lengths, divide_batch
from pipelines.planning.memory import Memory, estimate_training_memory
from pipelines.planning.placing import build_each, fill, list_used, may_fill
from pipelines.planning.plans import Limits, Plan, Rejected, price_nodes, render_money, render_seconds
from pipelines.planning.rates import Rates
from pipelines.planning.speeds import find_node_rates, resolve_precision
from pipelines.planning.timing import StepTime, count_steps, estimate_step_s

DRIVER_CPUS = 0.01
"""A trial's function where it starts several workers, and waits; one worker trains in the function itself."""
KEPT = Kept(cpus=1, smallest=4)
DEVICE_BATCH_TOKENS = 4096


@dataclass(frozen=True)
class TrialRequest:
    """What a trial trains, and what is settled already; None: to be planned."""

    training: TrainingRequest
    """`num_workers`, `cpus_per_worker` and `use_gpu` are those of one trial; it has one worker by default."""
    num_trials: int = 20
    gpus_per_trial: float | None = None
    """A share of a GPU, for one worker."""
    max_concurrent: int | None = None


@dataclass(frozen=True)
class _Way:
    """Trials of one shape at once."""

    placement: Placement
    nodes: Sequence[Node]
    number: int
    memory: Memory
    memory_limit_bytes: float | None
    rates: Rates
    precision: str
    step: StepTime
    trial_s: float

    @property
    def trials_per_hour(self) -> float:
        return self.number * 3600 / self.trial_s

    def reckon(self, num_trials: int) -> tuple[float | None, float, float | None]:
        """Price of an hour, seconds of all trials if none is stopped early, and their price."""
        price = price_nodes(self.nodes, self.rates.price_per_hour)
        total_s = -(-num_trials // self.number) * self.trial_s
        return price, total_s, None if price is None else price * total_s / 3600

    def exceeds(self, limits: Limits, num_trials: int) -> bool:
        _, total_s, cost = self.reckon(num_trials)
        return limits.are_exceeded(total_s, cost)


def plan_tuning(
    inventory: Inventory,
    architecture: Architecture,
    lengths: Lengths,
    request: TrialRequest,
    limits: Limits = Limits(),  # noqa: B008 - it is frozen
) -> Plan:
    """As many trials at once as finish most in an hour. Raises PlanError with what is missing.

    Trials hold their workers outside of what Tune sees, so more at once than fit would wait for each other for ever:
    `settings["max_concurrent_trials"]` is to be kept to.
    """
    ways, problems = _list_ways(inventory, architecture, lengths, request, limits)
    if not ways:
        if problems:
            raise problems[0]
        raise _want_of_room(inventory, request)
    within = [way for way in ways if not way.exceeds(limits, request.num_trials)]
    chosen = max(within or ways, key=lambda way: (way.trials_per_hour, -way.number))
    bundle = chosen.placement.bundle
    rounds = -(-request.num_trials // chosen.number)
    price, total_s, cost = chosen.reckon(request.num_trials)
    if not within:
        told = "at a price that is not known" if cost is None else f"for {render_money(cost)}"
        raise PlanError(
            "the search cannot be done within the limits",
            rule=limits.describe(),
            value=f"{request.num_trials} whole trials, {chosen.number} at once, take {render_seconds(total_s)} {told}",
            remedy="more time or money, fewer trials or epochs, a smaller model or corpus",
        )
    workers = _count_workers(request)
    return Plan(
        task="tune",
        settings={
            "max_concurrent_trials": chosen.number,
            "num_workers": workers,
            "cpus_per_worker": bundle.cpus if bundle.cpus % 1 else int(bundle.cpus),
            "gpus_per_worker": bundle.gpus if bundle.gpus % 1 else int(bundle.gpus),
            "use_gpu": bundle.gpus > 0,
            "accelerator": bundle.accelerator,
            "precision": chosen.precision,
            "driver_cpus": _count_driver_cpus(workers),
            "unit": "worker",
        },
        placement=chosen.placement,
        summary=f"{chosen.number} trial{'s' * (chosen.number > 1)} at once, each with {workers} worker"
        f"{'s' * (workers > 1)} of {replace(bundle, memory_bytes=0).describe()}",
        memory=chosen.memory,
        memory_limit_bytes=chosen.memory_limit_bytes,
        predicted={
            "trial_s": chosen.trial_s,
            "total_s": total_s,
            "step_s": chosen.step.total,
            "price_per_hour": price,
            "cost": cost,
        },
        parts=vars(chosen.step),
        bottleneck=max(vars(chosen.step), key=vars(chosen.step).__getitem__),
        reasons=[
            f"{request.num_trials} trials in {rounds} rounds, if none is stopped early",
            "1 CPU of each node is left to reading and writing, where a node has 4 or more",
        ],
        rejected=[
            Rejected(
                f"{way.number} at once with {replace(way.placement.bundle, memory_bytes=0).describe()} a worker",
                f"{way.trials_per_hour / chosen.trials_per_hour:.2f} of the trials an hour",
            )
            for way in ways
            if way is not chosen
        ][:6],
        inventory=inventory,
        rates_source=f"{chosen.rates.name}, {chosen.rates.source}",
    )


def _count_driver_cpus(workers: int) -> float:
    return DRIVER_CPUS if workers > 1 else 0.0


def _count_workers(request: TrialRequest) -> int:
    return request.training.num_workers[0] if request.training.num_workers else 1


def _list_ways(
    inventory: Inventory, architecture: Architecture, lengths: Lengths, request: TrialRequest, limits: Limits
) -> tuple[list[_Way], list[PlanError]]:
    problems: list[PlanError] = []
    for nodes in may_fill(inventory):
        build = partial(_build_way, inventory, nodes, architecture, lengths, request, limits)
        ways = build_each(_list_bundles(nodes, request, limits), build, problems)
        if ways:
            return ways, problems
    return [], problems


def _list_bundles(nodes: Sequence[Node], request: TrialRequest, limits: Limits) -> list[Bundle]:
    training = request.training
    given = training.cpus_per_worker
    ready = [node for node in nodes if not node.is_draining]
    found: list[Bundle] = []
    if training.use_gpu is not False and limits.gpus != 0 and request.gpus_per_trial != 0:
        kinds = dict.fromkeys(
            node.accelerator for node in ready if node.gpus and training.accelerator in (None, node.accelerator)
        )
        shares = [request.gpus_per_trial] if request.gpus_per_trial else [1.0, 0.5, 0.25, 0.2]
        if _count_workers(request) > 1:
            shares = [1.0]
        found += [Bundle(float(given or 1), share, accelerator=kind) for kind in kinds for share in shares]
    if training.use_gpu is not True and not request.gpus_per_trial and not training.accelerator:
        cores = int(max((node.cores for node in ready), default=0))
        found += [Bundle(float(one)) for one in ([given] if given else _halve(cores))]
    return [replace(one, fills_cores=not given) for one in found]


def _halve(cores: int) -> list[int]:
    found = [cores] if cores else []
    while found and found[-1] > 1:
        found.append(found[-1] // 2)
    return found


def _build_way(
    inventory: Inventory,
    nodes: Sequence[Node],
    architecture: Architecture,
    lengths: Lengths,
    request: TrialRequest,
    limits: Limits,
    bundle: Bundle,
) -> _Way | None:
    nodes = limit_added(nodes, inventory, bundle, KEPT)
    hosts = [node for node in nodes if count_places(node, bundle, KEPT)]
    if not hosts:
        return None
    training, workers = request.training, _count_workers(request)
    sample = thin(lengths)
    scale = lengths.num_tokens / max(1, sample.num_tokens)
    rates = find_node_rates(hosts[0], bundle.cpus, training.precision, gpus=bundle.gpus)
    precision = resolve_precision(training.precision, hosts[0], rates if bundle.gpus else None)
    device_tokens = training.device_batch_tokens or DEVICE_BATCH_TOKENS
    batch_tokens, accumulation = divide_batch(sample, training.batch_tokens, device_tokens, workers)
    setup = replace(
        training.setup,
        num_workers=workers,
        precision=precision,
        device="cuda" if bundle.gpus else "cpu",
        batch_tokens=batch_tokens,
        accumulation=accumulation,
        strategy=training.strategy or "ddp",
    )
    memory = estimate_training_memory(architecture, setup, sample)
    limit = rates.memory_bytes * min(1.0, bundle.gpus) if bundle.gpus else None
    if limit is not None and (
        memory.total > limit * USABLE or round_up_share(memory.total / rates.memory_bytes) > bundle.gpus
    ):
        return None
    if not bundle.gpus:
        bundle = replace(bundle, memory_bytes=int(memory.total))
    most = min(request.num_trials, request.max_concurrent or request.num_trials)
    if bundle.gpus and limits.gpus is not None:
        most = min(most, int(limits.gpus / bundle.gpus / workers + 1e-6))
    number = _count_at_once(nodes, bundle, workers, most)
    if number < 1:
        return None
    step = estimate_step_s(architecture, setup, sample, rates)
    share = min(1.0, bundle.gpus) if bundle.gpus else 1.0
    seconds = step.total / share if bundle.gpus and step.compute + step.memory > step.overhead else step.total
    placement = settle_added(fill(bundle, number * workers, nodes, KEPT), inventory)
    used = list_used(nodes, placement)
    return _Way(
        placement=placement,
        nodes=used,
        number=number,
        memory=memory,
        memory_limit_bytes=limit,
        rates=rates,
        precision=precision,
        step=step,
        trial_s=max(1e-3, seconds * count_steps(sample, setup) * scale * setup.num_epochs),
    )


def _count_at_once(nodes: Sequence[Node], bundle: Bundle, workers: int, most: int) -> int:
    """Trials whose workers fit together with the functions that start them, which may lie on any node."""
    number = min(most, count_all_places(nodes, bundle, KEPT) // workers)
    while number > 0:
        placed = fill(bundle, number * workers, nodes, KEPT)
        left = [
            node.cpus - node.used_cpus - placed.counts.get(node.name, 0) * bundle.cpus
            for node in nodes
            if not node.is_draining
        ]
        if workers == 1 or sum(int(free / DRIVER_CPUS + 1e-6) for free in left if free > 0) >= number:
            return number
        number -= 1
    return 0


def _want_of_room(inventory: Inventory, request: TrialRequest) -> PlanError:
    training = request.training
    gpus = request.gpus_per_trial or (1.0 if training.use_gpu else 0.0)
    bundle, workers = Bundle(float(training.cpus_per_worker or 1), gpus), _count_workers(request)
    beside = f", {DRIVER_CPUS:g} CPU beside" if workers > 1 else ""
    return PlanError(
        "no room for one trial",
        rule=f"{workers} x ({bundle.describe()}){beside}, and the model in memory",
        value=explain_shortage(bundle, workers, inventory, KEPT),
        remedy="smaller trials (`--resources.cpus_per_worker`, `--training.device_batch_tokens`), or more nodes",
    )
