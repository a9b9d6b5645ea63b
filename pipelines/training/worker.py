"""One worker of a training: the loop with what it reads, writes and scores, and its agreement with the others."""

import platform
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch

from pipelines.ner.errors import UserError
from pipelines.ner.machine import forget_peak_memory, read_peak_memory_mib
from pipelines.training.checkpoints import load_state
from pipelines.training.config import TrainingError, TrainingHalted
from pipelines.training.job import Job, Task
from pipelines.training.loop import train
from pipelines.training.process import prepare_process
from pipelines.training.recorder import CHECKPOINTS, Order, Recorder
from pipelines.training.state import TrainingState

T = TypeVar("T")


class Group:
    """The workers that train together: here one alone, in a process of any kind."""

    rank, size = 0, 1

    def __init__(self, *, use_gpu: bool | None = None) -> None:
        self.use_gpu = torch.cuda.is_available() if use_gpu is None else use_gpu
        """Whether each worker has a GPU: its machine may show others'."""

    def agree(self, plain: Any) -> Any:
        """What the first worker gives; plain values."""
        return plain

    def gather(self, value: Any) -> list[Any]:
        """What each worker gives, for all of them."""
        return [value]

    def list_leaving(self) -> list[str]:
        """Nodes of the group that are about to be taken."""
        return []


def fit_here(
    job: Job,
    output_dir: Path,
    storage_patience_s: float,
    on_epoch: Callable[[dict[str, Any], bool], None] | None = None,
    *,
    use_gpu: bool | None = None,
) -> None:
    """Train in this process alone, as `fit` does with one worker, without the seconds that a worker group costs.

    What it writes, and goes on from, is what `fit` does; `load_result` reads it.

    Args:
        on_epoch: told after every epoch, once its checkpoint is written or could not be: its metrics, and whether it is
            the last, whose checkpoint is on the disk.
        use_gpu: default: if the machine has one.

    Raises:
        TrainingError: as `fit` does.
    """
    (output_dir / CHECKPOINTS).mkdir(exist_ok=True)
    run_worker(job, output_dir, storage_patience_s, Group(use_gpu=use_gpu), on_epoch)


def run_worker(
    job: Job,
    output_dir: Path,
    patience_s: float,
    group: Group,
    on_epoch: Callable[[dict[str, Any], bool], None] | None = None,
) -> None:
    """Train as one of a group. Raises TrainingError.

    Args:
        patience_s: for storage that cannot be written.
        on_epoch: told by the first worker, as in `fit_here`.
    """
    prepare_process()
    device = torch.device("cuda", torch.cuda.current_device()) if group.use_gpu else torch.device("cpu")
    _forget_peaks(group.use_gpu)
    recorder = Recorder(output_dir, patience_s) if group.rank == 0 else None
    state = _load_last(recorder, group)
    torch.manual_seed(job.training.seed)
    task = _open_task(job, group, device)
    if task.scores_start and state is None:
        _tell_start(task, recorder)
    train(
        task.model,
        task.windows,
        job.training,
        pad_id=task.pad_id,
        device=device,
        evaluate=task.evaluate,
        listener=_Reporter(recorder, group, on_epoch, task.describe),
        parallel=job.parallel,
        imitation=task.imitation,
        state=state,
    )


def _forget_peaks(use_gpu: bool) -> None:
    """The process of a trial may have trained others before, whose memory is not this one's."""
    forget_peak_memory()
    if use_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def _open_task(job: Job, group: Group, device: torch.device) -> Task:
    """What is trained. Raises the UserError that any worker has met, in all."""
    return _do_together(group, lambda: job.open_task(group.rank, group.size, device))


def _do_together(group: Group, act: Callable[[], T]) -> T:
    """What it returns. Raises the UserError that any worker has met, in all: the others would wait for it."""
    done: list[T] = []
    problem: UserError | None = None
    try:
        done.append(act())
    except UserError as error:
        problem = error
    problem = next((one for one in group.gather(problem) if one is not None), None)
    if problem is not None:
        raise problem
    return done[0]


def _tell_start(task: Task, recorder: Recorder | None) -> None:
    """Score the model as it is before the first step, as epoch 0."""
    score = task.evaluate(task.model)
    if recorder and not recorder.has_epochs():
        recorder.add("epoch", task.describe({"step": 0, "epoch": 0, "dev_f1": score, "best_dev_f1": score}))


def _load_last(recorder: Recorder | None, group: Group) -> TrainingState | None:
    """The state to go on from, the same for all workers, if there is one. Raises TrainingError, in all of them."""
    found: str | dict[str, Any] | None = None
    if recorder:
        try:
            path = recorder.find_checkpoint()
            found = str(path) if path else None
        except TrainingError as error:
            found = vars(error)
    found = group.agree(found)
    if isinstance(found, dict):
        raise TrainingError(**found)
    return _do_together(group, partial(_load_seen, Path(found))) if found else None


def _load_seen(path: Path) -> TrainingState:
    """The state of a checkpoint. Raises TrainingError on a machine that does not see its folder."""
    if not path.parent.is_dir():
        raise TrainingError(
            "a worker does not find the checkpoints",
            where=str(path.parent),
            rule="a folder that every machine of the cluster sees under the same path",
            value=f"no such folder on {platform.node()}",
            remedy="give an `--output_dir` that all machines see",
        )
    return load_state(path)


class _Reporter:
    """Hands what the loop tells to the recorder, and what the first worker finds to the loop."""

    def __init__(
        self,
        recorder: Recorder | None,
        group: Group,
        on_epoch: Callable[[dict[str, Any], bool], None] | None = None,
        describe: Callable[[dict[str, Any]], dict[str, Any]] = dict,
    ) -> None:
        self.recorder, self.group, self.on_epoch, self.describe = recorder, group, on_epoch, describe
        self.next_look = 0

    def on_start(self, metrics: dict[str, Any]) -> None:
        """Write at once how the run begins, so that who follows it knows its length."""
        if self.recorder:
            self.recorder.add("start", metrics)
            self.recorder.flush()

    def on_step(self, metrics: dict[str, Any]) -> bool:
        """Write the step down; when it is time, all workers follow the first's order. Raises TrainingError in all."""
        if self.recorder:
            self.recorder.add("step", metrics)
        if metrics["step"] < self.next_look:
            return False
        leaving = self.group.list_leaving()
        order = Order(**self.group.agree(self.recorder and asdict(self.recorder.look(metrics["step"], leaving))))
        if order.problem is not None:
            raise TrainingHalted(**order.problem)
        self.next_look = order.next_look
        return order.keep_now

    def on_checkpoint(self, metrics: dict[str, Any] | None, get_state: Callable[[], TrainingState]) -> None:
        """Write what has gathered, and a checkpoint; at the end of training wait for it."""
        metrics = None if metrics is None else self.describe(metrics)
        if metrics is not None and self.recorder:
            peak = read_peak_memory_mib()
            gpu_peak = torch.cuda.max_memory_reserved() >> 20 if torch.cuda.is_available() else 0
            self.recorder.add("epoch", {**metrics, "peak_memory_mib": peak, "gpu_peak_memory_mib": gpu_peak})
        state = get_state()
        if self.recorder:
            self.recorder.write_checkpoint(state)
        if state.done:
            problem = self.group.agree(self.recorder and self.recorder.finish(state))
            if problem is not None:
                raise TrainingHalted(**problem)
        if metrics is not None and self.recorder and self.on_epoch:
            self.recorder.writer.wait()
            self.on_epoch(metrics, state.done)
