"""The offline job: it goes on, refuses, quarantines, adds up, and writes what was asked for."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as pds
import pyarrow.parquet as pq
import pytest
import ray
import torch

from pipelines import predict
from pipelines.corpus.formats.files import read_records
from pipelines.corpus.formats.options import NO_COLUMN, FormatOptions
from pipelines.corpus.inference import load_engine
from pipelines.folders import lock_folder
from pipelines.job import run_door
from pipelines.predict import PredictConfig
from tests.conftest import make_bundle
from tests.integration.engines import (
    BROKEN,
    DEADLY,
    DEADLY_ONCE,
    ENDLESS,
    HALTING,
    load_failing,
    load_nothing,
    load_touchy,
)
from tests.integration.labelling import build_command, read_rows, read_success, run_predict, write_rows
from tests.integration.processes import wait_until

pytestmark = pytest.mark.usefixtures("ray_session")

NAMES = ("Angela Merkel", "Ada", "José", "西门子", "Siemens")
SMALL = ("--chunk_characters", 300, "--resources.num_actors", 2, "--resources.cpus_per_actor", 1)


@pytest.fixture(scope="module")
def bundle(tiny_encoder: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tiny_encoder, tmp_path_factory.mktemp("bundle") / "linear")


def make_documents(number: int, **columns: Callable[[int], Any]) -> list[dict[str, Any]]:
    """Documents of about 60 characters, with ids."""
    return [
        {"id": f"d{n}", "text": f"{NAMES[n % 5]} visited Utrecht {n} times, and then São Paulo 👩‍💻."}
        | {name: build(n) for name, build in columns.items()}
        for n in range(number)
    ]


def run_with(load: Any, *command: Any) -> int:
    """Run the door with another loader of engines."""
    return run_door("predict", PredictConfig, lambda config: predict.run(config, load), "", build_command(*command))


def count_parts(folder: Path) -> int:
    return len(list((folder / ".work" / "parts").rglob("[!.]*.parquet")))


def without_scores(rows: list[dict[str, Any]]) -> list[Any]:
    """A document that was labelled alone may have scores that differ in rounding."""
    return [
        [row["doc_id"], [(one["start"], one["end"], one["label"]) for one in row["entities"]], row["coverage"]]
        for row in rows
    ]


def test_job_goes_on_where_an_error_stopped_it(bundle, tmp_path, capsys):
    documents = make_documents(60)
    mark, text = tmp_path / "mark", documents[45]["text"]
    documents[45]["text"] = f"{text} {HALTING} {mark}"
    write_rows(tmp_path / "a.jsonl", documents[:40])
    write_rows(tmp_path / "b.jsonl", documents[40:])
    command = (bundle, tmp_path / "*.jsonl", tmp_path / "out", *SMALL, "--resources.num_actors", 1)
    assert run_with(load_touchy, *command) == 2
    told = capsys.readouterr().err
    assert told.endswith("rayner predict: the device is not ready\n")
    assert "Traceback" not in told
    done = count_parts(tmp_path / "out")
    assert 2 <= done < 15
    assert not (tmp_path / "out" / "_SUCCESS").exists()
    assert not (tmp_path / "out" / "entities").exists()
    mark.touch()
    assert run_with(load_touchy, *command) == 0
    told = capsys.readouterr()
    assert f"{read_done(told.err)} of 60 documents were done already" in told.err
    assert 0 < read_done(told.err) < 60
    undisturbed = run_predict(bundle, tmp_path / "*.jsonl", tmp_path / "undisturbed", *SMALL)
    assert [row["doc_id"] for row in undisturbed] == [one["id"] for one in documents]
    assert read_rows(tmp_path / "out") == undisturbed
    assert json.loads((tmp_path / "out" / "run.json").read_text())["bill"]["num_sessions"] == 2


def read_done(told: str) -> int:
    [line] = [line for line in told.splitlines() if "done already" in line]
    return int(line.split()[0])


def test_finished_job_does_nothing_and_says_so(bundle, tmp_path, capsys):
    source = write_rows(tmp_path / "a.jsonl", make_documents(3))
    run_predict(bundle, source, tmp_path / "out")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    capsys.readouterr()
    run_predict(bundle, source, tmp_path / "out")
    assert "this job is finished" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")} == before
    (tmp_path / "out" / ".work" / "parts").mkdir(parents=True)  # a kill while the work folder was removed
    run_predict(bundle, source, tmp_path / "out")


def test_changed_model_option_or_input_is_refused_and_fresh_replaces(bundle, tiny_encoder, tmp_path, capsys):
    source = write_rows(tmp_path / "a.jsonl", make_documents(3))
    folder = tmp_path / "out"
    run_predict(bundle, source, folder)
    other = make_bundle(tiny_encoder, tmp_path / "other", window=24)
    before = (folder / "_SUCCESS").read_bytes()
    capsys.readouterr()
    changes = {
        "`model`": build_command(other, source, folder),
        "`keep`: [] then, ['text'] now": build_command(bundle, source, folder, "--keep", "text"),
        "`reader.id_column`: None then, 'text' now": build_command(bundle, source, folder, "--id_column", "text"),
        f"`input.{tmp_path / 'other'}": build_command(bundle, tmp_path / "other" / "config.json", folder),
    }
    for change, command in changes.items():
        assert predict.main(command) == 2
        told = capsys.readouterr().err
        assert "the output folder holds a run with other settings" in told
        assert change in told
        assert "--fresh" in told
    source.write_text(source.read_text() * 2)
    assert predict.main(build_command(bundle, source, folder)) == 2
    assert f"`input.{source}`: 'file 1, " in capsys.readouterr().err
    assert (folder / "_SUCCESS").read_bytes() == before
    rows = run_predict(bundle, source, folder, "--format", "jsonl", "--fresh")
    assert len(rows) == 6
    assert not list(folder.rglob("*.parquet"))


@pytest.mark.long
def test_resources_price_and_limits_may_change_when_a_job_goes_on(bundle, tmp_path):
    source = write_rows(tmp_path / "a.jsonl", make_documents(3))
    run_predict(bundle, source, tmp_path / "out")
    given = ("--resources.num_actors", 2, "--price_per_hour", 3, "--max_bad_fraction", 0.5)
    assert len(run_predict(bundle, source, tmp_path / "out", *given)) == 3


def test_second_driver_on_the_same_folder_is_refused(bundle, tmp_path, capsys):
    source = write_rows(tmp_path / "a.jsonl", make_documents(3))
    (tmp_path / "out").mkdir()
    with lock_folder(tmp_path / "out"):
        assert predict.main(build_command(bundle, source, tmp_path / "out")) == 2
    assert "another run writes into the output folder" in capsys.readouterr().err
    assert not list((tmp_path / "out").iterdir())
    assert len(run_predict(bundle, source, tmp_path / "out")) == 3


def test_output_is_partitioned_by_kept_columns(bundle, tmp_path):
    documents = make_documents(40, lang=lambda n: ("en", "de/at", None, "zh")[n % 4], year=lambda n: 2000 + n % 2)
    source = write_rows(tmp_path / "a.jsonl", documents)
    run_predict(bundle, source, tmp_path / "out", *SMALL, "--partition_by", "lang", "year")
    places = sorted(str(path.parent.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("part-*"))
    assert places == [
        "entities/lang=__HIVE_DEFAULT_PARTITION__/year=2000",
        "entities/lang=de%2Fat/year=2001",
        "entities/lang=en/year=2000",
        "entities/lang=zh/year=2001",
    ]
    found = pds.dataset(tmp_path / "out" / "entities", partitioning="hive").to_table().to_pylist()
    assert {row["doc_id"]: (row["lang"], row["year"]) for row in found} == {
        one["id"]: (one["lang"], one["year"]) for one in documents
    }
    english = pq.read_table(tmp_path / "out" / "entities" / "lang=en", partitioning=None)["doc_id"].to_pylist()
    assert english == [one["id"] for one in documents if one["lang"] == "en"]


@pytest.mark.long
def test_output_files_have_the_size_asked_for(bundle, tmp_path):
    documents = make_documents(300)
    source = write_rows(tmp_path / "a.jsonl", documents)
    small = (*SMALL, "--chunk_characters", 2000, "--output_file_mib", 0.02)
    rows = run_predict(bundle, source, tmp_path / "out", *small)
    assert [row["doc_id"] for row in rows] == [one["id"] for one in documents]
    sizes = [path.stat().st_size for path in sorted((tmp_path / "out" / "entities").iterdir())]
    assert len(sizes) > 2
    assert all(5_000 < size < 40_000 for size in sizes[:-1])
    assert read_success(tmp_path / "out")["num_files"] == len(sizes)


@pytest.mark.long
@pytest.mark.parametrize(("compression", "ending"), [("zstd", ".jsonl.zst"), ("gzip", ".jsonl.gz")])
def test_compressed_lines_are_read_again(compression, ending, bundle, tmp_path):
    documents = make_documents(5)
    source = write_rows(tmp_path / "a.jsonl", documents)
    given = ("--format", "jsonl", "--compression", compression, "--keep", "text")
    assert predict.main(build_command(bundle, source, tmp_path / "out", *given)) == 0
    [path] = (tmp_path / "out" / "entities").iterdir()
    assert path.name == f"part-00000{ending}"
    again = read_records(str(path), FormatOptions(spans_column=NO_COLUMN))
    assert [(one.doc_id, one.text) for one in again] == [(one["id"], one["text"]) for one in documents]


@pytest.mark.long
def test_kept_columns_whose_types_differ_become_text(bundle, tmp_path):
    write_rows(tmp_path / "a.jsonl", [{"text": "Ada", "n": 1, "size": 1, "tags": ["a"], "only": 5}])
    write_rows(tmp_path / "b.jsonl", [{"text": "Oslo", "n": "one", "size": 1.5, "tags": [], "big": 2**70}])
    pq.write_table(pa.table({"text": ["Rome"], "n": [True]}), tmp_path / "c.parquet")
    keep = ("--keep", "n", "size", "tags", "only", "big")
    rows = run_predict(bundle, tmp_path / "[abc].*", tmp_path / "out", *keep)
    assert [[row[name] for name in ("n", "size", "tags", "only", "big")] for row in rows] == [
        ["1", 1.0, ["a"], 5, None],
        ["one", 1.5, [], None, str(2**70)],
        ["true", None, None, None, None],
    ]


def test_column_that_no_document_has_is_refused(bundle, tmp_path, capsys):
    source = write_rows(tmp_path / "a.jsonl", make_documents(3, lang=lambda n: "en"))
    assert predict.main(build_command(bundle, source, tmp_path / "out", "--keep", "lagn", "lang")) == 2
    assert "no document has a column `lagn`" in capsys.readouterr().err
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())
    assert len(run_predict(bundle, source, tmp_path / "out", "--keep", "lang")) == 3


def test_too_many_partitions_are_refused_before_labelling(bundle, tmp_path, capsys):
    source = write_rows(tmp_path / "a.jsonl", [{"text": "Ada", "id": str(n)} for n in range(1500)])
    assert predict.main(build_command(bundle, source, tmp_path / "out", "--partition_by", "id")) == 2
    assert "too many partitions" in capsys.readouterr().err


@pytest.mark.long
def test_text_and_id_columns_are_named_at_the_top(bundle, tmp_path):
    rows = [{"body": "Ada in Oslo", "key": 7, "id": "nor this"}]
    source = write_rows(tmp_path / "a.jsonl", rows)
    columns = ("--text_column", "body", "--id_column", "key", "--keep", "text", "source")
    [row] = run_predict(bundle, source, tmp_path / "out", *columns)
    assert (row["doc_id"], row["text"], row["source"]) == ("7", "Ada in Oslo", f"{source}:1")
    source = write_rows(tmp_path / "b.jsonl", [rows[0] | {"text": "a summary", "source": "the web"}])
    [row] = run_predict(bundle, source, tmp_path / "own", *columns)
    assert (row["doc_id"], row["text"], row["source"]) == ("7", "a summary", "the web")
    assert row["coverage"]["num_characters"] == len("Ada in Oslo")


@pytest.mark.long
def test_same_file_named_twice_is_labelled_once(bundle, tmp_path):
    source = write_rows(tmp_path / "a.jsonl", make_documents(3))
    command = ["--model", bundle, "--input", source, tmp_path / "*.jsonl", "--output_dir", tmp_path / "out"]
    assert predict.main([str(one) for one in command]) == 0
    assert [row["doc_id"] for row in read_rows(tmp_path / "out")] == ["d0", "d1", "d2"]


def test_document_that_kills_its_worker_is_quarantined_and_the_others_are_labelled(bundle, tmp_path):
    documents = make_documents(12)
    plain = run_predict(bundle, write_rows(tmp_path / "plain.jsonl", documents), tmp_path / "plain", *SMALL)
    documents[6]["text"] = f"Ada, {DEADLY}"
    source = write_rows(tmp_path / "a.jsonl", documents)
    assert run_with(load_touchy, bundle, source, tmp_path / "out", *SMALL, "--max_bad_fraction", 0.1) == 0
    [row] = read_rows(tmp_path / "out", "quarantine")
    assert (row["doc_id"], row["stage"], row["reason"]) == ("d6", "label", "kills_worker")
    assert row["text"] == f"Ada, {DEADLY}"
    assert "died 2 times" in row["detail"]
    rows = read_rows(tmp_path / "out")
    assert without_scores(rows) == without_scores([row for row in plain if row["doc_id"] != "d6"])


def test_worker_that_dies_once_costs_nothing(bundle, tmp_path):
    documents = make_documents(12)
    documents[6]["text"] += f" {DEADLY_ONCE} {tmp_path / 'mark'}"
    source = write_rows(tmp_path / "a.jsonl", documents)
    assert run_with(load_touchy, bundle, source, tmp_path / "out", *SMALL) == 0
    assert (tmp_path / "mark").exists()
    assert read_rows(tmp_path / "out") == run_predict(bundle, source, tmp_path / "plain", *SMALL)


def test_document_over_which_the_engine_raises_is_quarantined_alone(bundle, tmp_path, capsys):
    documents = make_documents(20)
    documents[3]["text"] += f" {BROKEN}"
    documents[4]["text"] += f" {ENDLESS}"
    documents[19]["text"] += BROKEN + "!" * 20_000
    source = write_rows(tmp_path / "a.jsonl", documents)
    assert run_with(load_touchy, bundle, source, tmp_path / "out", *SMALL, "--max_bad_fraction", 0.2) == 0
    rows = read_rows(tmp_path / "out", "quarantine")
    assert [(row["doc_id"], row["reason"], row["detail"]) for row in rows] == [
        ("d3", "cannot_label", "ValueError: this text cannot be"),
        ("d4", "cannot_label", "MemoryError:"),
        ("d19", "cannot_label", "ValueError: this text cannot be"),
    ]
    assert [row["text"] for row in rows] == [documents[3]["text"], documents[4]["text"], None]
    labelled = [row["doc_id"] for row in read_rows(tmp_path / "out")]
    assert labelled == [one["id"] for one in documents if one["id"] not in ("d3", "d4", "d19")]
    facts = read_success(tmp_path / "out")
    assert (facts["num_documents"], facts["num_quarantined"]) == (17, 3)
    assert "17 documents labelled, 3 quarantined" in capsys.readouterr().out


def test_too_many_documents_that_cannot_be_labelled_end_the_job(bundle, tmp_path, capsys):
    documents = make_documents(20)
    documents[3]["text"] += f" {BROKEN}"
    source = write_rows(tmp_path / "a.jsonl", documents)
    assert run_with(load_touchy, bundle, source, tmp_path / "out", *SMALL) == 2
    told = capsys.readouterr().err
    assert "1 of 20 documents cannot be used" in told
    assert f"{source}:4: cannot_label: ValueError: this text cannot be" in told
    assert "max_bad_fraction" in told
    assert run_with(load_touchy, bundle, source, tmp_path / "out", *SMALL) == 2
    assert f"{source}:4: cannot_label" in capsys.readouterr().err
    assert not (tmp_path / "out" / "_SUCCESS").exists()
    assert run_with(load_touchy, bundle, source, tmp_path / "out", *SMALL, "--max_bad_fraction", 0.1) == 0
    assert read_success(tmp_path / "out")["num_documents"] == 19


def test_engine_that_fails_for_every_document_is_not_the_documents_fault(bundle, tmp_path, capsys):
    source = write_rows(tmp_path / "a.jsonl", make_documents(20))
    command = (bundle, source, tmp_path / "out", *SMALL, "--max_bad_fraction", 0.9)
    assert run_with(load_failing, *command) == 1
    assert "the device is gone" in capsys.readouterr().err
    assert count_parts(tmp_path / "out") == 0
    wait_until(lambda: ray.available_resources().get("CPU") == 8, "the actors of a job that failed are gone")
    assert run_with(load_engine, *command) == 0


def test_worker_that_cannot_start_ends_the_job(bundle, tmp_path, capsys):
    source = write_rows(tmp_path / "a.jsonl", make_documents(3))
    assert run_with(load_nothing, bundle, source, tmp_path / "out", *SMALL) == 1
    assert "failed" in capsys.readouterr().err
    assert not (tmp_path / "out" / "_SUCCESS").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_mistake_about_the_engine_leaves_nothing_so_that_the_mended_command_runs(bundle, tmp_path, capsys):
    source = write_rows(tmp_path / "a.jsonl", make_documents(3))
    command = build_command(bundle, source, tmp_path / "out", *SMALL)
    assert predict.main([*command, "--inference.device", "cuda"]) == 2
    assert "this machine has no CUDA device" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert predict.main(command) == 0


def test_file_that_changes_while_the_job_waits_is_refused(bundle, tmp_path, capsys):
    documents = make_documents(20)
    documents[10]["text"] += f" {HALTING} {tmp_path / 'mark'}"
    source = write_rows(tmp_path / "a.jsonl", documents)
    command = (bundle, source, tmp_path / "out", *SMALL)
    assert run_with(load_touchy, *command) == 2
    (tmp_path / "mark").touch()
    content = source.read_text()
    source.write_text(content.replace("Utrecht", "Leiden!"))
    capsys.readouterr()
    assert run_with(load_touchy, *command) == 2
    assert f"`input.{source}`" in capsys.readouterr().err


def test_bill_adds_up_and_tells_the_cost(bundle, tmp_path, capsys):
    documents = make_documents(50)
    source = write_rows(tmp_path / "a.jsonl", documents)
    run_predict(bundle, source, tmp_path / "out", *SMALL, "--price_per_hour", 7.2)
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    bill = record["bill"]
    assert record["status"] == "done"
    assert set(record["phases_s"]) == {"count", "label", "finish"}
    assert bill["num_documents"] == 50
    assert bill["num_characters"] == sum(len(one["text"]) for one in documents)
    assert bill["num_tokens_skipped"] == 0
    assert bill["num_entities"] == sum(bill["entities"].values()) > 0
    seconds = bill["seconds"]
    assert seconds["total"] == pytest.approx(
        sum(seconds[name] for name in ("start_up", "labelling", "finish")), abs=0.01
    )
    assert bill["cost"]["total"] == pytest.approx(seconds["total"] * 0.002, rel=0.01)
    assert bill["cost"]["per_million_documents"] == pytest.approx(bill["cost"]["total"] * 20_000, rel=0.01)
    assert bill["cpu_seconds"] > 0
    assert min(bill["peak_memory_mib"].values()) > 50
    assert bill["engines"][0]["precision"] == "fp32"
    told = capsys.readouterr()
    assert "a million documents" in told.out
    assert "50 documents labelled, 0 quarantined" in told.out
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.lower().startswith("<!doctype html>")
    assert "<svg" in page
    assert not (tmp_path / "out" / "quarantine").exists()


def test_contradicting_settings_are_told_at_once(tmp_path, capsys):
    command = [
        "--model",
        "m",
        "--input",
        "i",
        "--text_column",
        "a",
        "--reader.text_column",
        "b",
        "--compression",
        "lzo",
    ]
    given = ["--chunk_characters", "0", "--keep", "entities", "--partition_by", "text", "--resources.num_actors", "0"]
    assert predict.main([*command, *given, "--output_dir", str(tmp_path / "out")]) == 2
    told = capsys.readouterr().err
    assert "6 mistakes" in told
    for fact in (
        "contradict",
        "lzo",
        "chunk_characters",
        "`keep` names",
        "`partition_by` names",
        "resources.num_actors",
    ):
        assert fact in told
