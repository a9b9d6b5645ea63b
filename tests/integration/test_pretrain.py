"""`rayner pretrain` on text of two kinds: killed and resumed as undisturbed, and what it leaves for `train`."""

import json
import os
import threading
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, AutoModelForMaskedLM

from pipelines import pretrain
from pipelines.ner.encoders import find_encoder, load_tokenizer
from pipelines.ner.labels import LabelScheme
from pipelines.ner.model import ModelConfig, build_token_classifier
from pipelines.training.history import read_metrics
from pipelines.training.masked_model import has_masked_head
from tests.conftest import SAMPLE
from tests.integration.processes import kill, list_descendants, wait_until

pytestmark = [pytest.mark.usefixtures("ray_session"), pytest.mark.timeout(1500)]


@pytest.fixture(scope="module")
def arguments(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Of a run on a JSONL file and on lines of text, with a gazetteer."""
    folder = tmp_path_factory.mktemp("texts")
    rows = [json.loads(line) for line in (SAMPLE / "en-train.jsonl").open(encoding="utf-8")]
    (folder / "a.jsonl").write_text("".join(json.dumps({"text": row["text"]}) + "\n" for row in rows[::2]))
    (folder / "b.txt").write_text("".join(" ".join(row["text"].split()) + "\n" for row in rows[1::2]))
    names = {row["text"][start:end] for row in rows for start, end, _ in row["entities"]}
    (folder / "names").write_text("\n".join(sorted(names)))
    return [
        *("--corpus.train", str(folder), "--corpus.held_out_fraction", "0.2", "--model.encoder", "scratch"),
        *("--encoding.window", "48", "--masking.gazetteer", str(folder / "names"), "--masking.rare_weight", "2"),
        *("--masking.rare_count", "1"),
        *("--training.num_epochs", "5", "--training.batch_tokens", "256", "--training.precision", "fp32"),
        *("--training.checkpoint_every_steps", "5"),
        *("--resources.num_workers", "1", "--resources.cpus_per_worker", "1"),
    ]


def read_rows(folder: Path, kind: str) -> list[dict]:
    return [row for row in read_metrics(folder / "metrics.jsonl") if row["kind"] == kind]


def kill_worker_in_second_epoch(folder: Path, killed: list[int]) -> None:
    def is_there() -> bool:
        return any(row["epoch"] == 1 for row in read_rows(folder, "step")[5:])

    wait_until(is_there, "the second epoch", 300)
    killed += list_descendants(os.getpid(), "RayTrainWorker")
    kill(killed)


@pytest.mark.long
def test_killed_run_ends_as_an_undisturbed_one_and_its_encoder_is_one_for_train(arguments, tmp_path, capfd):
    whole, disturbed = tmp_path / "whole", tmp_path / "disturbed"
    assert pretrain.main([*arguments, "--output_dir", str(whole)]) == 0
    killed: list[int] = []
    killer = threading.Thread(target=kill_worker_in_second_epoch, args=(disturbed, killed))
    killer.start()
    assert pretrain.main([*arguments, "--output_dir", str(disturbed)]) == 0
    killer.join()
    assert killed
    assert len(read_rows(disturbed, "notice")) >= 1
    for kind, name in (("step", "loss"), ("step", "num_words"), ("epoch", "held_out_perplexity")):
        expected = [row[name] for row in read_rows(whole, kind)]
        assert [row[name] for row in read_rows(disturbed, kind)] == pytest.approx(expected, rel=1e-4)
    epochs = read_rows(whole, "epoch")
    assert [row["epoch"] for row in epochs] == list(range(6))
    assert epochs[-1]["held_out_perplexity"] < epochs[0]["held_out_perplexity"] / 2

    run = json.loads((whole / "run.json").read_text())
    masks = run["masks"]
    assert masks["chosen"] == pytest.approx(0.15, abs=0.01)
    assert [masks[name] for name in ("masked", "random", "kept")] == pytest.approx([0.8, 0.1, 0.1], abs=0.04)
    assert masks["entity_chosen"] > 1.3 * masks["chosen"]
    assert run["text"]["fill"] > 0.9
    assert run["text"]["shares"]["mentions"] > 0.05
    assert 0.05 < run["text"]["shares"]["rare words"] < 0.6
    assert run["scores"]["held_out_perplexity"] == pytest.approx(
        min(row["held_out_perplexity"] for row in epochs[1:]), rel=1e-4
    )
    assert "Perplexity on held-out text" in (whole / "report.html").read_text()
    assert "| before |" in (whole / "report.md").read_text()

    encoder = find_encoder(str(whole / "encoder"))
    load_tokenizer(encoder)
    for kind, parts in ((AutoModel, {"pooler"}), (AutoModelForMaskedLM, set())):
        _, told = kind.from_pretrained(encoder, output_loading_info=True)
        assert {name.split(".")[0] for name in told["missing_keys"]} <= parts
    assert has_masked_head(encoder)
    assert "rayner pretrain" in (whole / "encoder" / "README.md").read_text()
    best = AutoModel.from_pretrained(encoder).state_dict()
    classifier = build_token_classifier(encoder, LabelScheme.from_labels(["PER"], "BIO"), ModelConfig())
    for name, weight in classifier.network.base_model.state_dict().items():
        assert torch.equal(weight, best[name]), name

    capfd.readouterr()
    assert pretrain.main([*arguments, "--output_dir", str(whole)]) == 0
    assert "this run is finished" in capfd.readouterr().out
