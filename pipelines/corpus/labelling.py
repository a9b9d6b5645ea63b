"""Chunks of documents through a pool of actors: each is labelled and committed, and only its counts come back."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pyarrow as pa
import ray.data

from pipelines.corpus.agreement import LoadEngine
from pipelines.corpus.census import Census
from pipelines.corpus.chunks import count_characters, cut_chunks, name_chunk, pack_chunk, read_items
from pipelines.corpus.inference import ActorPlan, load_engine
from pipelines.corpus.labeller import ChunkLabeller, LabellingJob
from pipelines.corpus.ledger import LedgerEntry
from pipelines.corpus.parts import ChunkCounts
from pipelines.corpus.reading import MAX_BLOCKS, UNREADABLE, stand_in
from pipelines.corpus.records import CorpusError

CHUNKS_PER_ACTOR = 2
"""Chunks that an actor has in work: while one ends, the next begins, so that the engine always has something to do."""
QUEUED_CHUNKS = 8
"""Chunks that may wait for an actor, if their characters take four bytes each; more of them where they take one."""
ELASTIC_ACTORS = 64
"""Actors for which chunks may wait where the pool can grow."""
MIN_QUEUE_BYTES = 16 << 20


def label_chunks(
    job: LabellingJob, census: Census, done: Sequence[Sequence[int]], load: LoadEngine = load_engine
) -> Iterator[ChunkCounts]:
    """Label and commit every chunk that is not done; yields their counts as they come, in no order.

    One task reads a file, from its beginning, and passes over what is done: reading is about a thousand times faster
    than labelling. What is done is fixed here, before reading begins: were a reader to look for itself, its second run
    (after the loss of a node) would give other chunks than its first.

    Args:
        done: for each file the numbers of its chunks that are done.

    Raises:
        CorpusError: a file was changed, or cannot be read any more, since the census.
    """
    files = [
        {
            "file": number,
            "path": file.path,
            "num_chunks": file.num_chunks,
            "num_documents": file.num_records + file.num_rejected,
            "num_characters": file.num_characters,
            "is_damaged": file.is_damaged,
            "done": numbers,
        }
        for number, (file, numbers) in enumerate(zip(census.files, done, strict=True))
        if len(numbers) < file.num_chunks
    ]
    if not files:
        return
    num_left = sum(file.num_chunks for file in census.files) - sum(map(len, done))
    num_actors = min(job.plan.num_actors, num_left)
    num_readers = min(len(files), max(2, num_actors // 8))
    with _bound_queue(job):
        rows = ray.data.from_items(files, override_num_blocks=min(len(files), MAX_BLOCKS))
        chunks = rows.map_batches(
            _read_chunks,
            fn_kwargs={"job": job},
            batch_size=1,
            batch_format="pyarrow",
            num_cpus=0,  # else a pool that takes every CPU of a growing cluster would starve its readers
            compute=ray.data.TaskPoolStrategy(size=num_readers),
        )
        labelled = chunks.map_batches(
            ChunkLabeller,
            fn_constructor_args=(job, load),
            compute=_build_pool(replace(job.plan, num_actors=num_actors)),
            num_cpus=job.plan.num_cpus,
            num_gpus=job.plan.num_gpus or None,
            batch_size=1,
            batch_format="pyarrow",
        )
    for batch in labelled.iter_batches(batch_size=None, batch_format="pyarrow"):
        yield from map(ChunkCounts.from_json, batch["counts"].to_pylist())


def _build_pool(plan: ActorPlan) -> ray.data.ActorPoolStrategy:
    """A fixed pool on this machine; on a cluster one that grows with it, and outlives the loss of its nodes."""
    threads = {"max_concurrent_calls_per_actor": CHUNKS_PER_ACTOR, "enable_true_multi_threading": True}
    if not plan.is_elastic:
        return ray.data.ActorPoolStrategy(size=plan.num_actors, **threads)
    return ray.data.ActorPoolStrategy(min_size=1, max_size=plan.max_actors, initial_size=plan.num_actors, **threads)


@contextmanager
def _bound_queue(job: LabellingJob) -> Iterator[None]:
    """Settings of Ray Data for the datasets made inside: every chunk is a block, and few of them wait in memory."""
    context = ray.data.DataContext.get_current()
    options = context.execution_options
    before = (context.target_max_block_size, options.preserve_order, options.resource_limits)
    num_actors = max(job.plan.num_actors, ELASTIC_ACTORS) if job.plan.is_elastic else job.plan.num_actors
    num_bytes = max(MIN_QUEUE_BYTES, QUEUED_CHUNKS * num_actors * job.chunk_characters * 4)
    context.target_max_block_size = 1  # a row is a chunk; it is never joined with others
    options.preserve_order = False  # who finishes gets the next chunk; order is restored at the end
    options.resource_limits = ray.data.ExecutionResources.for_limits(object_store_memory=num_bytes)
    try:
        yield
    finally:
        context.target_max_block_size, options.preserve_order, options.resource_limits = before


def _read_chunks(batch: pa.Table, job: LabellingJob) -> Iterator[pa.Table]:
    with stand_in(job.folder):
        for row in batch.to_pylist():
            for number, packed in _read_file(row, job):
                chunk = [name_chunk(row["file"], number)]
                yield pa.table({"chunk": chunk, "packed": pa.array([packed], pa.large_binary())})


def _read_file(row: Mapping[str, Any], job: LabellingJob) -> Iterator[tuple[int, bytes]]:
    """The chunks of a file that are not done. Raises CorpusError where it is no longer as it was counted."""
    path, num_chunks, done = row["path"], row["num_chunks"], set(row["done"])
    number, num_documents, num_characters, is_damaged = -1, 0, 0, False
    last_chunk: tuple[int, bytes] | None = None  # held back until the file has shown to be the one that was counted
    for number, items in enumerate(cut_chunks(read_items(path, job.reader), job.chunk_characters)):
        last = items[-1]
        if isinstance(last, LedgerEntry) and last.reason == UNREADABLE:
            is_damaged = True
            if not row["is_damaged"]:
                raise _changed(path, last.detail)
        num_documents += len(items)
        num_characters += sum(map(count_characters, items))
        if number >= num_chunks:
            raise _changed(path, "it is longer now")
        if last_chunk is not None:
            yield last_chunk
        last_chunk = None if number in done else (number, pack_chunk(items, job.reader.extra_columns))
    if number + 1 != num_chunks:
        raise _changed(path, "it is shorter now")
    if row["is_damaged"] and not is_damaged:
        raise _changed(path, "it could not be read to its end before, and can be now")
    for noun, found in (("documents", num_documents), ("characters", num_characters)):
        if found != row[f"num_{noun}"]:
            raise _changed(path, f"{row[f'num_{noun}']:,} {noun} before, {found:,} now")
    if last_chunk is not None:
        yield last_chunk


def _changed(path: str, how: str) -> CorpusError:
    return CorpusError(
        "a file was changed, or cannot be read any more, while the job ran",
        where=path,
        rule="the input stays as it is until the job is done",
        value=how,
        remedy="the same command goes on if the file is as before; else start over with `--fresh`",
    )
