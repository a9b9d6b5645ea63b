"""Places for trials: node by node, never more than fit."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.ner.errors import UserError
from pipelines.training.resources import ResourcesConfig
from pipelines.tuning.config import SearchConfig
from pipelines.tuning.slots import Slots, fit_slots


def plan(nodes, cores=None, num_trials=100, resources=None, growth=None, **search):
    cores = cores or [int(node["CPU"]) for node in nodes]
    return fit_slots(nodes, cores, SearchConfig(**search), resources or ResourcesConfig(), num_trials, growth)


def test_two_cores_take_two_trials_though_four_are_declared():
    slots = plan([{"CPU": 4}], [2])
    assert (slots.concurrent, slots.cpus, slots.gpus) == (2, 1, 0)
    assert count_fitting([4], slots) == 2


def test_trial_has_half_a_node_and_at_most_four_cpus():
    assert plan([{"CPU": 8}]).cpus == 4
    assert plan([{"CPU": 64}]).cpus == 4
    assert plan([{"CPU": 64}]).concurrent == 16


def test_fractions_of_a_gpu_share_it():
    slots = plan([{"CPU": 16, "GPU": 2}], gpus_per_trial=0.25)
    assert (slots.concurrent, slots.cpus, slots.gpus) == (8, 2, 0.25)
    assert plan([{"CPU": 16, "GPU": 1}], gpus_per_trial=0.4).concurrent == 2


def test_a_gpu_for_each_trial_is_the_default_where_there_are_any():
    slots = plan([{"CPU": 16, "GPU": 2}, {"CPU": 16, "GPU": 2}])
    assert (slots.concurrent, slots.gpus) == (4, 1)
    assert plan([{"CPU": 16, "GPU": 2}], resources=ResourcesConfig(use_gpu=False)).gpus == 0


@pytest.mark.parametrize(
    ("nodes", "search"),
    [
        ([{"CPU": 16}, {"CPU": 8, "GPU": 2}], {"max_concurrent": 1}),
        ([{"CPU": 64}, {"CPU": 8, "GPU": 1}, {"CPU": 8, "GPU": 1}], {"gpus_per_trial": 0.5, "max_concurrent": 3}),
    ],
)
def test_slot_with_a_gpu_fits_a_node_that_has_one(nodes, search):
    slots = plan(nodes, **search)
    size = sum(bundle["CPU"] for bundle in slots.list_bundles())
    assert size <= 8
    on_gpus = sum(min(int(8 // size), int(node["GPU"] / slots.gpus)) for node in nodes if "GPU" in node)
    assert slots.must_count or on_gpus == slots.concurrent


def test_trial_lies_on_the_kind_of_gpu_that_is_asked_for():
    nodes = [{"CPU": 8, "GPU": 2, "accelerator_type:T4": 1.0}, {"CPU": 8, "GPU": 1, "accelerator_type:A100": 1.0}]
    slots = plan(nodes, resources=ResourcesConfig(accelerator="A100"))
    assert (slots.concurrent, slots.gpus) == (1, 1)
    assert "accelerator_type:A100" in slots.list_bundles()[0]
    assert plan(nodes).concurrent == 3


def test_nodes_are_counted_one_by_one_not_in_sum():
    assert plan([{"CPU": 3}, {"CPU": 3}], cpus_per_trial=2).concurrent == 2


def test_several_workers_make_a_trial():
    slots = plan([{"CPU": 8}], resources=ResourcesConfig(num_workers=2, cpus_per_worker=2))
    assert (slots.concurrent, slots.num_workers) == (2, 2)
    assert not slots.is_alone
    assert slots.list_bundles()[0]["CPU"] < 0.1


def test_no_more_at_a_time_than_there_are_trials_or_as_asked():
    assert plan([{"CPU": 64}], num_trials=3).concurrent == 3
    assert plan([{"CPU": 64}], max_concurrent=2).concurrent == 2
    assert count_fitting([64], plan([{"CPU": 64}], max_concurrent=2)) == 2


def test_slot_takes_no_more_than_keeps_others_out_so_that_a_busy_cluster_has_room():
    one = plan([{"CPU": 8}], [2], max_concurrent=1)
    assert (one.concurrent, count_fitting([8], one)) == (1, 1)
    assert one.cpus + one.filler_cpus < 4.01
    two = plan([{"CPU": 1000}], max_concurrent=2)
    assert (count_fitting([1000], two), two.cpus + two.filler_cpus < 334) == (2, True)


def test_cluster_that_grows_is_counted_by_what_it_may_become():
    assert plan([{"CPU": 1}], growth=[({"CPU": 4}, 2)], cpus_per_trial=1).concurrent == 9
    assert plan([{"CPU": 1}], growth=[({"CPU": 4}, 2)], cpus_per_trial=2).concurrent == 4
    assert plan([{"CPU": 1}], growth=[({"CPU": 8, "GPU": 1}, 2)], gpus_per_trial=0.5).concurrent == 4


def test_where_the_limits_of_an_autoscaler_are_not_known_a_trial_asks_it():
    assert plan([{"CPU": 1}], growth=[], cpus_per_trial=2).concurrent == 1
    assert plan([{"CPU": 4}], growth=[], cpus_per_trial=2).concurrent == 2
    with pytest.raises(UserError, match="no room"):
        plan([{"CPU": 1}], growth=[({"CPU": 1}, 5)], cpus_per_trial=2)


def test_want_of_room_is_refused():
    with pytest.raises(UserError, match="no room for a trial"):
        plan([{"CPU": 4}], cpus_per_trial=5)
    with pytest.raises(UserError, match="a node with 2 CPU, 1 GPU"):
        plan([{"CPU": 4}], cpus_per_trial=2, gpus_per_trial=1.0)


def count_fitting(declared, slots: Slots) -> int:
    """Trials that Ray can place: all of a trial's bundles on one node, in ten-thousandths, less than one cut off."""
    size = sum(int(bundle["CPU"] * 10_000) for bundle in slots.list_bundles())
    return sum(there * 10_000 // size for there in declared)


@given(
    st.lists(st.integers(1, 96), min_size=1, max_size=6),
    st.integers(1, 8),
    st.one_of(st.none(), st.integers(1, 20)),
)
def test_never_more_fit_than_planned(declared, cpus, most):
    if cpus > max(declared):
        return
    slots = plan([{"CPU": there} for there in declared], cpus_per_trial=cpus, max_concurrent=most)
    assert slots.concurrent <= sum(there // cpus for there in declared)
    assert slots.must_count or count_fitting(declared, slots) == slots.concurrent
