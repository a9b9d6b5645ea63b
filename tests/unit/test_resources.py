"""What doors hand to the planner, take from it, and let it learn."""

from dataclasses import replace

import pytest
from transformers import BertConfig

from pipelines.comparison import compare_training, learn_from_run
from pipelines.corpus.shards import ShardsInfo, SplitInfo
from pipelines.ner.model import ModelConfig
from pipelines.planning.calibration import BOUNDS
from pipelines.planning.descriptions import parse_cluster
from pipelines.planning.errors import PlanError
from pipelines.planning.inventory import Inventory, Node
from pipelines.resources import TrainSettings, apply_training_plan, build_training_request, plan_run, plan_search
from pipelines.training.adversarial import AdversarialConfig
from pipelines.training.config import TrainingConfig
from pipelines.training.parallel import ParallelConfig
from pipelines.training.resources import ResourcesConfig

HERE = Inventory((Node("here", 4.0, 16 * 2**30, real_cpus=2.0),), source="this machine")
SETTINGS = TrainSettings(ModelConfig(), TrainingConfig(precision="fp32"), ParallelConfig(), ResourcesConfig())
INFO = ShardsInfo(
    encoder="x",
    tokenizer_fingerprint="",
    scheme="BIO",
    tags=["O", "B-PER", "I-PER"],
    corpus_scheme="BIO",
    splitter="unicode",
    window=64,
    stride=16,
    splits={"train": SplitInfo(120, 120, 3000, 130, {}, {"16": 80, "32": 30, "80": 10})},
    split_off={},
    ledger={},
    duplicates={},
)


