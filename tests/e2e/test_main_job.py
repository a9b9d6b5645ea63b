"""The main job as a user runs it: command lines in processes of their own, from the checkout."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from transformers import AutoModelForTokenClassification, AutoTokenizer

from pipelines import prepare, train
from pipelines.ner.engine import NerEngine
from pipelines.training.history import read_metrics
from tests.conftest import ROOT, SAMPLE

TINY = ("--model.encoder", "scratch", "--training.num_epochs", "2")


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "RAY_ADDRESS")}
    verb, *rest = map(str, arguments)
    return subprocess.run(
        [sys.executable, "-m", f"pipelines.{verb}", *rest],
        capture_output=True,
        text=True,
        timeout=240,
        cwd=ROOT,
        env=environment | {"COLUMNS": "200"},
        check=False,
    )


def succeed(*arguments: object) -> str:
    done = run(*arguments)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The quickstart with a tiny model; its folder and what it printed."""
    folder = tmp_path_factory.mktemp("job") / "run"
    return folder, succeed("train", "--config", "quickstart", *TINY, "--output_dir", folder)


@pytest.mark.timeout(400)
def test_bundle_loads_in_transformers_and_in_the_engine(job):
    bundle = job[0] / "bundle"
    model = AutoModelForTokenClassification.from_pretrained(bundle)
    AutoTokenizer.from_pretrained(bundle)
    info = json.loads((bundle / "bundle.json").read_text())
    assert set(model.config.id2label.values()) == set(NerEngine.load(bundle).scheme.tags)
    assert (info["scheme"], info["head"], info["window"]) == ("BIO", "linear", 256)
    assert info["training"]["encoder"] == "scratch"
    assert {"test_strict_micro", "test_intervals", "seed", "versions"} <= set(info["training"])
    assert not list(bundle.glob("*.bin")) + list(bundle.glob("*.pt"))


def test_run_record_tells_what_ran_and_what_it_took(job):
    record = json.loads((job[0] / "run.json").read_text())
    assert (record["verb"], record["status"], record["seed"]) == ("train", "done", 1)
    assert {"ray", "torch", "transformers", "python"} <= set(record["versions"])
    assert record["config"]["training"]["num_epochs"] == 2
    assert record["config"]["model"]["encoder"] == "scratch"
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


@pytest.mark.timeout(400)
def test_same_command_again_is_finished_and_another_setting_is_refused(job):
    folder, _ = job
    before = (folder / "run.json").read_bytes()
    assert "this run is finished" in succeed("train", "--config", "quickstart", *TINY, "--output_dir", folder)
    other = run("train", "--config", "quickstart", *TINY, "--training.seed", 2, "--output_dir", folder)
    assert other.returncode == 2
    assert other.stdout == ""
    assert "a run with other settings" in other.stderr
    assert "`training.seed`: 1 then, 2 now" in other.stderr
    assert "--fresh" in other.stderr
    assert (folder / "run.json").read_bytes() == before


@pytest.mark.timeout(400)
def test_evaluate_repeats_the_scores_of_the_job_and_predict_labels_lines(job, tmp_path):
    folder, _ = job
    arguments = ("--model", folder / "bundle", "--corpus", "sample:en-test.jsonl")
    told = succeed("evaluate", *arguments, "--output_dir", tmp_path / "e")
    assert "strict F1" in told
    assert "rayner predict" in told
    trained, evaluated = (json.loads((path / "report.json").read_text()) for path in (folder, tmp_path / "e"))
    for name in ("strict", "lenient", "errors", "num_gold", "num_predicted", "intervals", "seen", "unseen"):
        assert evaluated[name] == trained[name]

    texts = ["Angela Merkel visited Utrecht.", "Siemens hires 🎉 in Berlin."]
    (tmp_path / "texts.txt").write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
    arguments = ("--model", folder / "bundle", "--input", tmp_path / "texts.txt", "--format", "jsonl", "--keep", "text")
    told = succeed("predict", *arguments, "--output_dir", tmp_path / "p")
    assert "2 documents labelled, 0 quarantined" in told
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
    arguments = ("--corpus.shards", str(tmp_path / "shards"), *TINY, "--model.head", "crf")
    assert train.main([*arguments, "--output_dir", str(tmp_path / "run")]) == 0
    assert "test strict F1" in capsys.readouterr().out
    assert not (tmp_path / "run" / "shards").exists()
    (prediction,) = NerEngine.load(tmp_path / "run" / "bundle").predict(["安格拉·默克尔访问了北京。"])
    assert prediction.coverage.num_words == 13
