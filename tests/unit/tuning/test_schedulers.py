"""Which of Ray Tune's schedulers a search asks for, and what a population may change."""

from types import SimpleNamespace
from typing import Any

import pytest
from ray.tune.experiment import Trial
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, HyperBandScheduler, TrialScheduler

from pipelines.tuning.config import SearchConfig
from pipelines.tuning.domains import Domain
from pipelines.tuning.schedulers import Median, Population, build_scheduler, check_population, list_changeable

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
        ({"scheduler": "median"}, Median),
        ({"sampler": "pbt"}, Population),
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


class SimpleTrial(SimpleNamespace):
    """What schedulers know of a trial."""

    __hash__ = object.__hash__


class Controller:
    """What schedulers ask of the one who runs trials."""

    search_alg = None

    def __init__(self, number: int, scheduler: TrialScheduler) -> None:
        settings = {"settings": {"training.optimizer.learning_rate": 1e-4}}
        facts = {"config": settings, "evaluated_params": {}, "experiment_tag": "", "status": Trial.PENDING}
        kept = SimpleNamespace(checkpoint_manager=SimpleNamespace(checkpoint_config=SimpleNamespace(num_to_keep=None)))
        facts |= {"is_saving": False, "run_metadata": kept}
        self.trials: list[Any] = [SimpleTrial(trial_id=str(at), **facts) for at in range(number)]
        for trial in self.trials:
            scheduler.on_trial_add(self, trial)

    def get_trials(self) -> list[Any]:
        return self.trials

    def get_live_trials(self) -> list[Any]:
        return [trial for trial in self.trials if trial.status not in (Trial.TERMINATED, Trial.ERROR)]


def build_population(done: int = 0, **settings: int) -> Population:
    search = SearchConfig(sampler="pbt", **settings)
    space = {"training.optimizer.learning_rate": SPACE["training.optimizer.learning_rate"]}
    scheduler = build_scheduler(search, space, num_epochs=8, done=done)
    assert isinstance(scheduler, Population)
    return scheduler


def test_population_does_not_wait_for_a_member_that_ended_without_a_word():
    scheduler = build_population(grace_epochs=1)
    controller = Controller(3, scheduler)
    for trial in controller.trials[:2]:
        assert scheduler.choose_trial_to_run(controller) is trial
        trial.status = Trial.RUNNING
        assert scheduler.on_trial_result(controller, trial, {"epoch": 1, "f1": 0.5}) == TrialScheduler.PAUSE
        trial.status = Trial.PAUSED
    assert scheduler.choose_trial_to_run(controller) is controller.trials[2]
    controller.trials[2].status = Trial.TERMINATED
    assert scheduler.choose_trial_to_run(controller) is controller.trials[0]
    controller.trials[0].status = Trial.RUNNING
    assert scheduler.choose_trial_to_run(controller) is controller.trials[1]


def test_population_that_goes_on_does_not_decide_again_what_it_had_decided():
    scheduler = build_population(grace_epochs=2, done=5)
    controller = Controller(2, scheduler)
    for trial in controller.trials:
        trial.status = Trial.RUNNING
        for epoch in range(1, 6):
            told = scheduler.on_trial_result(controller, trial, {"epoch": epoch, "f1": 0.1 * epoch})
            assert told == TrialScheduler.CONTINUE
    told = scheduler.on_trial_result(controller, controller.trials[0], {"epoch": 6, "f1": 0.6})
    assert told == TrialScheduler.PAUSE, "it waits for the other at the next comparison"


def test_rule_of_the_median_outlives_trials_without_an_epoch():
    scheduler = build_scheduler(SearchConfig(scheduler="median", grace_epochs=1), SPACE, num_epochs=4)
    controller = Controller(5, scheduler)
    scheduler.on_trial_complete(controller, controller.trials[0], {"trial_id": "0"})
    told = [scheduler.on_trial_result(controller, one, {"epoch": 1, "f1": 0.5}) for one in controller.trials[1:]]
    assert told == [TrialScheduler.CONTINUE] * 4


def test_winners_of_a_bracket_go_on_to_their_last_epoch():
    """Of brackets that end before a trial does."""
    scheduler = build_scheduler(SearchConfig(scheduler="hyperband"), SPACE, num_epochs=4)
    controller = Controller(3, scheduler)
    told = {}
    for epoch in range(1, 5):
        for at, trial in enumerate(controller.get_live_trials()):
            trial.status, trial.last_result = Trial.RUNNING, {"epoch": epoch, "f1": 0.1 * at + epoch}
            told[trial.trial_id, epoch] = scheduler.on_trial_result(controller, trial, trial.last_result)
            trial.status = Trial.TERMINATED if told[trial.trial_id, epoch] == TrialScheduler.STOP else Trial.PAUSED
    assert any(epoch == 4 for _, epoch in told), told
