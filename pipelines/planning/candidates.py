"""The ways in which a model could be trained on a cluster, each with its memory, time and cost."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate

from pipelines.planning.architecture import Architecture
from pipelines.planning.cost import TrainingSetup
from pipelines.planning.errors import PlanError
from pipelines.planning.fit import (
    Bundle,
    Kept,
    Placement,
    count_all_places,
    count_places,
    limit_added,
    list_added,
    list_all_nodes,
    place,
    place_growing,
)
from pipelines.planning.inventory import Inventory, Node
from pipelines.planning.lengths import Lengths, divide_batch
from pipelines.planning.memory import Memory, estimate_training_memory
from pipelines.planning.plans import Limits, price_nodes
from pipelines.planning.rates import Rates
from pipelines.planning.speeds import find_corrections, find_node_rates, resolve_precision, slow_down_between_nodes
from pipelines.planning.timing import StepTime, count_steps, estimate_step_s

KEPT = Kept(cpus=1, smallest=4)
"""Nothing is read by Ray Data while the workers train, so small nodes give them all their CPUs."""
MOST_WORKERS = 1024
MOST_NODES_FILLED = 8
"""Whole nodes that are looked at one by one."""
MOST_GPU_CPUS = 8
"""CPUs that a worker with a GPU can use: it makes batches, and decodes when it scores dev."""
DEVICE_BATCH_TOKENS = 4096
MOST_DEVICE_BATCH_TOKENS = 65_536
MOST_SAMPLED = 20_000
"""Windows of a histogram that are reckoned with; of a larger one a smaller copy."""
WITHOUT_CHECKPOINTING = ("albert", "flaubert", "funnel", "mpnet", "xlm", "xlnet")
"""Architectures for which transformers computes no activations again."""
USABLE = 0.92
"""Share of a device's memory that a plan fills: predictions err, and memory is fragmented."""


@dataclass(frozen=True)
class TrainingRequest:
    """What is to be trained, and what of the resources is settled already; None: to be planned."""

    setup: TrainingSetup = field(default_factory=TrainingSetup)
    """What the recipe says; what is planned is put into it."""
    batch_tokens: int = 1024
    """Sub-tokens of an optimizer step over all workers: part of the recipe, never changed by a plan."""
    device_batch_tokens: int | None = None
    precision: str = "auto"
    num_workers: tuple[int, int] | None = None
    """The least and the most."""
    cpus_per_worker: int | None = None
    use_gpu: bool | None = None
    accelerator: str | None = None
    strategy: str | None = None


@dataclass(frozen=True)
class Candidate:
    """One way to train."""

    setup: TrainingSetup
    placement: Placement
    rates: Rates
    device_batch_tokens: int
    memory: Memory
    memory_limit_bytes: float | None
    step: StepTime
    num_steps: int
    """Of an epoch."""
    price_per_hour: float | None
    corrections: tuple[float, float] = (1.0, 1.0)
    """By which memory and the parts of a step are multiplied already, as earlier runs have shown."""

    @property
    def epoch_s(self) -> float:
        """Seconds of an epoch."""
        return self.num_steps * self.step.total

    @property
    def total_s(self) -> float:
        """Seconds of all epochs."""
        return self.epoch_s * self.setup.num_epochs

    @property
    def cost(self) -> float | None:
        """Of all epochs."""
        return None if self.price_per_hour is None else self.price_per_hour * self.total_s / 3600

    @property
    def overflow(self) -> float:
        """Predicted memory by what may be used; above 1 it does not fit."""
        return self.memory.total / (self.memory_limit_bytes * USABLE) if self.memory_limit_bytes else 0.0

    @property
    def complexity(self) -> int:
        """How far it is from the plainest way."""
        setup = self.setup
        return 2 * (setup.strategy != "ddp") + setup.gradient_checkpointing + setup.cpu_offload

    @property
    def variant(self) -> str:
        """The strategy and what it does besides: `fsdp, checkpointing`."""
        setup = self.setup
        parts = [setup.strategy] if setup.num_workers > 1 else []
        parts += ["gradient checkpointing"] if setup.gradient_checkpointing else []
        parts += ["CPU offload"] if setup.cpu_offload else []
        return ", ".join(parts)

    def describe(self) -> str:
        """`4 x L4, fsdp`."""
        number = self.setup.num_workers
        device = self.rates.name if self.setup.device == "cuda" else f"{self.placement.bundle.cpus:g} CPUs"
        return f"{number} x {device}" + (f", {self.variant}" if self.variant else "")


