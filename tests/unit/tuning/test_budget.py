"""The budget: kept over commands, with something kept back for the leaders, refused where no trial fits."""

from dataclasses import replace

import pytest

from pipelines.tuning.budget import Budget, estimate_trial_s, find_hopeless, keep_back_s
from pipelines.tuning.config import SearchConfig
from pipelines.tuning.search import has_settled
from pipelines.tuning.trials import FAILED, FINISHED, OPEN, Plan
from tests.unit.tuning.trials import make_trial


def make_running(**more):
    facts = {"num_epochs": 4, "num_steps": 100, "steps_done": 10, "step_s": 2.0, "train_s": 20.0} | more
    return make_trial(0, facts.pop("f1s", []), OPEN, **facts)


def test_time_spent_adds_up_over_commands(tmp_path):
    first = Budget(tmp_path, 100)
    first.before_s = 40
    first.save(now=True)
    again = Budget(tmp_path, 100)
    assert 40 <= again.spent_s < 41
    assert 59 < again.left_s() <= 60
    assert 49 < again.left_s(10) <= 50
    assert Budget(tmp_path, None).left_s() == float("inf")


def test_trial_is_estimated_by_the_longest_that_ended_else_by_its_pace():
    assert estimate_trial_s([make_trial(0, [0.5], train_s=30.0), make_trial(1, [0.5], train_s=50.0)]) == 50
    assert estimate_trial_s([make_running()]) == 200
    assert estimate_trial_s([make_running(f1s=[0.1], steps_done=25, train_s=53.0)]) == pytest.approx(212)
    assert estimate_trial_s([make_running(steps_done=2)]) is None


def test_time_is_kept_back_for_leaders_with_their_seeds_but_at_most_half():
    trials = [make_trial(0, [0.5], train_s=30.0)]
    search = SearchConfig(num_leaders=2, num_seeds=3, budget_s=1000)
    assert keep_back_s(search, trials, concurrent=2) == 3 * 30 + 10 + 3
    assert keep_back_s(search, trials, concurrent=1) == 6 * 30 + 10 + 3
    assert keep_back_s(SearchConfig(num_leaders=2, num_seeds=3, budget_s=100), trials, 1) == 50
    assert keep_back_s(SearchConfig(), trials, 1) == 0


def test_nothing_is_kept_back_for_repeats_before_any_trial_is_whole():
    """Else the first trial is stopped half-way, and no other ever ends."""
    running = make_running(step_s=4.5)
    search = SearchConfig(budget_s=600)
    assert estimate_trial_s([running]) == 450
    assert keep_back_s(search, [running], concurrent=1) == 10 + 45
    assert keep_back_s(search, [make_trial(1, [0.5], train_s=450.0), running], concurrent=1) == 300


def test_budget_smaller_than_one_trial_is_refused_by_its_pace(tmp_path):
    error = find_hopeless(Budget(tmp_path, 60), [make_running()])
    assert error is not None
    for fact in ("smaller than one trial", "one trial takes about 200 s", "60 s"):
        assert fact in str(error)
    assert find_hopeless(Budget(tmp_path, 300), [make_running()]) is None
    assert find_hopeless(Budget(tmp_path, None), [make_running()]) is None
    almost_spent = Budget(tmp_path, 60)
    almost_spent.before_s = 55
    assert find_hopeless(almost_spent, [make_trial(0, [0.5])]) is None, "there are trials: the rest can be done"
    assert find_hopeless(Budget(tmp_path, 60), [make_running(), make_trial(1, [], FAILED)]) is None


def test_budget_that_is_over_before_the_first_step_is_refused(tmp_path):
    assert "has not begun" in str(find_hopeless(Budget(tmp_path, 5), []))


def test_money_is_time_at_a_price():
    assert SearchConfig(budget_price=2.0, price_per_hour=4.0).limit_s == 1800
    assert SearchConfig(budget_price=2.0, price_per_hour=4.0, budget_s=60).limit_s == 60
    assert SearchConfig().limit_s is None


