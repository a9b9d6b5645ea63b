"""Which trials lead, whether that is more than noise, and which are the best at their cost."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from pipelines.tuning.domains import Value
from pipelines.tuning.sampling import measure_cost
from pipelines.tuning.trials import FAILED, FINISHED, OPEN, REFUSED, Journal, Plan, Trial

BASE = 0
"""The number of the trial that is the recipe as it is, where the sampler draws trials one by one."""
T_95 = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26)
"""Quantiles of Student's t distribution, 97.5 %, with 1, 2, 3 … degrees of freedom."""
UNTRIED = -1
"""The number of the recipe as it is where no trial is that, and leaders are compared with it nevertheless."""


@dataclass(frozen=True)
class Run:
    """One training of a leader."""

    seed: int
    f1: float
    folder: Path
    is_whole: bool


@dataclass(frozen=True)
class Leader:
    """Settings that were tried with several seeds."""

    number: int
    """Of the trial that they come from."""
    settings: dict[str, Value]
    runs: tuple[Run, ...]
    """By seed."""

    @property
    def is_recipe(self) -> bool:
        """Whether it is the recipe as it is."""
        return not self.settings

    @property
    def mean_f1(self) -> float:
        """Over the seeds."""
        return mean(run.f1 for run in self.runs)

    @property
    def deviation(self) -> float | None:
        """Over the seeds; None for one."""
        return stdev(run.f1 for run in self.runs) if len(self.runs) > 1 else None

    @property
    def best_run(self) -> Run:
        """The one whose model is taken: a whole one if there is one, of these the best on dev."""
        return max(self.runs, key=lambda run: (run.is_whole, run.f1, -run.seed))

    def to_dict(self) -> dict[str, Any]:
        """As `tuning.json` has it."""
        return {
            "number": self.number,
            "settings": self.settings,
            "mean_f1": self.mean_f1,
            "deviation": self.deviation,
            "runs": [{"seed": run.seed, "f1": run.f1, "is_whole": run.is_whole} for run in self.runs],
        }


def rank_trials(trials: Iterable[Trial]) -> list[Trial]:
    """Trials with a score, the best first: those that came to their end before those that were stopped."""
    return _rank(trials, (FINISHED,))


def choose_leaders(trials: Sequence[Trial], num_leaders: int) -> list[Trial]:
    """The recipe as it is, if it can be trained, and the best trials besides, no two with the same settings.

    What time cut off is not what the scheduler held for worse: its score counts as that of a trial that came to its
    end, and as a leader it is trained whole.
    """
    recipes = [trial for trial in trials if not trial.plan.settings]
    if trials and not recipes:
        recipes = [Trial(Plan(UNTRIED, {}, trials[0].plan.seed))]
    chosen = [trial for trial in recipes if trial.status not in (FAILED, REFUSED)]
    num_base = len(chosen)
    for trial in _rank(trials, (FINISHED, OPEN)):
        if all(trial.plan.settings != other.plan.settings for other in chosen):
            chosen.append(trial)
    return chosen[: num_base + num_leaders]


def list_kept(trials: Sequence[Trial], num_leaders: int) -> set[int]:
    """Whose weights are kept: of those that lead, and that would if the scheduler stopped all that are under way."""
    ended = [trial for trial in trials if trial.status != OPEN]
    return {trial.number for some in (trials, ended) for trial in choose_leaders(some, num_leaders)}


def _rank(trials: Iterable[Trial], first: Sequence[str]) -> list[Trial]:
    scored = [trial for trial in trials if trial.best_f1 is not None and trial.status not in (FAILED, REFUSED)]
    return sorted(scored, key=lambda trial: (trial.status not in first, -(trial.best_f1 or 0.0), trial.number))


def plan_repeats(leaders: Sequence[Trial], seeds: Sequence[int]) -> list[tuple[dict[str, Value], int]]:
    """(settings, seed) of the runs that leaders lack, all leaders with one seed before the next seed."""
    return [
        (leader.plan.settings, seed)
        for seed in seeds
        for leader in leaders
        if not (leader.is_whole and leader.plan.seed == seed)
    ]


