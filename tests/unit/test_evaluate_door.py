"""What `rayner evaluate` refuses, and what it gives to its actors."""

import json
from contextlib import nullcontext
from types import SimpleNamespace

import pyarrow as pa
import pytest
from filelock import FileLock

from pipelines import evaluate, predict
from pipelines.ner.encoders import locate_model


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


class Reached(Exception):
    """The model is about to be given away."""


def test_actors_get_the_whole_path_of_a_model_that_is_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bundle").mkdir()
    assert locate_model("bundle") == str(tmp_path / "bundle")
    assert locate_model("someone/hub-id") == "someone/hub-id"
    table = pa.table({"text": ["x"]})
    finished = SimpleNamespace(iter_batches=lambda **settings: iter([table]))
    corpus = SimpleNamespace(
        labels={},
        scheme="BIO",
        num_records={"test": 1},
        records=SimpleNamespace(map_batches=lambda *args, **settings: finished),
        summary=SimpleNamespace(ledger=SimpleNamespace(write_parquet=lambda path: None)),
    )
    model = SimpleNamespace(scheme=SimpleNamespace(labels=()))
    given = []

    def predict(records, *settings):
        given.append(settings[0])
        raise Reached

    for name, stand_in in {
        "find_all_files": lambda patterns: None,
        "load_bundle": lambda name, scheme: SimpleNamespace(model=model, seen_mentions=frozenset()),
        "connect": lambda config: nullcontext(),
        "read_corpus": lambda *args, **settings: corpus,
        "list_node_cpus": lambda nodes: [1],
        "plan_actors": lambda *args: None,
        "predict_table": predict,
        "ray": SimpleNamespace(nodes=list, cluster_resources=dict),
    }.items():
        monkeypatch.setattr(evaluate, name, stand_in)
    with pytest.raises(Reached):
        evaluate.run(evaluate.EvaluateConfig(model="bundle", corpus=["c.conll"], output_dir=str(tmp_path / "out")))
    assert given == [str(tmp_path / "bundle")]
