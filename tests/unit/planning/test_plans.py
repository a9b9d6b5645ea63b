"""Plans: within limits, on nodes that hold them, never worse with more, and with reasons."""

from dataclasses import replace

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from transformers import AlbertConfig, BertConfig

from pipelines.planning.architecture import convert_config
from pipelines.planning.candidates import KEPT, USABLE, TrainingRequest, list_candidates
from pipelines.planning.cost import TrainingSetup
from pipelines.planning.descriptions import parse_cluster
from pipelines.planning.errors import PlanError
from pipelines.planning.fit import Placement, list_added
from pipelines.planning.inference_plans import ENOUGH, WORTH_S, plan_prediction, plan_serving
from pipelines.planning.inventory import Inventory, Node
from pipelines.planning.lengths import Lengths
from pipelines.planning.plans import Limits, render_short
from pipelines.planning.pools import KEPT as KEPT_BY_READERS
from pipelines.planning.pools import InferenceRequest
from pipelines.planning.training_plans import SLACK, WORTH, plan_training
from pipelines.planning.tuning_plans import DRIVER_CPUS, TrialRequest, plan_tuning
from tests.unit.planning.clusters import GIB, make_inventories
from tests.unit.planning.test_fit import check_node

SMALL = convert_config(BertConfig(hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536))
LARGE = convert_config(
    BertConfig(hidden_size=2048, num_hidden_layers=48, num_attention_heads=32, intermediate_size=8192)
)
LENGTHS = Lengths.from_counts({16: 300, 40: 500, 120: 80, 256: 10})
MANY = Lengths.from_counts({length: count * 100_000 for length, count in LENGTHS.counts})
SOME = settings(max_examples=70, deadline=None)
FOUR = parse_cluster("1x(32cpu,128GiB,4xA100,12/h)")


def check_placement(placement: Placement, inventory: Inventory, kept) -> None:
    nodes = {node.name: node for node in inventory.nodes}
    for group in inventory.groups:
        assert placement.added.get(group.name, 0) <= group.max_count
        nodes |= {node.name: node for node in list_added(group, placement.added.get(group.name, 0))}
    for name, count in placement.counts.items():
        check_node(nodes[name], count, placement.bundle, kept)


make_requests = st.builds(
    TrainingRequest,
    setup=st.just(TrainingSetup(num_tags=9)),
    batch_tokens=st.sampled_from([512, 1024, 65_536]),
    num_workers=st.sampled_from([None, None, (1, 1), (3, 3), (1, 4)]),
    cpus_per_worker=st.sampled_from([None, None, 2]),
    use_gpu=st.sampled_from([None, None, True, False]),
)


@SOME
@given(make_inventories(), make_requests, st.sampled_from([None, 0, 1, 3]))
def test_training_is_never_planned_beyond_a_node_its_memory_or_the_limits(inventory, request, gpus):
    try:
        plan = plan_training(inventory, SMALL, LENGTHS, request, Limits(gpus=gpus))
    except PlanError:
        return
    check_placement(plan.placement, inventory, KEPT)
    if plan.memory_limit_bytes:
        assert plan.memory.total <= plan.memory_limit_bytes * USABLE or plan.warnings
    chosen = plan.settings
    if gpus is not None:
        assert chosen["use_gpu"] * plan.placement.number <= gpus
    if request.num_workers:
        low, high = request.num_workers
        assert low <= plan.placement.number <= high
    if request.cpus_per_worker:
        assert chosen["cpus_per_worker"] == request.cpus_per_worker
    assert request.use_gpu in (None, chosen["use_gpu"])
    assert len(render_short(plan).splitlines()) <= 3


@SOME
@given(make_inventories(), st.data())
def test_training_is_never_slower_with_one_more_node(inventory, data):
    inventory = replace(inventory, groups=())
    usual = data.draw(st.sampled_from([parse_cluster("1x(8cpu,64GiB,1xL4)"), parse_cluster("1x(64cpu,256GiB)"), FOUR]))
    use_gpu = data.draw(st.booleans())  # GPUs that are there are taken, also for what CPUs would do as fast
    tokens = data.draw(st.sampled_from([1024, 65_536]))
    # fp32, for where this machine has bf16 it is taken to be faster than a described one with more cores
    request = TrainingRequest(batch_tokens=tokens, use_gpu=use_gpu, precision="fp32")
    try:
        before = plan_training(inventory, SMALL, LENGTHS, request)
    except PlanError:
        assume(False)
    after = plan_training(replace(inventory, nodes=(*inventory.nodes, *usual.nodes)), SMALL, LENGTHS, request)
    worth = [one.predicted["total_s"] * one.placement.number**WORTH for one in (before, after)]
    assert worth[1] <= SLACK * worth[0] * 1.001


