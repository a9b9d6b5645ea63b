"""A run told to the trackers that were asked for, and to none else.

The run's history is followed from the driver. Each tracker is told what it does not know yet, so that a resumed run
goes on in the same place without a point twice, and a server that was gone hears the rest once it is back.
"""

import json
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import Any

from rich.markup import escape

from pipelines.folders import write_json
from pipelines.job import progress_console
from pipelines.ner.errors import UserError
from pipelines.trackers import TRACKERS, Point, Run, Tracker, is_installed
from pipelines.training.history import MetricsTail, Row

STATE_FILE = "tracking.json"
POLL_S = 1.0
RETRY_S = 30.0
CURVES = ("step", "epoch")
"""The kinds of rows that are points."""
SCORES = {"dev_f1": "dev/strict_f1", "held_out_perplexity": "held_out/perplexity"}
"""What an epoch is scored by → its curve."""
FINISH_S = 60.0
"""How long the end of a run waits for its trackers."""
REMEDIES = {
    "mlflow": "set MLFLOW_TRACKING_URI to a server that answers; or to a folder, with MLFLOW_ALLOW_FILE_STORE=true",
    "wandb": "run `wandb login`; or set WANDB_MODE=offline, and send the files later with `wandb sync`",
}


class TrackingError(UserError):
    """A tracker that is not there, or does not answer."""


@dataclass(frozen=True)
class TrackingConfig:
    """Where a run can be watched from outside."""

    to: list[str] = field(default_factory=list)
    """tensorboard (files in the run folder), mlflow (the server in MLFLOW_TRACKING_URI), wandb (the account of `wandb
    login`; WANDB_MODE=offline writes files only); default: nowhere. They need the extra `tracking`."""
    project: str = "rayner"
    """MLflow's experiment, W&B's project."""
    run_name: str | None = None
    """The run's name there; default: that of the run folder."""

    def find_problems(self) -> list[UserError]:
        """Every mistake in these settings, a library that is not installed included."""
        problems: list[UserError] = []
        for name in dict.fromkeys(self.to):
            if name not in TRACKERS:
                rule = "one of " + ", ".join(TRACKERS)
                problems.append(TrackingError("no such tracker", where="`tracking.to`", rule=rule, value=name))
            elif not is_installed(name):
                problems.append(
                    TrackingError(
                        f"the library for `--tracking.to {name}` is not installed",
                        rule=f"Python finds a package `{name}`",
                        remedy="pip install 'rayner[tracking]'",
                    )
                )
        if not self.project.strip():
            problems.append(TrackingError("an empty name", where="`tracking.project`", rule="at least one character"))
        return problems

    def find_idle(self) -> list[str]:
        """Settings given that change nothing in this run, each with its reason."""
        plain = TrackingConfig(to=self.to)
        given = [name for name in ("project", "run_name") if getattr(self, name) != getattr(plain, name)]
        return [] if self.to else [f"`tracking.{name}` has no effect without `--tracking.to`" for name in given]

    def check_servers(self) -> None:
        """Raise TrackingError for a tracker that takes no runs; it is asked, and told nothing."""
        for name in dict.fromkeys(self.to):
            with _explain(name):
                TRACKERS[name].check(self.project)


