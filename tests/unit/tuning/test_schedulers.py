"""Which of Ray Tune's schedulers a search asks for, and what a population may change."""

import pytest
from ray.tune.schedulers import (
    ASHAScheduler,
    FIFOScheduler,
    HyperBandScheduler,
    MedianStoppingRule,
    PopulationBasedTraining,
)

from pipelines.tuning.config import SearchConfig
from pipelines.tuning.domains import Domain
from pipelines.tuning.schedulers import build_scheduler, check_population, list_changeable

SPACE = {
    "training.optimizer.learning_rate": Domain("loguniform", 1e-5, 1e-3),
    "training.dropout_samples": Domain("randint", 1, 4),
    "model.head": Domain("choice", choices=("linear", "crf")),
}


@pytest.mark.parametrize(
    ("settings", "kind"),
    [
        ({"scheduler": "none"}, FIFOScheduler),
        ({"scheduler": "asha"}, ASHAScheduler),
        ({"scheduler": "hyperband"}, HyperBandScheduler),
        ({"scheduler": "median"}, MedianStoppingRule),
        ({"sampler": "pbt"}, PopulationBasedTraining),
    ],
)
def test_scheduler_is_the_one_asked_for(settings, kind):
    assert type(build_scheduler(SearchConfig(**settings), SPACE, num_epochs=4)) is kind


def test_grace_longer_than_a_trial_is_cut_to_it():
    """Which Ray Tune would refuse."""
    scheduler = build_scheduler(SearchConfig(grace_epochs=9), SPACE, num_epochs=2)
    assert isinstance(scheduler, ASHAScheduler)


def test_population_changes_only_what_a_model_can_go_on_with():
    assert list_changeable(SPACE) == ["training.optimizer.learning_rate", "training.dropout_samples"]
    assert check_population(SPACE) == []
    [problem] = check_population({"model.head": SPACE["model.head"]})
    assert "nothing to change" in str(problem)
