"""Twenty odd documents: the engine, `predict` and `evaluate` give equal entities, with exact offsets."""

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines import evaluate
from pipelines.corpus import inference
from pipelines.corpus.inference import ActorPlan, InferenceConfig, predict_table
from pipelines.corpus.ledger import Ledger
from pipelines.ner.entities import Prediction
from tests.conftest import ROOT, make_bundle
from tests.integration.labelling import PLAIN_FLAGS, load_plain, read_rows, read_success, run_predict, write_rows

pytestmark = pytest.mark.usefixtures("ray_session")

LONG = "Angela Merkel 👩‍💻 visited Utrecht; 西门子 hired José in São Paulo.\r\n"


@pytest.fixture(scope="module")
def documents() -> list[dict[str, Any]]:
    """The nineteen stored ones, and one of 50 000 characters."""
    stored = [json.loads(line) for line in (ROOT / "tests" / "data" / "twenty_documents.jsonl").open()]
    long = (LONG * (50_000 // len(LONG) + 1))[:50_000]
    return [*stored, {"doc_id": "long", "text": long, "kind": "generated"}]


@pytest.fixture(scope="module")
def input_file(documents: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("documents") / "documents.jsonl", documents)


@pytest.fixture(scope="module")
def linear_bundle(tiny_encoder: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tiny_encoder, tmp_path_factory.mktemp("linear") / "bundle")


@pytest.fixture(scope="module")
def expected(linear_bundle: Path, documents: list[dict[str, Any]]) -> list[Prediction]:
    return load_plain(linear_bundle).predict([document["text"] for document in documents])


def simplify(entities: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    return [(one["start"], one["end"], one["label"], one["text"]) for one in entities]


def check_equal(rows: list[dict[str, Any]], expected: list[Prediction]) -> None:
    assert len(rows) == len(expected)
    for row, prediction in zip(rows, expected, strict=True):
        assert simplify(row["entities"]) == [(one.start, one.end, one.label, one.text) for one in prediction.entities]
        scores = [one.score for one in prediction.entities]
        assert [one["score"] for one in row["entities"]] == pytest.approx(scores, abs=1e-4)
        assert row["coverage"] == {name: getattr(prediction.coverage, name) for name in prediction.coverage.__slots__}


def test_documents_are_twenty_and_hard(documents, expected):
    assert len(documents) == 20
    assert len(documents[-1]["text"]) == 50_000
    assert sum(bool(one.entities) for one in expected) >= 15, "the random model should find something nearly everywhere"
    assert all(one.coverage.fraction == 1.0 for one in expected)
    assert expected[-1].coverage.num_windows > 500


@pytest.mark.parametrize("file_format", ["parquet", "jsonl"])
def test_predict_equals_the_engine_in_the_order_of_the_input(
    file_format, linear_bundle, input_file, documents, expected, tmp_path, capsys
):
    arguments = ("--keep", "text", "kind", "--format", file_format)
    rows = run_predict(linear_bundle, input_file, tmp_path / "out", *arguments)
    assert [row["doc_id"] for row in rows] == [document["doc_id"] for document in documents]
    assert [set(row) for row in rows] == [{"doc_id", "entities", "coverage", "text", "kind"}] * 20
    assert [(row["text"], row["kind"]) for row in rows] == [(one["text"], one["kind"]) for one in documents]
    check_equal(rows, expected)
    for row in rows:
        for entity in row["entities"]:
            assert row["text"][entity["start"] : entity["end"]] == entity["text"] != ""
    facts = read_success(tmp_path / "out")
    assert facts["num_documents"] == 20
    assert facts["num_quarantined"] == 0
    assert facts["num_entities"] == sum(facts["entities"].values()) == sum(len(one.entities) for one in expected)
    assert facts["num_characters"] == sum(len(document["text"]) for document in documents)
    assert "20 documents labelled, 0 quarantined" in capsys.readouterr().out


def test_evaluate_scores_the_engines_own_entities_as_perfect(tiny_bundle, documents, tmp_path, capsys):
    predictions = load_plain(tiny_bundle).predict([document["text"] for document in documents])
    rows = [
        document | {"entities": [[entity.start, entity.end, entity.label] for entity in one.entities]}
        for document, one in zip(documents, predictions, strict=True)
    ]
    gold = write_rows(tmp_path / "gold.jsonl", rows)
    command = ["--model", str(tiny_bundle), "--corpus", str(gold), "--output_dir", str(tmp_path / "out"), *PLAIN_FLAGS]
    assert evaluate.main(command) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    num_entities = sum(len(one.entities) for one in predictions)
    assert report["num_records"] == 20
    assert report["num_gold"] == report["num_gold_strict"] == report["num_predicted"] == num_entities > 100
    assert report["strict"]["micro"]["f1"] == 1.0
    assert report["lenient"]["micro"]["f1"] == 1.0
    assert {kind: number for kind, number in report["errors"].items() if number and kind != "correct"} == {}
    assert report["examples"]["num_erroneous_records"] == 0
    assert "strict F1 1.0000" in capsys.readouterr().out
    ledger = Ledger.from_table(pq.read_table(tmp_path / "out" / "ledger.parquet"))
    assert (ledger.num_kept, ledger.entries) == (20, [])


def test_few_records_are_computed_here_as_actors_would(linear_bundle, monkeypatch):
    words = ["Angela", "Merkel", "visited", "Utrecht", "."]
    rows = [{"text": "Siemens hires 🎉 in São Paulo.", "words": None}, {"text": None, "words": words}]
    table = pa.Table.from_pylist(rows, pa.schema([("text", pa.string()), ("words", pa.list_(pa.string()))]))
    config, plan = InferenceConfig("torch", "fp32", "cpu"), ActorPlan(num_actors=1, num_cpus=1, num_gpus=0)
    here = predict_table(table, str(linear_bundle), config, plan)
    monkeypatch.setattr(inference, "FEW_BYTES", 0)
    there = predict_table(table, str(linear_bundle), config, plan)
    assert here.schema.equals(there.schema)
    assert here.to_pylist() == there.to_pylist()
    assert any(row["predicted"] for row in here.to_pylist())
    monkeypatch.setattr(inference, "FEW_BYTES", 10**6)
    assert predict_table(table.slice(0, 0), str(linear_bundle), config, plan).num_rows == 0


def test_gold_over_words_is_scored_on_words(linear_bundle, tmp_path):
    sentences = [["Angela", "Merkel", "visited", "São", "Paulo", "👩‍💻", "."], ["西门子", "-", "U.S.-based", "Siemens"]]
    spans = load_plain(linear_bundle).predict_words(sentences)
    rows = [
        {"words": words, "spans": [[span.start, span.end, span.label] for span in found]}
        for words, found in zip(sentences, spans, strict=True)
    ]
    gold = write_rows(tmp_path / "gold.jsonl", rows)
    out = str(tmp_path / "out")
    command = ["--model", str(linear_bundle), "--corpus", str(gold), "--output_dir", out, *PLAIN_FLAGS]
    assert evaluate.main(command) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["num_gold"] == sum(map(len, spans)) > 0
    assert report["strict"]["micro"]["f1"] == 1.0
    labelled = run_predict(linear_bundle, gold, tmp_path / "entities", "--keep", "text")
    for row, words, found in zip(labelled, sentences, spans, strict=True):
        text = row["text"]
        assert text == " ".join(words)
        assert [one["label"] for one in row["entities"]] == [span.label for span in found]
        assert [text[one["start"] : one["end"]] for one in row["entities"]] == [
            " ".join(words[span.start : span.end]) for span in found
        ]


@pytest.fixture(scope="module")
def lines(documents: list[dict[str, Any]]) -> list[str]:
    """Texts that also a file of lines can hold."""
    return [one["text"] for one in documents if one["text"].strip() and not set("\r\n\0") & set(one["text"])]


@pytest.mark.long
@pytest.mark.parametrize("kind", ["txt", "csv", "parquet"])
def test_other_inputs_give_the_same_entities(kind, linear_bundle, lines, tmp_path):
    path = tmp_path / f"documents.{kind}"
    if kind == "txt":
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    elif kind == "csv":
        with path.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([["text", "number"], *([line, number] for number, line in enumerate(lines))])
    else:
        pq.write_table(pa.table({"text": lines, "number": list(range(len(lines)))}), path, row_group_size=3)
    keep = () if kind == "txt" else ("--keep", "number")
    rows = run_predict(linear_bundle, path, tmp_path / "out", *keep)
    check_equal(rows, load_plain(linear_bundle).predict(lines))
    if keep:
        assert [int(row["number"]) for row in rows] == list(range(len(lines)))


@pytest.mark.long
def test_order_is_kept_over_files_and_blocks(linear_bundle, tmp_path):
    for part in range(3):
        rows = [{"id": f"{part}-{number}", "text": f"Ada {number}"} for number in range(1100 if part == 1 else 7)]
        write_rows(tmp_path / f"part-{part}.jsonl", rows)
    arguments = (
        "--keep",
        "text",
        "--resources.num_actors",
        "2",
        "--resources.cpus_per_actor",
        "1",
        "--chunk_characters",
        "1000",
    )
    rows = run_predict(linear_bundle, tmp_path / "part-*.jsonl", tmp_path / "out", *arguments)
    places = [tuple(map(int, row["doc_id"].split("-"))) for row in rows]
    assert places == sorted(places)
    assert len(places) == 1114
    assert all(row["text"] == f"Ada {row['doc_id'].split('-')[1]}" for row in rows)


def test_rejected_documents_are_counted_and_in_quarantine(linear_bundle, tmp_path, capsys):
    path = tmp_path / "documents.jsonl"
    lone_surrogate = '{"text": "Ada \\ud800"}'
    path.write_text(f'{{"text": "Ada"}}\n{lone_surrogate}\n{{"title": "no text"}}\n{{"text": "Oslo"}}\n')
    rows = run_predict(linear_bundle, path, tmp_path / "out", "--max_bad_fraction", "0.5", "--keep", "text")
    assert [row["text"] for row in rows] == ["Ada", "Oslo"]
    quarantined = read_rows(tmp_path / "out", "quarantine")
    assert [(row["doc_id"], row["source"], row["stage"], row["reason"]) for row in quarantined] == [
        (f"{path}:2", f"{path}:2", "read", "invalid_unicode"),
        (f"{path}:3", f"{path}:3", "read", "no_text"),
    ]
    assert all(row["detail"] and row["text"] is None for row in quarantined)
    facts = read_success(tmp_path / "out")
    assert (facts["num_documents"], facts["num_quarantined"]) == (2, 2)
    assert facts["quarantined"] == {"invalid_unicode": 1, "no_text": 1}
    assert "2 documents labelled, 2 quarantined" in capsys.readouterr().out
