"""Every strategy trains as one process does: losses, weights, checkpoints; several gloo processes a group."""

import time
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import pytest
import ray
import torch
import torch.distributed as dist
import torch.multiprocessing
from ray.train import WorkerGroupError
from transformers import (
    AlbertConfig,
    AutoModelForTokenClassification,
    BertConfig,
    GPT2Config,
    MPNetConfig,
    TapasConfig,
    XLNetConfig,
)

from pipelines.evaluation.metrics import Counts
from pipelines.ner.encoders import EncoderError
from pipelines.ner.model import TokenClassifier
from pipelines.ner.streams import EmissionsError
from pipelines.training import trainer, worker
from pipelines.training.adversarial import AdversarialConfig
from pipelines.training.averaging import AveragingConfig
from pipelines.training.batches import TrainingWindows
from pipelines.training.config import TrainingConfig, TrainingError, find_idle
from pipelines.training.devices import DeviceMemoryError
from pipelines.training.forward import ForwardError, check_passes_differ
from pipelines.training.freezing import FreezingConfig
from pipelines.training.optimizer import OptimizerConfig
from pipelines.training.parallel import ParallelConfig, Strategy
from pipelines.training.pipeline import KEPT_SCHEDULES, Pipeline
from pipelines.training.resources import ResourcesConfig, choose_cpus, count_places, plan_workers
from pipelines.training.scoring import score_dev
from pipelines.training.slices import Sliced
from pipelines.training.strategies import find_idle_alone, find_misfits
from pipelines.training.worker import Group
from tests.unit.training.conftest import SCHEME

CASES = {
    "ddp": ParallelConfig(),
    "ddp, gradient checkpointing": ParallelConfig(gradient_checkpointing=True),
    "ddp, bf16 gradients": ParallelConfig(gradient_compression="bf16"),
    "ddp, powersgd": ParallelConfig(gradient_compression="powersgd"),
    "fsdp": ParallelConfig(strategy="fsdp"),
    "fsdp, gradient checkpointing": ParallelConfig(strategy="fsdp", gradient_checkpointing=True),
    "tensor": ParallelConfig(strategy="tensor"),
    "pipeline": ParallelConfig(strategy="pipeline"),
    "pipeline, gradient checkpointing": ParallelConfig(strategy="pipeline", gradient_checkpointing=True),
    "local_sgd": ParallelConfig(strategy="local_sgd", sync_every=2),
}
MESHES = {
    "hybrid, shard": ParallelConfig(strategy="hybrid", inside="shard"),
    "hybrid, tensor": ParallelConfig(strategy="hybrid", inside="tensor"),
}
WITH_CRF = ("ddp", "fsdp", "tensor", "pipeline", "hybrid, tensor")
TOLERANCES = {"ddp, bf16 gradients": 2e-2, "ddp, powersgd": 0.3, "local_sgd": 0.3}
"""Of the loss, in nats a word; 1e-4 for those that compute the same sums."""


def configure(**changes):
    base = {"num_epochs": 2, "batch_tokens": 120, "device_batch_tokens": 60, "precision": "fp32"}
    return TrainingConfig(
        **(base | {"checkpoint_every_steps": 3} | changes), optimizer=OptimizerConfig(sparse_embeddings=False)
    )


def run_one(room, encoder, head, parallel, state=None):
    model = room.build_model(encoder, head, seed=1 if state is None else 99)
    return room.run_loop(model, room.make_table(30), configure(), parallel=parallel, state=state)