def list_candidates(
    inventory: Inventory, architecture: Architecture, lengths: Lengths, request: TrainingRequest, limits: Limits
) -> tuple[list[Candidate], list[PlanError]]:
    """Every way to train on the cluster as it is or may grow, and why some of its GPUs are not reckoned with."""
    found: list[Candidate] = []
    problems: list[PlanError] = []
    sample = thin(lengths)
    for bundle, number in _list_groups(inventory, request, limits):
        placement = place_growing(bundle, number, inventory, KEPT)
        if placement is None:
            continue
        try:
            node = find_used(inventory, placement)[0]
            rates = find_node_rates(node, bundle.cpus, request.precision, gpus=bundle.gpus)
        except PlanError as error:
            problems += [error] if str(error) not in map(str, problems) else []
            continue
        rates = slow_down_between_nodes(rates, find_used(inventory, placement))
        precision = resolve_precision(request.precision, node, rates if bundle.gpus else None)
        corrections = find_corrections(node, rates, precision)
        for setup in _list_setups(request, number, bool(bundle.gpus)):
            setup = replace(setup, precision=precision)
            if request.num_workers is None and not can_divide(setup, architecture):
                continue
            is_own_idea = setup.gradient_checkpointing and not request.setup.gradient_checkpointing
            if is_own_idea and architecture.family in WITHOUT_CHECKPOINTING:
                continue
            one = _evaluate(inventory, architecture, sample, request, setup, placement, rates, corrections)
            scale = lengths.num_tokens / max(1, sample.num_tokens)
            found.append(replace(one, num_steps=max(1, round(one.num_steps * scale))))
    return found, problems


def can_divide(setup: TrainingSetup, architecture: Architecture) -> bool:
    """Whether so many workers can train an encoder by their strategy."""
    workers, strategy = setup.num_workers, setup.strategy
    if strategy in ("ddp", "local_sgd"):
        return True
    if workers < 2 or (strategy == "pipeline" and workers > architecture.num_layers):
        return False
    if strategy == "hybrid" and (workers % setup.inside_size or workers < 2 * setup.inside_size):
        return False
    size = workers if strategy == "tensor" else setup.inside_size
    return not setup.slices_products or not (architecture.num_heads % size or architecture.intermediate_size % size)


def thin(lengths: Lengths) -> Lengths:
    """Lengths spread in the same way over fewer windows, for what does not depend on their number."""
    scale = MOST_SAMPLED / max(1, lengths.num_windows)
    if scale >= 1:
        return lengths
    counts = {length: round(count * scale) for length, count in lengths.counts}
    counts[lengths.longest] = max(1, counts[lengths.longest])
    return Lengths.from_counts(counts, lengths.words_per_token)


def find_used(inventory: Inventory, placement: Placement) -> list[Node]:
    """The nodes that a placement uses, those that are added among them."""
    added = [
        node
        for group in inventory.groups
        if group.name in placement.added
        for node in list_added(group, placement.added[group.name])
    ]
    return [node for node in [*inventory.nodes, *added] if placement.counts.get(node.name)]


def _list_groups(inventory: Inventory, request: TrainingRequest, limits: Limits) -> Iterator[tuple[Bundle, int]]:
    """What one worker takes, and how many there are."""
    nodes = list_all_nodes(inventory, MOST_WORKERS)
    kinds = [request.accelerator] if request.accelerator else inventory.list_accelerators()
    for kind in kinds if request.use_gpu is not False and limits.gpus != 0 else []:
        of_kind = [node for node in nodes if node.gpus and node.accelerator == kind]
        least = Bundle(float(request.cpus_per_worker or 1), 1.0, accelerator=kind)
        of_kind = limit_added(of_kind, inventory, least, KEPT)
        most = min(count_all_places(of_kind, least, KEPT), limits.gpus or MOST_WORKERS, MOST_WORKERS)
        for number in _list_numbers(most, request, [count_places(node, least, KEPT) for node in of_kind]):
            bundle = _shape_worker(least, number, of_kind, MOST_GPU_CPUS, request)
            if bundle and number <= (limits.gpus or MOST_WORKERS):
                yield bundle, number
    if request.use_gpu is not True and not request.accelerator:
        least = Bundle(float(request.cpus_per_worker or 1))
        nodes = limit_added(nodes, inventory, least, KEPT)
        most = min(sum(count_all_places([node], least, KEPT) > 0 for node in nodes), MOST_WORKERS)
        for number in _list_numbers(most, request, [1] * most):
            bundle = _shape_worker(least, number, nodes, MOST_WORKERS, request)
            if bundle:
                yield bundle, number


