"""The driver of a search is killed; the same command keeps the trials that had ended and goes on with the others."""

from pathlib import Path

import pytest

from pipelines import tune
from pipelines.training.history import read_metrics
from pipelines.tuning.trials import FINISHED, OPEN, Journal
from tests.integration.processes import kill, list_descendants, start_door, wait_until


@pytest.mark.long
@pytest.mark.timeout(900)
def test_killed_search_keeps_what_has_ended_and_goes_on_from_checkpoints(
    ray_session: None, tiny_encoder: str, tmp_path: Path
):
    folder = tmp_path / "tuning"
    command = ["--corpus.train", "sample:en-train.jsonl", "--corpus.dev", "sample:en-dev.jsonl"]
    command += ["--corpus.test", "sample:en-dev.jsonl", "--model.encoder", tiny_encoder]
    command += ["--training.num_epochs", "3", "--training.precision", "fp32", "--training.batch_tokens", "400"]
    command += ["--training.checkpoint_every_steps", "10", "--space.training.optimizer.learning_rate", "1e-3", "2e-3"]
    command += ["--search.num_trials", "3", "--search.scheduler", "none", "--search.max_concurrent", "1"]
    command += ["--search.num_leaders", "1", "--search.num_seeds", "1", "--output_dir", str(folder)]

    driver = start_door("tune", command)
    journal = Journal(folder / "trials")
    second = journal.find(1)
    try:

        def is_under_way() -> bool:
            assert driver.poll() is None, driver.communicate()[0]
            return sum(row["kind"] == "checkpoint" for row in read_metrics(second / "metrics.jsonl")) >= 1

        wait_until(is_under_way, "a checkpoint of the second trial", 300)
    finally:
        kill([driver.pid, *list_descendants(driver.pid)])
        driver.communicate()
    first, interrupted = journal.read(0), journal.read(1)
    assert (first.status, interrupted.status) == (FINISHED, OPEN)
    kept = (journal.find(0) / "metrics.jsonl").read_bytes()

    assert tune.main(command) == 0
    assert (journal.find(0) / "metrics.jsonl").read_bytes() == kept
    rows = read_metrics(second / "metrics.jsonl")
    assert next(row for row in rows if row["kind"] == "start")["step"] > 0
    num_steps = journal.read(0).num_steps
    assert num_steps is not None
    assert [row["step"] for row in rows if row["kind"] == "step"] == list(range(1, num_steps + 1))
    assert [trial.status for trial in journal.read_all()] == [FINISHED] * 3
    assert (folder / "bundle" / "bundle.json").is_file()
