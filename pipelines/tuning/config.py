"""The settings of a search, and their rules."""

import math
from dataclasses import dataclass

from pipelines.ner.errors import UserError, find_wrong_values

SAMPLERS = ("random", "tpe", "pbt")
SCHEDULERS = ("none", "asha", "hyperband", "median")
COSTS = ("none", "seconds", "flops")


class TuneError(UserError):
    """A search that cannot be run, or cannot go on."""


@dataclass(frozen=True)
class SearchConfig:
    """What is tried, what is stopped early, and what all of it may take."""

    num_trials: int = 12
    """Trials in all; the first one is the recipe as it is. With `sampler` pbt the size of the population."""
    sampler: str = "tpe"
    """How settings are drawn: random; tpe, near those that did well (Bergstra et al. 2011, by Optuna); pbt: a
    population whose weaker members go on from the stronger ones' states with changed settings (Jaderberg et al. 2017).
    """
    scheduler: str = "asha"
    """What ends trials early: none; asha, unless among the best at an epoch (Li et al. 2020); hyperband (Li et al.
    2018); median, below the median of the others so far (Golovin et al. 2017)."""
    grace_epochs: int = 1
    """Epochs that every trial has (asha, median), or between changes (pbt)."""
    reduction_factor: int = 3
    """One in so many goes on at each rung (asha, hyperband)."""
    patience: int | None = None
    """End the search after so many trials without a better F1; default: never."""
    cost: str = "none"
    """none: the best F1 wins; seconds or flops (of training): the report has the front of F1 against it too, and
    samplers search along it."""
    num_leaders: int = 2
    """Best trials that are repeated with other seeds, besides the recipe as it is."""
    num_seeds: int = 3
    """Seeds of each leader; the best mean F1 on dev wins."""
    budget_s: float | None = None
    """Seconds for all of it, from the first command on; what would run longer is stopped, the best so far is kept. A
    finished search that goes on keeps time back to train its winner once more, whose weights are gone; where there is
    none, that is done nevertheless, and told."""
    budget_price: float | None = None
    """The same as money, with `price_per_hour`."""
    price_per_hour: float | None = None
    """Of the cluster, in whatever currency."""
    max_concurrent: int | None = None
    """Trials at a time; default: as many as fit."""
    cpus_per_trial: int | None = None
    """CPUs, and threads, of each worker of a trial; default: half the cores of a node, at most 4."""
    gpus_per_trial: float | None = None
    """GPUs of each worker of a trial, also a fraction, of whose memory it then has its share; default: 1 where the
    cluster has any."""
    seed: int = 0
    """Seeds the sampler."""

    @property
    def limit_s(self) -> float | None:
        """The seconds that the budget in time and the one in money allow."""
        limits = [self.budget_s] if self.budget_s is not None else []
        if self.budget_price is not None and self.price_per_hour:
            limits.append(self.budget_price / self.price_per_hour * 3600)
        return min(limits, default=None)

    def find_problems(self, num_workers: int = 1) -> list[UserError]:
        """Every mistake in these settings, for trials with so many workers."""
        most, cpus, gpus = self.max_concurrent, self.cpus_per_trial, self.gpus_per_trial
        money, price = self.budget_price, self.price_per_hour
        is_share_or_whole = gpus is None or 0 <= gpus <= 1 or (float(gpus).is_integer() and gpus > 1)
        whole = "whole GPUs where a trial has several workers, each of which takes one"
        checks = [
            ("num_trials", "at least 1", self.num_trials >= 1),
            ("num_trials", "at least 2 with pbt", self.sampler != "pbt" or self.num_trials != 1),
            ("sampler", "one of " + ", ".join(SAMPLERS), self.sampler in SAMPLERS),
            ("scheduler", "one of " + ", ".join(SCHEDULERS), self.scheduler in SCHEDULERS),
            ("grace_epochs", "at least 1", self.grace_epochs >= 1),
            ("reduction_factor", "at least 2", self.reduction_factor >= 2),
            ("patience", "at least 1", self.patience is None or self.patience >= 1),
            ("cost", "one of " + ", ".join(COSTS), self.cost in COSTS),
            ("num_leaders", "at least 1", self.num_leaders >= 1),
            ("num_seeds", "at least 1", self.num_seeds >= 1),
            ("budget_s", "above 0", self.budget_s is None or 0 < self.budget_s < math.inf),
            ("budget_price", "above 0", money is None or 0 < money < math.inf),
            ("budget_price", "together with `search.price_per_hour`", money is None or price is not None),
            ("price_per_hour", "above 0", price is None or 0 < price < math.inf),
            ("max_concurrent", "at least 1", most is None or most >= 1),
            ("cpus_per_trial", "at least 1", cpus is None or cpus >= 1),
            ("gpus_per_trial", "0 ≤ GPUs ≤ 1, or whole", is_share_or_whole),
            ("gpus_per_trial", whole, gpus is None or num_workers == 1 or not 0 < gpus < 1),
            ("seed", "0 ≤ seed < 2³²", 0 <= self.seed < 2**32),
        ]
        problems = find_wrong_values(TuneError, self, checks, "search.")
        pausing = "pbt" if self.sampler == "pbt" else self.scheduler
        if num_workers != 1 and pausing in ("pbt", "hyperband"):
            rule = "one worker a trial where trials are paused (hyperband, pbt)"
            problems.append(TuneError("a value out of range", where="`search.scheduler`", rule=rule, value=pausing))
        return problems

    def find_idle(self) -> list[str]:
        """Settings given that change nothing in this search, each with its reason."""
        plain = SearchConfig()
        reasons: dict[str, str] = {}
        if self.sampler == "pbt":
            reasons |= dict.fromkeys(("scheduler", "reduction_factor"), "a population stops no trial")
        elif self.scheduler == "none":
            reasons |= dict.fromkeys(("grace_epochs", "reduction_factor"), "no trial is stopped early")
        elif self.scheduler == "hyperband":
            reasons["grace_epochs"] = "the brackets of HyperBand have one of their own each"
        elif self.scheduler == "median":
            reasons["reduction_factor"] = "the median rule divides by none"
        given = {name: why for name, why in reasons.items() if getattr(self, name) != getattr(plain, name)}
        return [f"`search.{name}` has no effect: {why}" for name, why in given.items()]
