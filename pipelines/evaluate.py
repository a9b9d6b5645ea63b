"""Score a model against gold: strict and lenient F1 with intervals, and a report that shows the errors."""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray
from rich.markup import escape

from pipelines.cluster import ClusterConfig, connect, list_node_cpus
from pipelines.corpus.config import CorpusConfig
from pipelines.corpus.formats.options import FormatOptions
from pipelines.corpus.inference import (
    BATCH_RECORDS,
    ActorResources,
    InferenceConfig,
    plan_actors,
    predict_records,
    predict_table,
)
from pipelines.corpus.reading import find_all_files, finish_records, read_corpus
from pipelines.evaluation.comparison import compare
from pipelines.evaluation.report import EvaluationReport
from pipelines.folders import check_own, lock_folder, prepare_output_dir
from pipelines.job import console, render_next, run_door, warn_of_idle
from pipelines.ner.bundle import Bundle, hash_mention, load_bundle
from pipelines.ner.encoders import locate_model
from pipelines.ner.errors import UserError, raise_all
from pipelines.run_record import RunRecord
from pipelines.settings import ConfigError
from pipelines.terminal import print_comparison, print_scores


@dataclass(frozen=True)
class EvaluateConfig:
    """Settings of `rayner evaluate`."""

    model: str | None = None
    """A bundle folder, a Hugging Face token-classification checkpoint folder, or a hub id."""
    compare_to: str | None = None
    """Another model, scored on the same corpus: by how much strict F1 differs, overall and by label."""
    corpus: list[str] = field(default_factory=list)
    """Annotated files: paths, globs, folders (also of `save_to_disk`), `s3://bucket/…` and the like, `hf:name:split`,
    `sample:en-test.jsonl`."""
    output_dir: str = "out/eval"
    """Where the report goes."""
    scheme: str = "auto"
    """Tag scheme of the files, as `rayner train --corpus.scheme`."""
    max_bad_fraction: float = 0.01
    """Stop if more than this share of the records has to be rejected."""
    reader: FormatOptions = field(default_factory=FormatOptions)
    inference: InferenceConfig = field(default_factory=InferenceConfig)
    resources: ActorResources = field(default_factory=lambda: ActorResources(auto=False))
    cluster: ClusterConfig = field(default_factory=ClusterConfig)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the door and return its exit code."""
    return run_door("evaluate", EvaluateConfig, run, __doc__ or "", argv)


def run(config: EvaluateConfig) -> None:
    """Evaluate as configured."""
    raise_all(_find_problems(config))
    folder = prepare_output_dir(config.output_dir)
    with lock_folder(folder):
        check_own(folder, "evaluate")
        _run(config, folder)


def _run(config: EvaluateConfig, folder: Path) -> None:
    """Evaluate into a folder that is ours."""
    find_all_files({"test": config.corpus})
    names = [str(config.model), *([config.compare_to] if config.compare_to else [])]
    idle = config.reader.find_idle() + config.inference.find_idle(*names)
    if config.resources.auto:
        idle.append("`resources.auto` has no effect: a corpus is labelled with as many actors as there is room for")
    warn_of_idle(idle)
    record = RunRecord("evaluate", config)
    bundle, *others = [load_bundle(name, scheme=config.inference.scheme) for name in names]
    with connect(config.cluster):
        with record.phase("read", "reading the corpus"):
            corpus = read_corpus(
                {"test": config.corpus}, config.reader, scheme=config.scheme, max_bad_fraction=config.max_bad_fraction
            )
        labels = corpus.labels.get("test", set())
        unknown = [_find_unknown(*one, labels) for one in zip(names, (bundle, *others), strict=True)]
        corpus.summary.ledger.write_parquet(folder / "ledger.parquet")
        with record.phase("predict", "predicting and scoring"):
            started = time.monotonic()
            finished = corpus.records.map_batches(
                finish_records, fn_kwargs={"scheme": corpus.scheme}, batch_size=None, batch_format="pyarrow"
            )
            plan = plan_actors(config.resources, list_node_cpus(ray.nodes()), ray.cluster_resources().get("GPU", 0))
            records: Any = finished
            if sum(corpus.num_records.values()) <= BATCH_RECORDS:
                records = pa.concat_tables(finished.iter_batches(batch_size=None, batch_format="pyarrow"))
            models = [(locate_model(name), config.inference, plan) for name in names]
            report = _score(records, models[0], bundle.seen_mentions, corpus.scheme)
            for other in models[1:]:
                compared = _score(records, other, frozenset(), corpus.scheme)
                report.comparison = compare(report.documents, compared.documents, str(config.compare_to))
    facts = {
        "model": config.model,
        "fingerprint": bundle.info.fingerprint or "none (a foreign checkpoint)",
        "corpus": " ".join(config.corpus),
        "tag scheme of the corpus": corpus.scheme,
        "records rejected": corpus.summary.ledger.counts().rejected,
        "seconds": round(time.monotonic() - started, 1),
    }
    for who, missing in zip(("the model", f"`{config.compare_to}`"), unknown, strict=False):
        if missing:
            facts[f"labels {who} does not know"] = ", ".join(sorted(missing))
            told = escape(f"{who} does not know {', '.join(sorted(missing))}")
            console.print(f"[yellow]{told}: all of them count as missed[/]")
    result = report.to_dict()
    paths = report.write(folder, f"Evaluation of {config.model}", facts)
    record.write(folder, scores={"strict_micro_f1": result["strict"]["micro"]["f1"]})
    print_scores(result, "scores")
    if report.comparison:
        print_comparison(report.comparison)
    console.print(escape(f"\nreport: {paths['report.html']}"))
    console.print(
        render_next(f"rayner predict --model {config.model} --input YOUR_TEXTS.txt --output_dir out/entities")
    )


def _find_unknown(name: str, bundle: Bundle, labels: set[str]) -> set[str]:
    """The corpus's labels that a model does not know; one that knows none is refused."""
    unknown = labels - set(bundle.model.scheme.labels)
    if unknown and not unknown < labels:
        raise ConfigError(
            f"the model `{name}` knows none of the corpus's labels",
            rule="labels of the model: " + ", ".join(bundle.model.scheme.labels),
            value="labels of the corpus: " + ", ".join(sorted(unknown)),
            remedy="evaluate on a corpus annotated with the model's labels",
        )
    return unknown


