"""Bad documents and files among good ones, monstrous documents, and disks that take nothing: one message, and the
others labelled."""

import gzip
import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines import predict
from pipelines.corpus.inference import load_engine
from pipelines.job import run_door
from pipelines.predict import PredictConfig
from tests.conftest import make_bundle
from tests.e2e.jobs import start_predict
from tests.e2e.refusals import Refusal
from tests.integration.engines import load_on_full_disk
from tests.integration.labelling import build_command, read_rows, read_success, run_predict, write_rows

pytestmark = pytest.mark.usefixtures("ray_session")

SMALL = ("--resources.num_actors", 1, "--resources.cpus_per_actor", 1)
GEORGIAN = "ა"


@pytest.fixture(scope="module")
def bundle(tiny_encoder: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tiny_encoder, tmp_path_factory.mktemp("bundle") / "linear", window=128)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Good files, files with bad documents, and files that cannot be read."""
    folder = tmp_path / "input"
    folder.mkdir()
    write_rows(folder / "good.jsonl", make_rows("good", 3))
    lines = [
        json.dumps({"id": "before", "text": "Ada"}),
        '{"text": "Ada',
        '{"title": "no text"}',
        '{"text": 12}',
        '{"text": null}',
        '["a list"]',
        json.dumps({"id": "after", "text": "Oslo"}),
    ]
    (folder / "lines.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "bytes.txt").write_bytes(b"Angela Merkel\nJos\xe9 in S\xe3o Paulo\nUtrecht\n")
    (folder / "table.csv").write_text('id,text\nc1,"Ada, of London"\nc2\nc3,Oslo\n', encoding="utf-8")
    packed = gzip.compress("".join(json.dumps(row) + "\n" for row in make_rows("gz", 4000)).encode())
    (folder / "cut.jsonl.gz").write_bytes(packed[: len(packed) // 2])
    pq.write_table(pa.table({"text": ["Ada"] * 1000}), folder / "whole.parquet")
    (folder / "cut.parquet").write_bytes((folder / "whole.parquet").read_bytes()[:-20])
    (folder / "whole.parquet").unlink()
    (folder / "unreadable.jsonl").symlink_to("/proc/self/mem")
    return folder


def make_rows(name: str, number: int) -> list[dict[str, Any]]:
    return [{"id": f"{name}{n}", "text": f"Ada visited Oslo {n} times."} for n in range(number)]


def test_bad_documents_and_files_are_quarantined_and_the_others_labelled(bundle, folder, tmp_path, capsys):
    rows = run_predict(bundle, folder, tmp_path / "out", *SMALL, "--max_bad_fraction", 0.9, "--keep", "text")
    labelled = [row["doc_id"] for row in rows]
    rescued = [one for one in labelled if one.startswith("gz")]
    assert [one for one in labelled if one not in rescued] == [
        f"{folder}/bytes.txt:1",
        f"{folder}/bytes.txt:3",
        "good0",
        "good1",
        "good2",
        "before",
        "after",
        "c1",
        "c3",
    ]
    assert rescued == [f"gz{n}" for n in range(len(rescued))]
    assert 1000 < len(rescued) < 4000
    quarantined = read_rows(tmp_path / "out", "quarantine")
    assert {(row["source"].removeprefix(f"{folder}/"), row["reason"]) for row in quarantined} == {
        ("bytes.txt:2", "invalid_utf8"),
        ("cut.jsonl.gz", "unreadable"),
        ("cut.parquet", "unreadable"),
        ("lines.jsonl:2", "broken_json"),
        ("lines.jsonl:3", "no_text"),
        ("lines.jsonl:4", "bad_text"),
        ("lines.jsonl:5", "no_text"),
        ("lines.jsonl:6", "bad_row"),
        ("table.csv:3", "ragged_row"),
        ("unreadable.jsonl", "unreadable"),
    }
    assert all(row["stage"] == "read" and row["detail"] for row in quarantined)
    facts = read_success(tmp_path / "out")
    assert (facts["num_documents"], facts["num_quarantined"]) == (len(rows), 10)
    told = capsys.readouterr()
    assert f"{len(rows):,} documents labelled, 10 quarantined" in told.out
    assert "Traceback" not in told.err


def refuse(capfd: pytest.CaptureFixture[str], *command: Any) -> Refusal:
    """Run the door, which is expected to refuse."""
    capfd.readouterr()
    code = predict.main(build_command(*command))
    told = capfd.readouterr()
    return Refusal(code, told.out, told.err)


def test_too_many_bad_documents_are_refused_before_anything_is_labelled(bundle, folder, tmp_path, capfd):
    for name in ("cut.jsonl.gz", "cut.parquet", "unreadable.jsonl"):
        (folder / name).unlink()
    facts = ("7 of 16 documents cannot be used", f"{folder}/lines.jsonl:2: broken_json", "43.75%", "max_bad_fraction")
    refusal = refuse(capfd, bundle, folder, tmp_path / "out", *SMALL)
    assert not refusal.lacks(*facts)
    assert refusal.err.count("rayner predict:") == 1
    assert not list((tmp_path / "out").rglob("*"))


@pytest.mark.parametrize(
    ("name", "fact"),
    [("cut.jsonl.gz", "gzip"), ("cut.parquet", "Parquet"), ("unreadable.jsonl", "cannot be read")],
)
def test_file_that_is_damaged_is_refused_however_many_documents_the_others_have(
    name, fact, bundle, folder, tmp_path, capfd
):
    write_rows(tmp_path / "many.jsonl", make_rows("many", 500))
    (folder / name).rename(tmp_path / name)
    facts = ("1 of 2 files cannot be read to their end", f"{tmp_path / name}: unreadable: ", fact, "50.00%")
    refusal = refuse(capfd, bundle, tmp_path / "[mcu]*.*", tmp_path / "out", *SMALL)
    assert not refusal.lacks(*facts)
    assert refusal.err.count("rayner predict:") == 1
    assert not list((tmp_path / "out").rglob("*"))


@pytest.mark.long
def test_word_of_300_000_characters_and_document_of_20_megabytes(bundle, tmp_path):
    word = "x" * 300_000
    large = f"Ada {' '.join([GEORGIAN * 99] * 67_000)} Oslo"
    assert len(large.encode()) > 19_900_000
    source = write_rows(tmp_path / "a.jsonl", [{"text": "Ada"}, {"text": word}, {"text": large}, {"text": "Oslo"}])
    rows = run_predict(bundle, source, tmp_path / "out", *SMALL)
    assert [row["coverage"]["num_characters"] for row in rows] == [3, 300_000, len(large), 4]
    assert [row["coverage"]["num_words"] for row in rows] == [1, 3_000, 67_002, 1]
    assert all(row["coverage"]["fraction"] == 1.0 for row in rows)
    for row, text in zip(rows, ("Ada", word, large, "Oslo"), strict=True):
        assert all(text[one["start"] : one["end"]] == one["text"] for one in row["entities"])
    assert read_success(tmp_path / "out")["num_tokens_skipped"] == 0


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[tuple[Path, Any]]:
    """A folder on a disk of 400 KB and a loader of engines; where no disk may be mounted, a limit on files."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(disk)]
    is_mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    yield disk / "out", load_engine if is_mounted else load_on_full_disk
    if is_mounted:
        subprocess.run(["umount", str(disk)], check=True)


