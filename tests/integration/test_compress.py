"""A model made smaller on a small Ray: variants that are measured, judged, written; and what the gate stops."""

import json
from pathlib import Path

import pytest
import torch

from pipelines import compress, prepare, train
from pipelines.corpus.targets import read_targets
from pipelines.ner.bundle import load_bundle
from pipelines.ner.engine import NerEngine
from pipelines.ner.runtimes.int8 import count_weight_bits
from tests.conftest import EXACT

QUICK = ["--training.precision", "fp32", "--training.batch_tokens", "300", "--inference.runtime", "torch"]
QUICK += ["--inference.precision", "fp32"]


@pytest.fixture(scope="module")
def corpus(ray_session: None, tiny_encoder: str, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Flags for a corpus prepared once."""
    files = [part for name in ("train", "dev", "test") for part in (f"--corpus.{name}", f"sample:en-{name}.jsonl")]
    shards = str(tmp_path_factory.mktemp("corpus") / "shards")
    assert prepare.main([*files, "--model.encoder", tiny_encoder, "--output_dir", shards]) == 0
    return ["--corpus.shards", shards]


@pytest.fixture(scope="module")
def teacher(corpus: list[str], tiny_encoder: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of two layers that has learned something."""
    folder = tmp_path_factory.mktemp("teacher") / "run"
    command = [*corpus, "--model.encoder", tiny_encoder, *QUICK]
    learned = ["--training.num_epochs", "8", "--training.batch_tokens", "150"]
    assert train.main([*command, *learned, "--output_dir", str(folder)]) == 0
    assert json.loads((folder / "run.json").read_text())["scores"]["dev_strict_micro_f1"] > 0.05
    return folder / "bundle"


def read(folder: Path) -> dict:
    return json.loads((folder / "compression.json").read_text(encoding="utf-8"))


@pytest.mark.timeout(1500)
def test_every_step_becomes_a_variant_that_any_door_takes(corpus, teacher, tmp_path, capfd):
    folder = tmp_path / "small"
    command = ["--model", str(teacher), *corpus, *QUICK, "--training.num_epochs", "1", "--output_dir", str(folder)]
    command += ["--max_f1_loss", "100", "--max_label_loss", "100", "--price_per_hour", "2"]
    command += ["--steps", "prune", "early_exit", "--early_exit.joint", "true"]
    assert compress.main(command) == 0
    found = read(folder)
    assert [one["name"] for one in found["variants"]] == ["start", "1-prune", "2-early_exit"]
    assert all(one["tokens_per_s"] > 0 and one["cost_per_million_documents"] > 0 for one in found["variants"])
    given, pruned, with_exits = (one["num_parameters"] for one in found["variants"])
    assert pruned < with_exits < given
    assert found["chosen"] != "start"
    small = load_bundle(folder / "bundle")
    exiting = load_bundle(folder / "variants" / "2-early_exit" / "bundle").model
    assert exiting.exits.layers == (1,)
    before = load_bundle(folder / "variants" / "1-prune" / "bundle").model.state_dict()
    moved = [
        name for name, one in exiting.network.state_dict().items() if not torch.equal(one, before[f"network.{name}"])
    ]
    assert moved, "the network is trained with its exits"
    assert small.info.training["compression"]["from"] == str(teacher)
    engines = [
        NerEngine.load(path, **EXACT) for path in (folder / "bundle", folder / "variants" / found["chosen"] / "bundle")
    ]
    assert engines[0].predict(["Angela Merkel visited Utrecht."]) == engines[1].predict(
        ["Angela Merkel visited Utrecht."]
    )
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert page.count("<svg") == 3
    assert found["chosen"] in page
    assert not list(folder.glob("variants/*/work"))
    capfd.readouterr()
    assert compress.main(command) == 0
    assert "this run is finished" in capfd.readouterr().out


@pytest.mark.long
@pytest.mark.timeout(1500)
def test_new_network_learns_the_views_and_relations_of_its_teacher_and_raw_text(corpus, teacher, tmp_path):
    folder, texts = tmp_path / "small", tmp_path / "texts.txt"
    texts.write_text("Angela Merkel visited Utrecht in the spring.\nA treaty of Łódź was signed.\n\n", "utf-8")
    command = ["--model", str(teacher), *corpus, *QUICK, "--training.num_epochs", "1", "--output_dir", str(folder)]
    command += ["--max_f1_loss", "100", "--max_label_loss", "100", "--steps", "distill", "--distillation.encoder"]
    command += ["scratch", "--distillation.layers", "1", "--distillation.hidden_size", "32"]
    command += ["--distillation.embedding_size", "16", "--distillation.relations", "1"]
    assert compress.main([*command, "--distillation.unlabelled", str(texts)]) == 0
    assert read(folder)["facts"]["unlabelled text"].startswith("2 kept")
    assert (folder / "unlabelled" / "ledger.parquet").is_file()
    network = load_bundle(folder / "bundle").model.network
    assert (network.config.model_type, network.config.hidden_size) == ("electra", 32)
    [lessons] = (folder / "lessons").iterdir()
    table = read_targets(lessons, has_states=True)
    given = load_bundle(teacher)
    hidden, num_tags = given.model.network.config.hidden_size, len(given.model.scheme.tags)
    for row in table.to_pylist():
        num_words = len(row["word_starts"])
        assert (len(row["states"]), len(row["targets"])) == (num_words * hidden, num_words * num_tags)
    raw = read_targets(lessons / "unlabelled")
    assert (raw.num_rows, "states" in raw.column_names) == (2, False)
    assert table.num_rows > 2 + 10


@pytest.mark.long
@pytest.mark.timeout(900)
def test_harmful_step_is_stopped_and_the_last_good_bundle_stands(corpus, teacher, tmp_path, capfd):
    folder = tmp_path / "small"
    command = ["--model", str(teacher), *corpus, *QUICK, "--training.num_epochs", "1", "--output_dir", str(folder)]
    command += ["--training.optimizer.learning_rate", "1e-8", "--training.optimizer.head_learning_rate", "1e-8"]
    command += ["--steps", "prune", "--pruning.heads", "0.75", "--pruning.feed_forward", "0.95", "--max_f1_loss", "0.5"]
    assert compress.main(command) == 1
    found = read(folder)
    assert found["chosen"] == "start"
    assert [one["name"] for one in found["variants"]] == ["start", "1-prune"]
    verdict = found["variants"][1]["verdict"]
    assert not verdict["passes"]
    assert verdict["overall"]["low"] < -0.5
    assert not (folder / "bundle").exists()
    assert "not good enough" in capfd.readouterr().out
    assert verdict["reasons"][0] in (folder / "report.md").read_text(encoding="utf-8")


@pytest.mark.long
@pytest.mark.skipif(not count_weight_bits(torch.device("cpu")), reason="this CPU has no int8 products")
@pytest.mark.timeout(1500)
def test_int8_that_is_not_good_enough_is_trained_as_int8_before_it_is_given_up(corpus, teacher, tmp_path, capfd):
    folder = tmp_path / "small"
    command = ["--model", str(teacher), *corpus, *QUICK, "--output_dir", str(folder), "--steps", "int8"]
    assert compress.main([*command, "--max_f1_loss", "0"]) == 1  # which nothing can be shown to keep
    told = "".join(capfd.readouterr())
    assert "training one that is rounded as int8 is" in told
    phases = json.loads((folder / "run.json").read_text(encoding="utf-8"))["phases_s"]
    assert [name for name in phases if name.startswith("1-int8")] == ["1-int8: train"]
    assert "no choice of int8 layers" in read(folder)["not_made"]["1-int8"]
    assert not (folder / "bundle").exists()
