"""The fit: never more on a node than it has, never the CPUs of those who read, never worse with more."""

import math
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.planning.descriptions import parse_cluster
from pipelines.planning.fit import (
    SHARES,
    Bundle,
    Kept,
    count_all_places,
    count_places,
    explain_shortage,
    list_added,
    place,
    place_growing,
    round_up_share,
)
from pipelines.planning.inventory import Inventory, Node
from tests.unit.planning.clusters import make_bundles, make_inventories, make_kept, make_nodes

THOUSANDS = settings(max_examples=1200, deadline=None)
HUNDREDS = settings(max_examples=300, deadline=None)
SMALL = 1e-5


def check_node(node: Node, number: int, bundle: Bundle, kept: Kept) -> None:
    """A node takes so many bundles; GPUs are dealt out one device at a time, as Ray does."""
    assert not node.is_draining
    assert all(node.labels.get(key) == value for key, value in bundle.labels.items())
    cpus = number * bundle.cpus + node.used_cpus
    assert cpus <= node.cpus - kept.on(node) + SMALL
    if bundle.fills_cores:
        assert cpus <= node.cores + SMALL
    if node.memory_bytes:
        assert number * bundle.memory_bytes + node.used_memory_bytes <= node.memory_bytes
    if bundle.gpus:
        assert bundle.accelerator in (None, node.accelerator)
        devices = [1.0] * node.gpus
        taken = node.used_gpus
        for at in range(len(devices)):  # what is used may lie anywhere: at worst it has touched these
            touched = min(1.0, taken)
            devices[at] -= 1.0 if touched else 0.0
            taken -= touched
        for _ in range(number):
            need = bundle.gpus
            while need > SMALL:
                part = min(1.0, need)
                at = next(at for at, free in enumerate(devices) if free >= part - SMALL)
                devices[at] -= part
                need -= part
        assert all(free >= -SMALL for free in devices)


@THOUSANDS
@given(make_nodes(), make_bundles(), make_kept, st.integers(1, 40))
def test_placement_never_overcommits_a_node_and_keeps_the_cpus_of_those_who_read(nodes, bundle, kept, number):
    found = place(bundle, number, nodes, kept)
    room = count_all_places(nodes, bundle, kept)
    assert (found is None) == (room < number)
    if found is not None:
        assert found.number == number
        for node in nodes:
            if found.counts.get(node.name):
                check_node(node, found.counts[node.name], bundle, kept)


@THOUSANDS
@given(make_inventories(), make_bundles(), make_kept, st.integers(1, 60))
def test_growing_takes_no_more_nodes_than_the_autoscaler_may_add_and_overcommits_none(inventory, bundle, kept, number):
    found = place_growing(bundle, number, inventory, kept)
    if found is None:
        assert "room for" in explain_shortage(bundle, number, inventory, kept)
        return
    nodes = {node.name: node for node in inventory.nodes}
    for group in inventory.groups:
        assert found.added.get(group.name, 0) <= group.max_count
        nodes |= {node.name: node for node in list_added(group, found.added.get(group.name, 0))}
    assert found.number == number
    for name, count in found.counts.items():
        check_node(nodes[name], count, bundle, kept)
    if count_all_places(inventory.nodes, bundle, kept) >= number:
        assert not found.added


@THOUSANDS
@given(make_nodes(), make_bundles(), make_kept, st.data())
def test_more_resources_never_leave_less_room(nodes, bundle, kept, data):
    at = data.draw(st.integers(0, len(nodes) - 1))
    kept = replace(kept, smallest=0.0)  # a node that grows past the least size that keeps CPUs gives some up
    old = nodes[at]
    more = data.draw(
        st.sampled_from(
            [
                replace(old, cpus=old.cpus + 4, real_cpus=None if old.real_cpus is None else old.real_cpus + 4),
                replace(old, gpus=old.gpus + 1) if old.gpus else old,
                replace(old, memory_bytes=old.memory_bytes * 2),
                replace(old, used_cpus=0.0, used_gpus=0.0, used_memory_bytes=0),
                replace(old, is_draining=False),
            ]
        )
    )
    assert count_places(more, bundle, kept) >= count_places(old, bundle, kept)
    assert count_all_places([*nodes, replace(old, name="new")], bundle, kept) >= count_all_places(nodes, bundle, kept)


@HUNDREDS
@given(make_nodes(), make_bundles(), make_kept)
def test_smaller_bundles_never_have_less_room(nodes, bundle, kept):
    smaller = replace(bundle, cpus=bundle.cpus / 2, memory_bytes=bundle.memory_bytes // 2)
    assert count_all_places(nodes, smaller, kept) >= count_all_places(nodes, bundle, kept)


@HUNDREDS
@given(st.floats(0.001, 8))
def test_share_of_a_gpu_is_rounded_up_so_that_whole_numbers_fit(fraction):
    share = round_up_share(fraction)
    assert share >= fraction - SMALL
    if share < 1:
        assert round(1 / share) in SHARES
        assert math.isclose(share * round(1 / share), 1)
        assert share == round(share, 4), "Ray counts in ten-thousandths"
    else:
        assert share == int(share)


def test_share_between_a_third_and_a_half_is_a_half():
    assert [round_up_share(one) for one in (0.34, 0.3, 0.5, 0.51, 0.05, 1.0, 1.2)] == [0.5, 0.5, 0.5, 1, 0.1, 1, 2]


def test_totals_that_no_single_node_has_are_no_room():
    nodes = parse_cluster("8x(1cpu,4GiB)").nodes
    assert count_all_places(nodes, Bundle(2)) == 0
    assert "no node holds one: (1cpu,4GiB) has 1 CPUs free" in explain_shortage(Bundle(2), 1, Inventory(nodes))


def test_bundles_lie_on_few_nodes_and_the_last_where_they_leave_least():
    nodes = parse_cluster("2x(8cpu)+1x(2cpu)+1x(4cpu)").nodes
    found = place(Bundle(1), 18, nodes)
    assert found.counts == {"node-1.1": 8, "node-1.2": 8, "node-2.1": 2}


def test_cheapest_group_is_added_first():
    inventory = parse_cluster("1x(4cpu)+0..4x(8cpu,2/h)+0..4x(8cpu,1/h)")
    found = place_growing(Bundle(4), 9, inventory)
    assert found.added == {"node-3": 4}
    assert Counter(name.split("+")[0] for name in found.counts) == {"node-3": 4, "node-1.1": 1}
    assert place_growing(Bundle(4), 99, inventory) is None
    assert "and for 17 once the cluster has grown" in explain_shortage(Bundle(4), 99, inventory)


@pytest.mark.parametrize(
    ("bundle", "why"),
    [
        (Bundle(1, 1, accelerator="A100"), "has no A100"),
        (Bundle(1, 2, accelerator="L4"), "has 1 GPUs free"),
        (Bundle(9), "has 7 CPUs free, for 1 is kept"),
        (Bundle(1, memory_bytes=40 * 2**30), "has 32.0 GiB free"),
        (Bundle(1, labels={"zone": "b"}), "has other labels"),
    ],
)
def test_shortage_names_what_is_missing(bundle, why):
    inventory = parse_cluster("2x(8cpu,32GiB,1xL4,zone=a)")
    assert why in explain_shortage(bundle, 1, inventory, Kept(1))


def test_draining_nodes_take_nothing():
    nodes = [replace(node, is_draining=True) for node in parse_cluster("2x(8cpu)").nodes]
    assert place(Bundle(1), 1, nodes) is None
    assert "is draining" in explain_shortage(Bundle(1), 1, Inventory(tuple(nodes)))
