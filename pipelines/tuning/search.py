"""A search on Ray Tune: trials drawn, run side by side, stopped early, and gone on with after a kill.

Ray Tune keeps nothing that a later command needs: every trial that the journal knows is told to a new search again,
from its files and in its order, before new ones are drawn.
"""

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune import Callback, FailureConfig, RunConfig, Stopper, TuneConfig, Tuner
from ray.tune.progress_reporter import TrialProgressCallback
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import BasicVariantGenerator, Searcher

from pipelines.ner.errors import UserError, iterate_causes
from pipelines.ner.machine import set_environment
from pipelines.training.config import TrainingHalted
from pipelines.tuning.budget import Budget, find_hopeless
from pipelines.tuning.running import Bench, describe_error, run_trial
from pipelines.tuning.schedulers import METRIC
from pipelines.tuning.slots import Slots
from pipelines.tuning.trials import FAILED, OPEN, STOPPED, Journal, Plan, Trial

MAX_FAILURES = 2
"""Deaths of a trial's process that it outlives, each time from its last checkpoint."""
LOOK_EVERY_S = 1.0
ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # the journal has it all
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C ends the run, as everywhere
    "TUNE_GLOBAL_CHECKPOINT_S": "86400",
    "RAY_AIR_NEW_OUTPUT": "0",  # which is not quiet when told to
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a trial may end before its first epoch
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}

Tell = Callable[[Trial, str], None]
"""(trial, event): a line for who watches."""


@dataclass
class Limits:
    """When trials end that would go on."""

    budget: Budget
    kept_back_s: Callable[[list[Trial]], float]
    """Seconds to leave for what comes after, by what the trials tell."""
    patience: int | None = None
    is_first: bool = True
    """Whether no trial has ever ended: a budget too small for one is then a mistake."""
    is_population: bool = False
    has_ended: bool = field(default=False, init=False)
    has_settled: bool = field(default=False, init=False)
    """Whether it was patience that ended the trials, not time."""
    problem: UserError | None = field(default=None, init=False)
    is_hopeless: bool = field(default=False, init=False)
    """Whether that is a budget in which no trial can end; one may have had its first epoch by the time it stopped."""


def run_trials(
    bench: Bench,
    journal: Journal,
    slots: Slots,
    limits: Limits,
    *,
    draw: Callable[[list[Trial], int], Plan | None],
    scheduler: TrialScheduler | None = None,
    is_population: bool = False,
    num_trials: int,
    only: set[int] | None = None,
    keep: Callable[[list[Trial]], set[int]],
    tell: Tell,
) -> None:
    """Run the trials of a journal that are still open, and new ones up to `num_trials`.

    Args:
        draw: (trials known, number) → the plan of a new trial, noted in the journal; None for no more.
        is_population: all trials are drawn before the first begins, and may be given others' settings.
        only: of the journal's trials those that are run; None for all.
        keep: (trials) → those whose weights are kept when they have ended.

    Raises:
        UserError: a budget in which no trial can end.
    """
    trials = journal.read_all()
    is_full = len(trials) >= num_trials or has_settled(trials, limits.patience)
    if is_full and all(trial.status != OPEN for trial in trials if only is None or trial.number in only):
        return
    follower = _Follower(journal, limits, keep, tell)
    config: dict[str, Any] = {}
    searcher: Any = _Drawing(journal, draw, num_trials, only)
    if is_population:
        while len(trials) < num_trials and draw(trials, len(trials)) is not None:
            trials = journal.read_all()
        members = {trial.number: trial.plan.settings for trial in trials}
        settings = tune.sample_from(lambda spec: dict(members[spec.config.number]))
        config = {"number": tune.grid_search(list(members)), "settings": settings}
        searcher, num_trials = BasicVariantGenerator(), 1  # a population takes no other searcher
    storage = journal.folder.with_name(f".{journal.folder.name}-tune")
    trainable = tune.with_resources(
        partial(run_trial, bench=bench), tune.PlacementGroupFactory(slots.list_bundles(), strategy="STRICT_PACK")
    )
    with set_environment(ENVIRONMENT):
        try:
            Tuner(
                trainable,
                param_space=config,
                tune_config=TuneConfig(
                    num_samples=num_trials,
                    search_alg=searcher,
                    scheduler=scheduler or FIFOScheduler(),
                    max_concurrent_trials=slots.concurrent if slots.must_count else None,
                    reuse_actors=slots.is_alone,
                    trial_name_creator=_name_trial,
                    trial_dirname_creator=_name_trial,
                ),
                run_config=RunConfig(
                    name=str(int(time.time() * 1000)),
                    storage_path=str(storage),
                    failure_config=FailureConfig(max_failures=MAX_FAILURES),
                    stop=_Limit(journal, limits),
                    callbacks=[follower, _Quiet()],
                    verbose=0,
                ),
            ).fit()
        finally:
            shutil.rmtree(storage, ignore_errors=True)
    if limits.problem is not None:
        raise limits.problem


class _OfDriver:
    """What lives in the driver alone: Ray Tune's own copies of it, and records of it on disk, are never read."""

    def __deepcopy__(self, memo: dict[int, Any]) -> "_OfDriver":
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return dict, ()


