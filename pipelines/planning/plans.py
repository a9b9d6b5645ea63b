"""A plan: what a run takes, what that will cost, why so, and what was rejected."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipelines.ner.errors import UserError, find_wrong_values
from pipelines.planning.errors import PlanError
from pipelines.planning.fit import Placement
from pipelines.planning.inventory import Inventory, Node
from pipelines.planning.memory import Memory

TASKS = ("train", "tune", "predict", "serve")
GIB = 2**30


@dataclass(frozen=True)
class Limits:
    """What a plan must not exceed."""

    gpus: int | None = None
    """GPUs in all; 0: none."""
    hours: float | None = None
    price: float | None = None
    """Of the whole run, in the currency of the prices per hour."""

    def find_problems(self) -> list[UserError]:
        """Every mistake in these limits."""
        checks = [
            ("gpus", "0 or more", self.gpus is None or self.gpus >= 0),
            ("hours", "above 0", self.hours is None or 0 < self.hours < math.inf),
            ("price", "above 0", self.price is None or 0 < self.price < math.inf),
        ]
        return find_wrong_values(PlanError, self, checks, "limits.", what="a limit out of range")

    def are_exceeded(self, seconds: float, cost: float | None) -> bool:
        """Whether a run is too slow or too dear, or its price is limited and not known."""
        is_late = self.hours is not None and seconds > self.hours * 3600
        return is_late or (self.price is not None and (cost is None or cost > self.price))

    def describe(self) -> str:
        """`12 h and price 40.00`."""
        given = [f"{self.hours:g} h"] if self.hours is not None else []
        given += [f"price {self.price:,.2f}"] if self.price is not None else []
        given += [f"{self.gpus} GPUs"] if self.gpus is not None else []
        return " and ".join(given)


@dataclass(frozen=True)
class Rejected:
    """Another way, and why it was not taken."""

    what: str
    why: str


@dataclass(frozen=True)
class Plan:
    """What a run takes and will cost."""

    task: str
    settings: Mapping[str, Any]
    """Concrete settings, by the names that the task's configuration has."""
    placement: Placement
    summary: str
    """What it comes to, in a line."""
    memory: Memory | None = None
    """Predicted, of one worker, actor or replica."""
    memory_limit_bytes: float | None = None
    predicted: Mapping[str, float | None] = field(default_factory=dict)
    """Seconds, sub-tokens per second and cost, by name."""
    parts: Mapping[str, float] = field(default_factory=dict)
    """Seconds of a step by part."""
    bottleneck: str = ""
    reasons: Sequence[str] = ()
    rejected: Sequence[Rejected] = ()
    warnings: Sequence[str] = ()
    inventory: Inventory | None = None
    rates_source: str = ""
    """Whose speed was reckoned with."""

    @property
    def bundles_to_request(self) -> list[dict[str, float]]:
        """What the autoscaler is to be asked for; nothing if all fits already."""
        return [self.placement.bundle.to_resources()] * self.placement.number if self.placement.added else []

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON, as `plan.json` and `run.json` hold it."""
        memory = None
        if self.memory is not None:
            names = ("weights", "gradients", "optimizer", "activations", "validation", "context", "total")
            memory = {name: round(getattr(self.memory, name) / 2**20, 1) for name in names}
        return {
            "task": self.task,
            "summary": self.summary,
            "settings": dict(self.settings),
            "placement": {
                "bundle": self.placement.bundle.to_resources(),
                "number": self.placement.number,
                "per_node": dict(self.placement.counts),
                "nodes_to_add": dict(self.placement.added),
            },
            "memory_mib": memory,
            "memory_limit_mib": self.memory_limit_bytes and round(self.memory_limit_bytes / 2**20, 1),
            "predicted": {name: _round(value) for name, value in self.predicted.items()},
            "step_parts_s": {name: _round(value) for name, value in self.parts.items()},
            "bottleneck": self.bottleneck,
            "reasons": list(self.reasons),
            "rejected": [vars(one) for one in self.rejected],
            "warnings": list(self.warnings),
            "inventory": self.inventory and self.inventory.to_dict(),
            "rates": self.rates_source,
        }


def render_short(plan: Plan) -> str:
    """The plan in one to three lines."""
    lines = [plan.summary]
    predicted = render_prediction(plan)
    if predicted:
        lines.append(f"predicted: {predicted}")
    if plan.placement.added:
        more = ", ".join(f"{number} of `{group}`" for group, number in plan.placement.added.items())
        lines.append(f"needs more nodes: {more}; the autoscaler is asked for them")
    return "\n".join(lines)


def render_prediction(plan: Plan) -> str:
    """What is predicted, in one line."""
    parts = []
    if plan.memory is not None:
        limit = f" of {plan.memory_limit_bytes / GIB:.1f}" if plan.memory_limit_bytes else ""
        parts.append(f"{plan.memory.total / GIB:.2f}{limit} GiB each")
    found = plan.predicted
    if found.get("step_s"):
        parts.append(f"{render_seconds(found['step_s'])} a step")
    if found.get("epoch_s"):
        parts.append(f"{render_seconds(found['epoch_s'])} an epoch")
    if found.get("total_s"):
        parts.append(f"{render_seconds(found['total_s'])} in all")
    if found.get("tokens_per_s"):
        parts.append(f"{found['tokens_per_s']:,.0f} sub-tokens/s")
    if found.get("cost"):
        parts.append(f"cost {render_money(found['cost'])}")
    return ", ".join(parts)


def render_seconds(seconds: float | None) -> str:
    """`850 ms`, `3.2 s`, `14 min`, `5.3 h`, `12 days`."""
    if seconds is None:
        return "unknown"
    for limit, size, unit in ((1, 0.001, "ms"), (120, 1, "s"), (7200, 60, "min"), (172_800, 3600, "h")):
        if seconds < limit:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 86_400:,.1f} days"


def render_money(amount: float | None) -> str:
    """`0.0012`, `3.40`, `12,500`."""
    if amount is None:
        return "unknown"
    if amount >= 1000:
        return f"{amount:,.0f}"
    return f"{amount:.2f}" if amount >= 0.1 else f"{amount:.2g}"


def price_nodes(nodes: Sequence[Node], gpu_price: float | None) -> float | None:
    """Price per hour of whole nodes: their own, or that of their GPUs; None if one is not known."""
    prices = [
        node.price_per_hour
        if node.price_per_hour is not None
        else (gpu_price * node.gpus if gpu_price is not None and node.gpus else None)
        for node in nodes
    ]
    known = [price for price in prices if price is not None]
    return sum(known) if len(known) == len(prices) and known else None


def _round(value: float | None) -> float | None:
    return value if value is None or not math.isfinite(value) else float(f"{value:.6g}")
