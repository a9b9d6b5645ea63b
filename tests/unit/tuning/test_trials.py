"""The journal: what a trial's files tell, and how a population's member takes over another one's state."""

import math

import pytest

from pipelines.training.history import read_metrics
from pipelines.tuning.trials import FAILED, FINISHED, OPEN, STOPPED, Journal
from tests.unit.tuning.trials import make_trial, write_trial


@pytest.fixture
def journal(tmp_path):
    return Journal(tmp_path / "trials")


def test_trial_is_read_as_it_was_written(journal):
    write_trial(journal, {"model.head": "crf"}, [0.2, 0.5, 0.4], FINISHED)
    trial = journal.read(0)
    assert (trial.status, trial.reason, trial.plan.settings) == (FINISHED, "because", {"model.head": "crf"})
    assert trial.epochs == ((1, 0.2), (2, 0.5), (3, 0.4))
    assert (trial.best_f1, trial.num_epochs, trial.num_steps, trial.steps_done) == (0.5, 3, 12, 12)
    assert trial.train_s == pytest.approx(12 * 0.5 + 3)
    assert trial.num_tokens == 1200
    assert trial.step_s == pytest.approx(0.5)
    assert trial.is_whole


def test_trial_that_was_killed_is_open_and_has_no_score(journal):
    journal.add({}, 1)
    trial = journal.read(0)
    assert (trial.status, trial.best_f1, trial.train_s) == (OPEN, None, 0)


def test_first_word_on_how_a_trial_ended_stands(journal):
    journal.add({}, 1)
    journal.end(0, FINISHED)
    journal.end(0, STOPPED, "by the scheduler")
    assert journal.read(0).status == FINISHED


def test_score_that_is_not_a_number_never_wins():
    assert make_trial(0, [0.3, math.nan]).best_f1 == 0.3
    assert make_trial(0, [math.nan]).best_f1 is None


def test_numbers_go_on_after_the_last_one(journal):
    assert [journal.add({}, 1).number for _ in range(3)] == [0, 1, 2]
    journal.remove(1)
    assert journal.add({}, 1).number == 3
    assert [trial.number for trial in journal.read_all()] == [0, 2, 3]


def add_state(folder, step):
    (folder / "checkpoints").mkdir(exist_ok=True)
    path = folder / "checkpoints" / f"step-{step:08}-0123456789abcdef.pt"
    path.write_bytes(b"state")
    return path


def test_member_goes_on_from_anothers_state_with_its_history(journal):
    donor = write_trial(journal, {"r": 1}, [0.3, 0.6])
    own = write_trial(journal, {"r": 2}, [0.1])
    add_state(donor, 8)
    add_state(own, 4)
    state = journal.keep_state(0)
    assert state == "0000/kept/step-00000008-0123456789abcdef.pt"
    before = journal.read(1).train_s
    journal.take_over(1, state, 2, {"r": 1.2})
    trial = journal.read(1)
    assert trial.plan.settings == {"r": 1.2}
    assert trial.plan.turns == [{"epoch": 2, "from": 0, "before": {"r": 2}}]
    assert trial.epochs == ((1, 0.3), (2, 0.6))
    assert trial.train_s == pytest.approx(before)  # what it took itself
    assert [path.name for path in (own / "checkpoints").iterdir()] == ["step-00000008-0123456789abcdef.pt"]
    assert len(read_metrics(donor / "metrics.jsonl")) == 11
    assert not trial.is_whole


def test_only_the_last_states_are_kept(journal):
    folder = write_trial(journal, {}, [0.3])
    for step in range(1, 6):
        add_state(folder, step)
        journal.keep_state(0)
    assert sorted(path.name[5:13] for path in (folder / "kept").iterdir()) == ["00000003", "00000004", "00000005"]
    journal.forget_weights(0)
    assert not journal.has_weights(0)
    assert journal.read(0).epochs == ((1, 0.3),)


def test_failed_trial_tells_why(journal):
    write_trial(journal, {}, [], FAILED)
    assert (journal.read(0).status, journal.read(0).reason) == (FAILED, "because")


def test_trial_whose_checkpoints_were_taken_away_has_no_state_to_keep(journal):
    folder = write_trial(journal, {}, [0.3], FINISHED)
    assert journal.keep_state(0) is None
    add_state(folder, 4)
    journal.forget_weights(0)
    assert journal.keep_state(0) is None
