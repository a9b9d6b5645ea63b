"""The training loop on Ray Train: workers, restarts, preemption. Of this room it and `resources` know Ray.

Ray Train starts the workers, again when some die, and more or fewer of them as the cluster changes. The first worker
writes the run's rows and checkpoints straight into the run folder, where a new group of workers finds them; Ray's own
record of checkpoints is not used, since it does not survive a kill in mid-write, nor storage that is full or away.
"""

import os
import resource
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray
import ray.train
import torch
import torch.distributed as dist
from ray.train import ControllerError, FailureConfig, RunConfig, ScalingConfig, UserCallback, WorkerGroupError
from ray.train.collective import broadcast_from_rank_zero
from ray.train.torch import TorchConfig, TorchTrainer

from pipelines.evaluation.metrics import Counts, Scored, count, scores
from pipelines.ner.bundle import Bundle, BundleInfo
from pipelines.ner.encoders import load_tokenizer
from pipelines.ner.encoding import Encoder
from pipelines.ner.engine import NerEngine
from pipelines.ner.errors import UserError
from pipelines.ner.labels import LabelScheme
from pipelines.ner.model import ModelConfig, TokenClassifier, build_token_classifier
from pipelines.training.batches import TrainingWindows
from pipelines.training.checkpoints import find_last, list_checkpoints, load_state
from pipelines.training.config import TrainingConfig, TrainingError
from pipelines.training.history import append_metrics, read_metrics
from pipelines.training.loop import train
from pipelines.training.parallel import ParallelConfig
from pipelines.training.recorder import CHECKPOINTS, METRICS_FILE, Order, Recorder
from pipelines.training.resources import ResourcesConfig, plan_workers
from pipelines.training.state import TrainingState

MAX_FAILURES = 3
"""Deaths of workers that training survives without progress between them."""
MAX_WAITS = 30
"""Minutes (Ray Train's time to start workers) that it waits for room when the cluster has lost nodes."""
KERNEL_CACHES = {"LRU_CACHE_CAPACITY": 32, "ONEDNN_PRIMITIVE_CACHE_CAPACITY": 64}
"""Shapes that ideep and oneDNN keep kernels for; by default 1,024, each with scratch memory: gigabytes in an hour."""


@dataclass(frozen=True)
class TrainingJob:
    """Everything that a worker needs; it travels to other machines."""

    encoder: str
    model: ModelConfig
    scheme: LabelScheme
    window: int
    stride: int
    splitter: str
    casing: bool
    training: TrainingConfig
    parallel: ParallelConfig
    load_windows: Callable[[], pa.Table]
    """Reads the encoded training windows (columns as `TrainingWindows` has them)."""
    load_dev: Callable[[], Sequence[Mapping[str, Any]]]
    """Reads the dev records with their gold (rows as `Scored.from_row` has them)."""
    corpus_scheme: str
    """Tag scheme of those records."""

    def build_model(self) -> TokenClassifier:
        """The pretrained encoder with a new head."""
        return build_token_classifier(self.encoder, self.scheme, self.model, casing=self.casing)

    def build_encoder(self) -> Encoder:
        """What makes windows of words, as the corpus was encoded."""
        tokenizer = load_tokenizer(self.encoder)
        return Encoder(tokenizer, window=self.window, stride=self.stride, splitter=self.splitter, casing=self.casing)


@dataclass(frozen=True)
class TrainingResult:
    """What training left: the best model, and where it stood."""

    best_model: dict[str, torch.Tensor]
    num_steps: int
    num_epochs: int
    best_epoch: int
    best_dev_f1: float


def fit(job: TrainingJob, resources: ResourcesConfig, output_dir: Path, *, may_grow: bool = False) -> TrainingResult:
    """Train on the connected cluster; goes on from the last checkpoint under `output_dir` if there is one.

    Metrics are appended to `output_dir/metrics.jsonl` while it runs.

    Args:
        may_grow: an autoscaler may make room for workers that have none now.

    Raises:
        TrainingError: what no retry mends (a loss that is not a number, nothing to train on, no room in the cluster,
            storage that stays away, checkpoints that are all damaged).
        KeyboardInterrupt: the user stopped it; the workers have ended.
        ray.train.TrainingFailedError: workers died more often than `MAX_FAILURES` times without progress.
    """
    scaling = plan_workers(resources, may_grow=may_grow)
    checkpoints = output_dir / CHECKPOINTS
    checkpoints.mkdir(exist_ok=True)
    while True:
        before = list_checkpoints(checkpoints)[:1]
        try:
            value = _run_workers(job, scaling, (output_dir, resources.storage_patience_s))
            break
        except WorkerGroupError:
            if list_checkpoints(checkpoints)[:1] == before:
                raise
        except ControllerError:
            plan_workers(resources, may_grow=may_grow)  # tells if there is no room
            raise
    if isinstance(value, UserError):
        raise value
    return load_result(output_dir)


