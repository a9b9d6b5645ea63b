"""A search on a small Ray: the best of its trials as a preset that repeats it, failures, early stops, a budget."""

import json
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines import prepare, train, tune
from pipelines.training.history import read_metrics
from pipelines.tuning.trials import FAILED, FINISHED, STOPPED, Journal, Trial

RATE, DROP = "training.optimizer.learning_rate", "training.r_drop"


@pytest.fixture(scope="module")
def corpus(ray_session: None, tiny_encoder: str, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Flags for a corpus prepared once and a tiny model."""
    settings = ["--model.encoder", tiny_encoder, "--model.dropout", "0.01"]
    files = [part for name in ("train", "dev", "test") for part in (f"--corpus.{name}", f"sample:en-{name}.jsonl")]
    shards = str(tmp_path_factory.mktemp("corpus") / "shards")
    assert prepare.main([*files, "--model.encoder", tiny_encoder, "--output_dir", shards]) == 0
    return ["--corpus.shards", shards, *settings, "--training.precision", "fp32", "--training.batch_tokens", "150"]


@pytest.fixture(scope="module")
def search(corpus: list[str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A bad recipe, then by this seed a trial that meets no number, a good one, and one that learns nothing."""
    folder = tmp_path_factory.mktemp("search") / "tuning"
    space = [f"--space.{RATE}", "1e-6", "2e-3", f"--space.{DROP}", "0", "1e38", f"--{RATE}", "1e-2"]
    flags = ["--training.num_epochs", "3", "--search.num_trials", "4", "--search.sampler", "random"]
    flags += ["--search.seed", "2", "--search.grace_epochs", "2", "--search.reduction_factor", "2"]
    flags += ["--search.max_concurrent", "1", "--search.num_leaders", "1", "--search.num_seeds", "2"]
    flags += ["--search.cost", "flops"]
    command = [*corpus, *flags, *space, "--output_dir", str(folder)]
    with redirect_stderr(StringIO()) as complained:
        code = tune.main(command)
    assert code == 0, complained.getvalue()
    return folder, command


@pytest.mark.timeout(1500)
def test_failing_trial_is_reported_and_stopped_ones_have_fewer_epochs(search):
    folder, _ = search
    trials = Journal(folder / "trials").read_all()
    assert [trial.status for trial in trials] == [FINISHED, FAILED, FINISHED, STOPPED]
    assert [len(trial.epochs) for trial in trials] == [3, 0, 3, 2]
    assert "is not a number" in trials[1].reason
    page = (folder / "report.html").read_text()
    assert page.count("<svg") >= 2
    assert "is not a number" in page


def test_winner_was_repeated_and_is_compared_with_the_recipe(search):
    folder, _ = search
    tuning: dict[str, Any] = json.loads((folder / "tuning.json").read_text())
    assert all(trial["cost"] > 1e6 * trial["num_tokens"] for trial in tuning["trials"] if trial["num_tokens"])
    assert 2 in tuning["front"]
    assert len(list((folder / "front").glob("trial-*.yaml"))) == len(tuning["front"])
    assert [leader["number"] for leader in tuning["leaders"]] == [2, 0]
    assert all([run["seed"] for run in leader["runs"]] == [1, 2] for leader in tuning["leaders"])
    means = [leader["mean_f1"] for leader in tuning["leaders"]]
    assert means == sorted(means, reverse=True)
    assert tuning["winner"] == tuning["leaders"][0]["number"]
    assert not list(folder.glob("*/*/checkpoints"))


@pytest.mark.long
@pytest.mark.timeout(900)
def test_preset_repeats_the_winner_to_the_last_digit(search, tmp_path):
    folder, _ = search
    found = json.loads((folder / "run.json").read_text())["scores"]
    assert train.main(["--config", str(folder / "best.yaml"), "--output_dir", str(tmp_path / "best")]) == 0
    assert json.loads((tmp_path / "best" / "run.json").read_text())["scores"] == found
    layouts = [sorted(path.name for path in (one / "bundle").iterdir()) for one in (folder, tmp_path / "best")]
    assert layouts[0] == layouts[1]
    assert yaml.safe_load((folder / "best.yaml").read_text())["resources"]["num_workers"] == 1


@pytest.mark.long
@pytest.mark.timeout(900)
def test_same_command_is_finished_and_more_trials_add_to_those_done(search, capfd):
    folder, command = search
    assert tune.main(command) == 0
    assert "this search is finished" in capfd.readouterr().out
    before = {path: path.read_bytes() for path in folder.glob("trials/*/metrics.jsonl")}
    assert tune.main([*command, "--search.num_trials", "5", "--search.num_seeds", "1"]) == 0
    assert {path: path.read_bytes() for path in before} == before
    assert len(Journal(folder / "trials").read_all()) == 5


def count_at_once(journal: Journal) -> int:
    """The most trials that were in the middle of a step at the same moment."""
    rows = [row for trial in journal.read_all() for row in read_metrics(journal.find(trial.number) / "metrics.jsonl")]
    steps = {(row["time"], row["seconds"]) for row in rows if row["kind"] == "step"}  # members may share some
    moments = [(time - share * seconds, change) for time, seconds in steps for share, change in ((0.6, 1), (0.4, -1))]
    level, most = 0, 0
    for _, change in sorted(moments):
        level += change
        most = max(most, level)
    return most


def run_search(corpus: list[str], folder: Path, *flags: str) -> list[Trial]:
    command = [*corpus, f"--space.{RATE}", "loguniform(1e-4, 3e-3)", *flags, "--search.num_leaders", "1"]
    assert tune.main([*command, "--search.num_seeds", "1", "--output_dir", str(folder)]) == 0
    tuning = json.loads((folder / "tuning.json").read_text())
    assert tuning["leaders"][0]["runs"][0]["is_whole"]
    assert (folder / "bundle" / "bundle.json").is_file()
    return Journal(folder / "trials").read_all()


@pytest.mark.long
@pytest.mark.timeout(900)
def test_members_of_a_population_take_over_better_ones_and_no_more_run_than_planned(corpus, tmp_path):
    flags = ("--search.sampler", "pbt", "--search.num_trials", "3", "--training.num_epochs", "2")
    trials = run_search(corpus, tmp_path / "tuning", *flags, "--search.max_concurrent", "2")
    assert [(trial.status, len(trial.epochs)) for trial in trials] == [(FINISHED, 2)] * 3
    [turned] = [trial for trial in trials if trial.plan.turns]
    assert turned.plan.turns[0]["epoch"] == 1
    assert turned.plan.settings != turned.plan.turns[0]["before"]
    donor = trials[turned.plan.turns[0]["from"]]
    assert turned.epochs[0] == donor.epochs[0]
    assert turned.epochs[1] != donor.epochs[1]
    assert count_at_once(Journal(tmp_path / "tuning" / "trials")) <= 2


@pytest.mark.long
@pytest.mark.timeout(900)
def test_trial_of_two_workers_trains_by_ray_train(corpus, tmp_path):
    flags = ("--resources.num_workers", "2", "--search.num_trials", "1", "--training.num_epochs", "1")
    [trial] = run_search(corpus, tmp_path / "tuning", *flags)
    assert (trial.status, len(trial.epochs)) == (FINISHED, 1)
    [start] = [row for row in read_metrics(tmp_path / "tuning/trials/0000/metrics.jsonl") if row["kind"] == "start"]
    assert (start["num_workers"], start["strategy"]) == (2, "ddp")


@pytest.mark.timeout(400)
def test_budget_in_which_no_trial_ends_is_refused_and_leaves_none(corpus, tmp_path, capfd):
    folder = tmp_path / "tuning"
    flags = ["--training.num_epochs", "3000", "--search.budget_s", "60", "--space.model.dropout", "0", "0.1"]
    assert tune.main([*corpus, *flags, "--output_dir", str(folder)]) == 2
    told = capfd.readouterr()
    for fact in ("the budget is smaller than one trial", "one trial takes about", "60 s"):
        assert fact in told.err
    assert not list(folder.glob("trials/*"))
    assert not (folder / "bundle").exists()
