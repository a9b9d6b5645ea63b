"""Ray Tune's schedulers: which trials go on, and with which settings."""

import warnings
from typing import Any

from ray import tune
from ray.tune.experiment import Trial
from ray.tune.schedulers import (
    ASHAScheduler,
    FIFOScheduler,
    HyperBandScheduler,
    MedianStoppingRule,
    PopulationBasedTraining,
    TrialScheduler,
)

from pipelines.tuning.config import SearchConfig, TuneError
from pipelines.tuning.domains import Domain
from pipelines.tuning.space import Space

METRIC, TIME = "f1", "epoch"
MIN_SAMPLES = 3
"""Trials that the median is taken of, at least."""
CHANGEABLE = (
    "training.optimizer.",
    "training.label_smoothing",
    "training.r_drop",
    "training.dropout_samples",
    "training.adversarial.epsilon",
    "model.dropout",
)
"""Settings that a model in training can go on with when they change. The others stay as the stronger one has them."""


class Population(PopulationBasedTraining):
    """Ray's population, whose members may end early, and which may have been stopped and go on.

    Args:
        done: epochs at which members were compared before; what they tell of those again decides nothing.
    """

    def __init__(self, done: int, **settings: Any) -> None:
        super().__init__(**settings)
        self.done = done - done % int(self._perturbation_interval)
        self._next_perturbation_sync = self.done + self._perturbation_interval

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Go on, pause, or take another's place."""
        if result.get(TIME, self.done + 1) > self.done:
            return str(super().on_trial_result(tune_controller, trial, result))
        self._save_trial_state(self._trial_state[trial], result[TIME], result, trial)
        self._trial_state[trial].last_perturbation_time = result[TIME]
        return str(TrialScheduler.CONTINUE)

    def choose_trial_to_run(self, tune_controller: Any) -> Any:
        """The next one; where the last that the others waited for has ended, they wait no longer.

        Ray's own does not hear of the end of a trial: those that are paused then would be so for ever.
        """
        found = super().choose_trial_to_run(tune_controller)
        waiting = tune_controller.get_live_trials()
        if found is None and waiting and all(trial.status == Trial.PAUSED for trial in waiting):
            self._next_perturbation_sync += self._perturbation_interval
            found = super().choose_trial_to_run(tune_controller)
        return found


class Median(MedianStoppingRule):
    """Ray's rule, which takes every trial that has ended to have told of an epoch, and pauses the first ones."""

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """Note what a trial came to."""
        if TIME in result and METRIC in result:
            super().on_trial_complete(tune_controller, trial, result)

    def _on_insufficient_samples(self, tune_controller: Any, trial: Any, time: float) -> str:
        return str(TrialScheduler.CONTINUE)  # to pause until there are others to compare with would cost a start


def build_scheduler(search: SearchConfig, space: Space, num_epochs: int, done: int = 0) -> TrialScheduler:
    """What a search asks for, for trials of at most so many epochs.

    Args:
        done: epochs that every open trial has behind it, where a search goes on.
    """
    shared: dict[str, Any] = {"time_attr": TIME, "metric": METRIC, "mode": "max"}
    if search.sampler == "pbt":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return Population(
                done,
                **shared,
                perturbation_interval=search.grace_epochs,
                hyperparam_mutations={"settings": {path: _mutate(space[path]) for path in list_changeable(space)}},
                custom_explore_fn=lambda config: _tidy(config, space),
                log_config=False,
                synch=True,  # members are compared at the same epoch, however many run at a time
            )
    if search.scheduler == "asha":
        grace = min(search.grace_epochs, num_epochs)
        return ASHAScheduler(**shared, max_t=num_epochs, grace_period=grace, reduction_factor=search.reduction_factor)
    if search.scheduler == "hyperband":
        # the last round of a bracket may end before a trial does: its winners go on to the end, else they never lead
        factor = search.reduction_factor
        return HyperBandScheduler(**shared, max_t=num_epochs, reduction_factor=factor, stop_last_trials=False)
    if search.scheduler == "median":
        return Median(**shared, grace_period=search.grace_epochs, min_samples_required=MIN_SAMPLES)
    return FIFOScheduler()


def list_changeable(space: Space) -> list[str]:
    """The settings of a space that a population may change while it trains."""
    return [path for path in space if path.startswith(CHANGEABLE)]


def check_population(space: Space) -> list[TuneError]:
    """The mistake of a population that has nothing to change."""
    if list_changeable(space):
        return []
    return [
        TuneError(
            "a population has nothing to change",
            where="`search.sampler` pbt",
            rule="the space has a setting that can change in training: "
            + ", ".join(f"`{name}…`" for name in CHANGEABLE),
            value=", ".join(space),
            remedy="add one, or take another `--search.sampler`",
        )
    ]


def _mutate(domain: Domain) -> Any:
    if domain.kind == "choice":
        return list(domain.choices)
    if domain.is_integer:
        draw = tune.lograndint if domain.is_log else tune.randint
        return draw(int(domain.low), int(domain.high) + 1)
    return (tune.loguniform if domain.is_log else tune.uniform)(domain.low, domain.high)


def _tidy(config: dict[str, Any], space: Space) -> dict[str, Any]:
    """Perturbed settings back inside the space."""
    settings = {path: space[path].tidy(value) for path, value in config["settings"].items()}
    return config | {"settings": settings}
