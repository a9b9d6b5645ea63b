"""What is known of every trial, in files: a search that was killed is read from them, and so is its report.

`trials/0007/` holds `trial.json` (the settings), `metrics.jsonl` and `checkpoints/` (as a run folder of `train` does),
and `ended.json` once it has ended. Nothing else of a search needs to outlive its driver.
"""

import json
import math
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from pipelines.ner.files import write_text
from pipelines.training.checkpoints import list_checkpoints, read_step
from pipelines.training.history import Row, append_metrics, read_metrics
from pipelines.training.recorder import CHECKPOINTS, METRICS_FILE
from pipelines.tuning.domains import Value, render_value

TRIAL_FILE = "trial.json"
ENDED_FILE = "ended.json"
KEPT_FOLDER = "kept"
KEPT_STATES = 3
"""States of a population's members that others may still go on from."""
FINISHED, STOPPED, FAILED, REFUSED, OPEN = "finished", "stopped", "failed", "refused", "unfinished"
"""Trained to its end; ended by the scheduler; by an error; never begun, for its settings contradict each other; not yet
ended."""


@dataclass(frozen=True)
class Plan:
    """What a trial is to be: `trial.json`."""

    number: int
    settings: dict[str, Value]
    """Dotted setting → value; what is not named is as the recipe has it."""
    seed: int
    turns: list[dict[str, Any]] = field(default_factory=list)
    """Where a population's member took over another one: after which epoch, whose state, with which settings."""
    other_s: float = 0.0
    """Seconds of training that are not in its own history (more than there are, if above 0; else fewer)."""


@dataclass(frozen=True)
class Trial:
    """A trial as its files tell it."""

    plan: Plan
    status: str = OPEN
    reason: str = ""
    epochs: tuple[tuple[int, float], ...] = ()
    """(epoch, strict micro F1 on dev)."""
    train_s: float = 0.0
    """Seconds in steps and on dev."""
    num_tokens: int = 0
    """Sub-tokens trained on."""
    flops: float | None = None
    num_epochs: int | None = None
    """That it was to have."""
    num_steps: int | None = None
    steps_done: int = 0
    step_s: float | None = None
    """Seconds of a step, without the first ones."""

    @property
    def number(self) -> int:
        """Its place in the search, from 0."""
        return self.plan.number

    @property
    def best_f1(self) -> float | None:
        """The best of its epochs; None if none has ended, or none gave a number."""
        return max((f1 for _, f1 in self.epochs if math.isfinite(f1)), default=None)

    @property
    def is_whole(self) -> bool:
        """Whether `train` with its settings does the same: it came to its end, by itself."""
        return self.status == FINISHED and not self.plan.turns

    def describe_settings(self) -> str:
        """The settings in a line, by their last names."""
        pairs = [f"{path.rsplit('.', 1)[-1]} {render_value(value)}" for path, value in self.plan.settings.items()]
        return ", ".join(pairs) or "the recipe as it is"


