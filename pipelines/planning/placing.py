"""Pools that take what there is: as many bundles as fit, and the nodes they may lie on."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

from pipelines.planning.errors import PlanError
from pipelines.planning.fit import Bundle, Kept, Placement, count_places, list_all_nodes, place
from pipelines.planning.inventory import Inventory, Node

T = TypeVar("T")


def fill(bundle: Bundle, at_most: int | None, nodes: Sequence[Node], kept: Kept) -> Placement:
    """As many bundles as fit, or as are wanted."""
    counts = {node.name: places for node in nodes if (places := count_places(node, bundle, kept))}
    if at_most is None or sum(counts.values()) <= at_most:
        return Placement(bundle, counts)
    found = place(bundle, at_most, nodes, kept)
    assert found is not None  # there is room for more
    return found


def may_fill(inventory: Inventory) -> Iterator[list[Node]]:
    """The nodes that are there; then, for whom they have no room, also those that may be added."""
    yield list(inventory.nodes)
    if inventory.groups:
        yield list_all_nodes(inventory)


def build_each(bundles: Iterable[Bundle], build: Callable[[Bundle], T | None], problems: list[PlanError]) -> list[T]:
    """What can be made of each bundle; why one cannot be planned is added to the problems, each of them once."""
    found: list[T] = []
    for bundle in bundles:
        try:
            made = build(bundle)
        except PlanError as error:
            problems += [error] if str(error) not in map(str, problems) else []
            continue
        found += [made] if made is not None else []
    return found


def list_used(nodes: Sequence[Node], placement: Placement) -> list[Node]:
    """The nodes of a placement."""
    return [node for node in nodes if placement.counts.get(node.name)]
