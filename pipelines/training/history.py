"""What happened in training, row by row: `metrics.jsonl`.

Rows are of kind `start` (a worker group began or resumed), `step`, `epoch`, `checkpoint` (one was written), and
`notice` (what the user should know, in words); each has `time` and `step`.
"""

import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Any, BinaryIO

Row = dict[str, Any]
CURVE_POINTS = 100


def append_metrics(path: Path, rows: Sequence[Row]) -> None:
    """Add rows, all or none; a `start` first takes out what came after it, for that is done again.

    That is what has a later step, and the epochs beyond those (`epoch`) that it has behind it: a run may resume between
    the last step of an epoch and its scores. The rows are on the disk when this returns. Raises OSError.
    """
    if rows and rows[0]["kind"] == "start":
        staging = path.with_suffix(".partial")
        staging.write_text(_render(row for row in read_metrics(path) if _is_kept(row, rows[0])), encoding="utf-8")
        staging.replace(path)
    with path.open("a+b", buffering=0) as file:
        size = file.seek(0, os.SEEK_END)
        if size:
            file.seek(-1, os.SEEK_END)
        begin = "\n" if size and file.read(1) != b"\n" else ""  # a kill has torn the last line
        content = memoryview((begin + _render(rows)).encode())
        try:
            while content:
                content = content[file.write(content) :]
            os.fsync(file.fileno())
        except OSError:
            file.truncate(size)
            raise


def _is_kept(row: Row, start: Row) -> bool:
    """Whether a row is of what a run has behind it that starts so."""
    if row["kind"] in ("notice", "start"):
        return bool(row["kind"] == "notice")
    is_scored = row["kind"] != "epoch" or row["epoch"] <= start.get("epoch", row["epoch"])
    return bool(is_scored and row["step"] <= start["step"])


def _render(rows: Iterable[Row]) -> str:
    """Lines of JSON, which has no infinity: the norm of a step that fp16 left out is null."""
    lines = []
    for row in rows:
        norm = row.get("gradient_norm")
        lines.append(json.dumps(row if norm is None or math.isfinite(norm) else row | {"gradient_norm": None}) + "\n")
    return "".join(lines)


def read_metrics(path: Path) -> list[Row]:
    """The whole rows of a metrics file, also one that is being written; empty if there is none yet."""
    try:
        return _parse(path.read_bytes())[0]
    except (FileNotFoundError, NotADirectoryError):
        return []


class MetricsTail:
    """A metrics file read again and again while it grows: each time only what is new is parsed.

    Storage may be away for a while, in whatever way: who looks on is told of no rows then, and the run goes on.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file: BinaryIO | None = None
        self.rows: list[Row] = []

    def read(self) -> list[Row]:
        """All whole rows that the file holds by now, in a list that the next call may change."""
        try:
            if self.file is None or self._is_replaced(self.file):
                self._forget()
                self.file = self.path.open("rb")
            rows, num_left = _parse(self.file.read())
            self.file.seek(-num_left, os.SEEK_CUR)
        except OSError:
            self._forget()
            return self.rows
        self.rows += rows
        return self.rows

    def _forget(self) -> None:
        """Begin anew with the next file."""
        with suppress(OSError):
            if self.file is not None:
                self.file.close()
        self.file, self.rows = None, []

    def _is_replaced(self, file: BinaryIO) -> bool:
        """Whether a restart has put another file in its place. (A file that is open keeps its number to itself.)"""
        return self.path.stat().st_ino != os.fstat(file.fileno()).st_ino


def _parse(content: bytes) -> tuple[list[Row], int]:
    """The rows of whole lines, and how many bytes are left of one that is still being written."""
    whole, _, rest = content.rpartition(b"\n")
    rows = []
    for line in whole.split(b"\n"):
        with suppress(ValueError):  # empty, or torn by a kill
            rows.append(json.loads(line))
    return rows, len(rest)


def summarize_usage(rows: Sequence[Row]) -> dict[str, Any]:
    """What training used: real sub-tokens, seconds in steps and on dev, sub-tokens per second, peak memory in MiB.

    Also the shares of a step's parts: making batches, forward, backward, optimizer; and of several workers their
    strategy, what one holds and sends in a step (MiB), and how much longer than the median the slowest takes.
    """
    steps = [row for row in rows if row["kind"] == "step"]
    seconds = sum(row["seconds"] for row in steps)
    evaluation_s = sum(row.get("evaluation_s", 0.0) for row in rows)
    tokens = sum(row["num_tokens"] for row in steps)
    start: Row = next((row for row in reversed(rows) if row["kind"] == "start"), {})
    measured: Row = next((row for row in reversed(steps) if "state_mib" in row), {})
    return {
        "num_tokens": tokens,
        "step_s": round(seconds, 3),
        "evaluation_s": round(evaluation_s, 3),
        "tokens_per_s": round(tokens / seconds, 1) if seconds else 0.0,
        "worker_peak_memory_mib": max((row.get("peak_memory_mib", 0) for row in rows), default=0),
        "gpu_peak_memory_mib": max((row.get("gpu_peak_memory_mib", 0) for row in rows), default=0),
        "shares": _share_parts(steps),
        "num_workers": start.get("num_workers"),
        "device": start.get("device"),
        "precision": start.get("precision"),
        "strategy": start.get("strategy"),
        "state_mib": measured.get("state_mib", {}),
        "sent_mib": measured.get("sent_mib", {}),
        "straggling": _compare_workers(steps),
    }


def _compare_workers(steps: Sequence[Row]) -> float | None:
    """The slowest worker's own time in a step over the median worker's, at the median step.

    None for one worker, and for GPUs, which work on while the clock is read.
    """
    times = [row["worker_s"] for row in steps if any(row.get("worker_s", ()))]
    ratios = [max(worker_s) / max(1e-9, median(worker_s)) for worker_s in times]
    return round(median(ratios), 3) if ratios else None


def _share_parts(steps: Sequence[Row]) -> dict[str, float]:
    """The share of each part in the time of all steps; none where no parts were measured."""
    parts = Counter[str]()
    for row in steps:
        parts.update(row.get("parts_s", {}))
    return {name: round(seconds / parts.total(), 4) for name, seconds in parts.items()}


def trace_loss(rows: Sequence[Row]) -> list[tuple[float, float]]:
    """(step, loss) in nats a word, averaged over neighbours to at most about `CURVE_POINTS` points."""
    steps = [(row["step"], row["loss"]) for row in rows if row["kind"] == "step"]
    width = max(1, len(steps) // CURVE_POINTS)
    groups = [steps[at : at + width] for at in range(0, len(steps), width)]
    return [(group[0][0], sum(loss for _, loss in group) / len(group)) for group in groups]


def trace_dev_f1(rows: Sequence[Row]) -> list[tuple[float, float]]:
    """(epoch, strict micro F1 on dev)."""
    return [(row["epoch"], row["dev_f1"]) for row in rows if row["kind"] == "epoch"]


def trace_perplexity(rows: Sequence[Row]) -> list[tuple[float, float]]:
    """(epoch, perplexity on held-out text), from before the first step on."""
    return [(row["epoch"], row["held_out_perplexity"]) for row in rows if row["kind"] == "epoch"]
