"""Label documents: texts in (JSONL, Parquet, CSV, TXT, …), entities with character offsets out."""

import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import ray
import ray.data
from rich.markup import escape

from pipelines.cluster import ClusterConfig, connect, list_node_cpus
from pipelines.corpus.formats.options import NO_COLUMN, FormatOptions
from pipelines.corpus.inference import InferenceConfig, plan_actors, predict_records
from pipelines.corpus.reading import find_all_files, keep_records, read_raw, summarize
from pipelines.corpus.records import CorpusError
from pipelines.job import (
    RunRecord,
    check_replaceable,
    console,
    prepare_output_dir,
    progress_console,
    run_door,
    write_json,
)
from pipelines.ner.bundle import load_bundle
from pipelines.ner.errors import UserError, raise_all
from pipelines.settings import ConfigError

SUCCESS_FILE = "_SUCCESS"
FORMATS = ("parquet", "jsonl")


@dataclass(frozen=True)
class PredictConfig:
    """Settings of `rayner predict`."""

    model: str | None = None
    """A bundle folder, a Hugging Face token-classification checkpoint folder, or a hub id."""
    input: list[str] = field(default_factory=list)
    """Documents: paths, globs, folders. JSONL, Parquet and CSV need a `text` column (`--reader.text_column`); a TXT
    file holds a document a line (`--reader.document_per file`: one document)."""
    output_dir: str = "out/entities"
    """Where the entities go."""
    format: str = "parquet"
    """parquet or jsonl."""
    keep: list[str] = field(default_factory=list)
    """Columns of the input to keep beside the entities, e.g. `text`."""
    max_bad_fraction: float = 0.01
    """Stop if more than this share of the documents has to be rejected."""
    fresh: bool = False
    """Replace what is in the output folder."""
    reader: FormatOptions = field(default_factory=FormatOptions)
    inference: InferenceConfig = field(default_factory=InferenceConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the door and return its exit code."""
    return run_door("predict", PredictConfig, run, __doc__ or "", argv)


def run(config: PredictConfig) -> None:
    """Predict as configured."""
    raise_all(_find_problems(config))
    folder = prepare_output_dir(config.output_dir)
    staging = folder / ".partial"
    shutil.rmtree(staging, ignore_errors=True)  # what an interrupted job has left
    if any(folder.iterdir()) and not config.fresh:
        raise ConfigError(
            "the output folder is not empty",
            where=str(folder),
            rule="entities are written into a new or empty folder",
            value="a finished job" if (folder / SUCCESS_FILE).exists() else "files of something else",
            remedy="give another `--output_dir`, or replace what is there with `--fresh`",
        )
    check_replaceable(folder)
    find_all_files({"input": config.input})
    record = RunRecord("predict", config)
    info = load_bundle(str(config.model)).info
    reader = replace(
        config.reader,
        spans_column=NO_COLUMN,  # gold, if there is any, is none of this job's business
        tags_column=NO_COLUMN,
        extra_columns=tuple(name for name in config.keep if name not in ("text", "source")),
    )
    with connect(config.cluster):
        raw = read_raw({"input": config.input}, reader)
        with record.phase("check", "checking the documents"):
            ledger = summarize(raw).ledger
            ledger.check(config.max_bad_fraction)
            if not ledger.num_kept:
                raise CorpusError("the input holds no documents", where=" ".join(config.input))
        plan = plan_actors(config.inference, list_node_cpus(ray.nodes()), ray.cluster_resources().get("GPU", 0))
        labelled = predict_records(keep_records(raw), str(config.model), config.inference, plan, config.keep)
        with record.phase("predict", "labelling"):
            totals = _write(labelled, staging, config.format, ledger.num_kept)
    if totals["num_documents"] != ledger.num_kept:
        raise RuntimeError(f"{ledger.num_kept} documents were read but {totals['num_documents']} were labelled")
    for old in folder.iterdir():
        if old != staging:
            shutil.rmtree(old) if old.is_dir() else old.unlink()
    for made in staging.iterdir():
        made.rename(folder / made.name)
    staging.rmdir()
    ledger.write_parquet(folder / "ledger.parquet")
    record.write(folder, totals=totals)
    facts = {**totals, "num_rejected": ledger.counts().rejected, "model": config.model, "fingerprint": info.fingerprint}
    write_json(folder / SUCCESS_FILE, facts)
    _print_totals(totals, ledger.counts().rejected, folder, config)


def _write(labelled: ray.data.Dataset, staging: Path, file_format: str, num_expected: int) -> dict[str, Any]:
    """Write blocks as they come, in the order of the input, and add up what they hold."""
    from pyarrow.parquet import ParquetWriter
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    staging.mkdir(parents=True)
    totals: dict[str, Any] = {"num_documents": 0, "num_entities": 0, "entities": {}}
    totals |= dict.fromkeys(("num_characters", "num_tokens", "num_windows"), 0)
    path = staging / f"entities.{file_format}"
    writer: Any = None
    columns = (
        TextColumn("labelling"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("documents"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=progress_console, transient=True) as bar:
        task = bar.add_task("", total=num_expected)
        for batch in labelled.iter_batches(batch_size=None, batch_format="pyarrow"):
            if writer is None:
                writer = (
                    ParquetWriter(path, batch.schema, compression="zstd")
                    if file_format == "parquet"
                    else path.open("w", encoding="utf-8")
                )
            if file_format == "parquet":
                writer.write_table(batch.cast(writer.schema))
            else:
                writer.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in batch.to_pylist())
            _add_totals(totals, batch)
            bar.update(task, completed=totals["num_documents"])
    if writer is not None:
        writer.close()
    return totals


def _add_totals(totals: dict[str, Any], batch: pa.Table) -> None:
    totals["num_documents"] += batch.num_rows
    for name in ("num_characters", "num_tokens", "num_windows"):
        totals[name] += pc.sum(pc.struct_field(batch["coverage"], name)).as_py() or 0
    labels = pc.struct_field(pc.list_flatten(batch["entities"]), "label")
    totals["num_entities"] += len(labels)
    for row in pc.value_counts(labels).to_pylist():
        totals["entities"][row["values"]] = totals["entities"].get(row["values"], 0) + row["counts"]


def _print_totals(totals: dict[str, Any], num_rejected: int, folder: Path, config: PredictConfig) -> None:
    read = "{num_characters:,} characters, {num_tokens:,} sub-tokens in {num_windows:,} windows".format(**totals)
    console.print(f"[bold]{totals['num_documents']:,} documents[/] labelled, {num_rejected:,} rejected; {read}")
    for label, number in sorted(totals["entities"].items(), key=lambda item: -item[1]):
        console.print(escape(f"  {label:<12} {number:,}"))
    console.print(escape(f"\nentities: {folder / f'entities.{config.format}'}"))


def _find_problems(config: PredictConfig) -> list[UserError]:
    problems: list[UserError] = []
    if not config.model:
        problems.append(ConfigError("no model is given", remedy="`--model out/run/bundle`"))
    if not config.input:
        problems.append(ConfigError("no input is given", remedy="`--input 'docs/*.jsonl'`"))
    if config.format not in FORMATS:
        rule = "one of " + ", ".join(FORMATS)
        problems.append(ConfigError("no such output format", where="`format`", rule=rule, value=config.format))
    reserved = {"doc_id", "entities", "coverage"} & set(config.keep)
    if reserved:
        problems.append(
            CorpusError("`keep` names columns that the output has anyway", value=", ".join(sorted(reserved)))
        )
    return problems + config.inference.find_problems()


if __name__ == "__main__":
    sys.exit(main())
