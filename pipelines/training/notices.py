"""What Ray Train's controller tells of a run. The process of the controller imports this, and needs no model for it."""

import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray
from ray.train import UserCallback

from pipelines.training.history import append_metrics, read_metrics


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
        with suppress(OSError):
            steps = [row["step"] for row in read_metrics(self.path)]
            row = {"kind": "notice", "time": round(time.time(), 3), "step": max(steps, default=0)}
            append_metrics(self.path, [row | {"text": f"{text}: training starts again from the last checkpoint"}])


def _tell_end(error: Exception) -> str:
    """How a worker ended; what it raised itself by type and last line."""
    if isinstance(getattr(error, "health_check_failure", error), ray.exceptions.RayError):
        return "is gone, or its node"
    told = str(error).strip().splitlines() or [""]
    return f"failed ({type(error).__name__}: {told[-1].strip()[:200]})"
