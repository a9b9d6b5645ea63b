"""A cluster described in a line: `4x(8cpu,32GiB,1xL4)+0..8x(16cpu,64GiB)`.

Terms are joined by `+`; each is a number of nodes, `x`, and what one of them has. `0..8x(…)`: none is there, and the
autoscaler adds up to eight. A node has CPUs, and perhaps memory, GPUs, a network (`25Gbit`), a price an hour (`0.8/h`),
and labels (`zone=a`).
"""

import math
import re
from dataclasses import replace

from pipelines.planning.errors import PlanError
from pipelines.planning.inventory import Inventory, Node, NodeGroup

EXAMPLE = "4x(8cpu,32GiB,1xL4)+0..8x(16cpu,64GiB)"
MOST_NODES = 100_000
UNITS = {"gib": 2**30, "gi": 2**30, "g": 2**30, "gb": 10**9, "tib": 2**40, "mib": 2**20, "mi": 2**20}
_TERM = re.compile(r"(?:(?P<least>\d+)(?:\.\.(?P<most>\d+))?[x*])?\((?P<parts>[^()]*)\)", re.IGNORECASE)
_AMOUNT = re.compile(r"(?P<number>\d+(?:\.\d+)?)(?P<unit>[a-z]+|/h)", re.IGNORECASE)
_GPUS = re.compile(r"(?P<number>\d+)[x*](?P<kind>[a-z][\w.-]*)", re.IGNORECASE)
_LABEL = re.compile(r"(?P<key>[\w./-]+)=(?P<value>[\w.-]+)")


def parse_cluster(text: str) -> Inventory:
    """The inventory of a described cluster. Raises PlanError."""
    nodes: list[Node] = []
    groups: list[NodeGroup] = []
    terms = re.sub(r"\s", "", text).split("+")
    for number, term in enumerate(terms, 1):
        match = _TERM.fullmatch(term)
        if match is None:
            raise _unreadable(text, term, "a number of nodes, `x`, and what one has, in brackets")
        least = int(match["least"] or 1)
        most = int(match["most"] or least)
        if not 0 <= least <= most <= MOST_NODES or most == 0:
            raise _unreadable(text, term, f"a number of nodes from 1 to {MOST_NODES:,}, or `MIN..MAX`")
        shape = _parse_node(text, match["parts"])
        name = f"node-{number}" if len(terms) > 1 else "node"
        shape = replace(shape, group=name)
        nodes += [replace(shape, name=f"{name}.{one}") for one in range(1, least + 1)]
        if most > least:
            groups.append(NodeGroup(replace(shape, name=name), most - least))
    return Inventory(tuple(nodes), tuple(groups), f"described: {text}", bool(groups))


def _parse_node(text: str, parts: str) -> Node:
    cpus: float | None = None
    memory, gpus, accelerator, price, network = 0, 0, None, None, None
    labels: dict[str, str] = {}
    for part in parts.split(","):
        amount, some_gpus, label = _AMOUNT.fullmatch(part), _GPUS.fullmatch(part), _LABEL.fullmatch(part)
        unit = amount["unit"].lower() if amount else ""
        if some_gpus:
            gpus, accelerator = gpus + int(some_gpus["number"]), some_gpus["kind"]
        elif label:
            labels[label["key"]] = label["value"]
        elif amount and unit in ("cpu", "cpus", "core", "cores", "vcpu"):
            cpus = float(amount["number"])
        elif amount and unit in UNITS:
            memory = int(float(amount["number"]) * UNITS[unit])
        elif amount and unit in ("gpu", "gpus") and float(amount["number"]).is_integer():
            gpus = int(float(amount["number"]))
        elif amount and unit in ("gbit", "gbps"):
            network = float(amount["number"]) * 1e9 / 8
        elif amount and unit == "/h":
            price = float(amount["number"])
        else:
            rule = "`8cpu`, `32GiB`, `1xL4` or `1gpu`, `25Gbit`, `0.8/h`, or `label=value`"
            raise _unreadable(text, part or "nothing between two commas", rule)
    if cpus is None or not math.isfinite(cpus) or cpus <= 0:
        raise _unreadable(text, parts, "CPUs of a node, above 0: `8cpu`")
    if accelerator is not None and accelerator.lower() in ("gpu", "gpus"):
        accelerator = None
    return Node("node", cpus, memory, gpus, accelerator, labels, price_per_hour=price, network_bytes_per_s=network)


def _unreadable(text: str, part: str, rule: str) -> PlanError:
    return PlanError(
        "the description of a cluster cannot be read",
        where=f"`{text}`",
        rule=rule,
        value=part,
        remedy=f"for example `--cluster '{EXAMPLE}'`",
    )
