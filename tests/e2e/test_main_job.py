"""The main job as a user runs it: command lines in processes of their own, from the checkout."""

import json
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from transformers import AutoModelForTokenClassification, AutoTokenizer

from pipelines import predict, prepare, train
from pipelines.ner.engine import NerEngine
from pipelines.training.history import read_metrics
from tests.conftest import SAMPLE
from tests.quickstart import Quickstart

pytestmark = pytest.mark.timeout(1500)  # of which the quickstart takes the most

QUICKSTART = ("train", "--config", "quickstart")


@pytest.fixture(scope="module")
def job(quickstart: Quickstart) -> tuple[Path, str]:
    """The quickstart: its folder and what it printed."""
    return quickstart.bundle.parent, quickstart.told


def test_bundle_loads_in_transformers_and_in_the_engine(job):
    bundle = job[0] / "bundle"
    model = AutoModelForTokenClassification.from_pretrained(bundle)
    AutoTokenizer.from_pretrained(bundle)
    info = json.loads((bundle / "bundle.json").read_text())
    assert set(model.config.id2label.values()) == set(NerEngine.load(bundle).scheme.tags)
    assert (info["scheme"], info["head"], info["window"]) == ("BIO", "linear", 256)
    assert info["training"]["encoder"] == "all-MiniLM-L6-v2"
    assert {"test_strict_micro", "test_intervals", "seed", "versions"} <= set(info["training"])
    assert not list(bundle.glob("*.bin")) + list(bundle.glob("*.pt"))


def test_run_record_tells_what_ran_and_what_it_took(job):
    record = json.loads((job[0] / "run.json").read_text())
    assert (record["verb"], record["status"], record["seed"]) == ("train", "done", 1)
    assert {"ray", "torch", "transformers", "python"} <= set(record["versions"])
    assert record["config"]["training"]["batch_tokens"] == 512
    assert record["config"]["corpus"]["train"] == ["sample:en-train.jsonl"]
    assert set(record["phases_s"]) == {"prepare", "train", "bundle", "evaluate"}
    assert record["training"]["tokens_per_s"] > 0
    assert record["training"]["worker_peak_memory_mib"] > 100
    assert record["driver_peak_memory_mib"] > 100
    assert record["inventory"]["CPU"] >= 1
    assert 0 <= record["scores"]["strict_micro_f1"] <= 1
    epochs = [row for row in read_metrics(job[0] / "metrics.jsonl") if row["kind"] == "epoch"]
    assert record["scores"]["dev_strict_micro_f1"] == max(row["dev_f1"] for row in epochs)


def test_report_is_whole_and_needs_nothing_else(job):
    report = json.loads((job[0] / "report.json").read_text())
    assert report["num_records"] == sum(1 for _ in (SAMPLE / "en-test.jsonl").open())
    assert {"strict", "lenient", "intervals", "errors", "confusion", "seen", "unseen", "facts"} <= set(report)
    page = (job[0] / "report.html").read_text()
    assert page.lower().startswith("<!doctype html>")
    assert "<svg" in page
    for outside in ("<script src", "<link", "@import", 'src="http', 'href="http'):
        assert outside not in page
    assert (job[0] / "report.md").read_text().startswith("#")
    ledger = pq.read_table(job[0] / "shards" / "ledger.parquet").to_pylist()
    assert sum(row["count"] for row in ledger if row["outcome"] == "kept") == report["num_records"] + 172 + 24


def test_printed_last_are_scores_examples_paths_and_the_next_command(job):
    folder, told = job
    parts = ("corpus", "scores on the test split", "all (micro)", "test strict F1", "bundle: ", "report: ", "next: ")
    places = [told.index(part) for part in parts]
    assert places == sorted(places)
    assert str(folder / "bundle") in told
    assert str(folder / "report.html") in told
    assert f"rayner predict --model {folder}/bundle" in told


def test_same_command_again_is_finished_and_another_setting_is_refused(quickstart, job):
    folder, _ = job
    before = (folder / "run.json").read_bytes()
    assert "this run is finished" in quickstart.run("rayner", *QUICKSTART)
    other = subprocess.run(
        [sys.executable, "-m", "pipelines.train", *QUICKSTART[1:], "--training.seed", "2"],
        capture_output=True,
        text=True,
        cwd=quickstart.checkout,
        env=quickstart.environment | {"COLUMNS": "200"},
        check=False,
    )
    assert other.returncode == 2
    assert other.stdout == ""
    assert "a run with other settings" in other.stderr
    assert "`training.seed`: 1 then, 2 now" in other.stderr
    assert "--fresh" in other.stderr
    assert (folder / "run.json").read_bytes() == before


def test_predict_labels_the_lines_of_a_text(ray_session, job, tmp_path, capsys):
    texts = ["Angela Merkel visited Utrecht.", "Siemens hires 🎉 in Berlin."]
    (tmp_path / "texts.txt").write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
    arguments = ["--input", str(tmp_path / "texts.txt"), "--format", "jsonl", "--keep", "text"]
    assert predict.main(["--model", str(job[0] / "bundle"), *arguments, "--output_dir", str(tmp_path / "p")]) == 0
    assert "2 documents labelled, 0 quarantined" in capsys.readouterr().out
    rows = [json.loads(line) for line in (tmp_path / "p" / "entities" / "part-00000.jsonl").open(encoding="utf-8")]
    assert [row["text"] for row in rows] == texts
    for row in rows:
        assert all(row["text"][one["start"] : one["end"]] == one["text"] for one in row["entities"])


def test_prepared_shards_of_chinese_are_trained_on(ray_session, tmp_path, capsys):
    files = [part for split in ("train", "dev", "test") for part in (f"--corpus.{split}", f"sample:zh-{split}.jsonl")]
    assert prepare.main([*files, "--model.encoder", "scratch", "--output_dir", str(tmp_path / "shards")]) == 0
    told = capsys.readouterr().out
    assert "rayner train --corpus.shards" in told
    assert "42 records" in told
    arguments = ("--corpus.shards", str(tmp_path / "shards"), "--model.encoder", "scratch", "--model.head", "crf")
    assert train.main([*arguments, "--training.num_epochs", "1", "--output_dir", str(tmp_path / "run")]) == 0
    assert "test strict F1" in capsys.readouterr().out
    assert not (tmp_path / "run" / "shards").exists()
    (prediction,) = NerEngine.load(tmp_path / "run" / "bundle").predict(["安格拉·默克尔访问了北京。"])
    assert prediction.coverage.num_words == 13
