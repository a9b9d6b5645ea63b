"""Fine-tune a token classifier on an annotated corpus, score it on untouched gold, and write a bundle.

The main job: corpus files in (or shards from `rayner prepare`); a model, its scores with intervals, and a report with
its errors out. The same command resumes an interrupted run.
"""

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import ray
from rich.markup import escape

from pipelines.cluster import ClusterConfig, connect, find_address
from pipelines.comparison import compare_training, describe_comparison, learn_from_run
from pipelines.corpus.config import CorpusConfig
from pipelines.corpus.identity import identify_corpus
from pipelines.corpus.inference import InferenceConfig
from pipelines.corpus.reading import find_all_files
from pipelines.corpus.shards import ShardsInfo, find_shards_encoder
from pipelines.evaluation.card import write_card
from pipelines.evaluation.curves import render_curves_svg
from pipelines.folders import check_resumable, lock_folder, prepare_output_dir
from pipelines.hub import find_push_problems, push_bundle
from pipelines.job import console, progress_console, render_next, run_door, warn_of_idle
from pipelines.ner.bundle import annotate_bundle
from pipelines.ner.encoding import EncodingConfig
from pipelines.ner.errors import UserError, raise_all
from pipelines.ner.model import ModelConfig
from pipelines.planning.plans import Plan
from pipelines.planning.running_cluster import read_running_cluster
from pipelines.replacement import check_inputs_stay, discard_with_rows
from pipelines.resources import TrainSettings, apply_training_plan, plan_run
from pipelines.run_record import RunRecord
from pipelines.runs import (
    FREE,
    SHARDS_FOLDER,
    build_guard,
    build_job,
    check_encoder,
    get_shards,
    score_test_split,
    write_bundle,
)
from pipelines.terminal import describe_siblings, print_examples, print_scores, print_shards, watch_training
from pipelines.tracking import Tracking, TrackingConfig
from pipelines.training.config import TrainingConfig, find_contradictions, find_idle
from pipelines.training.history import MetricsTail, read_metrics, summarize_usage, trace_dev_f1, trace_loss
from pipelines.training.job import TrainingResult
from pipelines.training.parallel import ParallelConfig
from pipelines.training.recorder import METRICS_FILE
from pipelines.training.resources import ResourcesConfig, plan_workers
from pipelines.training.strategies import find_idle_alone, find_misfits
from pipelines.training.trainer import fit

IDENTITY = ("corpus", "model", "encoding", "training")
"""The settings that make a run what it is; the others, and those in `FREE`, may change when it is resumed."""


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
    with lock_folder(folder):
        _run(config, folder)


def _run(config: TrainConfig, folder: Path) -> None:
    """Train, or go on, in a folder that is ours."""
    settings = {name: value for name, value in asdict(config).items() if name in IDENTITY}
    check_inputs_stay(folder, config)
    if check_resumable(folder, settings, config.fresh, identify_corpus(config.corpus), FREE):
        console.print(f"this run is finished: {escape(str(folder / 'bundle'))}; [bold]--fresh[/] starts it over")
        _push(config, folder / "bundle")
        return
    idle = find_idle(config.training, config.parallel) + config.resources.find_idle() + config.inference.find_idle()
    warn_of_idle(config.corpus.find_idle() + config.tracking.find_idle() + idle)
    record = RunRecord("train", config)
    can_forget = build_guard(folder)
    with can_forget():  # what needs no cluster is told before one is started
        find_all_files(config.corpus.list_patterns())
        check_encoder(config.corpus, config.model, config.training, config.parallel)
        config.tracking.check_servers()
    with connect(config.cluster), Tracking(config.tracking, folder, asdict(config)) as tracking:
        record.data["inventory"] = ray.cluster_resources()
        with can_forget():
            inventory = read_running_cluster(is_private=find_address(config.cluster) is None)
            plan_workers(config.resources, may_grow=inventory.may_grow)  # want of room is told before reading
            shards, info, is_new = get_shards(
                config.corpus, config.encoding, config.model, config.training.seed, folder / SHARDS_FOLDER, record
            )
            if is_new:
                print_shards(info, shards)
            warn_of_idle(info.describe_lack_of_gold())
            encoder = find_shards_encoder(shards, info)
            given = TrainSettings(config.model, config.training, config.parallel, config.resources)
            plan = plan_run(given, encoder, info, inventory) if config.resources.auto else None
            training, parallel, resources = apply_training_plan(plan, given)
            scaling = plan_workers(resources, may_grow=inventory.may_grow)
            workers, dropout = scaling.max_workers, config.model.dropout
            raise_all(find_misfits(parallel, workers, scaling.use_gpu, encoder, training, dropout))
            warn_of_idle(find_idle_alone(parallel, scaling.max_workers))
        job = build_job(shards, info, encoder, config.model, training, parallel)
        read_rows = discard_with_rows(folder, MetricsTail(folder / METRICS_FILE).read)
        with can_forget():  # workers find mistakes, too
            tracking.start(folder / METRICS_FILE)
            with record.phase("train", "training"), watch_training(read_rows):
                result = fit(job, resources, folder, may_grow=inventory.may_grow)
        with record.phase("bundle", "writing the bundle"):
            bundle = folder / "bundle"
            precision = summarize_usage(read_metrics(folder / METRICS_FILE))["precision"]
            write_bundle(bundle, job, info, result, shards, precision)
        with record.phase("evaluate", "scoring the test split"):
            report, examples = score_test_split(bundle, shards, info, config.inference)
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


def _collect_facts(
    config: TrainConfig, info: ShardsInfo, result: TrainingResult, usage: dict[str, Any]
) -> dict[str, Any]:
    splits = {
        name: f"{split.num_records:,} records, {split.num_tokens:,} sub-tokens" for name, split in info.splits.items()
    }
    if info.augmentation:
        splits["train"] += f" {describe_siblings(info.augmentation)}"
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
    if (usage["num_workers"] or 1) == 1:
        return {}
    held, sent = (
        ", ".join(f"{name} {mib:,.1f} MiB" for name, mib in usage[part].items()) for part in ("state_mib", "sent_mib")
    )
    told = {"strategy": usage["strategy"], "a worker holds": held, "a worker sends in a step": sent or "nothing"}
    if usage["straggling"] is not None:
        told["slowest worker"] = f"{usage['straggling']:.2f} times the median one"
    return told


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
        *config.cluster.find_problems(),
    ]


if __name__ == "__main__":
    sys.exit(main())
