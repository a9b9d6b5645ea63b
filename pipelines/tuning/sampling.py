"""Drawing settings, and how much each of them matters: Optuna, told what the journal knows.

The sampler is seeded anew for every trial, by its number, so that a search that was interrupted draws what it would
have drawn.
"""

import itertools
import math
import warnings
from collections.abc import Mapping, Sequence

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState

from pipelines.tuning.domains import Domain, Value
from pipelines.tuning.space import Space
from pipelines.tuning.trials import FINISHED, OPEN, STOPPED, Trial

STARTUP_TRIALS = 5
"""Trials drawn at random before TPE begins; Optuna's 10 is more than most searches here have."""
MIN_FOR_IMPORTANCE = 4
"""Trials below which nothing is told about the importance of settings."""
FOREST_SEED = 0
MOST_ATTEMPTS = 20
"""Draws of one trial, where what is drawn is known already."""
MOST_LISTED = 10_000
"""Combinations up to which a space is looked through for what is left of it."""
States = {FINISHED: TrialState.COMPLETE, STOPPED: TrialState.PRUNED, OPEN: TrialState.RUNNING}


class Sampler:
    """Draws the settings of trials from a space.

    Args:
        kind: `random`, `tpe`, or `pbt` (whose first members are drawn at random).
        cost: whether less cost is sought besides more F1.
        recipe: what the recipe itself has for the settings of the space.
    """

    def __init__(
        self, space: Space, kind: str, seed: int, *, cost: str = "none", recipe: Mapping[str, Value] | None = None
    ) -> None:
        self.space, self.kind, self.seed, self.cost, self.recipe = space, kind, seed, cost, dict(recipe or {})

    def draw(self, trials: Sequence[Trial], number: int) -> dict[str, Value] | None:
        """The settings of the trial with this number, where these trials, all of one seed, are known.

        They are no other trial's, nor the recipe's; None where the space has no more. Members of a population may be
        alike: they part when they change.
        """
        known = [self.recipe, *(trial.plan.settings for trial in trials)]
        settings = self._ask(trials, number)
        if self.kind == "pbt" or settings not in known:
            return settings
        combinations = list_combinations(self.space)
        left = None if combinations is None else [one for one in combinations if one not in known]
        if left == []:
            return None
        for attempt in range(1, MOST_ATTEMPTS):
            settings = self._ask(trials, number, attempt)
            if settings not in known:
                return settings
        return left[np.random.default_rng([self.seed, number]).integers(len(left))] if left else None

    def _ask(self, trials: Sequence[Trial], number: int, *attempt: int) -> dict[str, Value]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            study = build_study(self.space, trials, self.cost)
            study.sampler = self._build(int(np.random.SeedSequence([self.seed, number, *attempt]).generate_state(1)[0]))
            asked = study.ask(_describe_space(self.space))
        return {path: domain.tidy(asked.params[path]) for path, domain in self.space.items()}

    def _build(self, seed: int) -> optuna.samplers.BaseSampler:
        if self.kind == "tpe":
            return optuna.samplers.TPESampler(seed=seed, n_startup_trials=STARTUP_TRIALS, multivariate=True)
        return optuna.samplers.RandomSampler(seed=seed)


def list_combinations(space: Space) -> list[dict[str, Value]] | None:
    """Everything that can be drawn from a space; None if that is too much to list."""
    choices: list[Sequence[Value]] = []
    for domain in space.values():
        if domain.kind != "choice" and not domain.is_integer:
            return None
        choices.append(domain.choices if domain.kind == "choice" else range(int(domain.low), int(domain.high) + 1))
    if math.prod(map(len, choices)) > MOST_LISTED:
        return None
    return [dict(zip(space, values, strict=True)) for values in itertools.product(*choices)]


def build_study(space: Space, trials: Sequence[Trial], cost: str = "none") -> optuna.Study:
    """A study in memory that knows these trials, as far as they are made of the space."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    more, less = optuna.study.StudyDirection.MAXIMIZE, optuna.study.StudyDirection.MINIMIZE
    study = optuna.create_study(directions=[more] if cost == "none" else [more, less])
    for trial in trials:
        frozen = _freeze(space, trial, cost)
        if frozen is not None:
            study.add_trial(frozen)
    return study


def rank_importance(space: Space, trials: Sequence[Trial]) -> dict[str, float]:
    """Setting → its share of the variance of F1 over the space (fANOVA, Hutter et al. 2014), the largest first.

    F1 is that after the last epoch that all trials have, so that those stopped early are compared with their equals.
    Empty where there are too few trials, or all are alike.
    """
    scored = list_comparable(space, trials)
    if len(scored) < MIN_FOR_IMPORTANCE:
        return {}
    epoch = find_common_epoch(scored)
    values = [dict(trial.epochs)[epoch] for trial in scored]
    if max(values) - min(values) < 1e-9 or all(trial.plan.settings == scored[0].plan.settings for trial in scored):
        return {}
    study = optuna.create_study(direction="maximize")
    distributions = _describe_space(space)
    for trial, value in zip(scored, values, strict=True):
        study.add_trial(
            optuna.trial.create_trial(params=dict(trial.plan.settings), distributions=distributions, value=value)
        )
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=FOREST_SEED)
    try:
        found = optuna.importance.get_param_importances(study, evaluator=evaluator)
    except RuntimeError:  # no tree of the forest could split: what differs was in too few of them
        return {}
    return {path: float(share) for path, share in sorted(found.items(), key=lambda item: -item[1])}


def list_comparable(space: Space, trials: Sequence[Trial]) -> list[Trial]:
    """The trials that importance is computed of: those drawn from the space that have a score."""
    return [trial for trial in trials if trial.epochs and trial.plan.settings.keys() == space.keys()]


def find_common_epoch(trials: Sequence[Trial]) -> int:
    """The last epoch that all of these trials have ended."""
    return min(max(epoch for epoch, _ in trial.epochs) for trial in trials if trial.epochs)


def measure_cost(trial: Trial, cost: str) -> float | None:
    """What training a trial has cost, in seconds or floating-point operations."""
    return trial.flops if cost == "flops" else trial.train_s


def _describe_space(space: Space) -> dict[str, BaseDistribution]:
    return {path: _describe_domain(domain) for path, domain in space.items()}


def _describe_domain(domain: Domain) -> BaseDistribution:
    if domain.kind == "choice":
        return CategoricalDistribution(domain.choices)
    if domain.is_integer:
        return IntDistribution(int(domain.low), int(domain.high), log=domain.is_log)
    return FloatDistribution(domain.low, domain.high, log=domain.is_log)


def _freeze(space: Space, trial: Trial, cost: str) -> FrozenTrial | None:
    """A trial as Optuna has them; None for one that tells nothing about the space, or has failed."""
    state = States.get(trial.status)
    settings: Mapping[str, Value] = trial.plan.settings
    f1, spent = trial.best_f1, measure_cost(trial, cost)
    if state is None or settings.keys() != space.keys() or (state == TrialState.COMPLETE and f1 is None):
        return None
    if cost != "none" and (state == TrialState.PRUNED or (state == TrialState.COMPLETE and spent is None)):
        return None
    values = [value for value in ([f1] if cost == "none" else [f1, spent]) if value is not None]
    return optuna.trial.create_trial(
        state=state,
        params=dict(settings),
        distributions=_describe_space(space),
        values=values if state == TrialState.COMPLETE else None,
        intermediate_values=dict(trial.epochs) if cost == "none" else None,
    )