def _list_numbers(most: int, request: TrainingRequest, per_node: Sequence[int] = ()) -> list[int]:
    """Numbers of workers worth a look: powers of two, those that fill whole nodes, and as many as there is room for."""
    if request.num_workers:
        low, high = request.num_workers
        return [max(low, min(high, most))]
    whole = accumulate(sorted(per_node, reverse=True)[:MOST_NODES_FILLED])
    return sorted({one for one in (*(2**power for power in range(11)), *whole, most) if 0 < one <= most})


def _shape_worker(
    least: Bundle, number: int, nodes: Sequence[Node], most: int, request: TrainingRequest
) -> Bundle | None:
    """The most CPUs that so many workers can have; None if they have no room."""
    as_told = replace(least, fills_cores=False)  # more workers than cores, if the user says so
    if request.cpus_per_worker:
        return as_told if count_all_places(nodes, as_told, KEPT) >= number else None
    packed = place(least, number, nodes, KEPT)
    few = len(packed.counts) if packed and least.gpus else len(nodes)  # GPUs lie close, for they exchange much
    low, high = 0, min(int(max((node.cores for node in nodes), default=0)), most)
    while low < high:  # more CPUs never have more room
        middle = (low + high + 1) // 2
        found = place(replace(least, cpus=float(middle)), number, nodes, KEPT)
        low, high = (middle, high) if found and len(found.counts) <= few else (low, middle - 1)
    if low:
        return replace(least, cpus=float(low))
    return as_told if request.num_workers and count_all_places(nodes, as_told, KEPT) >= number else None


def _list_setups(request: TrainingRequest, number: int, use_gpu: bool) -> Iterator[TrainingSetup]:
    """The strategies for so many workers, the plainest first."""
    device = "cuda" if use_gpu else "cpu"
    given = replace(request.setup, num_workers=number, device=device)
    if request.strategy or number == 1:
        yield replace(given, strategy=request.strategy or "ddp")
        if not given.gradient_checkpointing:
            yield replace(given, strategy=request.strategy or "ddp", gradient_checkpointing=True)
        return
    for strategy in ("ddp", "fsdp"):
        for checkpointing in {given.gradient_checkpointing, True}:
            yield replace(given, strategy=strategy, gradient_checkpointing=checkpointing)
    if use_gpu:
        yield replace(given, strategy="fsdp", gradient_checkpointing=True, cpu_offload=True)


def _evaluate(
    inventory: Inventory,
    architecture: Architecture,
    lengths: Lengths,
    request: TrainingRequest,
    setup: TrainingSetup,
    placement: Placement,
    rates: Rates,
    corrections: tuple[float, float],
) -> Candidate:
    used = find_used(inventory, placement)
    limit = rates.memory_bytes if setup.device == "cuda" else _find_memory(used, placement)
    shares = setup.num_shares
    for tokens in list_device_batches(request, lengths, shares, setup.device):
        pass_tokens, accumulation = divide_batch(lengths, request.batch_tokens, tokens, shares)
        setup = replace(setup, batch_tokens=pass_tokens, accumulation=accumulation)
        memory = estimate_training_memory(architecture, setup, lengths)
        memory = Memory(*(part * corrections[0] for part in vars(memory).values()))
        if limit is None or memory.total <= limit * USABLE:
            break
    step = estimate_step_s(architecture, setup, lengths, rates)
    return Candidate(
        setup=setup,
        placement=placement,
        rates=rates,
        device_batch_tokens=tokens,
        memory=memory,
        memory_limit_bytes=limit,
        step=StepTime(*(part * corrections[1] for part in vars(step).values())),
        num_steps=count_steps(lengths, setup),
        price_per_hour=price_nodes(used, rates.price_per_hour),
        corrections=corrections,
    )


def list_device_batches(request: TrainingRequest, lengths: Lengths, shares: int, device: str) -> list[int]:
    """Padded sub-tokens of a pass to try, the most first; no fewer than the longest window has."""
    if request.device_batch_tokens:
        return [request.device_batch_tokens]
    share = math.ceil(request.batch_tokens / shares)
    most = DEVICE_BATCH_TOKENS
    while device == "cuda" and most < min(share, MOST_DEVICE_BATCH_TOKENS):
        most *= 2
    found = [most]
    while found[-1] // 2 >= max(lengths.longest, 64):
        found.append(found[-1] // 2)
    return found


def _find_memory(nodes: Sequence[Node], placement: Placement) -> float | None:
    """A worker's share of the memory of the node where it has least; None where no node tells."""
    shares = [
        (node.memory_bytes - node.used_memory_bytes) / placement.counts[node.name]
        for node in nodes
        if node.memory_bytes
    ]
    return min(shares, default=None)
