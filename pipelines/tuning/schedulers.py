"""Ray Tune's schedulers: which trials go on, and with which settings."""

import warnings
from typing import Any

from ray import tune
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


def build_scheduler(search: SearchConfig, space: Space, num_epochs: int) -> TrialScheduler:
    """What a search asks for, for trials of at most so many epochs."""
    shared: dict[str, Any] = {"time_attr": TIME, "metric": METRIC, "mode": "max"}
    if search.sampler == "pbt":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return PopulationBasedTraining(
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
        return HyperBandScheduler(**shared, max_t=num_epochs, reduction_factor=search.reduction_factor)
    if search.scheduler == "median":
        return MedianStoppingRule(**shared, grace_period=search.grace_epochs, min_samples_required=MIN_SAMPLES)
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