def gather_leaders(
    leaders: Sequence[Trial], seeds: Sequence[int], search: Journal, repeats: Journal | None
) -> list[Leader]:
    """What the leaders reached with each seed, the best first.

    A leader that could not be repeated for want of time has what its trial reached.
    """
    known = repeats.read_all() if repeats is not None else []
    found = []
    for leader in leaders:
        runs: dict[int, Run] = {}
        own = _to_run(search, leader) if leader.number != UNTRIED else None
        if own is not None and leader.plan.seed in seeds and not leader.plan.turns:
            runs[own.seed] = own
        for repeat in known:
            run = _to_run(repeats, repeat) if repeats is not None and _is_of(repeat.plan, leader, seeds) else None
            if run is not None and (run.is_whole or run.seed not in runs):
                runs[run.seed] = run
        if not runs and own is not None and own.seed in seeds:
            runs[own.seed] = own
        if any(run.is_whole for run in runs.values()):
            runs = {seed: run for seed, run in runs.items() if run.is_whole}
        if runs:
            found.append(
                Leader(leader.number, leader.plan.settings, tuple(runs[seed] for seed in seeds if seed in runs))
            )
    return _rank_leaders(found)


def _rank_leaders(found: Sequence[Leader]) -> list[Leader]:
    """The best first, by the seeds that all have: time may have ended before each of them had the last one.

    Those that lack more, since runs of theirs failed, come behind, so that they do not take seeds from the others.
    """
    most = max((len(one.runs) for one in found if one.best_run.is_whole), default=0)
    lacking = {one.number for one in found if not one.best_run.is_whole or len(one.runs) < most - 1}
    seeds = [{run.seed for run in one.runs} for one in found if one.number not in lacking]
    shared = set.intersection(*seeds) if seeds else set()

    def rank(one: Leader) -> tuple[Any, ...]:
        scores = [run.f1 for run in one.runs if run.seed in shared and one.number not in lacking]
        f1 = mean(scores) if scores else one.mean_f1
        return not one.best_run.is_whole, one.number in lacking, -f1, -len(one.runs), one.number

    return sorted(found, key=rank)


def describe_gain(leaders: Sequence[Leader], seed: int) -> str:
    """A sentence on how much the winner is better than the recipe as it is, by the seeds that both have.

    Args:
        seed: that of the search. It counts only where there is no other: the best of many trials with one seed owes a
            part of its score to luck with that seed.
    """
    winner = leaders[0]
    base = next((leader for leader in leaders if leader.is_recipe), None)
    if base is None:
        return "The recipe as it is could not be trained, so there is nothing to compare the winner with."
    if base is winner:
        return "No trial was better than the recipe as it is."
    scores = {run.seed: run.f1 for run in base.runs}
    pairs = {run.seed: (run.f1, scores[run.seed]) for run in winner.runs if run.seed in scores}
    others = [pair for one, pair in pairs.items() if one != seed]
    gains = [100 * (ours - theirs) for ours, theirs in others or pairs.values() or [(winner.mean_f1, base.mean_f1)]]
    gain = mean(gains)
    told = f"On dev, trial {winner.number} has {gain:+.1f} points of F1 over the recipe as it is,"
    if len(gains) < 2:
        by = "a seed other than the search's" if others else "the search's seed" if pairs else "different seeds"
        return f"{told} by {by}: it may be noise."
    error = stdev(gains) / len(gains) ** 0.5
    bound = error * T_95[min(len(gains) - 1, len(T_95)) - 1]
    verdict = "more than the seeds differ by" if gain > bound else "no more than the seeds differ by"
    return f"{told} over {len(gains)} seeds other than the search's (standard error {error:.1f}): {verdict}."


def find_front(trials: Sequence[Trial], cost: str) -> list[Trial]:
    """The whole trials that no other one beats in F1 at the same cost or less, the cheapest first."""
    whole = [trial for trial in trials if trial.is_whole and trial.best_f1 is not None]
    priced = sorted(
        ((measure_cost(trial, cost), trial) for trial in whole if measure_cost(trial, cost) is not None),
        key=lambda one: (one[0], -(one[1].best_f1 or 0.0), one[1].number),
    )
    front: list[Trial] = []
    for _, trial in priced:
        if not front or (trial.best_f1 or 0.0) > (front[-1].best_f1 or 0.0):
            front.append(trial)
    return front


def _is_of(plan: Plan, leader: Trial, seeds: Sequence[int]) -> bool:
    return plan.settings == leader.plan.settings and plan.seed in seeds


def _to_run(journal: Journal, trial: Trial) -> Run | None:
    if trial.best_f1 is None or trial.status in (FAILED, REFUSED):
        return None
    return Run(trial.plan.seed, trial.best_f1, journal.find(trial.number), trial.is_whole)
