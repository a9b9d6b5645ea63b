"""A search on a small Ray: the best of its trials as a preset that repeats it, failures, early stops, a budget."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines import train, tune
from pipelines.tuning.trials import FAILED, FINISHED, STOPPED, Journal
from tests.conftest import SAMPLE

RATE, DROP = "training.optimizer.learning_rate", "training.r_drop"


@pytest.fixture(scope="module")
def corpus(ray_session: None, tiny_encoder: str, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Flags for a third of the sample and a tiny model."""
    some = tmp_path_factory.mktemp("corpus") / "train.jsonl"
    some.write_text("".join((SAMPLE / "en-train.jsonl").open().readlines()[:60]), encoding="utf-8")
    files = ["--corpus.train", str(some), "--corpus.dev", "sample:en-dev.jsonl", "--corpus.test", "sample:en-dev.jsonl"]
    return [*files, "--model.encoder", tiny_encoder, "--training.precision", "fp32", "--training.batch_tokens", "300"]


@pytest.fixture(scope="module")
def search(corpus: list[str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """Five trials with early stops, one of which must fail, for its loss is not a number."""
    folder = tmp_path_factory.mktemp("search") / "tuning"
    space = [f"--space.{RATE}", "loguniform(1e-4, 3e-3)", f"--space.{DROP}", "0", "1e38"]
    flags = ["--training.num_epochs", "4", "--search.num_trials", "5", "--search.sampler", "random"]
    flags += ["--search.num_leaders", "1", "--search.num_seeds", "2", "--search.reduction_factor", "2"]
    command = [*corpus, *flags, *space, "--output_dir", str(folder)]
    assert tune.main(command) == 0
    return folder, command


@pytest.mark.timeout(240)
def test_failing_trial_is_reported_and_stopped_ones_have_fewer_epochs(search):
    folder, _ = search
    trials = Journal(folder / "trials").read_all()
    assert len(trials) == 5
    failed = [trial for trial in trials if trial.plan.settings.get(DROP)]
    assert failed
    assert all(trial.status == FAILED and "the loss is not a number" in trial.reason for trial in failed)
    stopped = [trial for trial in trials if trial.status == STOPPED]
    assert stopped
    assert all(0 < len(trial.epochs) < 4 for trial in stopped)
    assert all(len(trial.epochs) == 4 for trial in trials if trial.status == FINISHED)
    page = (folder / "report.html").read_text()
    assert page.count("<svg") >= 2
    assert "the loss is not a number" in page


def test_winner_was_repeated_and_is_compared_with_the_recipe(search):
    folder, _ = search
    tuning: dict[str, Any] = json.loads((folder / "tuning.json").read_text())
    assert {leader["number"] for leader in tuning["leaders"]} >= {0}
    assert all([run["seed"] for run in leader["runs"]] == [1, 2] for leader in tuning["leaders"])
    means = [leader["mean_f1"] for leader in tuning["leaders"]]
    assert means == sorted(means, reverse=True)
    assert tuning["winner"] == tuning["leaders"][0]["number"]
    assert not list(folder.glob("*/*/checkpoints"))


@pytest.mark.timeout(240)
def test_preset_repeats_the_winner_to_the_last_digit(search, tmp_path):
    folder, _ = search
    found = json.loads((folder / "run.json").read_text())["scores"]
    assert train.main(["--config", str(folder / "best.yaml"), "--output_dir", str(tmp_path / "best")]) == 0
    assert json.loads((tmp_path / "best" / "run.json").read_text())["scores"] == found
    layouts = [sorted(path.name for path in (one / "bundle").iterdir()) for one in (folder, tmp_path / "best")]
    assert layouts[0] == layouts[1]
    assert yaml.safe_load((folder / "best.yaml").read_text())["resources"]["num_workers"] == 1


@pytest.mark.timeout(240)
def test_same_command_is_finished_and_more_trials_add_to_those_done(search, capfd):
    folder, command = search
    assert tune.main(command) == 0
    assert "this search is finished" in capfd.readouterr().out
    before = {path: path.read_bytes() for path in folder.glob("trials/*/metrics.jsonl")}
    assert tune.main([*command, "--search.num_trials", "6", "--search.num_seeds", "1"]) == 0
    assert {path: path.read_bytes() for path in before} == before
    assert len(Journal(folder / "trials").read_all()) == 6


@pytest.mark.timeout(120)
def test_budget_in_which_no_trial_ends_is_refused_and_leaves_none(corpus, tmp_path, capfd):
    folder = tmp_path / "tuning"
    flags = ["--training.num_epochs", "3000", "--search.budget_s", "60", "--space.model.dropout", "0", "0.1"]
    assert tune.main([*corpus, *flags, "--output_dir", str(folder)]) == 2
    told = capfd.readouterr()
    for fact in ("the budget is smaller than one trial", "one trial takes about", "60 s"):
        assert fact in told.err
    assert not list(folder.glob("trials/*"))
    assert not (folder / "bundle").exists()
