"""What `rayner evaluate` refuses, and what it gives to its actors."""

import json
from contextlib import nullcontext
from types import SimpleNamespace

import pyarrow as pa
import pytest
from filelock import FileLock

from pipelines import evaluate, predict
from pipelines.ner.encoders import locate_model
from pipelines.ner.errors import UserError


def evaluate_into(folder) -> int:
    return evaluate.main(["--model", "m", "--corpus", str(folder / "none.conll"), "--output_dir", str(folder)])


def test_settings_are_told_by_the_names_that_this_door_has(capsys):
    flags = ["--model", "m", "--corpus", "c", "--scheme", "BIEO", "--max_bad_fraction", "2"]
    assert evaluate.main(flags) == 2
    told = capsys.readouterr().err
    assert "`scheme`" in told
    assert "`max_bad_fraction`" in told
    assert "corpus." not in told


def test_folder_of_a_training_is_left_as_it_is(tmp_path, capsys):
    before = json.dumps({"verb": "train", "config": {}, "versions": {}})
    (tmp_path / "run.json").write_text(before)
    assert evaluate_into(tmp_path) == 2
    assert "holds another run" in capsys.readouterr().err
    assert (tmp_path / "run.json").read_text() == before
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


def test_folder_of_an_evaluation_is_evaluated_into_again(tmp_path, capsys):
    (tmp_path / "run.json").write_text(json.dumps({"verb": "evaluate", "config": {}, "versions": {}}))
    assert evaluate_into(tmp_path) == 2
    told = capsys.readouterr().err
    assert "holds another run" not in told
    assert "none.conll" in told


def test_folder_that_another_run_writes_into_is_refused(tmp_path, capsys):
    with FileLock(tmp_path / ".lock"):
        assert evaluate_into(tmp_path) == 2
    assert "another run writes into the output folder" in capsys.readouterr().err


@pytest.mark.parametrize("door", [evaluate, predict])
@pytest.mark.parametrize("is_bundle", [True, False])
def test_scheme_is_told_to_have_no_effect_on_a_bundle(door, is_bundle, tmp_path, capsys):
    name = "bundle.json" if is_bundle else "config.json"
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / name).write_text("no JSON")  # which is refused where the model is loaded
    (tmp_path / "a.jsonl").write_text('{"text": "Ada", "entities": []}\n')
    files = ["--corpus" if door is evaluate else "--input", str(tmp_path / "a.jsonl")]
    flags = ["--model", str(tmp_path / "model"), *files, "--output_dir", str(tmp_path / "out")]
    assert door.main([*flags, "--inference.scheme", "IOB1"]) == 2
    told = capsys.readouterr().err
    assert "is not a model" in told
    assert ("`inference.scheme` has no effect" in told) == is_bundle


def stand_in(monkeypatch, table, predict, labels=(), known=None):
    """For the cluster, the corpus (a table, of these labels) and the models (which know what `known` says)."""
    finished = SimpleNamespace(iter_batches=lambda **settings: iter([table]))
    corpus = SimpleNamespace(
        labels={"test": set(labels)},
        scheme="BIO",
        num_records={"test": table.num_rows},
        records=SimpleNamespace(map_batches=lambda *args, **settings: finished),
        summary=SimpleNamespace(
            ledger=SimpleNamespace(write_parquet=lambda path: None, counts=lambda: SimpleNamespace(rejected=0))
        ),
    )

    def load(name, scheme):
        knows = tuple(labels) if known is None else known[name]
        model = SimpleNamespace(scheme=SimpleNamespace(labels=knows))
        return SimpleNamespace(model=model, seen_mentions=frozenset(), info=SimpleNamespace(fingerprint="f"))

    for name, one in {
        "find_all_files": lambda patterns: None,
        "load_bundle": load,
        "connect": lambda config: nullcontext(),
        "read_corpus": lambda *args, **settings: corpus,
        "list_node_cpus": lambda nodes: [1],
        "plan_actors": lambda *args: None,
        "predict_table": predict,
        "ray": SimpleNamespace(nodes=list, cluster_resources=dict),
    }.items():
        monkeypatch.setattr(evaluate, name, one)