@SOME
@given(make_inventories(), st.sampled_from([None, 1, 4]), st.sampled_from([None, 1.0, 3.0]))
def test_labelling_leaves_a_cpu_of_each_node_to_those_who_read(inventory, num_actors, cpus):
    request = InferenceRequest(num_actors=num_actors, cpus_per_actor=cpus)
    try:
        plan = plan_prediction(inventory, SMALL, LENGTHS, request)
    except PlanError:
        return
    check_placement(plan.placement, inventory, KEPT_BY_READERS)
    assert KEPT_BY_READERS.on(Node("any", 1)) == 1
    assert num_actors in (None, plan.placement.number)


@SOME
@given(make_inventories(), st.sampled_from(["1x(8cpu,64GiB,1xL4)", "1x(64cpu,256GiB)", "2x(3cpu,16GiB)"]))
def test_labelling_is_never_slower_with_more_nodes(inventory, more):
    inventory = replace(inventory, groups=())
    try:
        before = plan_prediction(inventory, SMALL, LENGTHS, InferenceRequest())
    except PlanError:
        assume(False)
    nodes = (*inventory.nodes, *parse_cluster(more).nodes)
    after = plan_prediction(replace(inventory, nodes=nodes), SMALL, LENGTHS, InferenceRequest())
    assert after.predicted["total_s"] <= max(WORTH_S, before.predicted["total_s"] / ENOUGH) * 1.001


@pytest.mark.parametrize(
    ("setup", "cluster"),
    [
        (TrainingSetup(strategy="fsdp"), "4x(8cpu,32GiB,1xL4)"),
        (TrainingSetup(strategy="tensor"), "1x(64cpu,256GiB,5xA100)"),
        (TrainingSetup(strategy="hybrid", inside="tensor", inside_size=4), "1x(64cpu,256GiB,4xA100)"),
        (TrainingSetup(strategy="pipeline"), "1x(64cpu,256GiB,8xA100)"),
    ],
)
def test_a_given_strategy_has_as_many_workers_as_it_can_have(setup, cluster):
    request = TrainingRequest(setup, strategy=setup.strategy, batch_tokens=4096)
    try:
        plan = plan_training(parse_cluster(cluster), SMALL, LENGTHS, request)
    except PlanError:
        assert setup.inside_size == 4, "two groups of four have no room on four GPUs"
        return
    number = plan.settings["num_workers"]
    assert number >= 2
    assert setup.strategy != "tensor" or SMALL.num_heads % number == 0
    assert setup.strategy != "pipeline" or number <= SMALL.num_layers


def test_search_that_costs_more_than_it_may_is_refused():
    inventory = parse_cluster("1x(8cpu,32GiB,1xL4,3/h)")
    plan = plan_tuning(inventory, SMALL, MANY, TrialRequest(TrainingRequest(), 10))
    assert plan.predicted["cost"] > 0.01
    with pytest.raises(PlanError, match="within the limits"):
        plan_tuning(inventory, SMALL, MANY, TrialRequest(TrainingRequest(), 10), Limits(price=0.01))


def test_search_takes_the_kind_of_gpu_that_is_asked_for():
    inventory = parse_cluster("2x(8cpu,32GiB,1xL4)+1x(8cpu,32GiB,1xT4)")
    plan = plan_tuning(inventory, SMALL, LENGTHS, TrialRequest(TrainingRequest(accelerator="T4"), 10))
    assert plan.settings["accelerator"] == "T4"
    with pytest.raises(PlanError):
        plan_tuning(inventory, SMALL, LENGTHS, TrialRequest(TrainingRequest(accelerator="A100"), 10))


def test_nodes_are_added_where_those_there_would_take_too_long():
    inventory = parse_cluster("1x(4cpu,16GiB)+0..8x(8cpu,32GiB,1xL4)")
    much = Lengths.from_counts({100: 10_000_000})
    plan = plan_prediction(inventory, SMALL, much, InferenceRequest(), Limits(hours=10))
    assert plan.predicted["total_s"] <= 36_000
    assert plan.placement.added
    with pytest.raises(PlanError, match="within the limits"):
        plan_prediction(inventory, SMALL, much, InferenceRequest(), Limits(hours=0.01))


