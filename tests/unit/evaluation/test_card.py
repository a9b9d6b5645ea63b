"""The model card: what the hub reads, what people read, and nothing that a user's names could smuggle in."""

import json
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt

from pipelines.evaluation.card import CARD_FILE, escape_markdown, find_base_model, write_card
from pipelines.evaluation.metrics import Scored
from pipelines.evaluation.report import EvaluationReport
from pipelines.ner.bundle import annotate_bundle, load_bundle
from pipelines.ner.entities import Span
from tests.conftest import make_bundle

NASTY = ["<script>alert(1)</script>", "[x](javascript:alert(1))", "| a | b |", "`code`", "*b* _i_", "---\nlicense: mit"]
TRAINING = {
    "encoder": "all-MiniLM-L6-v2",
    "seed": 7,
    "num_steps": 1200,
    "num_epochs": 3,
    "best_epoch": 2,
    "dev_strict_micro_f1": 0.875,
    "versions": {"torch": "2.13.0+cpu"},
}
USAGE = {
    "num_tokens": 123456,
    "step_s": 3000.0,
    "evaluation_s": 600.0,
    "tokens_per_s": 5109.4,
    "worker_peak_memory_mib": 1500,
    "gpu_peak_memory_mib": 0,
    "num_workers": 4,
    "device": "CPU, AVX512",
    "precision": "bf16",
}


def make_shards(labels: list[str]) -> dict:
    counts = {"num_documents": 20, "num_records": 1200, "num_tokens": 34567, "entities": dict.fromkeys(labels, 21)}
    return {
        "splits": dict.fromkeys(("train", "dev", "test"), counts),
        "split_off": {"test": 0.1},
        "duplicates": {"train & dev": 4},
        "ledger": {"rejected": 2},
        "corpus_scheme": "BIOES",
    }


def make_scores(labels: list[str]) -> dict:
    report = EvaluationReport(num_samples=50)
    for number, label in enumerate(labels * 4):
        gold = [Span(0, 2, label)]
        predicted = gold if number // len(labels) % 2 else [Span(0, 1, label)]
        report.add(Scored.from_text(f"d{number}", f"f:{number}", "some text", gold, predicted))
    return report.to_dict()


@pytest.fixture
def make_card(tiny_encoder: str, tmp_path: Path):
    def make(labels: list[str], head: str = "linear", name: str = "my model", training: dict | None = None, **options):
        bundle = make_bundle(tiny_encoder, tmp_path / f"bundle-{head}", head=head)
        annotate_bundle(bundle, TRAINING | (training or {}))
        path = write_card(bundle, make_shards(labels), USAGE, make_scores(labels), name=name, **options)
        assert path == bundle / CARD_FILE
        return bundle, ModelCard.load(path)

    return make


def test_front_matter_is_what_the_hub_reads(make_card):
    _, card = make_card(["PER", "LOC"], hub_id="me/my-model", name="me/my-model", datasets=["conll2003", "me/data"])
    data = card.data.to_dict()
    assert (data["library_name"], data["pipeline_tag"]) == ("transformers", "token-classification")
    assert data["base_model"] == "sentence-transformers/all-MiniLM-L6-v2"
    assert data["datasets"] == ["conll2003", "me/data"]
    assert "language" not in data
    assert "license" not in data
    (entry,) = data["model-index"]
    assert entry["name"] == "me/my-model"
    (result,) = entry["results"]
    values = {metric["type"]: metric["value"] for metric in result["metrics"]}
    assert values == {"f1": 0.5, "precision": 0.5, "recall": 0.5}
    assert result["task"]["type"] == "token-classification"


def test_body_tells_data_scores_with_intervals_cost_use_and_limits(make_card):
    _, card = make_card(["PER", "LOC"], hub_id="me/my-model")
    text = card.content
    scores = make_scores(["PER", "LOC"])
    assert "**50.0** %" in text
    for part in ("## Use", "## Scores", "## Data", "## Training and its cost", "## Intended use, and limits"):
        assert part in text
    assert "| train | 20 | 1\u202f200 | 34\u202f567 | 21 | 21 |" in text
    assert "test is 10.0 % of the training documents" in text
    assert "4 distinct records stand in both train \\& dev" in text
    assert "| wall time | 3,600 s, of which 600 s scoring dev |" in text
    assert "| worker-hours | 4.000 (4 workers) |" in text
    assert "| device of a worker | CPU, AVX512 |" in text
    assert "| sub-tokens per second | 5,109 |" in text
    assert "peak memory of a GPU" not in text
    assert 'NerEngine.load("me/my-model")' in text
    assert "cannot tell" not in text  # the encoder is cased
    tables = MarkdownIt("commonmark").enable("table").render(text)
    low, high = scores["intervals"]["strict"]["labels"]["PER"]["f1"]
    row = next(line for line in tables.split("<tr>") if "<td>PER</td>" in line)
    assert f"{100 * low:.1f} to {100 * high:.1f}" in row