class Reached(Exception):
    """The model is about to be given away."""


def test_actors_get_the_whole_path_of_a_model_that_is_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bundle").mkdir()
    given = []

    def predict(records, *settings):
        given.append(settings[0])
        raise Reached

    stand_in(monkeypatch, pa.table({"text": ["x"]}), predict)
    assert locate_model("bundle") == str(tmp_path / "bundle")
    assert locate_model("someone/hub-id") == "someone/hub-id"
    with pytest.raises(Reached):
        evaluate.run(evaluate.EvaluateConfig(model="bundle", corpus=["c.conll"], output_dir=str(tmp_path / "out")))
    assert given == [str(tmp_path / "bundle")]


def make_gold(num_records):
    """A table of records, each a document with one mention of each of two labels."""
    spans = [{"start": 0, "end": 1, "label": "PER"}, {"start": 2, "end": 3, "label": "LOC"}]
    rows = [
        {"doc_id": f"d{at}", "source": f"f:{at}", "text": "abc", "words": None, "tags": None, "spans": spans}
        for at in range(num_records)
    ]
    return pa.Table.from_pylist(rows)


def predict_parts(records, name, *settings):
    """The gold; of the model `worse` without the places in every other record."""
    rows = records.to_pylist()
    for at, row in enumerate(rows):
        row["predicted"] = [span for span in row["spans"] if name != "worse" or at % 2 or span["label"] == "PER"]
    return pa.Table.from_pylist(rows)


def test_two_models_are_compared_on_the_same_documents(tmp_path, monkeypatch, capsys):
    stand_in(monkeypatch, make_gold(40), predict_parts, ["PER", "LOC"])
    config = evaluate.EvaluateConfig(model="better", compare_to="worse", corpus=["c"], output_dir=str(tmp_path))
    evaluate.run(config)
    found = json.loads((tmp_path / "report.json").read_text())
    assert found["strict"]["micro"]["f1"] == 1
    comparison = found["comparison"]
    assert comparison["compared_to"] == "worse"
    assert comparison["overall"]["difference"] == pytest.approx(1 - 120 / 140)
    assert comparison["overall"]["low"] > 0
    assert comparison["overall"]["p_value"] < 0.05
    assert comparison["labels"]["PER"]["difference"] == 0
    assert comparison["labels"]["PER"]["p_value"] == 1
    row = "| LOC | 100.0 | 66.7 | +33.3 |"
    assert row in (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "Compared to <bdi>worse</bdi>" in (tmp_path / "report.html").read_text(encoding="utf-8")
    printed = capsys.readouterr().out
    assert "compared to worse" in printed
    assert "LOC 100.0 66.7 +33.3" in " ".join(printed.split())


def test_one_model_alone_is_compared_to_nothing(tmp_path, monkeypatch, capsys):
    stand_in(monkeypatch, make_gold(2), predict_parts, ["PER", "LOC"])
    evaluate.run(evaluate.EvaluateConfig(model="better", corpus=["c"], output_dir=str(tmp_path)))
    assert json.loads((tmp_path / "report.json").read_text())["comparison"] is None
    assert "ompared to" not in capsys.readouterr().out + (tmp_path / "report.html").read_text(encoding="utf-8")


def test_other_model_that_knows_some_labels_or_none_is_told_as_such(tmp_path, monkeypatch, capsys):
    config = evaluate.EvaluateConfig(model="better", compare_to="worse", corpus=["c"], output_dir=str(tmp_path))
    known = {"better": ("PER", "LOC"), "worse": ("PER",)}
    stand_in(monkeypatch, make_gold(4), predict_parts, ["PER", "LOC"], known)
    evaluate.run(config)
    assert "`worse` does not know LOC: all of them count as missed" in capsys.readouterr().out
    stand_in(monkeypatch, make_gold(4), predict_parts, ["PER", "LOC"], known | {"worse": ("CAT",)})
    with pytest.raises(UserError, match="the model `worse` knows none"):
        evaluate.run(config)