def run_rank(rank, world_size, room, encoder, cases, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world_size)
    found = {}
    for case, parallel in cases.items():
        for head in ("linear", "crf") if case in WITH_CRF else ("linear",):
            whole = run_one(room, encoder, head, parallel)
            held = sum(len(state.optimizer["moments"]) + len(state.best_model) for state in whole.states)
            dist.broadcast_object_list(written := [whole.states])  # as checkpoints of the first worker
            [states] = written
            middle = next(state for state in states if state.epoch_step and state.epoch)
            at = middle.step
            again = run_one(room, encoder, head, parallel, state=middle)
            found[case, head] = {
                "losses": whole.losses,
                "weights": states[-1].model,
                "num_gathered": len(whole.states[-1].model) + held,
                "best": whole.final.best_model,
                "resumed": again.losses,
                "resumed at": at,
                "rows": whole.steps,
                "start": whole.starts[0],
            }
    torch.save(found, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


def run_group(tmp_path_factory, room, encoder, cases, world_size):
    folder = tmp_path_factory.mktemp("group")
    torch.multiprocessing.spawn(run_rank, (world_size, room, encoder, cases, str(folder)), nprocs=world_size)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(world_size)]


@pytest.fixture(scope="module")
def ranks(training_room, tiny_encoder, tmp_path_factory):
    """What two processes, and four for a mesh, found in every case."""
    pairs = run_group(tmp_path_factory, training_room, tiny_encoder, CASES, 2)
    fours = run_group(tmp_path_factory, training_room, tiny_encoder, MESHES, 4)
    return {run: [rank[run] for rank in group] for group in (pairs, fours) for run in group[0]}


@pytest.fixture(scope="module")
def alone(training_room, tiny_encoder):
    return {head: run_one(training_room, tiny_encoder, head, None) for head in ("linear", "crf")}


RUNS = [(case, "linear") for case in (*CASES, *MESHES)] + [(case, "crf") for case in WITH_CRF]
each_case = pytest.mark.parametrize(("case", "head"), RUNS)


@each_case
def test_losses_and_weights_are_those_of_one_process(ranks, alone, head, case):
    tolerance = TOLERANCES.get(case, 1e-4)
    for found in ranks[case, head]:
        assert found["losses"] == pytest.approx(alone[head].losses, abs=tolerance)
        assert found["weights"].keys() == alone[head].states[-1].model.keys()
        for name, weight in alone[head].states[-1].model.items():
            assert found["weights"][name].shape == weight.shape
            if case not in TOLERANCES:
                torch.testing.assert_close(found["weights"][name], weight, rtol=0, atol=1e-3, msg=name)


@each_case
def test_only_the_worker_that_writes_checkpoints_keeps_what_is_gathered(ranks, alone, head, case):
    first, *others = ranks[case, head]
    assert first["best"].keys() == first["weights"].keys()
    assert [found["best"] for found in others] == [{}] * len(others)
    if not case.startswith(("ddp", "local_sgd")):  # where nothing is gathered, each has its own
        assert [found["num_gathered"] for found in others] == [0] * len(others)
        assert first["num_gathered"] > 0


class Located(TokenClassifier):
    """Knows where it was moved to, without moving, and where it was copied."""

    place = "cpu"
    copied: ClassVar[list[str]] = []

    def to(self, device):
        self.place = str(device)
        return self

    def cpu(self):
        return self.to("cpu")

    def __reduce_ex__(self, protocol):
        """Called where it is copied."""
        self.copied.append(self.place)
        return super().__reduce_ex__(protocol)


@pytest.mark.parametrize("start", ["cpu", "cuda"])
def test_the_whole_model_is_on_the_gpu_only_while_it_is_scored(training_room, tiny_encoder, monkeypatch, start):
    monkeypatch.setattr(Located, "copied", [])
    model = training_room.build_model(tiny_encoder, "linear")
    strategy = Sliced(Located(model.network, SCHEME).to(start), ParallelConfig("fsdp"), torch.device("cuda"))
    assert (strategy.model.place, strategy.whole.place, Located.copied) == ("cuda", "cpu", ["cpu"])
    with strategy.open_model() as scored:
        assert scored is strategy.whole
        scored.to("cuda")
    assert (strategy.model.place, strategy.whole.place) == ("cuda", "cpu")
    with Strategy(model, ParallelConfig(), torch.device("cpu")).open_model() as scored:
        assert scored is model