@pytest.fixture
def encoder(tmp_path) -> str:
    BertConfig(hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=128).save_pretrained(
        tmp_path / "encoder"
    )
    return str(tmp_path / "encoder")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """No run of another test corrects these predictions."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_settings_at_their_defaults_are_the_planners_and_others_are_kept():
    request = build_training_request(SETTINGS.training, SETTINGS.parallel, SETTINGS.resources, head="crf", num_tags=3)
    assert (request.strategy, request.device_batch_tokens, request.num_workers) == (None, None, None)
    assert (request.setup.head, request.setup.num_tags, request.precision) == ("crf", 3, "fp32")
    training = replace(SETTINGS.training, device_batch_tokens=512, adversarial=AdversarialConfig("pgd", steps=3))
    given = ResourcesConfig(num_workers="2..4", cpus_per_worker=1, use_gpu=False)
    request = build_training_request(training, ParallelConfig("fsdp"), given, head="linear", num_tags=3)
    assert (request.strategy, request.device_batch_tokens, request.num_workers) == ("fsdp", 512, (2, 4))
    assert (request.cpus_per_worker, request.use_gpu, request.setup.num_passes) == (1, False, 4)
    request = build_training_request(training, ParallelConfig(), given, head="linear", num_tags=3)
    assert request.strategy == "ddp", "pgd moves weights that a worker has whole"


def test_machine_of_its_own_changes_no_setting_but_says_which_they_are(encoder, capsys):
    plan = plan_run(SETTINGS, encoder, INFO, HERE)
    assert capsys.readouterr().err.count("plan:") == 2
    training, parallel, resources = apply_training_plan(plan, SETTINGS)
    assert (training, parallel) == (SETTINGS.training, SETTINGS.parallel)
    assert resources == ResourcesConfig(num_workers=1, cpus_per_worker=2, use_gpu=False)
    assert apply_training_plan(None, SETTINGS) == (SETTINGS.training, SETTINGS.parallel, SETTINGS.resources)


def test_elastic_numbers_of_workers_stay_elastic(encoder):
    settings = replace(SETTINGS, resources=ResourcesConfig(num_workers="1..4"))
    plan = plan_run(settings, encoder, INFO, parse_cluster("4x(2cpu,8GiB)"))
    assert apply_training_plan(plan, settings)[2].num_workers == "1..4"


@pytest.mark.parametrize("cluster", ["1x(8cpu,1xTPUv9)", "1x(8cpu,1gpu)"])
def test_gpu_of_unknown_speed_is_used_without_a_plan(encoder, capsys, cluster):
    assert plan_run(SETTINGS, encoder, INFO, parse_cluster(cluster)) is None
    assert "no plan: the speed of this kind of GPU is not known" in capsys.readouterr().err


def test_step_of_workers_that_exchange_in_one_of_several_is_measured_with_its_share_of_that(encoder):
    plan = plan_run(SETTINGS, encoder, INFO, HERE)
    usage = {"worker_peak_memory_mib": 0, "gpu_peak_memory_mib": 0, "step_s": 9.0}
    steps = [{"kind": "step", "step": at, "seconds": 5.0 if at % 4 == 0 else 1.0} for at in range(1, 11)]
    compared = compare_training(plan, usage, [{"kind": "start", "step": 0, "sync_every": 4}, *steps])
    assert compared["step_s"]["measured"] == 2.0
    assert compare_training(plan, usage, steps)["step_s"]["measured"] == 1.0


def test_measured_runs_correct_the_next_plan_of_this_machine_and_of_no_other(encoder):
    first = plan_run(SETTINGS, encoder, INFO, HERE)
    usage = {"worker_peak_memory_mib": 1.2 * first.memory.total / 2**20, "gpu_peak_memory_mib": 0, "step_s": 9.0}
    history = [{"kind": "step", "step": at, "seconds": 1.5 * first.predicted["step_s"]} for at in (1, 2, 3)]
    compared = compare_training(first, usage, history)
    assert compared["step_s"]["ratio"] == pytest.approx(1.5, rel=0.01)
    assert compared["memory_mib"]["ratio"] == pytest.approx(1.2, rel=0.01)
    for _ in range(3):
        learn_from_run(first, compared)
    second = plan_run(SETTINGS, encoder, INFO, HERE)
    assert second.predicted["step_s"] / first.predicted["step_s"] == pytest.approx(1.5, rel=0.02)
    assert second.memory.total / first.memory.total == pytest.approx(1.2, rel=0.02)
    again = compare_training(second, usage, history)
    assert again["step_s"]["ratio"] == pytest.approx(1, rel=0.02)
    learn_from_run(second, again)  # as before corrections: it does not drift
    third = plan_run(SETTINGS, encoder, INFO, HERE)
    assert third.predicted["step_s"] == pytest.approx(second.predicted["step_s"], rel=0.02)
    assert BOUNDS[0] <= third.predicted["step_correction"] <= BOUNDS[1]
    elsewhere = plan_run(SETTINGS, encoder, INFO, parse_cluster("1x(2cpu,16GiB)"))
    assert elsewhere.predicted["step_correction"] == 1


def test_where_only_an_autoscaler_knows_of_more_room_nothing_is_refused(encoder, capsys):
    settings = replace(SETTINGS, resources=ResourcesConfig(cpus_per_worker=8))
    assert plan_run(settings, encoder, INFO, replace(HERE, may_grow=True)) is None
    assert "what the autoscaler may add is not known" in capsys.readouterr().err
    with pytest.raises(PlanError, match="no room"):
        plan_run(settings, encoder, INFO, HERE)


def test_search_is_planned_as_its_trials_are_given(encoder):
    plan = plan_search(SETTINGS, encoder, INFO, parse_cluster("2x(9cpu,32GiB)"), num_trials=30)
    assert plan.settings["max_concurrent_trials"] * plan.settings["cpus_per_worker"] == 16, "one CPU a node is left"
    fewer = plan_search(SETTINGS, encoder, INFO, parse_cluster("2x(9cpu,32GiB)"), num_trials=30, max_concurrent=3)
    assert fewer.settings["max_concurrent_trials"] == 3
