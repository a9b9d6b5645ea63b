"""Label documents, however many: texts in (JSONL, Parquet, CSV, TXT, …), entities with character offsets out.

The input is counted, then labelled in chunks, each committed once; at the end the chunks become output files. The same
command goes on with what an interrupted run has done.
"""

import math
import sys
import time
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import ray
from rich.markup import escape

from pipelines.cluster import ClusterConfig, connect, find_address, list_node_cpus
from pipelines.corpus.agreement import LoadEngine, read_agreements
from pipelines.corpus.assembly import FORMATS, QUARANTINE_FOLDER, OutputSpec
from pipelines.corpus.census import take_census
from pipelines.corpus.chunks import RECORD_COLUMNS
from pipelines.corpus.formats.options import NO_COLUMN, FormatOptions
from pipelines.corpus.identity import check_unchanged, fingerprint, identify_input, identify_model
from pipelines.corpus.inference import ActorResources, InferenceConfig, load_engine, plan_actors
from pipelines.corpus.labeller import LabellingJob
from pipelines.corpus.offline import OfflineJob
from pipelines.corpus.parts import ChunkCounts
from pipelines.corpus.reading import find_all_files
from pipelines.evaluation.bill import Bill, render_bill
from pipelines.folders import (
    SUCCESS_FILE,
    check_resumable,
    leave_no_trace_of_mistakes,
    lock_folder,
    prepare_output_dir,
    write_json,
)
from pipelines.job import console, progress_console, run_door, warn_of_idle
from pipelines.ner.encoders import locate_model
from pipelines.ner.errors import UserError, raise_all
from pipelines.ner.machine import read_peak_memory_mib
from pipelines.planning.plans import Plan
from pipelines.planning.running_cluster import read_running_cluster
from pipelines.replacement import check_inputs_stay, discard
from pipelines.resources import plan_labelling
from pipelines.run_record import RunRecord
from pipelines.settings import ConfigError
from pipelines.terminal import LabellingView

REPORT_FILE = "report.html"
OWN_COLUMNS = ("doc_id", "entities", "coverage")
MIB = 1 << 20
IDENTITY = ("reader", "inference", "keep", "format", "compression", "partition_by", "output_file_mib")
"""The settings that, with the model and the input, decide on the output; the others may change when it goes on."""


