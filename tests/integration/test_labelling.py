"""Twenty odd documents: the engine, `predict` and `evaluate` give equal entities, with exact offsets."""

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines import evaluate, predict
from pipelines.corpus.ledger import Ledger
from pipelines.ner.engine import NerEngine
from pipelines.ner.entities import Prediction
from tests.conftest import ROOT, make_bundle

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
    return NerEngine.load(linear_bundle).predict([document["text"] for document in documents])


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8", newline="")
    return path


def run_predict(bundle: Path, source: Path, folder: Path, *arguments: str) -> list[dict[str, Any]]:
    """Rows that `predict` writes."""
    command = ["--model", str(bundle), "--input", str(source), "--output_dir", str(folder), *arguments]
    assert predict.main(command) == 0
    assert (folder / "_SUCCESS").is_file()
    if "jsonl" in arguments:
        lines = (folder / "entities.jsonl").read_text(encoding="utf-8").split("\n")
        return [json.loads(line) for line in lines if line]
    return pq.read_table(folder / "entities.parquet").to_pylist()


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
    facts = json.loads((tmp_path / "out" / "_SUCCESS").read_text())
    assert facts["num_documents"] == 20
    assert facts["num_rejected"] == 0
    assert facts["num_entities"] == sum(facts["entities"].values()) == sum(len(one.entities) for one in expected)
    assert facts["num_characters"] == sum(len(document["text"]) for document in documents)
    assert "20 documents labelled, 0 rejected" in capsys.readouterr().out


def test_evaluate_scores_the_engines_own_entities_as_perfect(tiny_bundle, documents, tmp_path, capsys):
    predictions = NerEngine.load(tiny_bundle).predict([document["text"] for document in documents])
    rows = [
        document | {"entities": [[entity.start, entity.end, entity.label] for entity in one.entities]}
        for document, one in zip(documents, predictions, strict=True)
    ]
    gold = write_rows(tmp_path / "gold.jsonl", rows)
    command = ["--model", str(tiny_bundle), "--corpus", str(gold), "--output_dir", str(tmp_path / "out")]
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


def test_gold_over_words_is_scored_on_words(linear_bundle, tmp_path):
    sentences = [["Angela", "Merkel", "visited", "São", "Paulo", "👩‍💻", "."], ["西门子", "-", "U.S.-based", "Siemens"]]
    spans = NerEngine.load(linear_bundle).predict_words(sentences)
    rows = [
        {"words": words, "spans": [[span.start, span.end, span.label] for span in found]}
        for words, found in zip(sentences, spans, strict=True)
    ]
    gold = write_rows(tmp_path / "gold.jsonl", rows)
    command = ["--model", str(linear_bundle), "--corpus", str(gold), "--output_dir", str(tmp_path / "out")]
    assert evaluate.main(command) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["num_gold"] == sum(map(len, spans)) > 0
    assert report["strict"]["micro"]["f1"] == 1.0
    labelled = run_predict(linear_bundle, gold, tmp_path / "entities", "--format", "jsonl")
    for row, words, found in zip(labelled, sentences, spans, strict=True):
        text = " ".join(words)
        assert [one["label"] for one in row["entities"]] == [span.label for span in found]
        assert [text[one["start"] : one["end"]] for one in row["entities"]] == [
            " ".join(words[span.start : span.end]) for span in found
        ]


@pytest.fixture(scope="module")
def lines(documents: list[dict[str, Any]]) -> list[str]:
    """Texts that also a file of lines can hold."""
    return [one["text"] for one in documents if one["text"].strip() and not set("\r\n\0") & set(one["text"])]


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
    check_equal(rows, NerEngine.load(linear_bundle).predict(lines))
    if keep:
        assert [int(row["number"]) for row in rows] == list(range(len(lines)))


def test_order_is_kept_over_files_and_blocks(linear_bundle, tmp_path):
    for part in range(3):
        rows = [{"id": f"{part}-{number}", "text": f"Ada {number}"} for number in range(1100 if part == 1 else 7)]
        write_rows(tmp_path / f"part-{part}.jsonl", rows)
    arguments = ("--keep", "text", "--inference.num_actors", "2", "--inference.cpus_per_actor", "1")
    rows = run_predict(linear_bundle, tmp_path / "part-*.jsonl", tmp_path / "out", *arguments)
    places = [tuple(map(int, row["doc_id"].split("-"))) for row in rows]
    assert places == sorted(places)
    assert len(places) == 1114
    assert all(row["text"] == f"Ada {row['doc_id'].split('-')[1]}" for row in rows)


def test_rejected_documents_are_counted_and_in_the_ledger(linear_bundle, tmp_path, capsys):
    path = tmp_path / "documents.jsonl"
    lone_surrogate = '{"text": "Ada \\ud800"}'
    path.write_text(f'{{"text": "Ada"}}\n{lone_surrogate}\n{{"title": "no text"}}\n{{"text": "Oslo"}}\n')
    rows = run_predict(linear_bundle, path, tmp_path / "out", "--max_bad_fraction", "0.5", "--keep", "text")
    assert [row["text"] for row in rows] == ["Ada", "Oslo"]
    ledger = Ledger.from_table(pq.read_table(tmp_path / "out" / "ledger.parquet"))
    assert ledger.num_kept == 2
    assert [(entry.source, entry.reason) for entry in ledger.entries] == [
        (f"{path}:2", "invalid_unicode"),
        (f"{path}:3", "no_text"),
    ]
    assert json.loads((tmp_path / "out" / "_SUCCESS").read_text())["num_rejected"] == 2
    assert "2 documents labelled, 2 rejected" in capsys.readouterr().out


def test_leftovers_of_an_interrupted_job_do_not_stop_the_same_command(linear_bundle, tmp_path):
    (tmp_path / "out" / ".partial").mkdir(parents=True)
    (tmp_path / "out" / ".partial" / "entities.parquet").write_bytes(b"half a fi")
    source = write_rows(tmp_path / "documents.jsonl", [{"text": "Ada in Oslo"}])
    assert len(run_predict(linear_bundle, source, tmp_path / "out")) == 1
    assert not (tmp_path / "out" / ".partial").exists()


def test_finished_output_is_replaced_only_on_request(linear_bundle, tmp_path, capsys):
    source = write_rows(tmp_path / "documents.jsonl", [{"text": "Ada in Oslo"}])
    run_predict(linear_bundle, source, tmp_path / "out")
    command = ["--model", str(linear_bundle), "--input", str(source), "--output_dir", str(tmp_path / "out")]
    assert predict.main(command) == 2
    assert "a finished job" in capsys.readouterr().err
    rows = run_predict(linear_bundle, source, tmp_path / "out", "--format", "jsonl", "--fresh")
    assert len(rows) == 1
    assert not (tmp_path / "out" / "entities.parquet").exists()