def test_replicas_add_no_more_nodes_than_they_need():
    plan = plan_serving(parse_cluster("0..8x(16cpu,64GiB)"), SMALL, LENGTHS, InferenceRequest(tokens_per_s=100))
    assert plan.placement.number == 1
    assert sum(plan.placement.added.values()) == 1


@pytest.mark.parametrize(("num_tokens", "most"), [(10_000, 1), (100_000, 12), (10**7, 63)])
def test_actors_are_started_for_some_seconds_of_work_each(num_tokens, most):
    inventory = parse_cluster("1x(64cpu,256GiB)")
    lengths = Lengths.from_counts({100: num_tokens // 100})
    request = InferenceRequest(cpus_per_actor=1.0)
    plan = plan_prediction(inventory, SMALL, lengths, request)
    number, seconds = plan.placement.number, plan.predicted["total_s"]
    assert 1 <= number <= most
    assert number == 63 or seconds <= WORTH_S
    assert number == 1 or seconds * number > WORTH_S * (number - 1)
    assert any("less than 5 s of work" in one for one in plan.reasons) == (number < 63)
    asked = plan_prediction(inventory, SMALL, lengths, replace(request, num_actors=63))
    assert asked.placement.number == 63


@SOME
@given(make_inventories(), st.sampled_from([None, (1, 1), (2, 2)]), st.integers(1, 50))
def test_trials_at_once_fit_with_the_functions_that_start_them(inventory, workers, num_trials):
    request = TrialRequest(TrainingRequest(num_workers=workers), num_trials)
    try:
        plan = plan_tuning(inventory, SMALL, LENGTHS, request)
    except PlanError:
        return
    check_placement(plan.placement, inventory, replace(KEPT, cpus=0.0))
    number = plan.settings["max_concurrent_trials"]
    assert 1 <= number <= num_trials
    assert plan.placement.number == number * plan.settings["num_workers"]
    bundle = plan.placement.bundle
    nodes = [*inventory.nodes, *(one for group in inventory.groups for one in list_added(group, group.max_count))]
    left = [
        node.cpus - node.used_cpus - plan.placement.counts.get(node.name, 0) * bundle.cpus
        for node in nodes
        if not node.is_draining
    ]
    assert sum(left) >= number * plan.settings["driver_cpus"] - 1e-6
    assert plan.settings["driver_cpus"] == (DRIVER_CPUS if workers == (2, 2) else 0.0)


@pytest.mark.parametrize("cores", [1, 2, 3, 4, 6, 8, 16, 64])
def test_a_machine_of_its_own_gives_one_worker_all_its_cores_as_ever(cores):
    machine = Inventory((Node("here", cores + 2.0, 64 * GIB, real_cpus=float(cores)),))
    plan = plan_training(machine, SMALL, LENGTHS, TrainingRequest())
    chosen = plan.settings
    assert (chosen["num_workers"], chosen["cpus_per_worker"], chosen["use_gpu"]) == (1, cores, False)
    assert (chosen["strategy"], chosen["gradient_checkpointing"], chosen["device_batch_tokens"]) == ("ddp", False, 4096)


def test_plan_for_64_gpus_weighs_few_ways_for_a_corpus_of_any_size():
    """What takes time is each way's cost; under a second for 64 GPUs is some hundred of them at most."""
    inventory = parse_cluster("8x(96cpu,1152GiB,8xA100)")
    request = TrainingRequest(batch_tokens=16_384)
    few, _ = list_candidates(inventory, SMALL, LENGTHS, request, Limits())
    many, _ = list_candidates(inventory, SMALL, MANY, request, Limits())
    assert len(few) == len(many) < 100
    assert {one.setup.num_workers for one in many} >= {1, 8, 64}
    assert many[0].num_steps * 16_384 == pytest.approx(MANY.num_tokens, rel=0.1)


@SOME
@given(make_inventories(), make_requests)
def test_activations_are_computed_twice_only_where_memory_is_short(inventory, request):
    try:
        plan = plan_training(inventory, SMALL, LENGTHS, request)
    except PlanError:
        return
    if plan.settings["gradient_checkpointing"]:
        kept = replace(request, setup=replace(request.setup, gradient_checkpointing=False))
        ways, _ = list_candidates(inventory, SMALL, LENGTHS, kept, Limits())
        same = [one for one in ways if one.setup.num_workers == plan.placement.number and one.complexity == 0]
        assert all(one.overflow > 1 for one in same if one.placement.bundle == plan.placement.bundle)


def test_small_batches_take_one_gpu_and_say_why():
    plan = plan_training(FOUR, SMALL, LENGTHS, TrainingRequest(batch_tokens=1024))
    assert plan.settings["num_workers"] == 1
    assert any("sub-tokens, and be" in reason for reason in plan.reasons)
    assert any(one.what.startswith("4 x A100") for one in plan.rejected)


def test_large_batches_take_more_gpus():
    plan = plan_training(FOUR, SMALL, MANY, TrainingRequest(batch_tokens=262_144))
    assert plan.settings["num_workers"] == 4


def test_model_too_large_for_one_gpu_is_sliced_or_refused():
    one = parse_cluster("1x(16cpu,64GiB,1xT4)")
    with pytest.raises(PlanError, match="does not fit into the memory") as caught:
        plan_training(one, LARGE, LENGTHS, TrainingRequest(use_gpu=True))
    assert "fsdp" in caught.value.remedy
    plan = plan_training(parse_cluster("1x(64cpu,256GiB,8xT4)"), LARGE, LENGTHS, TrainingRequest(use_gpu=True))
    assert plan.settings["strategy"] == "fsdp"
    assert plan.settings["num_workers"] > 1


def test_nodes_to_be_added_are_taken_only_if_those_there_do_not_do():
    inventory = parse_cluster("1x(8cpu,32GiB,1xT4)+0..8x(32cpu,128GiB,4xA100)")
    here = plan_training(inventory, SMALL, LENGTHS, TrainingRequest())
    assert not here.placement.added
    assert here.bundles_to_request == []
    grown = plan_training(inventory, SMALL, LENGTHS, TrainingRequest(num_workers=(6, 6)))
    assert grown.placement.added == {"node-2": 2}
    assert grown.bundles_to_request == [grown.placement.bundle.to_resources()] * 6
    assert grown.placement.bundle.to_resources()["accelerator_type:A100"] == 0.001
    assert "needs more nodes: 2 of `node-2`" in render_short(grown)


def test_hours_take_the_cheapest_way_that_meets_them():
    inventory = parse_cluster("4x(8cpu,32GiB,1xL4,1/h)+4x(8cpu,32GiB,1xA100,30/h)")
    request = TrainingRequest(batch_tokens=65_536)
    slow = plan_training(inventory, SMALL, MANY, request, Limits(hours=10_000))
    fast = plan_training(inventory, SMALL, MANY, request)
    assert slow.predicted["cost"] <= fast.predicted["cost"]
    assert slow.predicted["total_s"] <= 10_000 * 3600
    with pytest.raises(PlanError, match="within the limits") as caught:
        plan_training(inventory, SMALL, MANY, request, Limits(hours=1e-6))
    assert "fastest" in caught.value.value
    with pytest.raises(PlanError, match="no price is known"):
        plan_training(parse_cluster("1x(8cpu,32GiB)"), SMALL, LENGTHS, request, Limits(price=5))


def test_busy_and_draining_nodes_are_left_alone():
    nodes = parse_cluster("3x(8cpu,32GiB,1xL4)").nodes
    nodes = (replace(nodes[0], used_gpus=1.0, used_cpus=8.0), replace(nodes[1], is_draining=True), nodes[2])
    plan = plan_training(Inventory(nodes), SMALL, LENGTHS, TrainingRequest(use_gpu=True))
    assert plan.placement.counts == {nodes[2].name: 1}
    assert "3 x (8cpu,32GiB,1xL4), 1 draining and 1 busy" in plan.inventory.to_dict()["nodes"]


def test_replicas_bear_the_load_with_room_to_spare_or_are_refused():
    inventory = parse_cluster("8x(8cpu,32GiB,1xL4)")
    one = plan_serving(inventory, SMALL, LENGTHS, InferenceRequest(tokens_per_s=1000.0))
    assert one.placement.number == 1
    most = plan_serving(inventory, SMALL, LENGTHS, InferenceRequest())
    needed = most.predicted["tokens_per_s"] / most.placement.number * 3
    three = plan_serving(inventory, SMALL, LENGTHS, InferenceRequest(tokens_per_s=needed))
    assert three.placement.number == 5, "three replicas' speed is 60 % of five's, and 75 % of four's"
    with pytest.raises(PlanError, match="does not bear the load"):
        plan_serving(inventory, SMALL, LENGTHS, InferenceRequest(tokens_per_s=1e9))


def test_share_of_a_gpu_holds_the_model():
    plan = plan_prediction(parse_cluster("1x(16cpu,64GiB,1xL4)"), SMALL, MANY, InferenceRequest(gpus_per_actor=0.5))
    assert plan.memory.total <= plan.memory_limit_bytes
    assert plan.placement.number == 2
    with pytest.raises(PlanError, match="no room for an actor"):
        plan_prediction(parse_cluster("1x(16cpu,64GiB,1xT4)"), LARGE, LENGTHS, InferenceRequest(gpus_per_actor=0.1))


def test_nodes_added_of_all_groups_together_are_no_more_than_the_cluster_may_have():
    grows = parse_cluster("1x(4cpu,16GiB)+0..4x(8cpu,32GiB,1xL4)+0..4x(16cpu,64GiB,1xT4)")
    bounded = replace(grows, most_added=4)
    much = Lengths.from_counts({100: 10**9})
    for plan in (
        plan_prediction(bounded, SMALL, much, InferenceRequest(), Limits(hours=10**6)),
        plan_tuning(bounded, SMALL, MANY, TrialRequest(TrainingRequest(use_gpu=True), 100)),
        plan_training(bounded, SMALL, MANY, TrainingRequest(use_gpu=True, num_workers=(4, 4))),
    ):
        assert sum(plan.placement.added.values()) <= 4
    with pytest.raises(PlanError):
        plan_training(bounded, SMALL, MANY, TrainingRequest(use_gpu=True, num_workers=(8, 8)))
    assert plan_training(grows, SMALL, MANY, TrainingRequest(use_gpu=True, num_workers=(4, 4)))


def test_of_nodes_that_may_be_added_the_roomiest_count():
    groups = "1x(4cpu,16GiB)+0..4x(8cpu,32GiB,1xA100)+0..2x(64cpu,256GiB,8xA100)"
    bounded = replace(parse_cluster(groups), most_added=2)
    request = TrainingRequest(use_gpu=True, num_workers=(8, 8))
    plan = plan_training(bounded, SMALL, MANY, request)
    assert plan.settings["num_workers"] == 8
    assert sum(plan.placement.added.values()) <= 2


def test_activations_are_not_computed_twice_by_encoders_that_cannot():
    albert = convert_config(AlbertConfig(hidden_size=768, num_attention_heads=12, intermediate_size=3072))
    found, _ = list_candidates(parse_cluster("1x(8cpu,32GiB,4xL4)"), albert, LENGTHS, TrainingRequest(), Limits())
    assert found
    assert not any(one.setup.gradient_checkpointing for one in found)


MIXED = parse_cluster("1x(8cpu,32GiB,1xL4,0.9776/h)+1x(96cpu,1152GiB,8xA100,21.957642/h)")
"""Few slow GPUs that are cheap, many fast ones that are dear."""


def test_labelling_within_a_price_is_done_by_what_is_slower_and_cheaper():
    much = Lengths.from_counts({length: count * 100_000 for length, count in MANY.counts})
    fastest = plan_prediction(MIXED, SMALL, much, InferenceRequest())
    cheap = plan_prediction(MIXED, SMALL, much, InferenceRequest(), Limits(price=0.9 * fastest.predicted["cost"]))
    assert (fastest.settings["accelerator"], cheap.settings["accelerator"]) == ("A100", "L4")
    assert cheap.predicted["cost"] <= 0.9 * fastest.predicted["cost"]
    with pytest.raises(PlanError, match="cannot be done within the limits"):
        plan_prediction(MIXED, SMALL, much, InferenceRequest(), Limits(price=0.01))


def test_search_within_a_price_is_done_by_what_is_cheaper_and_hours_are_of_all_trials():
    request = TrialRequest(TrainingRequest(), 20)
    fastest = plan_tuning(MIXED, SMALL, LENGTHS, request)
    cheap = plan_tuning(MIXED, SMALL, LENGTHS, request, Limits(price=0.6 * fastest.predicted["cost"]))
    assert cheap.predicted["cost"] <= 0.6 * fastest.predicted["cost"]
    one_gpu = parse_cluster("1x(8cpu,32GiB,1xL4)")
    trials = plan_tuning(one_gpu, SMALL, LENGTHS, request)
    hours = trials.predicted["total_s"] / 3600
    assert trials.predicted["total_s"] > trials.predicted["trial_s"]
    plan_tuning(one_gpu, SMALL, LENGTHS, request, Limits(hours=1.01 * hours))
    with pytest.raises(PlanError, match="cannot be done within the limits"):
        plan_tuning(one_gpu, SMALL, LENGTHS, request, Limits(hours=0.9 * hours))
