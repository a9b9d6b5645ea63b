"""What doors ask the planner, and what they do with its answer: settings of a run, and a comparison at its end."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from rich.markup import escape

from pipelines.corpus.inference import ActorResources, InferenceConfig
from pipelines.corpus.shards import ShardsInfo
from pipelines.job import progress_console
from pipelines.ner.errors import UserError
from pipelines.planning.architecture import read_architecture
from pipelines.planning.candidates import DEVICE_BATCH_TOKENS, TrainingRequest
from pipelines.planning.cost import Lengths, TrainingSetup
from pipelines.planning.inventory import read_running_cluster, request_nodes
from pipelines.planning.plans import Limits, Plan, render_seconds, render_short
from pipelines.planning.pools import InferenceRequest
from pipelines.planning.training_plans import plan_training
from pipelines.training.config import TrainingConfig
from pipelines.training.parallel import ParallelConfig
from pipelines.training.trainer import ResourcesConfig

MIB = 2**20


def build_training_request(
    training: TrainingConfig, parallel: ParallelConfig, resources: ResourcesConfig, *, head: str, num_tags: int
) -> TrainingRequest:
    """What the settings leave to the planner. A setting at its default is the planner's to choose."""
    adversarial, default = training.adversarial, ParallelConfig()
    setup = TrainingSetup(
        strategy=parallel.strategy,
        inside=parallel.inside,
        inside_size=parallel.inside_size,
        sync_every=parallel.sync_every,
        micro_batches=parallel.micro_batches,
        gradient_compression=parallel.gradient_compression,
        gradient_checkpointing=parallel.gradient_checkpointing,
        cpu_offload=parallel.cpu_offload,
        head=head,
        num_tags=num_tags,
        sparse_embeddings=training.optimizer.sparse_embeddings,
        num_passes={"none": 1, "pgd": 1 + adversarial.steps}.get(adversarial.method, 2),
        num_copies=2 if training.r_drop else 1,
        dropout_samples=training.dropout_samples,
        has_average=training.averaging.method != "none",
        num_epochs=training.num_epochs,
    )
    is_default = training.device_batch_tokens == DEVICE_BATCH_TOKENS
    # what only ddp can do settles the strategy, too
    needs_ddp = parallel.gradient_compression != "none" or adversarial.method != "none"
    return TrainingRequest(
        setup=setup,
        batch_tokens=training.batch_tokens,
        device_batch_tokens=None if is_default else training.device_batch_tokens,
        precision=training.precision,
        num_workers=resources.read_num_workers(),
        cpus_per_worker=resources.cpus_per_worker,
        use_gpu=resources.use_gpu,
        accelerator=resources.accelerator,
        strategy=None if parallel.strategy == default.strategy and not needs_ddp else parallel.strategy,
    )


def plan_run(
    encoder: str,
    info: ShardsInfo,
    training: TrainingConfig,
    parallel: ParallelConfig,
    resources: ResourcesConfig,
    *,
    head: str,
    is_private: bool,
) -> Plan | None:
    """The plan of a training on the connected cluster; None, with a warning, where the model cannot be reckoned.

    Raises PlanError for what can never fit. Asks the autoscaler for nodes that the plan needs.

    Args:
        is_private: the cluster was started for this run alone.
    """
    request = build_training_request(training, parallel, resources, head=head, num_tags=len(info.tags))
    try:
        architecture, lengths = read_architecture(encoder), read_lengths(info)
    except UserError as error:  # a model or corpus that the planner does not understand may well be trained
        _warn(f"no plan: {error.what}")
        return None
    if not lengths.num_tokens:
        return None
    inventory = read_running_cluster(is_private=is_private)
    unknown = [node.name for node in inventory.nodes if node.gpus and node.accelerator is None]
    if unknown and resources.use_gpu is not False:
        _warn("no plan: Ray does not tell the kind of GPU of this cluster")
        return None
    plan = plan_training(inventory, architecture, lengths, request, Limits())
    for line in render_short(plan).splitlines():
        progress_console.print(f"[dim]plan:[/] {escape(line)}")
    for warning in plan.warnings:
        _warn(warning)
    if plan.placement.added:
        request_nodes(plan.bundles_to_request)
    return plan


def read_lengths(info: ShardsInfo, split: str = "train") -> Lengths:
    """Lengths of the windows of a split of shards."""
    found = info.splits[split]
    return Lengths.from_records(
        found.token_histogram, window=info.window, stride=info.stride, num_tokens=found.num_tokens
    )


def apply_training_plan(
    plan: Plan, training: TrainingConfig, parallel: ParallelConfig, resources: ResourcesConfig
) -> tuple[TrainingConfig, ParallelConfig, ResourcesConfig]:
    """The settings with what was left to the planner filled in."""
    chosen = plan.settings
    return (
        replace(training, device_batch_tokens=chosen["device_batch_tokens"]),
        replace(
            parallel,
            strategy=chosen["strategy"],
            gradient_checkpointing=chosen["gradient_checkpointing"],
            cpu_offload=chosen["cpu_offload"],
        ),
        replace(
            resources,
            num_workers=chosen["num_workers"],
            cpus_per_worker=chosen["cpus_per_worker"],
            use_gpu=chosen["use_gpu"],
            accelerator=chosen["accelerator"],
        ),
    )


def compare_training(plan: Plan, usage: Mapping[str, Any], num_steps: int) -> dict[str, dict[str, float]]:
    """Predicted against measured: seconds of a step, memory of a worker in MiB, sub-tokens per second."""
    measured_mib = usage["gpu_peak_memory_mib"] or usage["worker_peak_memory_mib"]
    pairs = {
        "step_s": (plan.predicted.get("step_s"), usage["step_s"] / num_steps if num_steps else None),
        "memory_mib": (plan.memory and plan.memory.total / MIB, measured_mib),
        "tokens_per_s": (plan.predicted.get("tokens_per_s"), usage["tokens_per_s"]),
    }
    return {
        name: {
            "predicted": float(f"{predicted:.5g}"),
            "measured": float(f"{measured:.5g}"),
            "ratio": round(measured / predicted, 3),
        }
        for name, (predicted, measured) in pairs.items()
        if predicted and measured
    }


def describe_comparison(compared: Mapping[str, Mapping[str, float]]) -> dict[str, str]:
    """The comparison as facts of a report."""
    names = {"step_s": "a step", "memory_mib": "memory of a worker", "tokens_per_s": "sub-tokens per second"}
    return {
        names[key]: f"predicted {_render(key, one['predicted'])}, measured {_render(key, one['measured'])}"
        for key, one in compared.items()
    }


def _render(key: str, value: float) -> str:
    if key == "step_s":
        return render_seconds(value)
    return f"{value:,.0f} MiB" if key == "memory_mib" else f"{value:,.0f}"


def build_inference_request(
    resources: ActorResources, inference: InferenceConfig, num_tags: int = 9
) -> InferenceRequest:
    """What the settings of labelling leave to the planner."""
    return InferenceRequest(
        num_actors=resources.num_actors,
        cpus_per_actor=resources.cpus_per_actor,
        gpus_per_actor=0.0 if inference.device == "cpu" else resources.gpus_per_actor,
        precision=inference.precision,
        max_batch_tokens=inference.max_batch_tokens,
        num_tags=num_tags,
    )


def _warn(text: str) -> None:
    progress_console.print(f"[yellow]![/] {escape(text)}")
