"""The offline job in its work folder: what an earlier run has left is judged as what this one does."""

import pyarrow as pa
import pytest

from pipelines.corpus.assembly import OutputSpec
from pipelines.corpus.census import Census, FileCensus
from pipelines.corpus.formats.options import FormatOptions
from pipelines.corpus.inference import ENTITIES_TYPE, ActorPlan, InferenceConfig
from pipelines.corpus.labeller import LabellingJob
from pipelines.corpus.offline import OfflineJob
from pipelines.corpus.parts import QUARANTINE_SCHEMA, ChunkCounts
from pipelines.corpus.records import CorpusError

CENSUS = Census([FileCensus("a.jsonl", 4, 0, 40, 1, False, [], [], [])])
COUNTS = ChunkCounts(
    chunk="00000-000000",
    num_documents=2,
    quarantined={"cannot_label": 2},
    num_characters=20,
    num_words=4,
    num_tokens=4,
    num_windows=2,
    num_tokens_skipped=0,
    entities={},
    run="first",
    actor="host:1",
    started=0.0,
    seconds=1.0,
    busy_seconds=1.0,
    cpu_seconds=1.0,
    gpu_seconds=0.0,
    peak_memory_mib=1,
)


@pytest.fixture
def job(tmp_path):
    """A job whose one chunk is done: of its four documents two could not be labelled."""
    job = OfflineJob(tmp_path, "second")
    job.begin(lambda: CENSUS, 0.01)
    labelled = pa.table({"doc_id": ["c", "d"], "entities": pa.array([[], []], ENTITIES_TYPE)})
    row = {"stage": "label", "reason": "cannot_label", "detail": "MemoryError:"}
    bad = [{"doc_id": name, "source": f"a.jsonl:{number}"} | row for number, name in enumerate("ab", 1)]
    job.work.commit(COUNTS, labelled, pa.Table.from_pylist(bad, schema=QUARANTINE_SCHEMA))
    return job


def label(job, max_bad_fraction):
    settings = LabellingJob(
        "model", InferenceConfig(), ActorPlan(1, 1, 0), FormatOptions(), (), 1000, job.work.root, job.run
    )
    job.label(settings, max_bad_fraction, lambda counts: None)


def test_too_many_bad_documents_of_an_earlier_run_end_the_job_also_where_nothing_is_left_to_label(job):
    with pytest.raises(CorpusError, match="2 of 4 documents cannot be used") as caught:
        label(job, 0.01)
    assert "a.jsonl:1: cannot_label: MemoryError:\n    a.jsonl:2: cannot_label" in str(caught.value)
    label(job, 0.5)


def test_too_many_bad_documents_become_no_output(job, tmp_path):
    with pytest.raises(CorpusError, match="2 of 4 documents cannot be used"):
        job.finish(OutputSpec("parquet", "zstd", (), 1 << 20), 0.01, lambda counts: None)
    assert [path.name for path in tmp_path.iterdir()] == [".work"]
