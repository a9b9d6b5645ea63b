"""Leaders, their seeds, the winner among them, and the front of F1 against cost."""

import math
from pathlib import Path

import pytest
from scipy.stats import ttest_rel

from pipelines.tuning.leaders import (
    UNTRIED,
    Leader,
    Run,
    choose_leaders,
    describe_gain,
    find_front,
    gather_leaders,
    list_kept,
    plan_repeats,
    rank_trials,
)
from pipelines.tuning.trials import FAILED, FINISHED, OPEN, REFUSED, STOPPED, Journal, Plan, Trial
from tests.unit.tuning.trials import make_trial, write_trial


def test_trials_that_came_to_their_end_lead_those_that_were_stopped():
    trials = [make_trial(0, [0.3]), make_trial(1, [0.9], STOPPED), make_trial(2, [0.5]), make_trial(3, [0.95], FAILED)]
    trials += [make_trial(4, [math.nan]), make_trial(5, [], REFUSED), make_trial(6, [0.6], OPEN)]
    assert [trial.number for trial in rank_trials(trials)] == [2, 0, 1, 6]


def test_recipe_is_a_leader_besides_the_best_and_no_settings_twice():
    trials = [
        make_trial(0, [0.3]),
        make_trial(1, [0.5], settings={"a": 1}),
        make_trial(2, [0.5], settings={"a": 1}),
        make_trial(3, [0.4], settings={"a": 2}),
        make_trial(4, [0.2], settings={"a": 3}),
    ]
    assert [trial.number for trial in choose_leaders(trials, 2)] == [0, 1, 3]
    failed = [make_trial(0, [], FAILED), *trials[1:]]
    assert [trial.number for trial in choose_leaders(failed, 2)] == [1, 3]


def test_trial_that_time_cut_off_leads_by_its_score_and_is_trained_whole():
    trials = [
        make_trial(0, [0.3]),
        make_trial(1, [0.5], settings={"a": 1}),
        make_trial(2, [0.4, 0.6], OPEN, settings={"a": 2}),
        make_trial(3, [0.9], STOPPED, settings={"a": 3}),
        make_trial(4, [], OPEN, settings={"a": 4}),
        make_trial(5, [0.4], OPEN, settings={"a": 5}),
    ]
    leaders = choose_leaders(trials, 2)
    assert [trial.number for trial in leaders] == [0, 2, 1]
    assert plan_repeats(leaders, [1, 2]) == [({"a": 2}, 1), ({}, 2), ({"a": 2}, 2), ({"a": 1}, 2)]
    assert list_kept(trials, 1) == {0, 1, 2}  # the one that is under way may yet be stopped


def test_recipe_that_was_no_trial_is_compared_with_nevertheless(journals):
    search, repeats = journals
    write_trial(search, {"a": 1}, [0.60], FINISHED)
    leaders = choose_leaders(search.read_all(), 1)
    assert [(trial.number, trial.plan.settings) for trial in leaders] == [(UNTRIED, {}), (0, {"a": 1})]
    assert plan_repeats(leaders, [1]) == [({}, 1)]
    write_trial(repeats, {}, [0.55], FINISHED)
    found = gather_leaders(leaders, [1], search, repeats)
    assert [(leader.number, leader.mean_f1, leader.is_recipe) for leader in found] == [
        (0, 0.6, False),
        (UNTRIED, 0.55, True),
    ]
    assert "+5.0 points" in describe_gain(found, 1)


def test_leader_whose_last_seed_was_cut_is_compared_by_those_that_all_have(journals):
    search, repeats = journals
    write_trial(search, {}, [0.50], FINISHED)
    write_trial(search, {"a": 1}, [0.60], FINISHED)
    leaders = choose_leaders(search.read_all(), 1)
    for seed, f1 in ((2, 0.50), (3, 0.50)):
        write_trial(repeats, {}, [f1], FINISHED, seed=seed)
    write_trial(repeats, {"a": 1}, [0.61], FINISHED, seed=2)
    found = gather_leaders(leaders, [1, 2, 3], search, repeats)
    assert [(leader.number, len(leader.runs)) for leader in found] == [(1, 2), (0, 3)]


def make_leader(number, *scores):
    runs = tuple(Run(seed, f1, Path(), True) for seed, f1 in enumerate(scores, 1))
    return Leader(number, {"a": 1} if number else {}, runs)


def test_gain_by_one_seed_is_of_the_seed_that_both_have():
    told = describe_gain([make_leader(1, 0.60), make_leader(0, 0.54, 0.40)], 1)
    assert "+6.0 points of F1 over the recipe as it is, by the search's seed: it may be noise" in told


def test_gain_leaves_out_the_seed_by_which_the_winner_was_chosen_among_many():
    leaders = [make_leader(1, 0.60, 0.52, 0.53), make_leader(0, 0.50, 0.51, 0.52)]
    assert "+1.0 points of F1 over the recipe as it is, over 2 seeds other than the search's" in describe_gain(
        leaders, 1
    )
    assert "+4.0 points" in describe_gain([make_leader(1, 0.60, 0.55), make_leader(0, 0.50, 0.51)], 1)
    assert "by a seed other than the search's: it may be noise" in describe_gain(
        [make_leader(1, 0.60, 0.55), make_leader(0, 0.50, 0.51)], 1
    )


