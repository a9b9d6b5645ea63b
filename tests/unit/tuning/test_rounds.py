"""What a round leaves of trials when it cannot go on, and what it draws, without Ray Tune."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from pipelines.training.resources import ResourcesConfig
from pipelines.tuning import rounds
from pipelines.tuning.budget import Budget, close_s, estimate_trial_s, keep_back_s
from pipelines.tuning.config import SearchConfig, TuneError
from pipelines.tuning.domains import Domain
from pipelines.tuning.leaders import choose_leaders, gather_leaders
from pipelines.tuning.rounds import Rounds
from pipelines.tuning.trials import FINISHED
from tests.unit.tuning.trials import write_trial

SPACE = {"model.head": Domain("choice", choices=("linear", "crf"))}


@pytest.fixture
def begun(tmp_path):
    slots = SimpleNamespace(concurrent=1, gpus=0.0, is_alone=True, may_grow=False)
    search, budget = SearchConfig(num_trials=5, num_seeds=1), Budget(tmp_path, None)
    return Rounds(tmp_path, search, SPACE, 3, None, slots, ResourcesConfig(), budget, {"model.head": "linear"})


def fail(*args, **settings):
    raise TuneError("the budget is smaller than one trial")


def test_trials_with_an_epoch_outlive_a_search_that_cannot_go_on(begun, monkeypatch):
    monkeypatch.setattr(rounds, "run_trials", fail)
    write_trial(begun.trials, {}, [0.3])
    write_trial(begun.trials, {"model.head": "crf"}, [])
    with pytest.raises(TuneError):
        begun.search(1, lambda trial, event: None)
    assert begun.trials.count() == 2


def test_trials_without_an_epoch_are_taken_out_of_a_search_that_cannot_go_on(begun, monkeypatch):
    monkeypatch.setattr(rounds, "run_trials", fail)
    write_trial(begun.trials, {}, [])
    with pytest.raises(TuneError):
        begun.search(1, lambda trial, event: None)
    assert begun.trials.count() == 0


def test_exhausted_space_ends_the_search_and_is_told(begun, monkeypatch):
    def run_all(bench, journal, slots, limits, *, draw, **settings):
        while (plan := draw(journal.read_all(), journal.count())) is not None:
            write_trial(journal, plan.settings, [0.3])
            journal.remove(plan.number)

    monkeypatch.setattr(rounds, "run_trials", run_all)
    begun.search(1, lambda trial, event: None)
    trials = begun.trials.read_all()
    assert [trial.plan.settings for trial in trials] == [{}, {"model.head": "crf"}]
    leaders = gather_leaders(choose_leaders(trials, 1), [1], begun.trials, None)
    assert any("no more than these 2 trials" in note for note in begun.list_notes(leaders))


@pytest.mark.parametrize("is_finished", [False, True])
def test_time_is_kept_back_to_train_the_winner_of_a_finished_search_again(begun, monkeypatch, is_finished):
    asked = []
    monkeypatch.setattr(rounds, "run_trials", lambda *args, **settings: asked.append(args[3].kept_back_s))
    begun.config = replace(begun.config, budget_s=1000, num_seeds=2)
    folder = write_trial(begun.trials, {}, [0.3], FINISHED)
    if not is_finished:  # which takes the weights away
        (folder / "checkpoints").mkdir()
        (folder / "checkpoints" / "step-00000004-0123456789abcdef.pt").touch()
    trials = begun.trials.read_all()
    begun.search(1, lambda trial, event: None)
    begun.repeat_leaders(1, lambda trial, event: None)
    again_s = estimate_trial_s(trials) if is_finished else 0.0
    expected = [keep_back_s(begun.config, trials, 1), close_s(estimate_trial_s(trials))]
    assert [kept_back_s(trials) for kept_back_s in asked] == pytest.approx([one + again_s for one in expected])


def test_winner_that_is_trained_again_beyond_the_budget_is_told(begun, monkeypatch, tmp_path):
    monkeypatch.setattr(rounds, "run_trials", lambda *args, **settings: None)
    write_trial(begun.trials, {}, [0.3], FINISHED)
    leaders = gather_leaders(choose_leaders(begun.trials.read_all(), 1), [1], begun.trials, None)
    begun.budget.limit_s, begun.budget.before_s = 100, 130
    assert begun.ensure_weights(leaders[0], lambda trial, event: None) == tmp_path / "winner" / "0000"
    assert any("trained once more, 30 s beyond the budget." in note for note in begun.list_notes(leaders))


def test_member_of_a_population_that_wins_without_repeats_is_told(begun):
    write_trial(begun.trials, {"model.head": "crf"}, [0.3], FINISHED)
    turn = {"epoch": 1, "from": 1, "before": {"model.head": "linear"}}
    begun.trials.write(replace(begun.trials.read_plan(0), turns=[turn]))
    trials = begun.trials.read_all()
    leaders = gather_leaders(choose_leaders(trials, 1), [1], begun.trials, None)
    assert any(note.startswith("The winner was not trained from its first epoch") for note in begun.list_notes(leaders))
