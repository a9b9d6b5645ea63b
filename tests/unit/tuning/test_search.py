"""What Ray Tune is given to run, and what it is told, without Ray Tune."""

from types import SimpleNamespace

from pipelines.training.config import TrainingError, TrainingHalted
from pipelines.tuning.budget import Budget
from pipelines.tuning.search import Limits, Searcher, _Drawing, _Follower
from pipelines.tuning.trials import FAILED, OPEN, Journal


def make_journal(folder, number):
    journal = Journal(folder / "trials")
    for one in range(number):
        journal.add({"model.dropout": one / 10}, 1)
    return journal


def suggest_all(drawing):
    found = []
    while (one := drawing.suggest("id")) != Searcher.FINISHED:
        found.append(one["number"])
    return found


def test_trials_that_are_wanted_no_more_are_passed_over(tmp_path):
    journal = make_journal(tmp_path, 4)
    assert suggest_all(_Drawing(journal, lambda trials, number: None, 4)) == [0, 1, 2, 3]
    assert suggest_all(_Drawing(journal, lambda trials, number: None, 4, {0, 2})) == [0, 2]
    assert suggest_all(_Drawing(journal, lambda trials, number: None, 4, {3})) == [3]


class FailedTrial(SimpleNamespace):
    """As Ray Tune tells of one."""

    def __str__(self) -> str:
        """Its name."""
        return "0000"

    def get_error(self):
        return self.error

    def get_pickled_error(self):
        return None


def fail(tmp_path, error):
    journal = make_journal(tmp_path, 1)
    limits = Limits(Budget(tmp_path, None), lambda trials: 0.0)
    follower = _Follower(journal, limits, lambda trials: set(), lambda trial, event: None)
    follower.on_trial_error(1, [], FailedTrial(error=error))
    return journal.read(0), limits


def test_trial_that_its_surroundings_have_halted_stays_open_and_ends_the_search(tmp_path):
    halted = TrainingHalted("the run folder cannot be written", where="/x", remedy="make room")
    wrapped = RuntimeError("of a worker")
    wrapped.cause = halted
    trial, limits = fail(tmp_path, wrapped)
    assert trial.status == OPEN
    assert (limits.problem, limits.has_ended) == (halted, True)


def test_trial_that_failed_by_itself_has_failed(tmp_path):
    trial, limits = fail(tmp_path, TrainingError("the loss is not a number"))
    assert (trial.status, limits.problem, limits.has_ended) == (FAILED, None, False)
    assert "the loss is not a number" in trial.reason