@pytest.mark.parametrize(
    ("gains", "is_more"),
    [
        ((0.005, 0.012), False),  # as far apart as two seeds of the same recipe are once in seven times
        ((0.010, 0.011), True),
        ((0.004, 0.010, 0.013), False),
        ((0.010, 0.012, 0.013), True),
    ],
)
def test_gain_is_more_than_noise_by_the_t_test_of_so_few_seeds(gains, is_more):
    assert (ttest_rel([0.5 + gain for gain in gains], [0.5] * len(gains)).pvalue < 0.05) == is_more
    told = describe_gain([make_leader(1, *(0.5 + gain for gain in gains)), make_leader(0, *[0.5] * len(gains))], 0)
    assert told.endswith("more than the seeds differ by.")
    assert told.endswith("no more than the seeds differ by.") != is_more


def test_repeats_are_what_leaders_lack_seed_by_seed():
    leaders = [make_trial(0, [0.3]), make_trial(1, [0.5], STOPPED, settings={"a": 1})]
    assert plan_repeats(leaders, [1, 2]) == [({"a": 1}, 1), ({}, 2), ({"a": 1}, 2)]


@pytest.fixture
def journals(tmp_path):
    return Journal(tmp_path / "trials"), Journal(tmp_path / "leaders")


def test_winner_is_the_best_over_seeds_not_the_luckiest(journals):
    search, repeats = journals
    write_trial(search, {}, [0.50], FINISHED)
    write_trial(search, {"a": 1}, [0.60], FINISHED)
    write_trial(search, {"a": 2}, [0.58], FINISHED)
    for settings, seed, f1 in (({}, 2, 0.51), ({"a": 1}, 2, 0.40), ({"a": 2}, 2, 0.57)):
        write_trial(repeats, settings, [f1], FINISHED, seed=seed)
    leaders = gather_leaders(choose_leaders(search.read_all(), 2), [1, 2], search, repeats)
    assert [leader.number for leader in leaders] == [2, 0, 1]
    assert leaders[0].mean_f1 == pytest.approx(0.575)
    assert leaders[0].best_run.seed == 1
    assert leaders[0].best_run.folder == search.find(2)
    assert "+6.0 points of F1 over the recipe as it is, by a seed other than the search's" in describe_gain(leaders, 1)


def test_gain_within_the_seeds_spread_is_told_as_such(journals):
    search, repeats = journals
    write_trial(search, {}, [0.50], FINISHED)
    write_trial(search, {"a": 1}, [0.60], FINISHED)
    write_trial(repeats, {}, [0.58], FINISHED, seed=2)
    write_trial(repeats, {"a": 1}, [0.50], FINISHED, seed=2)
    write_trial(repeats, {}, [0.50], FINISHED, seed=3)
    write_trial(repeats, {"a": 1}, [0.56], FINISHED, seed=3)
    leaders = gather_leaders(choose_leaders(search.read_all(), 1), [1, 2, 3], search, repeats)
    assert describe_gain(leaders, 1).endswith("no more than the seeds differ by.")


def test_recipe_that_wins_is_told(journals):
    search, _ = journals
    write_trial(search, {}, [0.50], FINISHED)
    write_trial(search, {"a": 1}, [0.40], FINISHED)
    leaders = gather_leaders(choose_leaders(search.read_all(), 1), [1], search, None)
    assert describe_gain(leaders, 1) == "No trial was better than the recipe as it is."


def test_leader_stopped_early_is_taken_from_its_whole_repeat(journals):
    search, repeats = journals
    write_trial(search, {"a": 1}, [0.60], STOPPED)
    write_trial(repeats, {"a": 1}, [0.55, 0.62], FINISHED)
    [leader] = gather_leaders(choose_leaders(search.read_all(), 1), [1], search, repeats)
    assert [(run.seed, run.f1, run.is_whole) for run in leader.runs] == [(1, 0.62, True)]


def test_leader_without_a_whole_run_is_told_apart(journals):
    search, _ = journals
    write_trial(search, {"a": 1}, [0.60])
    [leader] = gather_leaders(choose_leaders(search.read_all(), 1), [1], search, None)
    assert not leader.best_run.is_whole


def test_member_of_a_population_counts_by_its_repeats_alone(journals):
    search, repeats = journals
    member = Trial(Plan(1, {"a": 1}, 1, turns=[{"epoch": 1, "from": 0, "before": {}}]), FINISHED, epochs=((1, 0.9),))
    assert plan_repeats([member], [1]) == [({"a": 1}, 1)]
    write_trial(repeats, {"a": 1}, [0.7], FINISHED)
    [leader] = gather_leaders([member], [1], search, repeats)
    assert leader.mean_f1 == 0.7


def test_front_has_what_no_other_trial_beats_at_its_cost():
    spent = [(0, 0.50, 10.0), (1, 0.40, 5.0), (2, 0.45, 20.0), (3, 0.60, 30.0), (4, 0.40, 6.0), (5, 0.60, 31.0)]
    trials = [make_trial(number, [f1], train_s=seconds) for number, f1, seconds in spent]
    trials += [make_trial(6, [0.9], STOPPED, train_s=1.0), make_trial(7, [math.nan], train_s=1.0)]
    assert [trial.number for trial in find_front(trials, "seconds")] == [1, 0, 3]


def test_front_in_operations_leaves_out_trials_without_them():
    trials = [make_trial(0, [0.5], flops=1e12), make_trial(1, [0.6], flops=None), make_trial(2, [0.6], flops=2e12)]
    assert [trial.number for trial in find_front(trials, "flops")] == [0, 2]


def test_member_of_a_population_that_was_not_repeated_has_what_it_reached(journals):
    search, repeats = journals
    member = Trial(Plan(1, {"a": 1}, 1, turns=[{"epoch": 1, "from": 0, "before": {}}]), FINISHED, epochs=((1, 0.9),))
    [leader] = gather_leaders([member], [1, 2], search, repeats)
    assert [(run.seed, run.f1, run.is_whole) for run in leader.runs] == [(1, 0.9, False)]
