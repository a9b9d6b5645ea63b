"""Fine-tune a token classifier on an annotated corpus, score it on untouched gold, and write a bundle.

The main job: corpus files in (or shards from `rayner prepare`); a model, its scores with intervals, and a report with
its errors out. The same command resumes an interrupted run.
"""

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray
import ray.data
from rich.markup import escape

from pipelines.cluster import ClusterConfig, connect, find_address, list_node_cpus
from pipelines.corpus.config import CorpusConfig
from pipelines.corpus.inference import ActorResources, InferenceConfig, plan_actors, predict_records
from pipelines.corpus.reading import find_all_files
from pipelines.corpus.shards import (
    ShardsInfo,
    find_shards_encoder,
    hash_seen_mentions,
    read_rows,
    read_split,
    read_windows,
)
from pipelines.evaluation.card import write_card
from pipelines.evaluation.curves import render_curves_svg
from pipelines.evaluation.report import EvaluationReport
from pipelines.folders import check_resumable, prepare_output_dir
from pipelines.hub import find_push_problems, push_bundle
from pipelines.job import console, progress_console, render_next, run_door, warn_of_idle
from pipelines.ner.bundle import Bundle, BundleInfo, annotate_bundle, hash_mention, save_bundle
from pipelines.ner.encoding import EncodingConfig
from pipelines.ner.errors import UserError, raise_all
from pipelines.ner.model import ModelConfig
from pipelines.planning.inventory import read_running_cluster
from pipelines.planning.plans import Plan
from pipelines.resources import (
    TrainSettings,
    apply_training_plan,
    compare_training,
    describe_comparison,
    learn_from_run,
    plan_run,
)
from pipelines.run_record import RunRecord, read_versions
from pipelines.runs import build_guard, build_job, get_shards
from pipelines.terminal import print_examples, print_scores, print_shards, watch_training
from pipelines.tracking import Tracking, TrackingConfig
from pipelines.training.config import TrainingConfig, find_contradictions
from pipelines.training.history import MetricsTail, read_metrics, summarize_usage, trace_dev_f1, trace_loss
from pipelines.training.parallel import ParallelConfig
from pipelines.training.recorder import METRICS_FILE
from pipelines.training.resources import ResourcesConfig, plan_workers
from pipelines.training.strategies import find_misfits
from pipelines.training.trainer import TrainingJob, TrainingResult, fit

IDENTITY = ("corpus", "model", "encoding", "training")
"""The settings that make a run what it is; the others may change when it is resumed."""