def fit_here(
    job: TrainingJob,
    output_dir: Path,
    storage_patience_s: float,
    on_epoch: Callable[[dict[str, Any], bool], None] | None = None,
) -> None:
    """Train in this process alone, as `fit` does with one worker, without the seconds that a worker group costs.

    What it writes, and goes on from, is what `fit` does; `load_result` reads it.

    Args:
        on_epoch: told after every epoch, once its checkpoint is on the disk: its metrics, and whether it is the last.

    Raises:
        TrainingError: as `fit` does.
    """
    (output_dir / CHECKPOINTS).mkdir(exist_ok=True)
    _run_worker(job, output_dir, storage_patience_s, _Group(), on_epoch)


def load_result(output_dir: Path, *, must_be_done: bool = True) -> TrainingResult:
    """What training has left in a run folder. Raises TrainingError if it has not come to its end, or to any."""
    checkpoints = output_dir / CHECKPOINTS
    last, _ = find_last(checkpoints)
    state = load_state(last) if last else TrainingState()
    if not state.done and (must_be_done or not state.best_model):
        rule = "the last checkpoint is that of the end"
        remedy = "the same command trains the rest again"
        raise TrainingError("a checkpoint was damaged", where=str(checkpoints), rule=rule, remedy=remedy)
    return TrainingResult(state.best_model, state.step, state.epoch, state.best_epoch, state.best_f1)


def _run_workers(job: TrainingJob, scaling: ScalingConfig, storage: tuple[Path, float]) -> Any:
    """What the first worker returns."""
    interrupt = signal.getsignal(signal.SIGINT)
    with tempfile.TemporaryDirectory() as idle:  # Ray Train wants a folder of its own
        trainer = TorchTrainer(
            _train_worker,
            train_loop_config={"job": job, "storage": storage},
            torch_config=TorchConfig(backend="nccl" if scaling.use_gpu else "gloo"),
            scaling_config=scaling,
            run_config=RunConfig(
                name="train",
                storage_path=idle,
                failure_config=FailureConfig(max_failures=MAX_FAILURES, controller_failure_limit=MAX_WAITS),
                callbacks=[FailureNotices(storage[0] / METRICS_FILE)],
            ),
        )
        try:
            return trainer.fit().return_value
        except SystemExit as error:  # how Ray Train answers Ctrl-C, once it has stopped the workers
            raise KeyboardInterrupt from error
        finally:
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGINT, interrupt)  # Ray Train leaves its own behind


class FailureNotices(UserCallback):
    """Writes to the run's history that workers have ended; called in Ray Train's controller, beside the driver."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.told = ""

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Tell each end once; it is called again and again while a group ends."""
        if str(worker_exceptions) == self.told:  # which names the workers' processes
            return
        self.told = str(worker_exceptions)
        text = "; ".join(f"worker {rank} {_tell_end(error)}" for rank, error in sorted(worker_exceptions.items()))
        steps = [row["step"] for row in read_metrics(self.path)]
        row = {"kind": "notice", "time": round(time.time(), 3), "step": max(steps, default=0)}
        with suppress(OSError):
            append_metrics(self.path, [row | {"text": f"{text}: training starts again from the last checkpoint"}])


class _Group:
    """The workers that train together: here one alone, in a process of any kind."""

    rank, size = 0, 1

    def agree(self, plain: Any) -> Any:
        """What the first worker gives; plain values."""
        return plain

    def list_leaving(self) -> list[str]:
        """Nodes of the group that are about to be taken."""
        return []


