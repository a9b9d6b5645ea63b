"""The trackers that a run can be told to: TensorBoard, MLflow, Weights & Biases, each through its own library."""

import importlib.util
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

INIT_S = 30.0
FINISH_S = 30.0
MLFLOW_BATCH = {"params": 100, "metrics": 1000}
"""What one request may hold."""
MLFLOW_PARAM_LENGTH = 6000

T = TypeVar("T")


@dataclass(frozen=True)
class Point:
    """What is known of a run at a step."""

    step: int
    time: float
    values: dict[str, float]
    is_final: bool = False


@dataclass(frozen=True)
class Run:
    """A run as trackers get to know it."""

    name: str
    project: str
    folder: Path
    settings: Mapping[str, Any]


class Tracker(Protocol):
    """A run in one tracker."""

    run_id: str | None
    """By which a later process finds the same run; None if it needs nothing to."""

    def __init__(self, run: Run, run_id: str | None) -> None:
        """Begin, or go on with the run of this id."""

    @staticmethod
    def check(project: str) -> None:
        """Raise whatever is wrong if no run can be begun."""

    def recall(self, told: dict[str, int]) -> dict[str, int]:
        """Name → last step that the tracker has; `told` is what is remembered here."""

    def log(self, points: Sequence[Point]) -> None:
        """Add points, in order."""

    def finish(self, succeeded: bool) -> None:
        """Close the run."""


class TensorBoard:
    """Event files in `tensorboard/` of the run folder. A resumed run writes all points again and voids the old ones."""

    run_id: str | None = None

    def __init__(self, run: Run, run_id: str | None) -> None:
        from torch.utils.tensorboard import SummaryWriter  # a slow import, needed only here

        self.writer: Any = SummaryWriter(str(run.folder / "tensorboard"), purge_step=0)
        lines = json.dumps(run.settings, indent=2, ensure_ascii=False, default=str).split("\n")
        self.writer.add_text("config", "\n".join(f"    {line}" for line in lines), 0)

    @staticmethod
    def check(project: str) -> None:
        """Files are always to be had."""

    def recall(self, told: dict[str, int]) -> dict[str, int]:
        """What this writer has written."""
        return told

    def log(self, points: Sequence[Point]) -> None:
        """Write and flush."""
        for point in points:
            for name, value in point.values.items():
                self.writer.add_scalar(name, value, point.step, walltime=point.time)
        self.writer.flush()

    def finish(self, succeeded: bool) -> None:
        """Close the file."""
        self.writer.close()


class MLflow:
    """A run on the server, or in the store, that MLFLOW_TRACKING_URI names."""

    def __init__(self, run: Run, run_id: str | None) -> None:
        self.client = _connect_mlflow()
        self.run_id: str | None = run_id
        if run_id is not None:
            self.client.update_run(run_id, status="RUNNING")
            return
        from mlflow.entities import Param

        found = self.client.get_experiment_by_name(run.project)
        experiment = found.experiment_id if found else self.client.create_experiment(run.project)
        self.run_id = self.client.create_run(experiment, run_name=run.name).info.run_id
        params = [Param(name, value[:MLFLOW_PARAM_LENGTH]) for name, value in _flatten(run.settings)]
        for batch in _cut(params, MLFLOW_BATCH["params"]):
            self.client.log_batch(self.run_id, params=batch)

    @staticmethod
    def check(project: str) -> None:
        """The server answers."""
        _connect_mlflow().get_experiment_by_name(project)

    def recall(self, told: dict[str, int]) -> dict[str, int]:
        """What the server has: of a request that failed it may have taken a part."""
        names = self.client.get_run(self.run_id).data.metrics
        histories = {name: self.client.get_metric_history(self.run_id, name) for name in names}
        return {name: max((one.step for one in history), default=-1) for name, history in histories.items()}

    def log(self, points: Sequence[Point]) -> None:
        """Send in few requests."""
        from mlflow.entities import Metric

        metrics = [
            Metric(name, value, round(point.time * 1000), point.step)
            for point in points
            for name, value in point.values.items()
        ]
        for batch in _cut(metrics, MLFLOW_BATCH["metrics"]):
            self.client.log_batch(self.run_id, metrics=batch)

    def finish(self, succeeded: bool) -> None:
        """Set its status."""
        self.client.set_terminated(self.run_id, "FINISHED" if succeeded else "FAILED")


class Wandb:
    """A run in the account that `wandb login` or WANDB_API_KEY gives; its files are in `wandb/` of the run folder."""

    def __init__(self, run: Run, run_id: str | None) -> None:
        wandb = _load_wandb()
        self.run: Any = wandb.init(
            project=run.project,
            name=run.name,
            id=run_id,
            resume="allow" if run_id else None,
            dir=str(run.folder),
            config=None if run_id else json.loads(json.dumps(run.settings, default=str)),
            settings=wandb.Settings(
                silent=True,
                console="off",  # what a run prints has texts in it
                init_timeout=INIT_S,
                finish_timeout=FINISH_S,
                finish_timeout_raises=True,
            ),
        )
        self.run_id: str | None = self.run.id

    @staticmethod
    def check(project: str) -> None:
        """There is an account, and its server answers; offline nothing is needed."""
        wandb = _load_wandb()
        if wandb.setup().settings.mode in ("online", "shared") and not wandb.login(prompt=False):
            raise RuntimeError("no account: run `wandb login`, or set WANDB_API_KEY, or WANDB_MODE=offline")

    def recall(self, told: dict[str, int]) -> dict[str, int]:
        """Offline nobody could be asked; online older steps are refused."""
        return told

    def log(self, points: Sequence[Point]) -> None:
        """Hand to W&B's own process, which writes and sends."""
        for point in points:
            if point.is_final:
                self.run.summary.update(point.values)
            else:
                self.run.log(point.values, step=point.step)

    def finish(self, succeeded: bool) -> None:
        """Wait until everything is sent."""
        self.run.finish(exit_code=0 if succeeded else 1)


TRACKERS: dict[str, type[Tracker]] = {"tensorboard": TensorBoard, "mlflow": MLflow, "wandb": Wandb}


def is_installed(name: str) -> bool:
    """Whether there is a package, not just a folder that is called so, as W&B leaves them."""
    spec = importlib.util.find_spec(name)
    return spec is not None and spec.origin is not None


def _connect_mlflow() -> Any:
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # minutes by default; the follower tries again itself
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    from mlflow import MlflowClient  # a slow import, needed only here

    return MlflowClient()


def _load_wandb() -> Any:
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    os.environ.setdefault("WANDB_SILENT", "true")
    import wandb

    return wandb


def _flatten(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
            yield f"{prefix}{name}", text


def _cut(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    return (items[at : at + size] for at in range(0, len(items), size))
