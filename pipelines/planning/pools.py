"""Pools of actors or replicas for a model: what one takes, how many fit, how fast they are together."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

from pipelines.planning.architecture import Architecture
from pipelines.planning.candidates import thin
from pipelines.planning.errors import PlanError
from pipelines.planning.fit import (
    SHARES,
    Bundle,
    Kept,
    Placement,
    count_places,
    limit_added,
    list_all_nodes,
    settle_added,
)
from pipelines.planning.inventory import Inventory, Node
from pipelines.planning.lengths import Lengths
from pipelines.planning.memory import Memory, estimate_inference_memory
from pipelines.planning.placing import build_each, fill, list_used, may_fill
from pipelines.planning.plans import Limits, price_nodes
from pipelines.planning.rates import Rates
from pipelines.planning.speeds import find_node_rates, resolve_precision
from pipelines.planning.timing import estimate_inference_tokens_per_s

KEPT = Kept(cpus=1)
"""Labelling reads one dataset at a time, beside the actors; serving has its way in on each node."""
HOST_TOKENS_PER_S = 140_000
"""Sub-tokens that one process splits, tokenizes, decodes and gives offsets in a second, beside the forward pass:
measured with a tiny model on one core of a cloud machine. It is Python, so more threads do not speed it up."""
BATCH_TOKENS = {"cpu": 2048, "cuda": 32_768}
"""As the engine's runtimes have it."""
MOST_CPUS = 4
"""Threads of an actor without a GPU, above which another actor is worth more."""
USABLE = 0.92


@dataclass(frozen=True)
class InferenceRequest:
    """What is to be labelled or served, and what is settled already; None: to be planned."""

    num_actors: int | None = None
    cpus_per_actor: float | None = None
    gpus_per_actor: float | None = None
    """0: no GPU."""
    precision: str = "auto"
    max_batch_tokens: int | None = None
    num_tags: int = 9
    tokens_per_s: float | None = None
    """The load that replicas have to bear."""


@dataclass(frozen=True)
class Pool:
    """Equal actors on a cluster, or replicas."""

    placement: Placement
    nodes: Sequence[Node]
    rates: Rates
    memory: Memory
    memory_limit_bytes: float | None
    precision: str
    batch_tokens: int
    device_tokens_per_s: float
    """Of a whole device (a GPU, or an actor's CPUs)."""
    tokens_per_s: float
    """Of all."""
    price_per_hour: float | None

    @property
    def is_host_bound(self) -> bool:
        """Whether actors wait for tokenizing and decoding rather than for their device."""
        bundle = self.placement.bundle
        own = self.device_tokens_per_s * (bundle.gpus or 1)
        return own > HOST_TOKENS_PER_S

    def describe(self) -> str:
        """`8 with 1 CPU, 0.5 GPU (L4)`."""
        return f"{self.placement.number} with {replace(self.placement.bundle, memory_bytes=0).describe()}"


def list_pools(
    inventory: Inventory,
    architecture: Architecture,
    lengths: Lengths,
    request: InferenceRequest,
    limits: Limits,
    *,
    may_add: bool = False,
) -> tuple[list[Pool], list[PlanError]]:
    """Every pool that fits now; where none does, every one that fits on nodes that may be added; and GPUs unknown.

    Args:
        may_add: take nodes that may be added though there is room without.
    """
    problems: list[PlanError] = []
    for nodes in [list_all_nodes(inventory)] if may_add else may_fill(inventory):
        build = partial(_build_pool, inventory, nodes, architecture, lengths, request, limits)
        found = build_each(_list_bundles(nodes, request, limits), build, problems)
        if found:
            return found, problems
    return [], problems


def _list_bundles(nodes: Sequence[Node], request: InferenceRequest, limits: Limits) -> list[Bundle]:
    given = request.cpus_per_actor
    found = []
    if request.gpus_per_actor != 0 and limits.gpus != 0:
        shares = [request.gpus_per_actor] if request.gpus_per_actor else [1 / number for number in SHARES]
        kinds = dict.fromkeys(node.accelerator for node in nodes if node.gpus)
        found += [Bundle(given or 1.0, share, accelerator=kind) for kind in kinds for share in shares]
    if not request.gpus_per_actor:
        most = int(max((node.cores for node in nodes if not node.is_draining), default=0))
        found += [Bundle(one) for one in ([given] if given else map(float, range(min(MOST_CPUS, most), 0, -1)))]
    return [replace(one, fills_cores=not given) for one in found]


def _build_pool(
    inventory: Inventory,
    nodes: Sequence[Node],
    architecture: Architecture,
    lengths: Lengths,
    request: InferenceRequest,
    limits: Limits,
    bundle: Bundle,
) -> Pool | None:
    """The pool of all such actors that fit, or of as many as are asked for; None if there is no room."""
    nodes = limit_added(nodes, inventory, bundle, KEPT)
    hosts = [node for node in nodes if count_places(node, bundle, KEPT)]
    if not hosts:
        return None
    device = "cuda" if bundle.gpus else "cpu"
    rates = find_node_rates(hosts[0], bundle.cpus, request.precision, gpus=bundle.gpus)
    precision = resolve_precision(request.precision, hosts[0], rates if bundle.gpus else None)
    limit = rates.memory_bytes * min(1.0, bundle.gpus) if bundle.gpus else None
    tokens = request.max_batch_tokens or BATCH_TOKENS[device]
    window = lengths.longest
    while True:
        memory = estimate_inference_memory(architecture, precision, tokens, window, device, request.num_tags)
        if limit is None or memory.total <= limit * USABLE:
            break
        if request.max_batch_tokens or tokens // 2 < max(window, 512):
            return None  # a smaller share of a GPU than the model needs
        tokens //= 2
    if not bundle.gpus:
        bundle = replace(bundle, memory_bytes=int(memory.total))
    most_gpus = None if limits.gpus is None or not bundle.gpus else int(limits.gpus / bundle.gpus + 1e-6)
    asked = [one for one in (request.num_actors, most_gpus) if one is not None]
    placement = fill(bundle, min(asked, default=None), nodes, KEPT)
    if not placement.number or (request.num_actors and placement.number < request.num_actors):
        return None
    device_rate = estimate_inference_tokens_per_s(architecture, precision, thin(lengths), rates, request.num_tags)
    share = min(1.0, bundle.gpus) if bundle.gpus else 1.0
    alone = min(device_rate, HOST_TOKENS_PER_S) if bundle.gpus else device_rate
    placement = settle_added(placement, inventory)
    used = list_used(nodes, placement)
    return Pool(
        placement=placement,
        nodes=used,
        rates=rates,
        memory=memory,
        memory_limit_bytes=limit or _share_memory(used, placement),
        precision=precision,
        batch_tokens=tokens,
        device_tokens_per_s=device_rate,
        tokens_per_s=placement.number * min(alone, device_rate * share),
        price_per_hour=price_nodes(used, rates.price_per_hour),
    )


def _share_memory(nodes: Sequence[Node], placement: Placement) -> float | None:
    shares = [node.memory_bytes / placement.counts[node.name] for node in nodes if node.memory_bytes]
    return min(shares, default=None)
