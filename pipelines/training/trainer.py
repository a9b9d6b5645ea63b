"""The training loop on Ray Train: workers, checkpoints, restarts. The only module of this room that knows Ray."""

import hashlib
import logging
import os
import resource
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray
import ray.train
import torch
import torch.distributed as dist
from ray.train import (
    Checkpoint,
    CheckpointConfig,
    CheckpointUploadMode,
    FailureConfig,
    RunConfig,
    ScalingConfig,
    UserCallback,
)
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
from pipelines.training.config import TrainingConfig, TrainingError
from pipelines.training.history import append_metrics
from pipelines.training.loop import TrainingState, train
from pipelines.training.parallel import ParallelConfig

STATE_FILE = "state.pt"
REPORT_EVERY_STEPS = 20
MAX_FAILURES = 3
KERNEL_CACHES = {"LRU_CACHE_CAPACITY": 32, "ONEDNN_PRIMITIVE_CACHE_CAPACITY": 64}
"""Shapes that ideep and oneDNN keep kernels for; by default 1,024, each with scratch memory: gigabytes in an hour."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ResourcesConfig:
    """What training takes of the cluster."""

    num_workers: int | None = None
    """Data-parallel workers; default: one a GPU, or one where there is none."""
    cpus_per_worker: int | None = None
    """CPUs, and threads, of a worker; default: its share of the cores of the node."""
    use_gpu: bool | None = None
    """Whether each worker has a GPU; default: if the cluster has one."""

    def find_problems(self) -> list[UserError]:
        """Every mistake in these settings."""
        numbers = (("num_workers", self.num_workers), ("cpus_per_worker", self.cpus_per_worker))
        return [
            TrainingError("a number out of range", where=f"`resources.{name}`", rule="at least 1", value=value)
            for name, value in numbers
            if value is not None and value < 1
        ]


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


def fit(job: TrainingJob, resources: ResourcesConfig, output_dir: Path) -> TrainingResult:
    """Train on the connected cluster; goes on from the last checkpoint under `output_dir` if there is one.

    Metrics are appended to `output_dir/metrics.jsonl` while it runs.

    Raises:
        TrainingError: what no retry mends (a loss that is not a number, nothing to train on, no room in the cluster).
        KeyboardInterrupt: the user stopped it; the workers have ended.
        ray.train.TrainingFailedError: workers died more often than `MAX_FAILURES` times.
    """
    scaling = plan_workers(resources)
    trainer = TorchTrainer(
        _train_worker,
        train_loop_config={"job": job, "run_id": hashlib.sha256(str(output_dir).encode()).hexdigest()[:12]},
        torch_config=TorchConfig(backend="nccl" if scaling.use_gpu else "gloo"),
        scaling_config=scaling,
        run_config=RunConfig(
            name="train",
            storage_path=str(output_dir / "checkpoints"),
            failure_config=FailureConfig(max_failures=MAX_FAILURES, controller_failure_limit=MAX_FAILURES),
            checkpoint_config=CheckpointConfig(num_to_keep=1),
            callbacks=[MetricsWriter(output_dir / "metrics.jsonl")],
        ),
    )
    interrupt = signal.getsignal(signal.SIGINT)
    try:
        result = trainer.fit()
    except SystemExit as error:  # how Ray Train answers Ctrl-C, once it has stopped the workers
        raise KeyboardInterrupt from error
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, interrupt)  # Ray Train leaves its own behind
    if isinstance(result.return_value, UserError):
        raise result.return_value
    with result.checkpoint.as_directory() as folder:
        state = _load_state(Path(folder))
    return TrainingResult(state.best_model, state.step, state.epoch, state.best_epoch, state.best_f1)


def plan_workers(resources: ResourcesConfig) -> ScalingConfig:
    """The worker group for the connected cluster. Raises TrainingError if it can never be placed."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    num_gpus = int(sum(node.get("GPU", 0) for node in nodes))
    use_gpu = resources.use_gpu if resources.use_gpu is not None else num_gpus > 0
    num_workers = resources.num_workers or (max(1, num_gpus) if use_gpu else 1)
    per_node = -(-num_workers // max(1, len(nodes)))
    cpus = resources.cpus_per_worker or max(1, max(list_cores(), default=1) // per_node)
    needs = {"CPU": float(cpus)} | ({"GPU": 1.0} if use_gpu else {})
    places = sum(min(int(node.get(name, 0) // amount) for name, amount in needs.items()) for node in nodes)
    if places < num_workers and ray._private.state.state.get_max_resources_from_cluster_config() is None:
        raise TrainingError(
            "the cluster has no room for the workers, and does not grow",
            rule=f"{num_workers} workers with {_render_needs(needs)} each",
            value=f"room for {places}: " + "; ".join(_render_needs(node) for node in nodes),
            remedy="lower `--resources.num_workers` or `--resources.cpus_per_worker`, or add nodes",
        )
    return ScalingConfig(num_workers=num_workers, use_gpu=use_gpu, resources_per_worker=needs)


def list_cores() -> list[int]:
    """Cores of every living node; this machine may have been given more logical CPUs than it has."""
    alive = [node for node in ray.nodes() if node["Alive"]]
    here = ray.util.get_node_ip_address()
    real = [len(os.sched_getaffinity(0)) if node["NodeManagerAddress"] == here else sys.maxsize for node in alive]
    return [min(int(node["Resources"].get("CPU", 0)), limit) for node, limit in zip(alive, real, strict=True)]


class MetricsWriter(UserCallback):
    """Writes the rows that workers report to the run's history; called in Ray Train's controller."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Checkpoint | None) -> None:
        """Write what the workers reported; those of a group report the same."""
        append_metrics(self.path, metrics[0].get("rows", []))


class _Reporter:
    """Hands what the loop tells to Ray Train, in few reports, since each one is a barrier."""

    def __init__(self, run_id: str) -> None:
        self.rows: list[dict[str, Any]] = []
        self.is_first = ray.train.get_context().get_world_rank() == 0
        self.prefix = f"rayner-{run_id}-"
        if self.is_first:
            for left in Path(tempfile.gettempdir()).glob(f"{self.prefix}*"):  # by a worker that was killed
                shutil.rmtree(left, ignore_errors=True)

    def on_start(self, metrics: dict[str, Any]) -> None:
        self._add("start", metrics)
        self.flush(None)

    def on_step(self, metrics: dict[str, Any]) -> None:
        self._add("step", metrics)
        if metrics["step"] % REPORT_EVERY_STEPS == 0:
            self.flush(None)

    def on_checkpoint(self, metrics: dict[str, Any] | None, get_state: Callable[[], TrainingState]) -> None:
        """Report what has gathered, with a checkpoint written by the first worker."""
        if metrics is not None:
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
            gpu_peak = torch.cuda.max_memory_allocated() >> 20 if torch.cuda.is_available() else 0
            self._add("epoch", {**metrics, "peak_memory_mib": peak, "gpu_peak_memory_mib": gpu_peak})
        state = get_state()
        if not self.is_first:
            self.flush(None)
            return
        folder = tempfile.mkdtemp(prefix=self.prefix)  # Ray Train removes it once it is stored
        _save_state(state, Path(folder))
        self.flush(Checkpoint.from_directory(folder))

    def _add(self, kind: str, metrics: dict[str, Any]) -> None:
        self.rows.append({"kind": kind, "time": round(time.time(), 3), **metrics})

    def flush(self, checkpoint: Checkpoint | None) -> None:
        mode = CheckpointUploadMode.ASYNC  # training goes on while the checkpoint is copied to storage
        ray.train.report({"rows": self.rows}, checkpoint=checkpoint, checkpoint_upload_mode=mode)
        self.rows = []


def _train_worker(config: dict[str, Any]) -> UserError | None:
    try:
        _run_worker(config["job"], config["run_id"])
    except UserError as error:  # returned, not raised: no restart mends it
        return error
    return None


def _run_worker(job: TrainingJob, run_id: str) -> None:
    for name, shapes in KERNEL_CACHES.items():
        os.environ.setdefault(name, str(shapes))
    device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    state = None
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is not None:
        with checkpoint.as_directory() as folder:
            state = _load_state(Path(folder))
    torch.manual_seed(job.training.seed)
    model, encoder = job.build_model(), job.build_encoder()
    info = BundleInfo(job.scheme.name, job.model.head, job.splitter, job.window, job.stride)
    context = ray.train.get_context()
    rows = job.load_dev()[context.get_world_rank() :: context.get_world_size()]
    dev = [Scored.from_row(row, job.corpus_scheme) for row in rows]

    def evaluate(scored: TokenClassifier) -> float:
        bundle = Bundle(scored, encoder, info)
        return score_dev(NerEngine(bundle, device=str(device), runtime="torch", precision="fp32"), dev)

    train(
        model,
        TrainingWindows(job.load_windows()),
        job.training,
        pad_id=encoder.pad_id,
        device=device,
        evaluate=evaluate,
        listener=_Reporter(run_id),
        parallel=job.parallel,
        state=state,
    )


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


def _save_state(state: TrainingState, folder: Path) -> None:
    content = {field.name: getattr(state, field.name) for field in fields(state)}
    if _is_best(content):
        content["best_model"] = {}  # the same weights again
    torch.save(content, folder / STATE_FILE)


def _load_state(folder: Path) -> TrainingState:
    content = torch.load(folder / STATE_FILE, map_location="cpu", weights_only=True)
    if _is_best(content):
        content["best_model"] = content["model"]
    return TrainingState(**content)


def _is_best(content: Mapping[str, Any]) -> bool:
    """Whether the present weights are those of the best epoch, just finished."""
    just_finished = content["epoch"] and content["epoch"] == content["best_epoch"] and content["epoch_step"] == 0
    return bool(just_finished and not content.get("average"))


def _render_needs(needs: dict[str, float]) -> str:
    return ", ".join(f"{needs[name]:g} {name}" for name in ("CPU", "GPU") if name in needs)
