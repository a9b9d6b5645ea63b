"""What doors ask the planner, and what they do with its answer: settings of a run, and a comparison at its end."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from rich.markup import escape

from pipelines.corpus.inference import ActorPlan, ActorResources, InferenceConfig
from pipelines.corpus.shards import ShardsInfo
from pipelines.job import progress_console
from pipelines.ner.errors import UserError
from pipelines.ner.model import ModelConfig
from pipelines.planning.architecture import Architecture, read_architecture
from pipelines.planning.candidates import DEVICE_BATCH_TOKENS, TrainingRequest
from pipelines.planning.cost import TrainingSetup
from pipelines.planning.errors import PlanError
from pipelines.planning.inference_plans import plan_prediction, plan_serving
from pipelines.planning.inventory import Inventory
from pipelines.planning.lengths import Lengths
from pipelines.planning.plans import Limits, Plan, render_short
from pipelines.planning.pools import InferenceRequest
from pipelines.planning.rates import find_rates
from pipelines.planning.running_cluster import request_nodes
from pipelines.planning.training_plans import plan_training
from pipelines.planning.tuning_plans import TrialRequest, plan_tuning
from pipelines.training.config import TrainingConfig
from pipelines.training.parallel import ParallelConfig
from pipelines.training.resources import ResourcesConfig

REQUESTS = {32: 700, 128: 200, 256: 100}
"""Sub-tokens of what is asked, assumed: mostly sentences."""
WINDOW = 256
CHARACTERS_PER_TOKEN = 4
"""Of European text, and many tokenizers; documents are not read for their plan."""


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


@dataclass(frozen=True)
class TrainSettings:
    """The settings of a door that trains, as far as they cost something."""

    model: ModelConfig
    training: TrainingConfig
    parallel: ParallelConfig
    resources: ResourcesConfig

    def build_request(self, num_tags: int) -> TrainingRequest:
        """What they leave to the planner."""
        return build_training_request(
            self.training, self.parallel, self.resources, head=self.model.head, num_tags=num_tags
        )


def plan_run(config: TrainSettings, encoder: str, info: ShardsInfo, inventory: Inventory) -> Plan | None:
    """The plan of a training, told on stderr; None, with a warning, where the model or the GPUs cannot be reckoned.

    Raises PlanError for what can never fit. Asks the autoscaler for nodes that the plan needs and that are not there.
    """
    known = _read_known(encoder, info, inventory, config.resources)
    if known is None:
        return None
    return _settle(inventory, lambda: plan_training(inventory, *known, config.build_request(len(info.tags)), Limits()))


def plan_search(
    config: TrainSettings,
    encoder: str,
    info: ShardsInfo,
    inventory: Inventory,
    *,
    num_trials: int,
    gpus_per_trial: float | None = None,
    max_concurrent: int | None = None,
) -> Plan | None:
    """The plan of a search over trainings like this one, otherwise as `plan_run`; `config.resources` are a trial's."""
    known = _read_known(encoder, info, inventory, config.resources)
    if known is None:
        return None
    request = TrialRequest(config.build_request(len(info.tags)), num_trials, gpus_per_trial, max_concurrent)
    return _settle(inventory, lambda: plan_tuning(inventory, *known, request, Limits()))


def _read_known(
    encoder: str, info: ShardsInfo, inventory: Inventory, resources: ResourcesConfig
) -> tuple[Architecture, Lengths] | None:
    """What the planner needs to know; None, with a warning, if it does not."""
    try:
        architecture, lengths = read_architecture(encoder), read_lengths(info)
    except UserError as error:  # what the planner does not understand may well be trained
        _go_without(error.what)
        return None
    kinds = inventory.list_accelerators() if resources.use_gpu is not False else []
    try:
        for kind in kinds:
            find_rates(str(kind))
    except PlanError:
        _go_without(f"the speed of this kind of GPU is not known: {', '.join(map(str, kinds))}")
        return None
    return (architecture, lengths) if lengths.counts else None


def _settle(inventory: Inventory, make: Callable[[], Plan]) -> Plan | None:
    """The plan, told, and its nodes asked for; None where only an autoscaler knows whether there will be room."""
    try:
        plan = make()
    except PlanError as error:
        if inventory.may_grow and not inventory.groups:
            _go_without(f"{error.what}, and what the autoscaler may add is not known")
            return None
        raise
    tell_plan(plan)
    if plan.placement.added:
        request_nodes(plan.bundles_to_request)
    return plan


def tell_plan(plan: Plan) -> None:
    """Its short form, and its warnings, on stderr."""
    for line in render_short(plan).splitlines():
        progress_console.print(f"[dim]plan:[/] {escape(line)}")
    for warning in plan.warnings:
        progress_console.print(f"[yellow]![/] {escape(warning)}")


def _go_without(reason: str) -> None:
    progress_console.print(f"[yellow]![/] no plan: {escape(reason)}")


def read_lengths(info: ShardsInfo, split: str = "train") -> Lengths:
    """Lengths of the windows of a split of shards."""
    return Lengths.from_records(info.count_lengths(split), window=info.window, stride=info.stride)


def apply_training_plan(
    plan: Plan | None, config: TrainSettings
) -> tuple[TrainingConfig, ParallelConfig, ResourcesConfig]:
    """The settings, with what was left to the planner filled in."""
    if plan is None:
        return config.training, config.parallel, config.resources
    chosen = plan.settings
    names = ("num_workers", "cpus_per_worker", "use_gpu", "accelerator")
    return (
        replace(config.training, device_batch_tokens=chosen["device_batch_tokens"]),
        replace(
            config.parallel, **{name: chosen[name] for name in ("strategy", "gradient_checkpointing", "cpu_offload")}
        ),
        replace(config.resources, **{name: chosen[name] for name in names}),
    )


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


def plan_labelling(
    base: ActorPlan,
    model: str,
    resources: ActorResources,
    inference: InferenceConfig,
    inventory: Inventory,
    documents: tuple[int, int],
) -> tuple[ActorPlan, Plan | None]:
    """The pool of actors that the planner chooses instead of the default one; that one, where nothing can be reckoned.

    Raises PlanError for a share of a GPU, given by the user, in which the model has no room.

    Args:
        documents: how many there are, and their characters.
    """
    try:
        architecture = read_architecture(model)
        number, characters = documents
        length = max(1, round(characters / max(1, number) / CHARACTERS_PER_TOKEN))
        window = min(WINDOW, architecture.max_window or WINDOW)
        lengths = Lengths.from_records({str(length // 16 * 16): max(1, number)}, window=window, stride=window // 4)
        plan = plan_prediction(inventory, architecture, lengths, build_inference_request(resources, inference))
    except UserError as error:
        if isinstance(error, PlanError) and resources.gpus_per_actor:
            raise
        _go_without(error.what)
        return base, None
    tell_plan(plan)
    bundle = plan.placement.bundle
    cpus = max(1, int(bundle.cpus))
    return replace(base, num_actors=plan.placement.number, num_cpus=cpus, num_gpus=bundle.gpus), plan


def plan_endpoint(model: str, request: InferenceRequest, inventory: Inventory) -> Plan | None:
    """The plan of an endpoint's replicas, told on stderr; None, with a warning, where nothing can be reckoned.

    Raises PlanError for a share of a GPU, given by the user, in which the model has no room.
    """
    try:
        plan = plan_serving(inventory, read_architecture(model), Lengths.from_counts(REQUESTS), request)
    except UserError as error:
        if isinstance(error, PlanError) and request.gpus_per_actor:
            raise
        _go_without(error.what)
        return None
    tell_plan(plan)
    return plan