class _Drawing(_OfDriver, Searcher):
    """Gives Ray Tune the trials that the journal knows, then new ones."""

    def __init__(
        self,
        journal: Journal,
        draw: Callable[[list[Trial], int], Plan | None],
        num_trials: int,
        only: set[int] | None = None,
    ) -> None:
        super().__init__(metric=METRIC, mode="max")
        self.journal, self.draw, self.num_trials, self.only = journal, draw, num_trials, only
        self.next = 0

    def suggest(self, trial_id: str) -> Any:
        """The number of the next trial, with its settings."""
        known = self.journal.count()
        while self.only is not None and self.next < known and self.next not in self.only:
            self.next += 1
        number = self.next
        if number >= max(known, self.num_trials):
            return Searcher.FINISHED
        if number >= known and self.draw(self.journal.read_all(), number) is None:
            return Searcher.FINISHED
        self.next += 1
        return {"number": number, "settings": self.journal.read_plan(number).settings}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Nothing: the journal tells."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing, for the same reason."""
        Path(checkpoint_path).touch()


class _Follower(_OfDriver, Callback):
    """Notes in the journal how trials end, frees what they leave, and tells who watches."""

    def __init__(self, journal: Journal, limits: Limits, keep: Callable[[list[Trial]], set[int]], tell: Tell) -> None:
        self.journal, self.limits, self.keep, self.tell = journal, limits, keep, tell
        self.known = {trial.number: trial for trial in journal.read_all()}
        self.ended = {trial.number for trial in self.known.values() if trial.status != OPEN}

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Tell of a trial's first begin, not of its going on."""
        number = _read_number(trial)
        if number not in self.known or not self.known[number].epochs:
            self.tell(self.journal.read(number), "begins")

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **i: Any) -> None:
        """Tell of an epoch that is new in the journal."""
        number = _read_number(trial)
        before = self.known.get(number)
        now = self.journal.read(number)
        if before is None or len(now.epochs) > len(before.epochs):
            self.tell(now, "epoch")
        self.known[number] = now

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Note why a trial was stopped; one that came to its end has noted that itself."""
        number = _read_number(trial)
        if self.limits.has_settled:
            self.journal.end(number, STOPPED, "the search has settled")
        elif not self.limits.has_ended:
            self.journal.end(number, STOPPED, "by the scheduler")
        self._close(number)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Note what a trial failed of."""
        number = _read_number(trial)
        error = trial.get_error() or trial.get_pickled_error()
        halted = next((one for one in iterate_causes(error) if type(one) is TrainingHalted), None)
        if halted is not None:  # by what lies around it: the trial stays open
            self.limits.problem, self.limits.has_ended = halted, True
            return
        self.journal.end(number, FAILED, describe_error(error) if error else "its process is gone")
        self._close(number)

    def _close(self, number: int) -> None:
        self.known[number] = self.journal.read(number)
        if number not in self.ended:
            self.ended.add(number)
            self.tell(self.known[number], "ends")
        known = self.journal.read_all()
        kept = self.keep(known)
        for trial in known:
            if trial.status != OPEN and trial.number not in kept:
                self.journal.forget_weights(trial.number)


class _Quiet(TrialProgressCallback):
    """Keeps Ray Tune's own lines off the terminal."""

    def on_trial_result(self, *args: Any, **facts: Any) -> None:
        """Nothing."""

    def on_trial_error(self, *args: Any, **facts: Any) -> None:
        """Nothing."""

    def on_trial_complete(self, *args: Any, **facts: Any) -> None:
        """Nothing."""


class _Limit(_OfDriver, Stopper):
    """Ends all trials when the time is over, when nothing gets better, or when no trial can end in time."""

    def __init__(self, journal: Journal, limits: Limits) -> None:
        self.journal, self.limits = journal, limits
        self.looked = 0.0

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """No trial is stopped alone."""
        return False

    def stop_all(self) -> bool:
        """Whether the search is over; looked at every `LOOK_EVERY_S`."""
        limits, now = self.limits, time.monotonic()
        if limits.has_ended or now - self.looked < LOOK_EVERY_S:
            return limits.has_ended
        self.looked = now
        limits.budget.save()
        if limits.budget.limit_s is None and limits.patience is None:
            return False
        trials = self.journal.read_all()
        if limits.is_first:
            limits.problem = find_hopeless(limits.budget, trials, is_population=limits.is_population)
            limits.is_hopeless = limits.problem is not None
        is_over = limits.budget.left_s(limits.kept_back_s(trials)) <= 0
        limits.has_settled = has_settled(trials, limits.patience)
        limits.has_ended = limits.problem is not None or is_over or limits.has_settled
        return limits.has_ended


def has_settled(trials: Sequence[Trial], patience: int | None) -> bool:
    """Whether so many trials in a row have ended without a better F1 than before."""
    if patience is None:
        return False
    scores = [trial.best_f1 or 0.0 for trial in trials if trial.status != OPEN]
    if not scores:
        return False
    return len(scores) - 1 - scores.index(max(scores)) >= patience


def _name_trial(trial: Any) -> str:
    return f"{trial.config['number']:04}"


def _read_number(trial: Any) -> int:
    """By its name, which a population does not change."""
    return int(str(trial))