class _TrainGroup(_Group):
    """The workers of a Ray Train run."""

    def __init__(self) -> None:
        context = ray.train.get_context()
        self.rank, self.size = context.get_world_rank(), context.get_world_size()

    def agree(self, plain: Any) -> Any:
        """Plain values, since the actor where workers meet would import torch for others."""
        return broadcast_from_rank_zero(plain)

    def list_leaving(self) -> list[str]:
        """As the cluster tells it; all workers meet here."""
        preemption = ray.train.get_preemption_info()
        return list(preemption.preempted_node_ids) if preemption else []


class _Reporter:
    """Hands what the loop tells to the recorder, and what the first worker finds to the loop."""

    def __init__(
        self,
        recorder: Recorder | None,
        group: _Group,
        on_epoch: Callable[[dict[str, Any], bool], None] | None = None,
    ) -> None:
        self.recorder, self.group, self.on_epoch = recorder, group, on_epoch
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
            raise TrainingError(**order.problem)
        self.next_look = order.next_look
        return order.keep_now

    def on_checkpoint(self, metrics: dict[str, Any] | None, get_state: Callable[[], TrainingState]) -> None:
        """Write what has gathered, and a checkpoint; at the end of training wait for it."""
        if metrics is not None and self.recorder:
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
            gpu_peak = torch.cuda.max_memory_allocated() >> 20 if torch.cuda.is_available() else 0
            self.recorder.add("epoch", {**metrics, "peak_memory_mib": peak, "gpu_peak_memory_mib": gpu_peak})
        state = get_state()
        if self.recorder:
            self.recorder.write_checkpoint(state)
        if state.done:
            problem = self.group.agree(self.recorder and self.recorder.finish(state))
            if problem is not None:
                raise TrainingError(**problem)
        if metrics is not None and self.recorder and self.on_epoch:
            self.recorder.writer.wait()
            self.on_epoch(metrics, state.done)


def _train_worker(config: dict[str, Any]) -> UserError | None:
    try:
        output_dir, patience_s = config["storage"]
        _run_worker(config["job"], output_dir, patience_s, _TrainGroup())
    except UserError as error:  # returned, not raised: no restart mends it
        return error
    return None


def _run_worker(
    job: TrainingJob,
    output_dir: Path,
    patience_s: float,
    group: _Group,
    on_epoch: Callable[[dict[str, Any], bool], None] | None = None,
) -> None:
    for name, shapes in KERNEL_CACHES.items():
        os.environ.setdefault(name, str(shapes))
    device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    recorder = Recorder(output_dir, patience_s) if group.rank == 0 else None
    state = _load_last(recorder, group)
    torch.manual_seed(job.training.seed)
    model, encoder = job.build_model(), job.build_encoder()
    info = BundleInfo(job.scheme.name, job.model.head, job.splitter, job.window, job.stride)
    rows = job.load_dev()[group.rank :: group.size]
    dev = [Scored.from_row(row, job.corpus_scheme) for row in rows]

    def evaluate(scored: TokenClassifier) -> float:
        """Strict micro F1 on dev, by the engine in fp32."""
        bundle = Bundle(scored, encoder, info)
        return score_dev(NerEngine(bundle, device=str(device), runtime="torch", precision="fp32"), dev)

    train(
        model,
        TrainingWindows(job.load_windows()),
        job.training,
        pad_id=encoder.pad_id,
        device=device,
        evaluate=evaluate,
        listener=_Reporter(recorder, group, on_epoch),
        parallel=job.parallel,
        state=state,
    )


def _load_last(recorder: Recorder | None, group: _Group) -> TrainingState | None:
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
    return load_state(Path(found)) if found else None


def score_dev(engine: NerEngine, dev: Sequence[Scored]) -> float:
    """Strict micro F1 of the workers' dev records together, each scored by the engine that predicts for users."""
    predicted = engine.predict_documents([scored.content for scored in dev])
    counts = count(replace(scored, predicted=spans) for scored, spans in zip(dev, predicted, strict=True))
    if dist.is_initialized() and dist.get_world_size() > 1:
        gathered: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(gathered, counts.to_dict())
        counts = sum((Counts.from_dict(plain) for plain in gathered), Counts())
    f1: float = scores(counts)["strict"]["micro"]["f1"]
    return f1


def _tell_end(error: Exception) -> str:
    """How a worker ended; what it raised itself by type and last line."""
    if isinstance(getattr(error, "health_check_failure", error), ray.exceptions.RayError):
        return "is gone, or its node"
    told = str(error).strip().splitlines() or [""]
    return f"failed ({type(error).__name__}: {told[-1].strip()[:200]})"