@pytest.mark.parametrize(
    ("settings", "where"),
    [
        ({"num_trials": 0}, "num_trials"),
        ({"sampler": "grid"}, "sampler"),
        ({"sampler": "pbt", "num_trials": 1}, "num_trials"),
        ({"scheduler": "hyper"}, "scheduler"),
        ({"budget_s": 0.0}, "budget_s"),
        ({"budget_price": 3.0}, "budget_price"),
        ({"gpus_per_trial": 1.5}, "gpus_per_trial"),
        ({"cost": "money"}, "cost"),
        ({"patience": 0}, "patience"),
    ],
)
def test_values_out_of_range_are_refused(settings, where):
    [problem] = SearchConfig(**settings).find_problems()
    assert problem.where == f"`search.{where}`"


def test_trials_of_several_workers_cannot_be_paused():
    assert SearchConfig(scheduler="hyperband").find_problems(num_workers=1) == []
    [problem] = SearchConfig(scheduler="hyperband").find_problems(num_workers=2)
    assert "one worker a trial" in str(problem)


def test_settings_without_effect_are_told():
    assert SearchConfig(scheduler="none", grace_epochs=2).find_idle() == [
        "`search.grace_epochs` has no effect: no trial is stopped early"
    ]
    assert SearchConfig().find_idle() == []


def test_search_has_settled_after_so_many_trials_without_a_better_one():
    trials = [make_trial(number, [f1]) for number, f1 in enumerate([0.3, 0.5, 0.4, 0.5])]
    assert has_settled(trials, 2)
    assert not has_settled(trials, 3)
    assert not has_settled(trials, None)
    assert not has_settled([make_trial(0, [], OPEN)], 1)
    assert has_settled([*trials[:2], make_trial(2, [], FAILED), make_trial(3, [0.1], FINISHED)], 2)


def test_budget_is_hopeless_only_if_no_trial_can_end_in_it(tmp_path):
    long, short = make_running(step_s=6.0), replace(make_running(step_s=0.6, train_s=6.0), plan=Plan(1, {}, 1))
    assert "one trial takes about 600 s" in str(find_hopeless(Budget(tmp_path, 400), [long]))
    assert find_hopeless(Budget(tmp_path, 400), [long, short]) is None
    assert find_hopeless(Budget(tmp_path, 400), [long, make_running(steps_done=1)]) is None, "it may be a short one"
    waiting = make_trial(2, [], OPEN)
    assert "one trial takes about 600 s" in str(find_hopeless(Budget(tmp_path, 400), [long, waiting])), "for the other"
    assert "one trial takes about 60 s" in str(find_hopeless(Budget(tmp_path, 40), [long, short]))


@pytest.mark.parametrize(
    ("settings", "name"),
    [({"scheduler": "hyperband", "grace_epochs": 3}, "grace"), ({"scheduler": "median", "reduction_factor": 4}, "red")],
)
def test_settings_that_a_scheduler_does_not_read_are_told(settings, name):
    [told] = SearchConfig(**settings).find_idle()
    assert told.startswith(f"`search.{name}")


def test_population_that_has_an_epoch_is_not_hopeless(tmp_path):
    members = [make_running(f1s=[0.3], steps_done=25), make_trial(1, [], OPEN)]
    assert find_hopeless(Budget(tmp_path, 60), members, is_population=True) is None
    assert find_hopeless(Budget(tmp_path, 60), members) is not None, "trials are to end one by one"


def test_time_is_kept_back_for_the_repeats_of_a_population_before_any_member_is_whole():
    """No member counts without them."""
    search = SearchConfig(sampler="pbt", num_trials=4, num_leaders=1, num_seeds=1, budget_s=10_000)
    assert keep_back_s(search, [make_running()], concurrent=1) == 2 * 200 + 10 + 20