@dataclass(frozen=True)
class PredictConfig:
    """Settings of `rayner predict`."""

    model: str | None = None
    """A bundle folder, a Hugging Face token-classification checkpoint folder, or a hub id."""
    input: list[str] = field(default_factory=list)
    """Documents: paths, globs, folders, URIs. JSONL, Parquet and CSV need a column of text; a TXT file holds a document
    a line (`--reader.document_per file`: one document)."""
    output_dir: str = "out/entities"
    """Where the entities go. On a cluster of several machines, a folder that all see."""
    text_column: str | None = None
    """Column with the text; by default `text`. The same as `--reader.text_column`."""
    id_column: str | None = None
    """Column with the document's id; by default `doc_id` or `id`, else file and position. As `--reader.id_column`."""
    keep: list[str] = field(default_factory=list)
    """Columns of the input to keep beside the entities. Where the input has no such column, `text` is what was labelled
    and `source` the file and line of the document. Objects become structs if all have the same keys, else JSON."""
    format: str = "parquet"
    """parquet or jsonl."""
    compression: str | None = None
    """zstd, gzip or none; by default zstd for Parquet and none for JSONL."""
    partition_by: list[str] = field(default_factory=list)
    """Columns, of those to keep, whose values become folders: `lang=en/part-00000.parquet`."""
    output_file_mib: float = 128
    """About how large an output file becomes."""
    max_bad_fraction: float = 0.01
    """Stop if more than this share of the documents cannot be read or labelled, or of the files not read to the end."""
    chunk_characters: int = 400_000
    """Characters that are labelled and committed at once: what a kill may cost, for each actor."""
    price_per_hour: float | None = None
    """Of the whole cluster, for the bill, in any currency."""
    fresh: bool = False
    """Start over, removing what an earlier run left in the output folder."""
    resources: ActorResources = field(default_factory=ActorResources)
    inference: InferenceConfig = field(default_factory=InferenceConfig)
    reader: FormatOptions = field(default_factory=FormatOptions)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the door and return its exit code."""
    return run_door("predict", PredictConfig, run, __doc__ or "", argv)


def run(config: PredictConfig, load: LoadEngine = load_engine) -> None:
    """Label as configured, or go on with the job that is in the output folder.

    Args:
        load: loads the engine in each actor.
    """
    started = time.time()
    raise_all(_find_problems(config))
    warn_of_idle(config.reader.find_idle() + config.inference.find_idle(str(config.model)))
    folder = prepare_output_dir(config.output_dir)
    with lock_folder(folder):
        reader = _build_reader(config)
        paths = list(dict.fromkeys(file["path"] for file in find_all_files({"input": config.input}, reader.format)))
        settings = _identify(config, reader, paths)
        check_inputs_stay(folder, config)
        check_resumable(folder, settings, config.fresh)
        job = OfflineJob(folder, uuid.uuid4().hex)
        if (folder / SUCCESS_FILE).exists():
            job.clear()  # of which a kill may have left something
            console.print(f"this job is finished: {escape(str(folder))}; [bold]--fresh[/] starts it over")
            return
        record = RunRecord("predict", config)
        with connect(config.cluster):
            count = partial(take_census, paths, reader, config.chunk_characters, config.partition_by)
            with leave_no_trace_of_mistakes(folder, lambda: job.has_begun), record.phase("count", "counting documents"):
                job.begin(count, config.max_bad_fraction)
            bill = Bill(job.note_session(started))
            with leave_no_trace_of_mistakes(folder, job.keep_what_is_done), record.phase("label", "labelling"):
                plan = _label(config, reader, job, load)
            check_unchanged(settings["input"])
            with record.phase("finish", "writing the output"):
                spec, limit = _build_spec(config), config.max_bad_fraction
                files = job.finish(spec, limit, lambda counts: bill.add(asdict(counts)))
        _close(config, settings, job, bill, record, files, plan)


def _label(config: PredictConfig, reader: FormatOptions, job: OfflineJob, load: LoadEngine) -> Plan | None:
    is_elastic = find_address(config.cluster) is not None
    gpus = ray.cluster_resources().get("GPU", 0)
    pool = plan_actors(config.resources, list_node_cpus(ray.nodes()), gpus, is_elastic=is_elastic)
    plan: Plan | None = None
    if config.resources.auto:
        documents = (job.census.num_records, job.census.num_characters)
        inventory = read_running_cluster(is_private=not is_elastic)
        given = config.resources, config.inference
        pool, plan = plan_labelling(pool, str(config.model), *given, inventory, documents)
    settings = LabellingJob(
        model=locate_model(str(config.model)),
        inference=config.inference,
        plan=pool,
        reader=replace(reader, extra_columns=job.census.list_columns()),
        keep=_list_kept(config),
        chunk_characters=config.chunk_characters,
        work=job.work.root,
        run=job.run,
    )
    done = [(one.num_documents + one.num_quarantined, one.num_characters) for one in job.list_done()]
    num_done = sum(documents for documents, _ in done)
    total = job.census.num_documents
    if done:
        progress_console.print(f"  {num_done:,} of {total:,} documents were done already")
    view = LabellingView(total, job.census.num_characters, num_done, sum(characters for _, characters in done))

    def tell(counts: ChunkCounts) -> None:
        """Count a finished chunk on the progress bar."""
        documents = counts.num_documents + counts.num_quarantined
        view.update(documents, counts.num_characters, counts.num_tokens, counts.seconds)
        discard(job.folder)

    with view.bar:
        job.label(settings, config.max_bad_fraction, tell, load)
    return plan


def _close(
    config: PredictConfig,
    settings: dict[str, Any],
    job: OfflineJob,
    bill: Bill,
    record: RunRecord,
    files: Sequence[str],
    plan: Plan | None,
) -> None:
    """Write what tells of the job, the mark of success last, and say it."""
    peak_mib = read_peak_memory_mib()
    result = bill.to_dict(time.time(), peak_mib, config.price_per_hour)
    fingerprints = {
        "model": settings["model"],
        "input": fingerprint(settings["input"]),
        "settings": fingerprint(settings),
    }
    facts = {"model": config.model, "input": " ".join(config.input), "output": str(job.folder)}
    page = render_bill(result, f"Bill of {job.folder.name}", {"Job": facts, "Fingerprints": fingerprints})
    (job.folder / REPORT_FILE).write_text(page, encoding="utf-8")
    told = {"plan": plan and plan.to_dict(), "bill": result, "engines": read_agreements(job.work.root)}
    record.write(job.folder, status="done", **told)
    counts = {name: value for name, value in result.items() if name.startswith("num_")}
    success = {**counts, "num_files": len(files), "entities": result["entities"], "quarantined": result["quarantined"]}
    write_json(job.folder / SUCCESS_FILE, success | {"fingerprints": fingerprints})
    job.clear()
    _print_bill(result, files, job.folder)


def _print_bill(bill: dict[str, Any], files: Sequence[str], folder: Path) -> None:
    read = "{num_characters:,} characters, {num_tokens:,} sub-tokens in {num_windows:,} windows".format(**bill)
    console.print(
        f"[bold]{bill['num_documents']:,} documents[/] labelled, {bill['num_quarantined']:,} quarantined; {read}, "
        f"{bill['num_tokens_skipped']:,} skipped"
    )
    for label, number in bill["entities"].items():
        console.print(escape(f"  {label:<12} {number:,}"))
    for reason, number in bill["quarantined"].items():
        console.print(escape(f"  quarantined: {reason} {number:,}"))
    seconds = "{total:,.1f} s: {start_up:,.1f} to start, {labelling:,.1f} labelling, {finish:,.1f} to finish"
    earlier = f", {bill['seconds']['earlier']:,.1f} in earlier runs" if bill["num_sessions"] > 1 else ""
    rate = f"; {bill['tokens_per_s']:,.0f} sub-tokens/s" if bill["tokens_per_s"] else ""
    console.print(seconds.format(**bill["seconds"]) + earlier + rate)
    cost = bill["cost"]
    price = f"; cost {cost['total']:,.4f}, {cost['per_million_documents']:,.2f} a million documents" if cost else ""
    console.print(f"{bill['cpu_seconds'] / 3600:,.3f} CPU-hours, {bill['gpu_seconds'] / 3600:,.3f} GPU-hours{price}")
    more = f" and {len(files) - 1:,} more" if len(files) > 1 else ""
    console.print(escape(f"\nentities: {files[0]}{more}"))
    if bill["num_quarantined"]:
        console.print(escape(f"quarantine: {folder / QUARANTINE_FOLDER}"))
    console.print(escape(f"report: {folder / REPORT_FILE}"))


def _identify(config: PredictConfig, reader: FormatOptions, paths: Sequence[str]) -> dict[str, Any]:
    """What makes this job the one it is."""
    given = {name: value for name, value in asdict(config).items() if name in IDENTITY}
    settings = given | {"reader": asdict(reader), "chunk_characters": config.chunk_characters}
    return {
        "model": identify_model(str(config.model), config.inference.scheme),
        **settings,
        "input": identify_input(paths),
    }


def _build_reader(config: PredictConfig) -> FormatOptions:
    text_column = config.text_column or config.reader.text_column
    labelled = ("text",) if text_column in (None, "text") else ()
    return replace(
        config.reader,
        text_column=text_column,
        id_column=config.id_column or config.reader.id_column,
        spans_column=NO_COLUMN,  # gold, if there is any, is none of this job's business
        tags_column=NO_COLUMN,
        bad_encoding="reject_record",
        extra_columns=tuple(name for name in _list_kept(config) if name not in labelled),
    )


def _list_kept(config: PredictConfig) -> tuple[str, ...]:
    return tuple(dict.fromkeys([*config.keep, *config.partition_by]))


def _build_spec(config: PredictConfig) -> OutputSpec:
    compression = config.compression or FORMATS[config.format][0]
    return OutputSpec(config.format, compression, tuple(config.partition_by), int(config.output_file_mib * MIB))


def _find_problems(config: PredictConfig) -> list[UserError]:
    problems: list[UserError] = []
    if not config.model:
        problems.append(ConfigError("no model is given", remedy="`--model out/run/bundle`"))
    if not config.input:
        problems.append(ConfigError("no input is given", remedy="`--input 'docs/*.jsonl'`"))
    problems += _find_wrong_choices(config) + config.inference.find_problems() + config.resources.find_problems()
    return problems + config.cluster.find_problems()


def _find_wrong_choices(config: PredictConfig) -> list[UserError]:
    problems: list[UserError] = []
    if config.format not in FORMATS:
        rule = "one of " + ", ".join(FORMATS)
        problems.append(ConfigError("no such output format", where="`format`", rule=rule, value=config.format))
    elif config.compression not in (None, *FORMATS[config.format]):
        rule = "one of " + ", ".join(FORMATS[config.format])
        problems.append(ConfigError("no such compression", where="`compression`", rule=rule, value=config.compression))
    for name, refused in (("keep", OWN_COLUMNS), ("partition_by", (*OWN_COLUMNS, *RECORD_COLUMNS))):
        wrong = [column for column in getattr(config, name) if column in refused]
        if wrong:
            rule, value = "columns of the input; not " + ", ".join(refused), ", ".join(wrong)
            problems.append(ConfigError(f"`{name}` names columns that are taken", rule=rule, value=value))
    for name in ("text_column", "id_column"):
        short, long = getattr(config, name), getattr(config.reader, name)
        if None not in (short, long) and short != long:
            where = f"`{name}` and `reader.{name}`"
            problems.append(ConfigError("two settings contradict each other", where=where, value=f"{short}, {long}"))
    ranges = (
        ("max_bad_fraction", 0 <= config.max_bad_fraction < 1, "0 ≤ fraction < 1"),
        ("chunk_characters", config.chunk_characters >= 1, "at least 1"),
        ("output_file_mib", 0 < config.output_file_mib < math.inf, "above 0, and a number"),
        ("price_per_hour", (config.price_per_hour or 0) >= 0, "at least 0"),
    )
    problems += [
        ConfigError("a number out of range", where=f"`{name}`", rule=rule, value=getattr(config, name))
        for name, fits, rule in ranges
        if not fits
    ]
    return problems


if __name__ == "__main__":
    sys.exit(main())