def test_full_disk_ends_the_job_with_one_message_and_it_goes_on_with_room(bundle, full_disk, tmp_path, capfd):
    folder, load = full_disk
    source = write_rows(tmp_path / "a.jsonl", make_rows("a", 20_000))
    command = build_command(bundle, source, folder, *SMALL, "--chunk_characters", 30_000, "--keep", "text")
    assert run_door("predict", PredictConfig, lambda config: predict.run(config, load), "", command) == 2
    told = capfd.readouterr()
    assert told.err.count("rayner predict:") == 1
    assert "cannot be written" in told.err
    assert str(folder) in told.err
    assert "Traceback" not in told.err
    assert not (folder / "_SUCCESS").exists()
    room = tmp_path / "room"
    shutil.copytree(folder, room, ignore=shutil.ignore_patterns(".lock"))
    rows = run_predict(bundle, source, room, *SMALL, "--chunk_characters", 30_000, "--keep", "text")
    assert [row["doc_id"] for row in rows] == [f"a{n}" for n in range(20_000)]


def test_worker_that_has_no_such_device_ends_the_command_with_one_message(bundle, tmp_path):
    source = write_rows(tmp_path / "a.jsonl", make_rows("a", 2))
    job = start_predict(*build_command(bundle, source, tmp_path / "out", "--inference.device", "cuda:99"))
    told, _ = job.communicate(timeout=600)
    assert job.returncode == 2
    counted, message, *rest = [line for line in told.splitlines() if not line.startswith("plan: ")]
    assert "counting documents" in counted
    assert message.startswith("rayner predict: ")
    assert all(line.startswith("  ") for line in rest)
    assert len(rest) < 5


def test_folder_in_which_nobody_can_write_is_refused(bundle, tmp_path, capfd):
    source = write_rows(tmp_path / "a.jsonl", make_rows("a", 2))
    facts = ("the output folder cannot be written", "/sys/rayner", "--output_dir")
    refusal = refuse(capfd, bundle, source, Path("/sys/rayner"))
    assert not refusal.lacks(*facts)
    assert refusal.err.count("rayner predict:") == 1
