"""Drawing from the space: inside it, the same after an interruption, better with TPE; and what matters."""

import pytest

from pipelines.tuning.domains import Domain
from pipelines.tuning.sampling import Sampler, build_study, find_common_epoch, rank_importance
from pipelines.tuning.trials import FAILED, FINISHED, OPEN, STOPPED
from tests.unit.tuning.trials import make_trial

RATE = "training.optimizer.learning_rate"
SPACE = {
    RATE: Domain("loguniform", 1e-5, 1e-3),
    "model.head": Domain("choice", choices=("linear", "crf")),
    "training.num_epochs": Domain("randint", 1, 5),
    "model.dropout": Domain("choice", choices=(None, 0.1)),
}


def score(settings):
    """By the rate alone, whose best is at the upper end."""
    return 0.3 + 500 * settings[RATE]


def search(kind, num_trials, seed=0):
    sampler, trials = Sampler(SPACE, kind, seed), []
    for number in range(num_trials):
        settings = sampler.draw(trials, number)
        trials.append(make_trial(number, [score(settings)], settings=settings))
    return trials


@pytest.mark.parametrize("kind", ["random", "tpe"])
def test_draws_are_inside_the_space(kind):
    for trial in search(kind, 20):
        for path, domain in SPACE.items():
            value = trial.plan.settings[path]
            if domain.kind == "choice":
                assert value in domain.choices
            else:
                assert domain.low <= value <= domain.high
                assert isinstance(value, int) == domain.is_integer


@pytest.mark.parametrize("kind", ["random", "tpe"])
def test_search_that_was_interrupted_draws_what_it_would_have_drawn(kind):
    whole = search(kind, 9)
    assert Sampler(SPACE, kind, 0).draw(whole[:8], 8) == whole[8].plan.settings
    assert Sampler(SPACE, kind, 1).draw(whole[:8], 8) != whole[8].plan.settings


def test_tpe_draws_nearer_to_what_did_well_than_chance_does():
    late = {
        kind: [score(t.plan.settings) for s in range(4) for t in search(kind, 24, s)[12:]] for kind in ("random", "tpe")
    }
    assert sum(late["tpe"]) > 1.2 * sum(late["random"])


def test_study_knows_stopped_trials_as_pruned_and_leaves_out_failed_ones():
    drawn = search("random", 4)
    states = [FINISHED, STOPPED, FAILED, OPEN]
    trials = [
        make_trial(t.number, [0.1, 0.2], status, t.plan.settings) for t, status in zip(drawn, states, strict=True)
    ]
    trials.append(make_trial(4, [0.3], FINISHED, {}))  # the recipe as it is, which may lie outside
    study = build_study(SPACE, trials)
    assert [trial.state.name for trial in study.trials] == ["COMPLETE", "PRUNED", "RUNNING"]
    assert study.trials[1].intermediate_values == {1: 0.1, 2: 0.2}
    costs = build_study(SPACE, trials, "seconds")
    assert [trial.values for trial in costs.trials] == [[0.2, 10.0], None]


def test_the_setting_that_decides_is_the_most_important():
    importance = rank_importance(SPACE, search("random", 20))
    assert next(iter(importance)) == RATE
    assert importance[RATE] > 0.6
    assert sum(importance.values()) == pytest.approx(1)


def test_importance_of_few_or_equal_trials_is_not_told():
    trials = search("random", 10)
    assert rank_importance(SPACE, trials[:3]) == {}
    assert rank_importance(SPACE, [make_trial(t.number, [0.5], settings=t.plan.settings) for t in trials]) == {}


def test_trials_are_compared_at_the_last_epoch_that_all_have():
    trials = [make_trial(0, [0.1, 0.2, 0.3]), make_trial(1, [0.1, 0.2], STOPPED), make_trial(2, [], FAILED)]
    assert find_common_epoch(trials) == 2


def test_importance_of_trials_with_the_same_settings_is_not_told():
    settings = search("random", 1)[0].plan.settings
    trials = [make_trial(number, [0.5 + number / 10], settings=settings) for number in range(5)]
    assert rank_importance(SPACE, trials) == {}


def test_importance_that_the_forest_cannot_tell_is_not_told(monkeypatch):
    def fail(*args, **settings):
        raise RuntimeError("Encountered zero total variance in all trees.")

    monkeypatch.setattr("optuna.importance.get_param_importances", fail)
    assert rank_importance(SPACE, search("random", 10)) == {}


FINITE = {"model.head": Domain("choice", choices=("linear", "crf")), "training.num_epochs": Domain("randint", 1, 3)}
OWN = {"model.head": "crf", "training.num_epochs": 2}


def draw_all(space, kind, seed, num_trials, recipe=None):
    sampler, trials = Sampler(space, kind, seed, recipe=recipe), [make_trial(0, [0.5])]
    for number in range(1, num_trials):
        settings = sampler.draw(trials, number)
        if settings is None:
            break
        trials.append(make_trial(number, [0.5 + len(trials) / 100], settings=settings))
    return [trial.plan.settings for trial in trials[1:]]


@pytest.mark.parametrize("kind", ["random", "tpe"])
@pytest.mark.parametrize("seed", range(3))
def test_finite_space_is_drawn_without_repetition_until_it_is_exhausted(kind, seed):
    drawn = draw_all(FINITE, kind, seed, 20, OWN)
    assert len(drawn) == 5
    assert all(one not in drawn[:place] for place, one in enumerate(drawn))
    assert OWN not in drawn
    assert len(draw_all(FINITE, kind, seed, 20)) == 6


def test_space_too_narrow_to_differ_in_its_digits_has_an_end():
    narrow = {"training.optimizer.weight_decay": Domain("uniform", 0.1, 0.1002)}
    drawn = draw_all(narrow, "random", 0, 20)
    assert 1 <= len(drawn) <= 3
    assert all(one not in drawn[:place] for place, one in enumerate(drawn))


def test_draw_that_repeats_nothing_is_the_first_one():
    sampler = Sampler(SPACE, "random", 0, recipe={RATE: 1e-4})
    assert sampler.draw([], 1) == sampler._ask([], 1)


def test_members_of_a_population_may_begin_alike():
    assert len(draw_all(FINITE, "pbt", 0, 20, OWN)) == 19
