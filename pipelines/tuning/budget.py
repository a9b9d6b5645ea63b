"""The time that a search may take, over all commands that go on with it, and when it is to end."""

import json
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from pipelines.ner.files import write_text
from pipelines.tuning.config import SearchConfig, TuneError
from pipelines.tuning.trials import FINISHED, OPEN, Trial

SPENT_FILE = "spent.json"
CLOSING_S = 10.0
"""Kept back for writing the bundle and scoring it, besides a tenth of a trial."""
MOST_KEPT_BACK = 0.5
"""Share of the budget that is kept back for the leaders at most."""
SAVE_EVERY_S = 2.0


class Budget:
    """Wall-clock time, kept in a file.

    Args:
        folder: the run folder.
        limit_s: seconds in all; None for no limit.
    """

    def __init__(self, folder: Path, limit_s: float | None) -> None:
        self.path, self.limit_s = folder / SPENT_FILE, limit_s
        self.before_s = 0.0
        with suppress(FileNotFoundError, json.JSONDecodeError, KeyError):
            self.before_s = float(json.loads(self.path.read_text(encoding="utf-8"))["spent_s"])
        self.started = time.monotonic()
        self.saved = 0.0

    @property
    def spent_s(self) -> float:
        """Seconds until now, those of earlier commands included."""
        return self.before_s + time.monotonic() - self.started

    def left_s(self, kept_back_s: float = 0.0) -> float:
        """Seconds until the end, less what is kept back for later."""
        return float("inf") if self.limit_s is None else self.limit_s - kept_back_s - self.spent_s

    def save(self, *, now: bool = False) -> None:
        """Write down what was spent, now and then."""
        if now or time.monotonic() - self.saved >= SAVE_EVERY_S:
            self.saved = time.monotonic()
            write_text(self.path, json.dumps({"spent_s": round(self.spent_s, 3)}) + "\n")


def estimate_trial_s(trials: Sequence[Trial]) -> float | None:
    """Seconds of one whole trial: the longest that was finished, or by the pace of one under way; None if unknown."""
    whole = [trial.train_s for trial in trials if trial.status == FINISHED]
    if whole:
        return max(whole)
    paces = [
        trial.step_s * trial.num_steps
        + max(0.0, (trial.train_s - trial.step_s * trial.steps_done))
        / max(1, len(trial.epochs))
        * (trial.num_epochs or 1)
        if trial.epochs
        else trial.step_s * trial.num_steps
        for trial in trials
        if trial.step_s is not None and trial.num_steps and trial.steps_done > 5
    ]
    return max(paces, default=None)


def keep_back_s(search: SearchConfig, trials: Sequence[Trial], concurrent: int) -> float:
    """Seconds that leaders with their seeds, and the end of the run, will take; at most half of the budget."""
    trial_s = estimate_trial_s(trials)
    if search.limit_s is None or trial_s is None:
        return 0.0
    is_population = search.sampler == "pbt"
    if not is_population and not any(trial.status == FINISHED for trial in trials):
        return close_s(trial_s)  # one whole trial comes before the repeats of any
    num_seeds = search.num_seeds - (not is_population)  # members of a population are trained anew
    num_runs = (min(search.num_leaders, max(1, search.num_trials - 1)) + 1) * num_seeds
    rounds = -(-num_runs // concurrent)
    return min(MOST_KEPT_BACK * search.limit_s, rounds * trial_s + close_s(trial_s))


def close_s(trial_s: float | None) -> float:
    """Seconds for the bundle and its scores."""
    return CLOSING_S + 0.1 * (trial_s or 0.0)


def find_hopeless(budget: Budget, trials: Sequence[Trial], *, is_population: bool = False) -> TuneError | None:
    """The mistake of a budget in which no trial can end, told as soon as the pace of the first one is known.

    Members of a population all end at last, after others have had their epochs: with one the search comes to something.
    """
    if budget.limit_s is None or any(trial.status != OPEN or (is_population and trial.epochs) for trial in trials):
        return None
    begun = [trial for trial in trials if trial.num_steps]  # the others wait for them
    paces = [(estimate_trial_s([trial]), trial.train_s) for trial in begun]
    known = [(whole_s, max(0.0, whole_s - done_s)) for whole_s, done_s in paces if whole_s is not None]
    if len(known) < len(paces) or not known:  # one of another size may be shorter
        trial_s, needs_s = None, budget.spent_s + CLOSING_S
    else:
        trial_s, left_s = min(known, key=lambda one: one[1] + close_s(one[0]))
        needs_s = budget.spent_s + left_s + close_s(trial_s)
    if needs_s < budget.limit_s:
        return None
    pace = f"one trial takes about {trial_s:.0f} s" if trial_s is not None else "the first trial has not begun"
    if begun and trial_s is None:
        pace = "no trial has come so far that its pace is known"
    return TuneError(
        "the budget is smaller than one trial",
        where="`search.budget_s`" if budget.limit_s else None,
        rule=f"{pace}, with the start and the end of the run about {needs_s:.0f} s",
        value=f"{budget.limit_s:.0f} s",
        remedy="give more, fewer `--training.num_epochs`, or a smaller corpus or encoder",
    )
