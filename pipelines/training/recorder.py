"""What the first worker writes into the run folder, and what becomes of training when it cannot.

Training outlives storage that is full or away for a while: rows are kept back, a checkpoint that failed is tried again,
and only when that has failed for `patience_s` does the run stop. A checkpoint is begun when all rows up to its step are
on the disk, so that a resumed run has each step once.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.training.checkpoints import CheckpointWriter, find_last, read_step
from pipelines.training.config import TrainingError
from pipelines.training.history import Row, append_metrics, read_metrics
from pipelines.training.state import TrainingState

LOOK_EVERY_S = 2.0
MOST_STEPS = 20
"""Time and steps between looks at the storage and at the cluster, where all workers meet: whichever is less."""
KEEP_EVERY_S = 10.0
"""Time between checkpoints while a node is about to be taken."""
RETRIES = 20
"""How often a checkpoint is tried again before patience ends."""
METRICS_FILE = "metrics.jsonl"
CHECKPOINTS = "checkpoints"


@dataclass(frozen=True)
class Order:
    """What all workers do next, as the first one has found."""

    next_look: int
    """The step after which they ask again."""
    keep_now: bool = False
    problem: dict[str, Any] | None = None
    """Why the run ends here: the facts of a TrainingError."""


class Recorder:
    """Writes the rows and the checkpoints of a run.

    Args:
        output_dir: the run folder, with a folder `checkpoints` in it.
        patience_s: how long training goes on without storage.
    """

    def __init__(self, output_dir: Path, patience_s: float) -> None:
        self.output_dir, self.patience_s = output_dir, patience_s
        self.writer = CheckpointWriter(output_dir / CHECKPOINTS)
        self.rows: list[Row] = []
        self.row_error: Exception | None = None
        self.owes_checkpoint = False
        self.failing_since: float | None = None
        self.leaving: list[str] = []
        self.kept_at = self.looked_at = time.monotonic()
        self.step = 0

    def find_checkpoint(self) -> Path | None:
        """The checkpoint to go on from. Raises TrainingError if all are damaged or gone."""
        path, damaged = find_last(self.output_dir / CHECKPOINTS)
        self.step = read_step(path) if path else 0
        told = [row["step"] for row in read_metrics(self.output_dir / METRICS_FILE) if row["kind"] == "checkpoint"]
        if path is None and told:
            raise TrainingError(
                "the checkpoints of the run are gone",
                where=str(self.output_dir / CHECKPOINTS),
                rule="the last one is kept, and the one before",
                value=f"none; one of step {max(told)} was written",
                remedy="bring them back from a copy, or start over with `--fresh`",
            )
        faults = {read_step(one.with_suffix(".pt")): f"damaged, and kept as {one.name} for now" for one in damaged}
        faults = {step: "gone" for step in told if step > self.step} | faults
        for step, fault in sorted(faults.items()):
            self.notify(f"the checkpoint of step {step} is {fault}: training goes on from step {self.step}")
        return path

    def add(self, kind: str, facts: dict[str, Any]) -> None:
        """A row for the history, told when it is next written."""
        self.rows.append({"kind": kind, "time": round(time.time(), 3), **facts})

    def has_epochs(self) -> bool:
        """Whether the history tells of an epoch already."""
        return any(row["kind"] == "epoch" for row in read_metrics(self.output_dir / METRICS_FILE))

    def notify(self, text: str) -> None:
        """Something that the user should know."""
        self.add("notice", {"step": self.step, "text": text})

    def flush(self) -> None:
        """Write the rows; those that cannot be written are kept."""
        while self.writer.written:
            self.add("checkpoint", self.writer.written.pop(0))
        self.rows.sort(key=lambda row: row["kind"] != "start")  # a notice may come before the run has begun
        try:
            if self.rows:
                append_metrics(self.output_dir / METRICS_FILE, self.rows)
        except OSError as error:
            self.row_error = error
        else:
            self.rows, self.row_error = [], None

    def write_checkpoint(self, state: TrainingState) -> None:
        """Begin to write one, once the one before is written or has failed."""
        self.writer.wait()
        self._is_failing()
        self.kept_at = time.monotonic()
        self.flush()
        self.owes_checkpoint = self.row_error is not None
        if not self.owes_checkpoint:
            self.writer.write(state)

    def look(self, step: int, leaving: Sequence[str] = ()) -> Order:
        """Where the storage stands and the cluster, of which some nodes may be about to be taken."""
        now = time.monotonic()
        num_steps = max(1, step - self.step)
        pace_s = (now - self.looked_at) / num_steps
        next_look = step + max(1, min(MOST_STEPS, 2 * num_steps, int(LOOK_EVERY_S / max(pace_s, 1e-6))))
        self.looked_at, self.step = now, step
        keep_now = False
        if list(leaving) != self.leaving:
            self.leaving, keep_now = list(leaving), bool(leaving)
            nodes = ", ".join(node[:8] for node in leaving)
            self.notify(f"a node is about to be taken ({nodes}): a checkpoint is written at once")
        elif leaving and not self.writer.is_busy:
            keep_now = now - self.kept_at >= KEEP_EVERY_S
        self.flush()
        if self._is_failing() and now - self.kept_at >= self.patience_s / RETRIES:
            keep_now = True
        return Order(next_look, keep_now, self._find_problem())

    def finish(self, state: TrainingState) -> dict[str, Any] | None:
        """Wait until the last checkpoint and all rows are written; the problem if they cannot be."""
        while True:
            self.writer.wait()
            self.flush()
            if not self._is_failing():
                self.flush()  # that it works again
                return None
            problem = self._find_problem()
            if problem is not None:
                return problem
            time.sleep(self.patience_s / RETRIES)
            self.write_checkpoint(state)

    def _is_failing(self) -> bool:
        """Whether something could not be written; told when it begins and when it ends."""
        if self.writer.is_busy:
            return False
        error = self.row_error or self.writer.error
        if error is not None and self.failing_since is None:
            self.failing_since = time.monotonic()
            told = f"training goes on, tries again, and stops after {self.patience_s:g} s"
            self.notify(f"a checkpoint cannot be written ({_describe(error)}): {told}")
        elif error is None and not self.owes_checkpoint and self.failing_since is not None:
            self.failing_since = None
            self.notify("checkpoints are written again")
        return error is not None or self.owes_checkpoint

    def _find_problem(self) -> dict[str, Any] | None:
        if self.failing_since is None or time.monotonic() - self.failing_since < self.patience_s:
            return None
        return {
            "what": "the run folder cannot be written",
            "where": str(self.output_dir),
            "rule": f"storage may fail for {self.patience_s:g} s (`resources.storage_patience_s`)",
            "value": _describe(self.row_error or self.writer.error),
            "remedy": "make room or bring the storage back: the same command goes on from the last checkpoint",
        }


def _describe(error: Exception | None) -> str:
    told = (error.strerror if isinstance(error, OSError) else None) or str(error)
    return told.strip().splitlines()[0][:200]