@dataclass(frozen=True)
class TrainConfig:
    """Settings of `rayner train`."""

    corpus: CorpusConfig = field(default_factory=CorpusConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    encoding: EncodingConfig = field(default_factory=EncodingConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    resources: ResourcesConfig = field(default_factory=ResourcesConfig)
    inference: InferenceConfig = field(default_factory=InferenceConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    output_dir: str = "out/run"
    """The run folder: bundle, report, metrics, checkpoints. On a cluster of several machines, one that all see."""
    push_to_hub: str | None = None
    """Upload the bundle to the Hugging Face hub as this `user/name`, with the login of `hf auth login` or HF_TOKEN."""
    push_private: bool = False
    """Make the repository on the hub a private one."""
    fresh: bool = False
    """Start over, removing what an earlier run left in the output folder."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the door and return its exit code."""
    return run_door("train", TrainConfig, run, __doc__ or "", argv)


def run(config: TrainConfig) -> None:
    """Train as configured, or go on with the run that is in the output folder."""
    raise_all(_find_problems(config))
    folder = prepare_output_dir(config.output_dir)
    settings = {name: value for name, value in asdict(config).items() if name in IDENTITY}
    if check_resumable(folder, settings, config.fresh):
        console.print(f"this run is finished: {escape(str(folder / 'bundle'))}; [bold]--fresh[/] starts it over")
        _push(config, folder / "bundle")
        return
    warn_of_idle(config.corpus.find_idle() + config.tracking.find_idle())
    record = RunRecord("train", config)
    can_forget = build_guard(folder)
    with can_forget():  # what needs no cluster is told before one is started
        find_all_files(config.corpus.list_patterns())
        config.tracking.check_servers()
    with connect(config.cluster), Tracking(config.tracking, folder, asdict(config)) as tracking:
        record.data["inventory"] = ray.cluster_resources()
        with can_forget():
            inventory = read_running_cluster(is_private=find_address(config.cluster) is None)
            plan_workers(config.resources, may_grow=inventory.may_grow)  # want of room is told before reading
            shards, info = get_shards(config, folder, record, print_shards)
            encoder = find_shards_encoder(shards, info)
            given = TrainSettings(config.model, config.training, config.parallel, config.resources)
            plan = plan_run(given, encoder, info, inventory) if config.resources.auto else None
            training, parallel, resources = apply_training_plan(plan, given)
            scaling = plan_workers(resources, may_grow=inventory.may_grow)
            raise_all(find_misfits(parallel, scaling.max_workers, scaling.use_gpu, encoder))
        job = build_job(
            info,
            encoder,
            config.model,
            training,
            parallel,
            load_windows=partial(read_windows, shards),
            load_dev=partial(read_rows, shards, "dev"),
        )
        tracking.start(folder / METRICS_FILE)
        with record.phase("train", "training"), watch_training(MetricsTail(folder / METRICS_FILE).read):
            result = fit(job, resources, folder, may_grow=inventory.may_grow)
        with record.phase("bundle", "writing the bundle"):
            bundle = _write_bundle(config, job, info, result, shards, folder)
        with record.phase("evaluate", "scoring the test split"):
            report, examples = _evaluate(config, bundle, shards, info, folder)
        scores = report.to_dict()
        tracking.log_scores(scores, result.num_steps)
    strict, intervals = scores["strict"]["micro"], scores["intervals"]["strict"]["micro"]
    annotate_bundle(bundle, {"test_strict_micro": strict, "test_intervals": intervals})
    history = read_metrics(folder / METRICS_FILE)
    usage = summarize_usage(history)
    write_card(bundle, asdict(info), usage, scores, datasets=config.corpus.find_datasets(), hub_id=config.push_to_hub)
    compared = compare_training(plan, usage, history) if plan else {}
    if plan:
        learn_from_run(plan, compared)
    facts = _collect_facts(config, info, result, usage) | _describe_plan(plan, compared)
    paths = report.write(folder, f"Training of {folder.name}", facts, _render_curves(history))
    record.write(
        folder,
        status="done",
        shards=asdict(info),
        plan=plan and plan.to_dict(),
        predicted_and_measured=compared,
        seed=config.training.seed,
        training={name: value for name, value in vars(result).items() if name != "best_model"} | usage,
        scores={"strict_micro_f1": scores["strict"]["micro"]["f1"], "dev_strict_micro_f1": result.best_dev_f1},
    )
    print_scores(scores, "scores on the test split")
    print_examples(examples)
    console.print(escape(f"\nbundle: {bundle}\nreport: {paths['report.html']}"))
    console.print(render_next(f"rayner predict --model {bundle} --input YOUR_TEXTS.txt --output_dir out/entities"))
    _push(config, bundle)


def _push(config: TrainConfig, bundle: Path) -> None:
    if config.push_to_hub:
        with progress_console.status("uploading …"):
            url = push_bundle(bundle, config.push_to_hub, config.push_private)
        console.print(f"uploaded: {escape(url)}")


def _write_bundle(
    config: TrainConfig, job: TrainingJob, info: ShardsInfo, result: TrainingResult, shards: Path, folder: Path
) -> Path:
    model = job.build_model()
    model.load_state_dict(result.best_model)
    bundle = Bundle(
        model=model,
        encoder=job.build_encoder(),
        info=BundleInfo(
            scheme=job.scheme.name,
            head=config.model.head,
            splitter=job.splitter,
            window=job.window,
            stride=job.stride,
            precision=summarize_usage(read_metrics(folder / METRICS_FILE))["precision"],
            training={
                "encoder": info.encoder,
                "seed": config.training.seed,
                "num_steps": result.num_steps,
                "num_epochs": result.num_epochs,
                "best_epoch": result.best_epoch,
                "dev_strict_micro_f1": result.best_dev_f1,
                "train_records": info.splits["train"].num_records,
                "versions": read_versions(),
            },
        ),
        seen_mentions=hash_seen_mentions(shards),
    )
    save_bundle(folder / "bundle", bundle)
    return folder / "bundle"


def _evaluate(
    config: TrainConfig, bundle: Path, shards: Path, info: ShardsInfo, folder: Path
) -> tuple[EvaluationReport, list[dict[str, Any]]]:
    """The report on the test split, and a few predicted records to show."""
    seen = hash_seen_mentions(shards)
    report = EvaluationReport(lambda mention, label: hash_mention(mention, label) in seen)
    plan = plan_actors(ActorResources(), list_node_cpus(ray.nodes()), ray.cluster_resources().get("GPU", 0))
    test: pa.Table = read_split(shards, "test").sort_by("record_id")
    examples: list[dict[str, Any]] = []
    predicted = predict_records(ray.data.from_arrow(test), str(bundle), config.inference, plan)
    for batch in predicted.iter_batches(batch_size=None, batch_format="pyarrow"):
        rows = batch.to_pylist()
        report.add_rows(rows, info.corpus_scheme)
        examples += rows[: max(0, 20 - len(examples))]
    return report, examples


def _collect_facts(
    config: TrainConfig, info: ShardsInfo, result: TrainingResult, usage: dict[str, Any]
) -> dict[str, Any]:
    splits = {
        name: f"{split.num_records:,} records, {split.num_tokens:,} sub-tokens" for name, split in info.splits.items()
    }
    return {
        "model": {
            "encoder": info.encoder,
            "head": config.model.head,
            "best epoch": f"{result.best_epoch} of {result.num_epochs}",
            "dev strict F1": f"{result.best_dev_f1:.4f}",
        },
        "corpus": splits | {"scheme of the files": info.corpus_scheme, "window": info.window, "stride": info.stride},
        "training": {
            "steps": result.num_steps,
            "workers": usage["num_workers"],
            "precision": usage["precision"],
            "sub-tokens per second": f"{usage['tokens_per_s']:,.0f}",
            "time in steps": ", ".join(f"{name} {share:.0%}" for name, share in usage["shares"].items()),
            "peak memory of a worker": f"{usage['worker_peak_memory_mib']:,} MiB",
            **_describe_sharing(usage),
            "seed": config.training.seed,
        },
    }


def _describe_plan(plan: Plan | None, compared: dict[str, dict[str, float]]) -> dict[str, dict[str, str]]:
    """The plan and what became of it; nothing where nothing was planned."""
    if plan is None:
        return {}
    told = {"planned": plan.summary, "bottleneck": plan.bottleneck, "reckoned with": plan.rates_source}
    return {"plan": told | describe_comparison(compared)}


def _describe_sharing(usage: dict[str, Any]) -> dict[str, str]:
    """How several workers shared the work; nothing for one."""
    if usage["straggling"] is None:
        return {}
    held, sent = (
        ", ".join(f"{name} {mib:,.1f} MiB" for name, mib in usage[part].items()) for part in ("state_mib", "sent_mib")
    )
    return {
        "strategy": usage["strategy"],
        "a worker holds": held,
        "a worker sends in a step": sent or "nothing",
        "slowest worker": f"{usage['straggling']:.2f} times the median one",
    }


def _render_curves(rows: list[dict[str, Any]]) -> list[tuple[str, str]]:
    loss = render_curves_svg({"training loss": trace_loss(rows)}, "step", "nats per word", "Training loss")
    dev = render_curves_svg({"strict micro F1": trace_dev_f1(rows)}, "epoch", "F1", "Strict micro F1 on dev")
    return [("Loss", loss), ("Dev F1", dev)]


def _find_problems(config: TrainConfig) -> list[UserError]:
    return [
        *find_contradictions(config.model, config.training, config.parallel),
        *config.corpus.find_problems(),
        *config.model.find_problems(),
        *config.training.find_problems(),
        *config.parallel.find_problems(),
        *config.resources.find_problems(config.parallel.strategy),
        *config.inference.find_problems(),
        *config.tracking.find_problems(),
        *find_push_problems(config.push_to_hub, config.push_private),
    ]


if __name__ == "__main__":
    sys.exit(main())
