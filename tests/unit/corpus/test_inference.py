"""How many actors there are, of what size; and which settings are refused."""

import pytest

from pipelines.corpus import labeller
from pipelines.corpus.inference import (
    ActorPlan,
    ActorResources,
    InferenceConfig,
    find_device,
    load_engine,
    open_engine,
    plan_actors,
)
from pipelines.corpus.records import CorpusError
from pipelines.ner.bundle import load_bundle
from pipelines.ner.errors import UserError
from pipelines.ner.streams import EmissionsError


@pytest.mark.parametrize(
    ("resources", "nodes", "gpus", "expected"),
    [
        (ActorResources(), [3], 0, (1, 2, 0)),
        (ActorResources(), [1], 0, (1, 1, 0)),
        (ActorResources(), [17], 0, (4, 4, 0)),
        (ActorResources(), [17, 9, 2], 0, (6, 4, 0)),
        (ActorResources(), [33], 2, (2, 4, 1)),
        (ActorResources(gpus_per_actor=0.25), [33], 1, (4, 4, 0.25)),
        (ActorResources(gpus_per_actor=0), [9], 2, (2, 4, 0)),
        (ActorResources(cpus_per_actor=1), [5, 5], 0, (8, 1, 0)),
        (ActorResources(num_actors=2, cpus_per_actor=1), [5, 5], 0, (2, 1, 0)),
        (ActorResources(cpus_per_actor=3), [3], 0, (1, 3, 0)),
    ],
)
def test_pool_is_as_large_as_the_nodes_have_room_one_cpu_of_each_left(resources, nodes, gpus, expected):
    plan = plan_actors(resources, nodes, gpus)
    assert (plan.num_actors, plan.num_cpus, plan.num_gpus) == expected
    assert not plan.is_elastic


def test_pool_of_a_growing_cluster_has_no_bound_unless_one_is_given():
    assert plan_actors(ActorResources(), [0], 0, is_elastic=True) == ActorPlan(1, 1, 0, True, None)
    assert plan_actors(ActorResources(num_actors=3), [5], 0, is_elastic=True).max_actors == 3


@pytest.mark.parametrize("resources", [ActorResources(cpus_per_actor=4), ActorResources(gpus_per_actor=2)])
def test_actor_that_has_no_room_is_refused(resources):
    with pytest.raises(CorpusError, match="no room for an actor") as caught:
        plan_actors(resources, [3, 3], 1)
    assert "largest node 3 CPUs" in caught.value.rule
    assert plan_actors(resources, [3, 3], 1, is_elastic=True).num_actors == 1


def test_settings_out_of_range_are_all_told():
    problems = ActorResources(num_actors=0, cpus_per_actor=0, gpus_per_actor=1.5).find_problems()
    assert [one.where for one in problems] == [
        "`resources.num_actors`",
        "`resources.cpus_per_actor`",
        "`resources.gpus_per_actor`",
    ]
    assert ActorResources(num_actors=1, cpus_per_actor=1, gpus_per_actor=0.5).find_problems() == []
    problems = InferenceConfig(runtime="abacus", precision="fp8", device="mps", max_batch_tokens=0).find_problems()
    assert [one.where for one in problems] == [
        "`inference.runtime`",
        "`inference.precision`",
        "`inference.device`",
        "`inference.max_batch_tokens`",
    ]
    assert "openvino" in problems[0].rule
    assert InferenceConfig().find_problems() == InferenceConfig(device="cuda:1").find_problems() == []


@pytest.mark.parametrize(
    ("device", "num_gpus", "expected"),
    [("auto", 0, "cpu"), ("auto", 0.5, "auto"), ("cpu", 1, "cpu"), ("cuda", 0, "cuda")],
)
def test_actor_without_a_gpu_takes_none_that_its_machine_shows(device, num_gpus, expected):
    assert find_device(InferenceConfig(device=device), ActorPlan(1, 1, num_gpus)) == expected


def test_engine_opens_on_a_loaded_bundle_as_on_a_folder(tiny_bundle):
    config, plan = InferenceConfig(runtime="torch", precision="fp32"), ActorPlan(1, 1, 0.0)
    engines = (open_engine(load_bundle(tiny_bundle), config, plan), load_engine(str(tiny_bundle), config, plan))
    texts = ["Angela Merkel visited Utrecht."]
    assert engines[0].predict(texts) == engines[1].predict(texts)


def test_document_that_overflows_is_its_own_fault_and_a_mistake_of_the_engine_is_not(monkeypatch):
    def label(engine: object, texts: list[str], words: list[object]) -> list[str]:
        if "inf" in texts:
            raise EmissionsError("emissions are no numbers", rule="finite")
        if "cuda" in texts:
            raise UserError("no such device")
        return [text.upper() for text in texts]

    monkeypatch.setattr(labeller, "label_documents", label)
    one = object.__new__(labeller.ChunkLabeller)
    one.engine = None
    found = one._predict(["a", "inf", "b"], [None] * 3, None)
    assert (found[0], found[2]) == ("A", "B")
    assert isinstance(found[1], labeller.Failure)
    assert "emissions are no numbers" in found[1].detail
    with pytest.raises(EmissionsError):  # each and every one: the model is at fault
        one._predict(["inf", "inf"], [None] * 2, None)
    with pytest.raises(UserError, match="no such device"):
        one._predict(["a", "cuda"], [None] * 2, None)
