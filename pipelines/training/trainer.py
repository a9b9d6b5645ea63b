"""Workers of a training on Ray Train: restarts, preemption. Of this room this, `notices` and `resources` know Ray.

Ray Train starts the workers, again when some die, and more or fewer of them as the cluster changes. The first worker
writes the run's rows and checkpoints straight into the run folder, where a new group of workers finds them; Ray's own
record of checkpoints is not used, since it does not survive a kill in mid-write, nor storage that is full or away.
"""

import signal
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import ray
import ray.train
import torch.distributed as dist
from ray.train import ControllerError, FailureConfig, RunConfig, ScalingConfig, WorkerGroupError
from ray.train.collective import broadcast_from_rank_zero
from ray.train.torch import TorchConfig, TorchTrainer

from pipelines.ner.errors import UserError
from pipelines.training.checkpoints import list_checkpoints
from pipelines.training.devices import DeviceMemoryError
from pipelines.training.job import Job, TrainingResult, load_result
from pipelines.training.notices import FailureNotices
from pipelines.training.recorder import CHECKPOINTS, METRICS_FILE
from pipelines.training.resources import ResourcesConfig, plan_workers
from pipelines.training.worker import Group, run_worker

T = TypeVar("T")

MAX_FAILURES = 3
"""Deaths of workers that training survives without progress between them."""
MAX_WAITS = 30
"""Minutes (Ray Train's time to start workers) that it waits for room when the cluster has lost nodes."""


def fit(job: Job, resources: ResourcesConfig, output_dir: Path, *, may_grow: bool = False) -> TrainingResult:
    """Train on the connected cluster; goes on from the last checkpoint under `output_dir` if there is one.

    Metrics are appended to `output_dir/metrics.jsonl` while it runs.

    Args:
        may_grow: an autoscaler may make room for workers that have none now.

    Raises:
        TrainingError: what no retry mends (a loss that is not a number, nothing to train on, no room in the cluster,
            storage that stays away, checkpoints that are all damaged, a pass that a device has no memory for).
        KeyboardInterrupt: the user stopped it; the workers have ended.
        ray.train.TrainingFailedError: workers died more often than `MAX_FAILURES` times without progress.
    """
    scaling = plan_workers(resources, may_grow=may_grow)
    checkpoints = output_dir / CHECKPOINTS
    checkpoints.mkdir(exist_ok=True)
    while True:
        before = list_checkpoints(checkpoints)[:1]
        try:
            value = _run_workers(
                _train_worker,
                {"job": job, "storage": (output_dir, resources.storage_patience_s)},
                scaling,
                failure_config=FailureConfig(max_failures=MAX_FAILURES, controller_failure_limit=MAX_WAITS),
                callbacks=[FailureNotices(output_dir / METRICS_FILE)],
            )
            break
        except WorkerGroupError as error:
            if list_checkpoints(checkpoints)[:1] == before:
                raise _find_mistake(error) or error from None
        except ControllerError:
            plan_workers(resources, may_grow=may_grow)  # tells if there is no room
            raise
    if isinstance(value, UserError):
        raise value
    return load_result(output_dir)


def _find_mistake(error: WorkerGroupError) -> UserError | None:
    """What one worker has met alone; the others ended because of it."""
    return next((one for one in error.worker_failures.values() if isinstance(one, UserError)), None)


def run_alone(function: Callable[[], T]) -> T:
    """What a function returns that a lone worker calls, started as `fit` starts it, beside all that Ray Train runs."""
    value: T | UserError = _run_workers(_call, {"function": function}, plan_workers(ResourcesConfig(num_workers=1)))
    if isinstance(value, UserError):
        raise value
    return value


def _call(config: dict[str, Any]) -> Any:
    try:
        return config["function"]()
    except UserError as error:  # returned, not raised, as by `_train_worker`
        return error


def _run_workers(
    function: Callable[[dict[str, Any]], Any], config: dict[str, Any], scaling: ScalingConfig, **settings: Any
) -> Any:
    """What the first worker returns. Further settings are of Ray Train's `RunConfig`."""
    interrupt = signal.getsignal(signal.SIGINT)
    with tempfile.TemporaryDirectory() as idle:  # Ray Train wants a folder of its own
        trainer = _Trainer(
            function,
            train_loop_config=config,
            # gloo beside nccl: what is offloaded to the CPU is gathered there
            torch_config=TorchConfig(backend="cpu:gloo,cuda:nccl" if scaling.use_gpu else "gloo"),
            scaling_config=scaling,
            run_config=RunConfig(name="train", storage_path=idle, **settings),
        )
        try:
            return trainer.fit().return_value
        except SystemExit as error:  # how Ray Train answers Ctrl-C, once it has stopped the workers
            raise KeyboardInterrupt from error
        finally:
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGINT, interrupt)  # Ray Train leaves its own behind


class _Trainer(TorchTrainer):
    """Without the processes that hand out a Ray dataset, of which there is none: workers read shards themselves."""

    def _create_default_callbacks(self) -> list[Any]:
        return [one for one in super()._create_default_callbacks() if type(one).__name__ != "DatasetsCallback"]


class _TrainGroup(Group):
    """The workers of a Ray Train run."""

    def __init__(self) -> None:
        super().__init__(use_gpu=bool(ray.get_runtime_context().get_accelerator_ids().get("GPU")))
        context = ray.train.get_context()
        self.rank, self.size = context.get_world_rank(), context.get_world_size()

    def agree(self, plain: Any) -> Any:
        """Plain values, since the actor where workers meet would import torch for others."""
        return broadcast_from_rank_zero(plain)

    def gather(self, value: Any) -> list[Any]:
        """By the process group."""
        found = [value]
        if dist.is_initialized() and self.size > 1:
            found = [None] * self.size
            dist.all_gather_object(found, value)
        return found

    def list_leaving(self) -> list[str]:
        """As the cluster tells it; all workers meet here."""
        preemption = ray.train.get_preemption_info()
        return list(preemption.preempted_node_ids) if preemption else []


def _train_worker(config: dict[str, Any]) -> UserError | None:
    group = _TrainGroup()
    try:
        output_dir, patience_s = config["storage"]
        run_worker(config["job"], output_dir, patience_s, group)
    except UserError as error:  # returned, not raised: no restart mends it
        if isinstance(error, DeviceMemoryError) and group.size > 1:
            raise  # the others wait for this worker until Ray Train ends them
        return error
    return None