def test_no_table_of_the_card_is_broken(make_card):
    tables = MarkdownIt("commonmark").enable("table").render(make_card(["PER", *NASTY])[1].text)
    assert tables.count("<table>") == 3
    assert "<p>|" not in tables
    for table in tables.split("<table>")[1:]:
        assert len({row.count("<td") + row.count("<th") for row in table.split("<tr>")[1:]}) == 1


@pytest.mark.parametrize("nasty", NASTY)
def test_names_and_labels_of_users_are_shown_as_they_are(make_card, nasty):
    _, card = make_card([nasty], name=nasty, training={"encoder": f"/data/{nasty}/enc [x](y)"})
    assert "license" not in card.data.to_dict()
    assert card.data.to_dict()["model-index"][0]["name"] == nasty
    html = MarkdownIt("commonmark", {"html": True}).enable("table").render(card.text)
    assert "<script" not in html
    assert "<a " not in html
    shown = nasty.replace("\n", " ").replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    assert f"<h1>{shown}</h1>" in html
    assert f"<td>{shown}</td>" in html


def test_card_names_no_folder_of_the_machine(make_card):
    _, card = make_card(["PER"], training={"encoder": "/home/ada/secret/medbert"})
    assert "medbert with a linear head" in card.content
    assert "/home/ada" not in card.content
    assert "base_model" not in card.data.to_dict()


def test_card_of_a_crf_leads_nobody_to_load_it_without_its_crf(make_card):
    _, card = make_card(["PER"], head="crf")
    assert card.data.to_dict()["library_name"] == "rayner"
    assert "from transformers" not in card.content
    assert "load it with rayner" in card.content


def test_bundle_with_a_card_loads_and_its_fingerprint_stays(make_card):
    bundle, _ = make_card(["PER"])
    before = json.loads((bundle / "bundle.json").read_text())["fingerprint"]
    assert load_bundle(bundle).info.fingerprint == before
    assert not list(bundle.glob(".*"))


def test_card_of_a_test_split_without_mentions_is_written(make_card, tiny_encoder, tmp_path):
    bundle = make_bundle(tiny_encoder, tmp_path / "b")
    annotate_bundle(bundle, TRAINING)
    report = EvaluationReport(num_samples=10)
    text = write_card(bundle, make_shards(["PER"]), USAGE, report.to_dict()).read_text()
    assert "**0.0** %" in text
    assert f"\n# {escape_markdown(tmp_path.name)}\n" in text


def test_card_tells_of_siblings(tiny_encoder, tmp_path):
    bundle = make_bundle(tiny_encoder, tmp_path / "b")
    annotate_bundle(bundle, TRAINING)
    shards = make_shards(["PER"]) | {"augmentation": {"added": {"num_records": 4321}}}
    text = write_card(bundle, shards, USAGE, make_scores(["PER"])).read_text()
    assert "\n- Beside train, it has read 4\u202f321 records made from those of train by augmentation.\n" in text
    assert "augmentation" not in write_card(bundle, make_shards(["PER"]), USAGE, make_scores(["PER"])).read_text()


def test_base_model_is_a_hub_id_or_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "local").mkdir()
    found = {name: find_base_model(name) for name in ("bert-base-cased", "me/enc", "scratch", "local", "/a/b", "../x")}
    assert found == {
        "bert-base-cased": "bert-base-cased",
        "me/enc": "me/enc",
        "scratch": None,
        "local": None,
        "/a/b": None,
        "../x": None,
    }


def test_escaped_text_is_one_line_without_control_characters():
    escaped = escape_markdown("a\nb\x1b[31m \ud800")
    assert "\n" not in escaped
    assert "\x1b" not in escaped
    escaped.encode("utf-8")


def test_card_tells_that_capitals_count_for_rayner_alone(tiny_encoder, tmp_path):
    bundle = make_bundle(tiny_encoder, tmp_path / "bundle")
    annotate_bundle(bundle, TRAINING)
    told = "Capitals count, but for rayner alone"
    path = write_card(bundle, make_shards(["PER"]), USAGE, make_scores(["PER"]), name="a")
    assert told not in path.read_text()
    config = json.loads((bundle / "config.json").read_text())
    (bundle / "config.json").write_text(json.dumps(config | {"casing": True}))
    text = write_card(bundle, make_shards(["PER"]), USAGE, make_scores(["PER"]), name="a").read_text()
    assert told in text
    assert "reads all of them as lower case" in text
