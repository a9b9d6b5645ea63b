"""The work folder of an offline job: parts that are whole or not there, and attempts that outlive their actor."""

import os
import subprocess
import sys
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.corpus.attempts import note_loading, read_attempts
from pipelines.corpus.parts import QUARANTINE_SCHEMA, ChunkCounts, PartFolder, read_quarantine

COUNTS = ChunkCounts(
    chunk="00000-000000",
    num_documents=2,
    quarantined={"no_text": 1},
    num_characters=10,
    num_words=2,
    num_tokens=4,
    num_windows=2,
    num_tokens_skipped=0,
    entities={"PER": 1},
    run="r",
    actor="host:1",
    started=1.5,
    seconds=0.25,
    busy_seconds=0.25,
    cpu_seconds=0.5,
    gpu_seconds=0.0,
    peak_memory_mib=100,
    engine={"runtime": "torch"},
)
LABELLED = pa.table({"doc_id": ["a", "b"]})
NOTHING = QUARANTINE_SCHEMA.empty_table()


@pytest.fixture
def work(tmp_path):
    folder = PartFolder(tmp_path / ".work")
    folder.prepare()
    return folder


def quarantine(doc_id):
    return pa.Table.from_pylist([{"doc_id": doc_id, "stage": "read", "reason": "no_text"}], schema=QUARANTINE_SCHEMA)


def test_part_tells_its_counts_and_its_rows(work):
    work.commit(COUNTS, LABELLED, quarantine("c"))
    part = work.read_part(COUNTS.chunk)
    assert part.counts == COUNTS
    assert part.counts.num_quarantined == 1
    assert part.schema == LABELLED.schema
    assert pq.read_table(work.find_part(COUNTS.chunk))["doc_id"].to_pylist() == ["a", "b"]
    [row] = read_quarantine(work.find_quarantine(COUNTS.chunk))
    assert (row["doc_id"], row["reason"], row["text"]) == ("c", "no_text", None)


def test_chunk_without_a_part_is_not_done(work):
    assert work.read_part("00000-000001") is None
    assert list(work.list_parts()) == []


def test_nothing_but_the_part_and_no_empty_quarantine_is_left(work):
    work.commit(COUNTS, LABELLED, NOTHING)
    assert [path.name for path in work.find_part(COUNTS.chunk).parent.iterdir()] == ["00000-000000.parquet"]
    assert list(work.quarantine.iterdir()) == []


def test_parts_are_listed_in_the_order_of_the_input(work):
    names = ["00000-000000", "00000-000999", "00000-001000", "00002-000000", "00002-1234567", "100000-000000"]
    for name in reversed(names):
        work.commit(replace(COUNTS, chunk=name), LABELLED, NOTHING)
    assert [part.counts.chunk for part in work.list_parts()] == names


@pytest.mark.parametrize("damage", [b"", b"PAR1 and then nothing", None])
def test_damaged_part_is_not_done(work, damage):
    work.commit(COUNTS, LABELLED, NOTHING)
    path = work.find_part(COUNTS.chunk)
    path.write_bytes(path.read_bytes()[:-30] if damage is None else damage)
    assert work.read_part(COUNTS.chunk) is None
    assert list(work.list_parts()) == []
    work.commit(COUNTS, LABELLED, NOTHING)
    assert work.read_part(COUNTS.chunk).counts == COUNTS


def test_foreign_parquet_file_is_no_part(work):
    path = work.find_part(COUNTS.chunk)
    path.parent.mkdir()
    pq.write_table(LABELLED, path)
    assert work.read_part(COUNTS.chunk) is None


def test_half_written_part_is_not_listed(work):
    work.commit(COUNTS, LABELLED, NOTHING)
    path = work.find_part(COUNTS.chunk)
    path.rename(path.with_name(f".{path.name}.host.12"))
    assert list(work.list_parts()) == []


def test_quarantine_is_there_before_the_part(work):
    work.find_part(COUNTS.chunk).parent.write_text("a file where the folder should be")
    with pytest.raises((FileExistsError, NotADirectoryError)):
        work.commit(COUNTS, LABELLED, quarantine("c"))
    assert work.find_quarantine(COUNTS.chunk).is_file()
    assert work.read_part(COUNTS.chunk) is None


def test_actor_that_outlives_its_job_writes_nothing(tmp_path):
    work = PartFolder(tmp_path / ".work")
    with pytest.raises(FileNotFoundError):
        work.commit(COUNTS, LABELLED, NOTHING)
    assert list(tmp_path.iterdir()) == []


def begin(folder, chunk="chunk", run="run"):
    attempts = read_attempts(folder, chunk, run)
    attempts.begin()
    return attempts


def test_third_attempt_is_careful_and_second_death_over_a_document_is_enough(tmp_path):
    for _ in range(2):
        assert not read_attempts(tmp_path, "chunk", "run").is_careful
        begin(tmp_path)
    third = read_attempts(tmp_path, "chunk", "run")
    assert third.is_careful
    third.begin()
    for index in range(5):
        assert not third.is_deadly(index)
        third.note(index)
    fourth = begin(tmp_path)
    assert fourth.deaths == {4: 1}
    assert not fourth.is_deadly(4)
    fourth.note(4)
    fifth = begin(tmp_path)
    assert (fifth.is_deadly(4), fifth.is_deadly(3)) == (True, False)
    assert begin(tmp_path).deaths == {4: 2}, "a death between documents is nobody's fault"


def test_attempts_of_another_run_and_of_another_chunk_do_not_count(tmp_path):
    for _ in range(4):
        begin(tmp_path).note(0)
    assert read_attempts(tmp_path, "other", "run").number == 0
    fresh = begin(tmp_path, run="another run")
    assert (fresh.number, fresh.deaths) == (1, {})


def test_finished_attempts_are_forgotten(tmp_path):
    begin(tmp_path).finish()
    assert list(tmp_path.iterdir()) == []


def die_while_loading(folder, run="run"):
    code = f"""
import os, pathlib
from pipelines.corpus.attempts import note_loading
with note_loading(pathlib.Path({str(folder)!r}), {run!r}):
    os._exit(1)
"""
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 1


def load(folder, run="run"):
    with note_loading(folder, run):
        assert [path for path in folder.iterdir() if path.name.endswith(str(os.getpid()))]


def test_loading_is_given_up_after_three_deaths(tmp_path):
    for _ in range(2):
        die_while_loading(tmp_path)
    load(tmp_path)
    assert list(tmp_path.iterdir()) == [], "success makes good what was before"
    for _ in range(3):
        die_while_loading(tmp_path)
    load(tmp_path, "another run")
    with pytest.raises(RuntimeError, match=r"3 actors on .* died while they loaded the model"):
        load(tmp_path)


def test_failure_to_load_leaves_no_mark(tmp_path):
    with pytest.raises(ValueError, match="no model"), note_loading(tmp_path, "run"):
        raise ValueError("no model")
    assert list(tmp_path.iterdir()) == []