def _score(records: Any, model: tuple[Any, ...], seen: frozenset[int], scheme: str) -> EvaluationReport:
    """The report on what a model, with its settings and actors, predicts of a table or a dataset."""
    report = EvaluationReport((lambda mention, label: hash_mention(mention, label) in seen) if seen else None)
    if isinstance(records, pa.Table):
        batches = iter(predict_table(records, *model).to_batches())
    else:
        batches = predict_records(records, *model).iter_batches(batch_size=None, batch_format="pyarrow")
    for batch in batches:
        report.add_rows(batch.to_pylist(), scheme)
    return report


def _find_problems(config: EvaluateConfig) -> list[UserError]:
    problems: list[UserError] = []
    if not config.model:
        problems.append(ConfigError("no model is given", remedy="`--model out/run/bundle`"))
    if not config.corpus:
        problems.append(
            ConfigError("no corpus is given", remedy="`--corpus FILE`, e.g. `--corpus sample:en-test.jsonl`")
        )
    checked = CorpusConfig(train=["-"], scheme=config.scheme, max_bad_fraction=config.max_bad_fraction)
    problems += [_rename(problem) for problem in checked.find_problems()]
    problems += config.inference.find_problems() + config.resources.find_problems()
    return problems + config.cluster.find_problems()


def _rename(problem: UserError) -> UserError:
    """Told of the setting as it is called here: outside of `corpus`, which are the files."""
    where = problem.where and problem.where.replace("`corpus.", "`")
    return type(problem)(problem.what, where=where, rule=problem.rule, value=problem.value, remedy=problem.remedy)


if __name__ == "__main__":
    sys.exit(main())
