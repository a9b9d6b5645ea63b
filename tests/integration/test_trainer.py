"""Training on Ray: workers agree, metrics are whole, a killed worker changes nothing, mistakes are not retried."""

import os
import threading

import pyarrow as pa
import pytest
import torch
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from pipelines.training import trainer
from pipelines.training.config import TrainingError
from pipelines.training.resources import ResourcesConfig, plan_workers
from pipelines.training.trainer import fit
from tests.integration.processes import kill, list_descendants, wait_until
from tests.integration.trainings import check_same_run, read

pytestmark = pytest.mark.usefixtures("ray_session")


def test_metrics_hold_each_step_once_and_the_loss_falls(undisturbed):
    folder, result = undisturbed
    start, steps, epochs = (read(folder, kind) for kind in ("start", "step", "epoch"))
    assert len(start) == 1
    assert (start[0]["step"], start[0]["num_workers"], start[0]["precision"]) == (0, 1, "fp32")
    assert [row["step"] for row in steps] == list(range(1, result.num_steps + 1))
    assert start[0]["num_steps"] == result.num_steps
    assert [row["epoch"] for row in epochs] == [1, 2]
    assert all(row["peak_memory_mib"] > 100 for row in epochs)
    assert sum(row["loss"] for row in steps[-5:]) < sum(row["loss"] for row in steps[:5])
    assert result.best_dev_f1 == max(row["dev_f1"] for row in epochs)


def test_two_workers_see_the_same_batches_and_losses_as_one(make_job, undisturbed, tmp_path):
    result = fit(make_job(), ResourcesConfig(num_workers=2, cpus_per_worker=1), tmp_path)
    assert read(tmp_path, "start")[0]["num_workers"] == 2
    check_same_run(tmp_path, result, undisturbed)


def test_worker_killed_after_progress_changes_nothing_and_counts_for_nothing(
    make_job, undisturbed, tmp_path, monkeypatch
):
    monkeypatch.setattr(trainer, "MAX_FAILURES", 0)
    killed: list[int] = []

    def kill_worker() -> None:
        wait_until(lambda: list(tmp_path.glob("checkpoints/*.pt")), "a checkpoint")
        killed.extend(list_descendants(os.getpid(), "RayTrainWorker"))
        kill(killed)

    killer = threading.Thread(target=kill_worker)
    killer.start()
    result = fit(make_job(), ResourcesConfig(num_workers=1, cpus_per_worker=1), tmp_path)
    killer.join()
    assert len(killed) == 1
    assert [row["step"] > 0 for row in read(tmp_path, "start")] == [True], "it did not resume from a checkpoint"
    assert [row["text"].startswith("worker 0 is gone") for row in read(tmp_path, "notice")] == [True]
    check_same_run(tmp_path, result, undisturbed)


def test_nothing_is_started_that_hands_out_a_ray_dataset(tmp_path):
    """The name is Ray's own: should it change, the processes would be back unseen."""
    settings = {"scaling_config": ScalingConfig(num_workers=1), "run_config": RunConfig(storage_path=str(tmp_path))}
    usual, ours = (
        {
            type(one).__name__
            for one in kind(lambda config: None, train_loop_config={}, **settings)._create_default_callbacks()
        }
        for kind in (TorchTrainer, trainer._Trainer)
    )
    assert usual - ours == {"DatasetsCallback"}
    assert ours < usual


@pytest.mark.long
def test_finished_training_is_not_repeated(make_job, undisturbed):
    folder, first = undisturbed
    before = (folder / "metrics.jsonl").read_bytes()
    again = fit(make_job(), ResourcesConfig(num_workers=1, cpus_per_worker=1), folder)
    assert (folder / "metrics.jsonl").read_bytes() == before
    assert again.num_steps == first.num_steps
    assert all(torch.equal(again.best_model[name], weight) for name, weight in first.best_model.items())


def test_mistake_found_by_a_worker_arrives_as_such_and_is_not_retried(make_job, tmp_path):
    read_all = make_job().load_windows
    calls = tmp_path / "calls"

    def load_nothing() -> pa.Table:
        with calls.open("a") as file:
            file.write("called\n")
        return read_all().slice(0, 0)

    with pytest.raises(TrainingError, match="the training corpus has no words") as caught:
        fit(make_job(load_nothing), ResourcesConfig(num_workers=1, cpus_per_worker=1), tmp_path)
    assert caught.value.remedy == "check the files given as `--corpus.train`"
    assert calls.read_text() == "called\n"


@pytest.mark.parametrize(
    ("resources", "facts"),
    [
        (ResourcesConfig(num_workers=9, cpus_per_worker=1), ["9 workers with 1 CPU each", "room for 8: 8 CPU"]),
        (ResourcesConfig(num_workers=1, cpus_per_worker=64), ["1 workers with 64 CPU each", "room for 0: 8 CPU"]),
        (ResourcesConfig(num_workers=2, cpus_per_worker=1, use_gpu=True), ["2 workers with 1 CPU, 1 GPU", "for 0"]),
    ],
)
def test_workers_without_room_are_refused_at_once_with_the_sum(resources, facts):
    with pytest.raises(TrainingError, match="no room for the workers") as caught:
        plan_workers(resources)
    for fact in facts:
        assert fact in str(caught.value)
    assert "--resources.num_workers" in str(caught.value)


def test_a_range_of_workers_needs_room_for_the_least():
    plan = plan_workers(ResourcesConfig(num_workers="2..40", cpus_per_worker=1, resize_interval_s=7))
    assert (plan.num_workers, plan.elastic_resize_monitor_interval_s) == ((2, 40), 7)
    assert plan_workers(ResourcesConfig(num_workers="2..2", cpus_per_worker=1)).num_workers == 2
    with pytest.raises(TrainingError, match="no room for the workers") as caught:
        plan_workers(ResourcesConfig(num_workers="9..40", cpus_per_worker=1))
    assert "9 workers with 1 CPU each" in str(caught.value)


@pytest.mark.parametrize("value", ["4..1", "0..2", "2..", "two", "1...4", "-1..2", "", 0, "1..4 "])
def test_a_number_of_workers_that_is_none_is_refused(value):
    (problem,) = ResourcesConfig(num_workers=value).find_problems()
    assert "`resources.num_workers`" in str(problem)
    assert "`MIN..MAX`" in str(problem)


@pytest.mark.parametrize("strategy", ["tensor", "pipeline", "hybrid"])
def test_a_range_of_workers_is_refused_where_a_strategy_needs_a_number(strategy):
    (problem,) = ResourcesConfig(num_workers="1..4").find_problems(strategy)
    assert f"`{strategy}` does not work with a changing number of workers" in str(problem)
    assert "ddp, fsdp, local_sgd" in str(problem)
    assert ResourcesConfig(num_workers="3..3").find_problems(strategy) == []
    assert ResourcesConfig(num_workers=4).find_problems(strategy) == []


@pytest.mark.parametrize("strategy", ["ddp", "fsdp", "local_sgd"])
def test_a_range_of_workers_goes_with_the_other_strategies(strategy):
    assert ResourcesConfig(num_workers="1..4").find_problems(strategy) == []
