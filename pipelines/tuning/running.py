"""A trial as it runs on the cluster: the training of `rayner train`, told to Ray Tune epoch by epoch.

One worker trains in the trial's own process, which the next trial takes over: what a worker group of Ray Train costs to
start would be the larger part of a short trial. Several workers train by Ray Train, as in `rayner train`.
"""

import json
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import torch
from ray import tune
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForTokenClassification

from pipelines.ner.errors import UserError
from pipelines.training.config import TrainingHalted
from pipelines.training.history import MetricsTail
from pipelines.training.job import TrainingJob
from pipelines.training.recorder import METRICS_FILE
from pipelines.training.resources import ResourcesConfig
from pipelines.training.trainer import fit
from pipelines.training.worker import fit_here
from pipelines.tuning.domains import Value
from pipelines.tuning.trials import FAILED, FINISHED, OPEN, REFUSED, Journal

POLL_S = 0.2
TOLD_FILE = "told.json"
PASSES_PER_STEP = 3
"""A backward pass computes twice what a forward pass does."""

BuildJob = Callable[[Mapping[str, Value], int], TrainingJob]
"""(settings, seed) → what is trained. Raises UserError for settings that contradict each other."""


@dataclass(frozen=True)
class Bench:
    """What all trials of a search share."""

    folder: Path
    """The journal's."""
    build_job: BuildJob
    resources: ResourcesConfig
    gpus: float
    is_alone: bool
    """Whether a trial trains in its own process."""
    pauses: bool
    """Whether trials are paused, and go on from states of their own or of others."""
    counts_flops: bool
    may_grow: bool = False
    """Whether an autoscaler may make room for a trial's workers."""


def run_trial(config: dict[str, Any], bench: Bench) -> None:
    """Train one trial, or what is left of it; what its files tell already is told again, not done again."""
    number = int(tune.get_context().get_trial_name())
    journal = Journal(bench.folder)
    told = _go_on(journal, number, config)
    trial = journal.read(number)
    report = _Report(journal, number, bench.pauses)
    for epoch, f1 in trial.epochs:
        if epoch > told:
            report.tell(epoch, f1)
    if trial.status != OPEN:
        return

    def on_epoch(metrics: dict[str, Any], is_last: bool) -> None:
        if is_last:
            journal.end(number, FINISHED)
        report.tell(metrics["epoch"], metrics["dev_f1"])

    try:
        try:
            job = bench.build_job(trial.plan.settings, trial.plan.seed)
        except UserError as error:
            journal.end(number, REFUSED, describe_error(error))
            return
        folder = journal.find(number)
        if bench.counts_flops:
            cost = json.dumps({"flops_per_token": count_flops_per_token(job)})
            (folder / "flops.json").write_text(cost, encoding="utf-8")
        if bench.is_alone:
            _limit_gpu_memory(bench.gpus)
            fit_here(job, folder, bench.resources.storage_patience_s, on_epoch, use_gpu=bench.gpus > 0)
        else:
            _fit_group(job, bench, folder, on_epoch)
        journal.end(number, FINISHED)
    except TrainingHalted:
        raise
    except UserError as error:  # no second try mends it
        journal.end(number, FAILED, describe_error(error))
    finally:
        if torch.cuda.is_available():
            torch.cuda.empty_cache()  # the process goes on with another trial


def describe_error(error: BaseException) -> str:
    """An error in a line."""
    if isinstance(error, UserError):
        facts = [error.what, *(str(fact) for fact in (error.where, error.rule, error.value) if fact is not None)]
        return "; ".join(facts)
    lines = [line for line in str(error).strip().splitlines() if line.strip()] or [""]
    return f"{type(error).__name__}: {lines[-1].strip()}"[:400]


def count_flops_per_token(job: TrainingJob) -> float:
    """Floating-point operations of training for one sub-token, by PyTorch's own counter on a window of mean length.

    Frozen layers are counted as if they were trained.
    """
    lengths = pc.list_value_length(job.load_windows()["input_ids"])
    length = max(1, round(pc.mean(lengths).as_py() or 1))
    config = AutoConfig.from_pretrained(job.encoder, num_labels=len(job.scheme.tags), trust_remote_code=False)
    with torch.device("meta"):
        network = AutoModelForTokenClassification.from_config(config, trust_remote_code=False)
        ids = torch.zeros(1, length, dtype=torch.long)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(input_ids=ids)
    adversarial = job.training.adversarial
    extra = {"none": 0, "pgd": adversarial.steps}.get(adversarial.method, 1)
    passes = (2 if job.training.r_drop else 1) * (1 + extra)
    return float(counter.get_total_flops()) / length * PASSES_PER_STEP * passes


class _Report:
    """Tells Ray Tune of epochs; where trials are paused, with what they go on from."""

    def __init__(self, journal: Journal, number: int, pauses: bool) -> None:
        self.journal, self.number, self.pauses = journal, number, pauses

    def tell(self, epoch: int, f1: float) -> None:
        """Tell one; the process may end in here, for Ray Tune may have stopped the trial."""
        metrics = {"epoch": epoch, "f1": f1}
        if not self.pauses:
            tune.report(metrics)
            return
        state = self.journal.keep_state(self.number)
        with tempfile.TemporaryDirectory() as folder:
            told = {"number": self.number, "epoch": epoch, "state": state}
            Path(folder, TOLD_FILE).write_text(json.dumps(told), encoding="utf-8")
            tune.report(metrics, checkpoint=tune.Checkpoint.from_directory(folder))


def _go_on(journal: Journal, number: int, config: dict[str, Any]) -> int:
    """The last epoch that Ray Tune knows of; takes over another trial's state where it says so."""
    checkpoint = tune.get_checkpoint()
    if checkpoint is None:
        return 0
    with checkpoint.as_directory() as folder:
        last = json.loads(Path(folder, TOLD_FILE).read_text(encoding="utf-8"))
    turns = journal.read_plan(number).turns
    is_done = bool(turns) and (turns[-1]["from"], turns[-1]["epoch"]) == (last["number"], last["epoch"])
    is_done |= journal.read(number).status != OPEN  # nothing is left to train with other settings
    if last["number"] != number and last["state"] and not is_done:
        journal.take_over(number, last["state"], last["epoch"], config["settings"])
    return int(last["epoch"])


def _limit_gpu_memory(gpus: float) -> None:
    if 0 < gpus < 1 and torch.cuda.is_available():
        torch.cuda.set_per_process_memory_fraction(gpus)


def _fit_group(job: TrainingJob, bench: Bench, folder: Path, on_epoch: Callable[[dict[str, Any], bool], None]) -> None:
    """Train by Ray Train, and tell of epochs as their rows appear; of the last one when all is written."""
    errors: list[BaseException] = []

    def train() -> None:
        try:
            fit(job, bench.resources, folder, may_grow=bench.may_grow)
        except BaseException as error:
            errors.append(error)

    tail = MetricsTail(folder / METRICS_FILE)
    told = max((row["epoch"] for row in tail.read() if row["kind"] == "epoch"), default=0)
    thread = threading.Thread(target=train, daemon=True)
    thread.start()
    while True:
        is_running = thread.is_alive()
        for row in [row for row in tail.read() if row["kind"] == "epoch" and row["epoch"] > told]:
            is_last = row["epoch"] >= job.training.num_epochs
            if is_last and is_running:
                break
            told = row["epoch"]
            on_epoch(row, is_last or not is_running)
        if not is_running:
            break
        time.sleep(POLL_S)
    if errors:
        raise errors[0]