class Journal:
    """The folder of trials."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def find(self, number: int) -> Path:
        """The folder of a trial."""
        return self.folder / f"{number:04}"

    def count(self) -> int:
        """How many trials there are."""
        return len(list(self._list()))

    def add(self, settings: Mapping[str, Value], seed: int) -> Plan:
        """Note a new trial, before it is begun."""
        plan = Plan(max(self._list(), default=-1) + 1, dict(settings), seed)
        self.write(plan)
        return plan

    def write(self, plan: Plan) -> None:
        """Note what a trial is to be."""
        self.find(plan.number).mkdir(parents=True, exist_ok=True)
        _write_json(self.find(plan.number) / TRIAL_FILE, asdict(plan))

    def end(self, number: int, status: str, reason: str = "") -> None:
        """Note how a trial has ended; the first word stands."""
        path = self.find(number) / ENDED_FILE
        if not path.exists():
            _write_json(path, {"status": status, "reason": reason, "time": round(time.time(), 3)})

    def read_plan(self, number: int) -> Plan:
        """What a trial is to be."""
        return Plan(**json.loads((self.find(number) / TRIAL_FILE).read_text(encoding="utf-8")))

    def read(self, number: int) -> Trial:
        """All that is known of a trial."""
        folder = self.find(number)
        plan = self.read_plan(number)
        ended = {"status": OPEN, "reason": ""}
        with suppress(FileNotFoundError, json.JSONDecodeError):
            ended = json.loads((folder / ENDED_FILE).read_text(encoding="utf-8"))
        trial = summarize_rows(Trial(plan, ended["status"], ended["reason"]), read_metrics(folder / METRICS_FILE))
        with suppress(FileNotFoundError, json.JSONDecodeError):
            cost = json.loads((folder / "flops.json").read_text(encoding="utf-8"))
            trial = replace(trial, flops=cost["flops_per_token"] * trial.num_tokens)
        return trial

    def read_all(self) -> list[Trial]:
        """Every trial, by number."""
        return [self.read(number) for number in self._list()]

    def remove(self, number: int) -> None:
        """Take a trial out, with all it has written; others keep their numbers."""
        shutil.rmtree(self.find(number), ignore_errors=True)

    def forget_weights(self, number: int) -> None:
        """Free the room that a trial's checkpoints take."""
        for name in (CHECKPOINTS, KEPT_FOLDER):
            shutil.rmtree(self.find(number) / name, ignore_errors=True)

    def has_weights(self, number: int) -> bool:
        """Whether a trial's checkpoints are there."""
        folder = self.find(number) / CHECKPOINTS
        return folder.is_dir() and bool(list_checkpoints(folder))

    def keep_state(self, number: int) -> str | None:
        """Keep the state just written for others of a population to go on from; its path in the journal.

        None where there is none: a trial that has ended may have had its checkpoints taken away.
        """
        if not self.has_weights(number):
            return None
        found = list_checkpoints(self.find(number) / CHECKPOINTS)
        kept = self.find(number) / KEPT_FOLDER
        kept.mkdir(exist_ok=True)
        _link(found[0], kept / found[0].name)
        for old in list_checkpoints(kept)[KEPT_STATES:]:
            old.unlink(missing_ok=True)
        return str((kept / found[0].name).relative_to(self.folder))

    def take_over(self, number: int, state: str, epoch: int, settings: Mapping[str, Value]) -> None:
        """Let a trial go on from another one's state, with other settings; its history becomes that one's."""
        folder, source = self.find(number), self.folder / state
        donor = source.parents[1]
        plan, own = self.read_plan(number), self.read(number)
        step = read_step(source)
        shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
        (folder / CHECKPOINTS).mkdir()
        _link(source, folder / CHECKPOINTS / source.name)
        rows = [row for row in read_metrics(donor / METRICS_FILE) if row["step"] <= step]
        (folder / METRICS_FILE).unlink(missing_ok=True)
        if rows:
            append_metrics(folder / METRICS_FILE, [row for row in rows if row["kind"] != "start"])
        copied = summarize_rows(Trial(plan), rows).train_s
        turn = {"epoch": epoch, "from": int(donor.name), "before": plan.settings}
        self.write(replace(plan, settings=dict(settings), turns=[*plan.turns, turn], other_s=own.train_s - copied))

    def _list(self) -> Iterator[int]:
        for path in sorted(self.folder.glob("[0-9]*")):
            if (path / TRIAL_FILE).is_file():
                yield int(path.name)


def summarize_rows(trial: Trial, rows: list[Row]) -> Trial:
    """A trial with what its history tells."""
    steps = [row for row in rows if row["kind"] == "step"]
    start: Row = next((row for row in reversed(rows) if row["kind"] == "start"), {})
    settled = [row["seconds"] for row in steps[3:]]
    return replace(
        trial,
        epochs=tuple((row["epoch"], row["dev_f1"]) for row in rows if row["kind"] == "epoch"),
        train_s=sum(row["seconds"] for row in steps)
        + sum(row.get("evaluation_s", 0.0) for row in rows)
        + trial.plan.other_s,
        num_tokens=sum(row["num_tokens"] for row in steps),
        num_epochs=start.get("num_epochs"),
        num_steps=start.get("num_steps"),
        steps_done=max((row["step"] for row in steps), default=0),
        step_s=sum(settled) / len(settled) if settled else None,
    )


def _write_json(path: Path, content: Any) -> None:
    """Whole or not at all."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def _link(source: Path, target: Path) -> None:
    """The same file under another name, or a copy of it where the storage knows no links."""
    with suppress(FileExistsError):
        try:
            os.link(source, target)
        except FileExistsError:
            raise
        except OSError:
            shutil.copy2(source, target)