def test_a_pipeline_keeps_the_buffers_of_few_shapes(training_room, tiny_encoder, tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    try:
        model, windows = training_room.build_model(tiny_encoder, "linear"), TrainingWindows(training_room.make_table(1))
        stages = Pipeline(model, ParallelConfig(strategy="pipeline"), torch.device("cpu"))
        stages.prepare("fp32", 0.0)
        losses = []
        for num_rows in [*range(1, 2 * KEPT_SCHEDULES), 1]:
            batch = windows.collate([0] * num_rows, 0, 0)
            losses.append(float(stages.compute([(batch, 1.0)] * 4, 1.0, lambda part: None)) / num_rows)
            assert len(stages.schedules) <= KEPT_SCHEDULES
        assert losses == pytest.approx([losses[0]] * len(losses), rel=1e-4)
    finally:
        dist.destroy_process_group()


@each_case
def test_a_resumed_run_repeats_the_rest(ranks, head, case):
    tolerance = {"ddp, powersgd": 5e-2}.get(case, 1e-5)  # its errors of the past are not kept
    for found in ranks[case, head]:
        assert 0 < found["resumed at"] < len(found["losses"])
        assert found["resumed"] == pytest.approx(found["losses"][found["resumed at"] :], abs=tolerance)


@each_case
def test_every_worker_holds_and_sends_what_its_strategy_says(ranks, head, case):
    whole = sum(weight.numel() * 4 for weight in ranks[case, head][0]["weights"].values()) / 2**20
    measured = [row for found in ranks[case, head] for row in found["rows"] if "state_mib" in row]
    assert len(measured) == len(ranks[case, head])
    for row in measured:
        state, sent = row["state_mib"], row["sent_mib"]
        assert state["gradients"] == pytest.approx(state["weights"], abs=0.01)
        assert state["moments"] == pytest.approx(2 * state["weights"], abs=0.01)
        if case.startswith(("ddp", "local_sgd")):
            assert state["weights"] == pytest.approx(whole, rel=0.01)
        elif case.startswith("fsdp") or case == "hybrid, shard":
            assert state["weights"] == pytest.approx(whole / 2, rel=0.02)
            assert sent["reduce-scatter"] == pytest.approx(whole / 2, rel=0.02)
        elif case == "hybrid, tensor":
            assert state["weights"] < whole / 3
        else:
            assert whole / 10 < state["weights"] < whole * 9 / 10
        expected = {"ddp": whole, "ddp, gradient checkpointing": whole, "ddp, bf16 gradients": whole / 2}
        if case in expected:
            assert sent["all-reduce"] == pytest.approx(expected[case], rel=0.02)
        if case == "ddp, powersgd":
            assert sent["all-reduce"] < whole / 4
        if case == "local_sgd":  # every second step
            assert sent["all-reduce"] == pytest.approx(whole / 2, rel=0.02)
        if case.startswith("pipeline"):
            assert 0 < sent["messages"] < whole / 4


@each_case
def test_every_step_tells_each_workers_own_time(ranks, head, case):
    for found in ranks[case, head]:
        assert [len(row["worker_s"]) for row in found["rows"]] == [len(ranks[case, head])] * len(found["rows"])
        assert found["rows"] != []


def test_local_sgd_averages_weights_only_now_and_then(ranks):
    rows = ranks["local_sgd", "linear"][0]["rows"]
    assert len({row["gradient_norm"] for row in rows}) == len(rows)
    assert [ranks[case, "linear"][0]["start"]["sync_every"] for case in ("local_sgd", "ddp")] == [2, 1]
    losses = [found["losses"] for found in ranks["local_sgd", "linear"]]
    assert losses[0] == losses[1]


def slow_down_one(rank, room, encoder, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    model = room.build_model(encoder, "linear")
    if rank == 1:
        model.network.bert.embeddings.word_embeddings.register_forward_hook(lambda *_: time.sleep(0.05))
    told = room.run_loop(model, room.make_table(16), configure())
    torch.save([row["worker_s"] for row in told.steps], Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


def test_a_straggler_is_seen_in_the_metrics(training_room, tiny_encoder, tmp_path):
    torch.multiprocessing.spawn(slow_down_one, (training_room, tiny_encoder, str(tmp_path)), nprocs=2)
    for rank in (0, 1):
        worker_s = torch.tensor(torch.load(tmp_path / f"{rank}.pt", weights_only=True)).median(dim=0).values
        assert worker_s[1] > worker_s[0] + 0.04


@pytest.mark.parametrize(
    ("config", "num_workers", "told"),
    [
        (ParallelConfig(strategy="fsdp"), 1, ["at least 2 workers", "fsdp with 1"]),
        (ParallelConfig(strategy="tensor"), 3, ["heads and hidden units that the workers divide", "3 workers"]),
        (ParallelConfig(strategy="pipeline"), 3, ["2 layers, 3 workers"]),
        (ParallelConfig(strategy="hybrid"), 2, ["multiple of the 2 workers of a group, and at least 2 groups"]),
        (ParallelConfig(strategy="hybrid", inside_size=3), 4, ["multiple of the 3 workers", "4 workers"]),
        (ParallelConfig(strategy="hybrid", inside="tensor", inside_size=3), 6, ["heads and hidden units", "3 workers"]),
        (ParallelConfig(strategy="fsdp", cpu_offload=True), 2, ["on GPUs", "without GPUs"]),
        (ParallelConfig(cpu_offload=True), 2, ["fsdp, or hybrid with shard"]),
    ],
)
def test_what_the_workers_or_the_encoder_cannot_do_is_refused(tiny_encoder, config, num_workers, told):
    [problem] = find_misfits(config, num_workers, False, tiny_encoder)
    assert [fact for fact in told if fact not in str(problem)] == []


@pytest.mark.parametrize("config", [*CASES.values(), *MESHES.values()], ids=[*CASES, *MESHES])
def test_what_fits_is_not_refused(tiny_encoder, config):
    assert config.find_problems() == []
    assert find_misfits(config, 4 if config.strategy == "hybrid" else 2, False, tiny_encoder) == []


def test_an_architecture_that_cannot_be_sliced_is_refused(tmp_path):
    AlbertConfig(hidden_size=32, num_attention_heads=4, intermediate_size=64).save_pretrained(tmp_path)
    for strategy in ("tensor", "pipeline"):
        [problem] = find_misfits(ParallelConfig(strategy=strategy), 2, False, str(tmp_path))
        assert "knows only some architectures" in str(problem)
        assert "take ddp or fsdp" in str(problem)


GPT2 = GPT2Config(vocab_size=99, n_embd=32, n_layer=2, n_head=4)
STILL_BERT = BertConfig(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)


@pytest.mark.parametrize(
    ("config", "changes", "dropout", "where"),
    [
        (BertConfig(), {"freezing": FreezingConfig(13)}, None, "training.freezing.layers"),
        (AlbertConfig(), {"freezing": FreezingConfig(1)}, None, "training.freezing.layers"),
        (AlbertConfig(), {"optimizer": OptimizerConfig(layer_decay=0.9)}, None, "training.optimizer.layer_decay"),
        (GPT2, {"optimizer": OptimizerConfig(layer_decay=0.9)}, None, "training.optimizer.layer_decay"),
        (XLNetConfig(), {"dropout_samples": 2}, None, "training.dropout_samples"),
        (STILL_BERT, {"dropout_samples": 2}, None, "training.dropout_samples"),
        (STILL_BERT, {"r_drop": 1.0}, None, "training.r_drop"),
    ],
)
def test_an_option_that_the_encoder_cannot_have_is_refused_before_anything_starts(
    tmp_path, config, changes, dropout, where
):
    config.save_pretrained(tmp_path)
    [problem] = find_misfits(ParallelConfig(), 1, False, str(tmp_path), TrainingConfig(**changes), dropout)
    assert problem.where == f"`{where}`"


@pytest.mark.parametrize(
    ("config", "changes", "dropout"),
    [
        (BertConfig(), {"freezing": FreezingConfig(12), "optimizer": OptimizerConfig(layer_decay=0.9)}, None),
        (STILL_BERT, {"dropout_samples": 2, "r_drop": 1.0}, 0.1),
        (TapasConfig(), {"freezing": FreezingConfig(2)}, None),
    ],
    ids=["layers", "dropout given", "without a token classifier"],
)
def test_an_option_that_the_encoder_can_have_is_not_refused(tmp_path, config, changes, dropout):
    config.save_pretrained(tmp_path)
    assert find_misfits(ParallelConfig(), 1, False, str(tmp_path), TrainingConfig(**changes), dropout) == []


def test_find_problems_lists_every_bad_value_at_once():
    config = ParallelConfig(
        strategy="async",
        gradient_compression="fp8",
        powersgd_rank=0,
        inside="rows",
        inside_size=1,
        sync_every=0,
        micro_batches=0,
    )
    found = {problem.where for problem in config.find_problems()}
    names = {name for name in vars(config) if name not in ("gradient_checkpointing", "cpu_offload")}
    assert found == {f"`parallel.{name}`" for name in names}
    [problem] = ParallelConfig(strategy="fsdp", gradient_compression="bf16").find_problems()
    assert "nothing to compress" in str(problem)


@pytest.mark.parametrize(
    ("cores", "gpus", "num_workers", "expected"),
    [
        ([8], None, 1, 8),
        ([8], None, 3, 2),
        ([2], None, 4, 1),
        ([16, 4], None, 4, 4),
        ([8, 64], [0, 8], 8, 8),  # a head without GPUs
        ([0, 32, 32, 32], [0, 4, 4, 4], 12, 8),
        ([64, 8], [8, 1], 9, 8),
        ([16, 8], [0, 1], 1, 8),  # a larger node for data
        ([], [], 1, 1),
    ],
)
def test_workers_take_what_lets_all_of_them_find_a_place(cores, gpus, num_workers, expected):
    gpus = [1000] * len(cores) if gpus is None else gpus
    cpus = choose_cpus(cores, gpus, num_workers)
    assert cpus == expected
    if cores and sum(cores) >= num_workers:
        assert count_places(cores, gpus, cpus) >= num_workers


KINDS = {
    "none": [{"CPU": 8.0}],
    "two": [{"CPU": 8.0, "GPU": 2.0, "accelerator_type:T4": 1.0}, {"CPU": 8.0, "GPU": 1.0, "accelerator_type:L4": 1.0}],
}


@pytest.fixture
def connect_to(monkeypatch):
    """Stands for a connected cluster that does not grow."""

    def stand_for(nodes):
        alive = [{"Alive": True, "NodeManagerAddress": f"node {at}", "Resources": one} for at, one in enumerate(nodes)]
        monkeypatch.setattr(ray, "nodes", lambda: alive)
        monkeypatch.setattr(ray.util, "get_node_ip_address", lambda: "elsewhere")
        monkeypatch.setattr(ray._private.state.state, "get_max_resources_from_cluster_config", lambda: None)

    return stand_for


def test_workers_take_gpus_of_the_kind_that_is_given(connect_to):
    connect_to(KINDS["two"])
    plan = plan_workers(ResourcesConfig(accelerator="T4"))
    assert (plan.num_workers, plan.accelerator_type) == (2, "T4")
    assert plan_workers(ResourcesConfig()).num_workers == 3


@pytest.mark.parametrize(("cluster", "kind"), [("none", "L4"), ("two", "A100")])
def test_a_kind_of_gpu_that_no_node_has_is_refused_unless_the_cluster_grows(connect_to, cluster, kind):
    connect_to(KINDS[cluster])
    with pytest.raises(TrainingError, match="no room for the workers") as caught:
        plan_workers(ResourcesConfig(accelerator=kind))
    assert f"1 GPU ({kind}) each" in caught.value.rule
    assert "`--resources.accelerator`" in caught.value.remedy
    assert "(T4)" in caught.value.value or cluster == "none"
    assert plan_workers(ResourcesConfig(accelerator=kind), may_grow=True).accelerator_type == kind
    assert not plan_workers(ResourcesConfig(accelerator=kind, use_gpu=False)).use_gpu


def train_untouched(rank, room, encoder, folder):
    """Two steps of a network with parameters that no batch touches."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=1)
    config = XLNetConfig(vocab_size=400, d_model=32, n_layer=1, n_head=2, d_inner=32, num_labels=len(SCHEME.tags))
    model = room.build_model(encoder, "linear")
    model.network = AutoModelForTokenClassification.from_config(config)
    model = TokenClassifier(model.network, model.scheme)
    losses = room.run_loop(model, room.make_table(30), configure(), parallel=ParallelConfig()).losses
    torch.save(losses, Path(folder) / "losses.pt")
    dist.destroy_process_group()


def test_network_with_parameters_that_no_batch_touches_trains(training_room, tiny_encoder, tmp_path):
    torch.multiprocessing.spawn(train_untouched, (training_room, tiny_encoder, str(tmp_path)), nprocs=1)
    assert len(torch.load(tmp_path / "losses.pt")) > 2


@pytest.mark.parametrize("config", [MPNetConfig(), XLNetConfig(), AlbertConfig()])
def test_encoder_that_cannot_compute_activations_again_is_refused(tmp_path, config):
    config.save_pretrained(tmp_path)
    [problem] = find_misfits(ParallelConfig(gradient_checkpointing=True), 1, False, str(tmp_path))
    assert "`parallel.gradient_checkpointing`" in str(problem)


def test_settings_without_effect_are_told():
    config = ParallelConfig(sync_every=2, powersgd_rank=8, micro_batches=9, inside_size=3)
    assert len(config.find_idle()) == 4
    assert ParallelConfig(strategy="local_sgd", sync_every=2).find_idle() == []
    training = TrainingConfig(averaging=AveragingConfig(decay=0.9), adversarial=AdversarialConfig(epsilon=0.3))
    told = find_idle(training, ParallelConfig())
    assert [one.split("`")[1] for one in told] == ["training.averaging.decay", "training.adversarial.epsilon"]
    used = TrainingConfig(averaging=AveragingConfig(method="ema", decay=0.9))
    assert find_idle(used, ParallelConfig()) == []


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"num_epochs": 4, "adversarial": AdversarialConfig("fgm", first_epoch=5)}, "training.adversarial"),
        ({"num_epochs": 4, "patience": 3}, "training.patience"),
        ({"num_epochs": 1, "averaging": AveragingConfig("swa")}, "training.averaging"),
    ],
)
def test_what_the_run_is_too_short_for_is_told(changes, name):
    [told] = find_idle(TrainingConfig(**changes), ParallelConfig())
    assert told.startswith(f"`{name}` has no effect: training has {changes['num_epochs']} epoch")
    longer = changes | {"num_epochs": changes["num_epochs"] + 1}
    assert find_idle(TrainingConfig(**longer), ParallelConfig()) == []


@pytest.mark.parametrize(
    ("changes", "name"),
    [({"use_gpu": False, "accelerator": "L4"}, "accelerator"), ({"resize_interval_s": 9.0}, "resize")],
)
def test_resources_without_effect_are_told(changes, name):
    [told] = ResourcesConfig(num_workers=2, **changes).find_idle()
    assert f"`resources.{name}" in told
    assert ResourcesConfig(num_workers="2..4", **(changes | {"use_gpu": True})).find_idle() == []


def test_sharing_that_one_worker_does_not_do_is_told():
    assert find_idle_alone(ParallelConfig(), 1) == find_idle_alone(ParallelConfig("local_sgd"), 2) == []
    told = find_idle_alone(ParallelConfig("local_sgd"), 1) + find_idle_alone(ParallelConfig("ddp", "powersgd"), 1)
    assert [one.split("`")[1] for one in told] == ["parallel.strategy", "parallel.gradient_compression"]
    assert all("`--resources.num_workers`" in one for one in told)


def test_passes_that_differ_by_nothing_are_refused(training_room, tiny_encoder):
    model = training_room.build_model(tiny_encoder, "linear", seed=1)
    with pytest.raises(ForwardError, match="differ by nothing"):
        check_passes_differ(model.network)
    model.network.config.hidden_dropout_prob = 0.1
    check_passes_differ(model.network)


def test_mistake_of_one_worker_is_raised_in_all():
    class Pair(Group):
        def gather(self, value):
            return [value, EncoderError("no weights here")]

    job = SimpleNamespace(open_task=lambda *_: "a task")
    with pytest.raises(EncoderError, match="no weights here"):
        worker._open_task(job, Pair(use_gpu=False), torch.device("cpu"))
    assert worker._open_task(job, Group(use_gpu=False), torch.device("cpu")) == "a task"


@pytest.mark.parametrize("meets", ["this worker", "the other"])
def test_a_mistake_that_one_worker_meets_when_it_scores_is_raised_in_all(monkeypatch, meets):
    """As emissions that are no numbers, of a worker that has dev records where another has none."""
    mistake = EmissionsError("the model computes no numbers")

    def predict_documents(documents):
        if meets == "this worker":
            raise mistake
        return []

    def gather(told, value):
        told[:] = [value, Counts().to_dict() if meets == "this worker" else mistake]
        gathered.append(value)

    gathered: list[object] = []
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(dist, "all_gather_object", gather)
    with pytest.raises(EmissionsError, match="no numbers"):
        score_dev(SimpleNamespace(predict_documents=predict_documents), [])
    assert len(gathered) == 1


@pytest.mark.parametrize("size", [1, 2])
def test_a_device_without_memory_ends_the_group_and_is_told(tmp_path, monkeypatch, size):
    """Of several workers, the others wait for the one that has met it: it has to fail for them to end."""

    def run_worker(*_):
        raise DeviceMemoryError("no memory", remedy="`--training.device_batch_tokens 512`")

    def run_workers(function, config, *_, **__):
        try:
            return function(config)
        except DeviceMemoryError as error:
            raise WorkerGroupError("worker 1 failed", {0: RuntimeError("connection closed"), 1: error}) from None

    monkeypatch.setattr(trainer, "_TrainGroup", lambda: SimpleNamespace(size=size))
    monkeypatch.setattr(trainer, "run_worker", run_worker)
    monkeypatch.setattr(trainer, "_run_workers", run_workers)
    monkeypatch.setattr(trainer, "plan_workers", lambda *_, **__: None)
    with pytest.raises(WorkerGroupError) if size > 1 else nullcontext():
        run_workers(trainer._train_worker, {"job": None, "storage": (tmp_path, 0.0)})
    with pytest.raises(DeviceMemoryError, match="device_batch_tokens 512"):
        trainer.fit(SimpleNamespace(), ResourcesConfig(), tmp_path)


def test_a_worker_that_does_not_see_the_run_folder_ends_all(tmp_path):
    class Pair(Group):
        def agree(self, plain):
            return str(tmp_path / "away" / "checkpoints" / "step-00000001-0123456789abcdef.pt")

        def gather(self, value):
            return [None, value]

    with pytest.raises(TrainingError, match="that every machine of the cluster sees") as caught:
        worker._load_last(None, Pair(use_gpu=False))
    assert caught.value.where == str(tmp_path / "away" / "checkpoints")
    (tmp_path / "away" / "checkpoints").mkdir(parents=True)
    with pytest.raises(FileNotFoundError):  # storage that lags behind: Ray Train starts again
        worker._load_last(None, Pair(use_gpu=False))