class Tracking:
    """The trackers of one run. Once it has begun none of them can end it, or hold it up longer than `FINISH_S`."""

    def __init__(self, config: TrackingConfig, folder: Path, settings: Mapping[str, Any]) -> None:
        self.names = list(dict.fromkeys(config.to))
        self.run = Run(config.run_name or folder.name, config.project, folder, settings)
        self.followers: list[_Follower] = []

    def __enter__(self) -> "Tracking":
        """Begin nothing yet."""
        return self

    def start(self, metrics: Path) -> None:
        """Begin a run in each tracker, or go on with it, and follow the history. Raises TrackingError."""
        state = _State(self.run.folder / STATE_FILE)
        for name in self.names:
            known = state.runs.get(name, {})
            with _explain(name):
                tracker = TRACKERS[name](self.run, known.get("run_id"))
                follower = _Follower(name, tracker, MetricsTail(metrics).read, state)
                follower.told = tracker.recall(known.get("told", {}))
            state.save(name, tracker.run_id, follower.told)
            self.followers.append(follower)
            follower.start()

    def log_scores(self, scores: Mapping[str, Any], step: int) -> None:
        """The test scores (as `EvaluationReport.to_dict` has them) of the finished model."""
        values = {f"test/strict_{name}": scores["strict"]["micro"][name] for name in ("precision", "recall", "f1")}
        values["test/lenient_f1"] = scores["lenient"]["micro"]["f1"]
        for follower in self.followers:
            follower.scores = Point(step, time.time(), values, is_final=True)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Tell what is left, and close."""
        for follower in self.followers:
            follower.succeeded = kind is None
            follower.stop.set()
        deadline = time.monotonic() + FINISH_S
        for follower in self.followers:
            follower.join(max(0.0, deadline - time.monotonic()))
            if follower.is_alive():
                follower.warn(f"no answer within {FINISH_S:g} s")


class _Follower(threading.Thread):
    """Tells one tracker what it does not know yet, in a thread of its own: one that is slow holds up nobody."""

    def __init__(self, name: str, tracker: Tracker, read_rows: Callable[[], list[Row]], state: "_State") -> None:
        super().__init__(name=f"tracking-{name}", daemon=True)
        self.tracker_name, self.tracker, self.read_rows, self.state = name, tracker, read_rows, state
        self.stop = threading.Event()
        self.succeeded = True
        self.scores: Point | None = None
        self.told: dict[str, int] = {}
        self.floor = -1
        """All before this step is told."""
        self.has_failed = self.is_warned = False

    def run(self) -> None:
        """Follow until stopped; then tell the rest and close."""
        while not self.stop.wait(RETRY_S if self.has_failed else POLL_S):
            self.attempt(self.tell)
        self.attempt(self.tell)
        self.attempt(lambda: self.tracker.finish(self.succeeded))

    def attempt(self, action: Callable[[], None]) -> None:
        """Do something with the tracker; only the first failure is told."""
        try:
            action()
            self.has_failed = False
        except Exception as error:  # of any library, for any reason
            self.has_failed = True
            self.warn(_describe(error))

    def tell(self) -> None:
        """Add the points that the tracker lacks."""
        if self.has_failed:
            self.told, self.floor = self.tracker.recall(self.told), -1
        points = [*read_points(self.read_rows(), self.floor), *([self.scores] if self.scores else [])]
        missing = [
            Point(point.step, point.time, values, point.is_final)
            for point in points
            if (values := {name: value for name, value in point.values.items() if point.step > self.told.get(name, -1)})
        ]
        if missing:
            self.tracker.log(missing)
            self.told |= {name: point.step for point in missing for name in point.values}
            self.floor = max(self.told.values())
            self.state.save(self.tracker_name, self.tracker.run_id, self.told)

    def warn(self, reason: str) -> None:
        """Say once that something is missing there."""
        if not self.is_warned:
            self.is_warned = True
            what = f"{self.tracker_name} has not taken everything ({reason}); the run goes on without it"
            progress_console.print(f"[yellow]![/] {escape(what)}")


class _State:
    """`tracking.json`: by which runs the trackers know this one, and what they have."""

    def __init__(self, path: Path) -> None:
        self.path, self.lock = path, threading.Lock()
        self.runs: dict[str, dict[str, Any]] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}

    def save(self, name: str, run_id: str | None, told: Mapping[str, int]) -> None:
        """Write down the last step told of each curve; nothing for a tracker without run ids."""
        if run_id is None:
            return
        with self.lock:
            self.runs[name] = {"run_id": run_id, "told": dict(told)}
            write_json(self.path, self.runs)


def read_points(rows: Sequence[Row], floor: int = -1) -> Iterator[Point]:
    """What of the history's rows is a curve, from a step on: loss, learning rate, gradient norm, sub-tokens/s; dev F1.

    Rows of these kinds are in the order of their steps; one of a checkpoint comes when it is written, steps later.
    """
    curves = (row for row in reversed(rows) if row["kind"] in CURVES)
    for row in reversed(list(takewhile(lambda row: row["step"] >= floor, curves))):
        if row["kind"] == "step":
            values = {f"train/{name}": row[name] for name in ("loss", "learning_rate")}
            norm = row["gradient_norm"]
            values["train/gradient_norm"] = math.inf if norm is None else norm
            values["train/tokens_per_s"] = row["num_tokens"] / max(1e-9, row["seconds"])
            yield Point(row["step"], row["time"], values)
        else:
            scored = {curve: row[name] for name, curve in SCORES.items() if name in row}
            yield Point(row["step"], row["time"], {**scored, "epoch": row["epoch"]})


@contextmanager
def _explain(name: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # of any library, for any reason
        raise TrackingError(
            f"{name} takes no run",
            where=f"`--tracking.to {name}`",
            value=_describe(error),
            remedy=REMEDIES.get(name, "leave it out of `--tracking.to`"),
        ) from error


def _describe(error: Exception) -> str:
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {first[:300]}"
