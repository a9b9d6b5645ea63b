"""Search for better settings of training: trials side by side, the leaders repeated, the best as a bundle and a preset.

Says what may differ with `--space.SETTING`, for any dotted setting of `rayner train`, as values or as a range:
`--space.model.head linear crf --space.training.optimizer.learning_rate 'loguniform(5e-5, 5e-4)'`; or takes a preset,
`--config quick` or `--config thorough`. The same command goes on where it was, and more trials add to those done.
"""

import json
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import ray
from rich.markup import escape

from pipelines.cluster import ClusterConfig, connect, find_address
from pipelines.corpus.config import CorpusConfig
from pipelines.corpus.identity import identify_corpus
from pipelines.corpus.inference import InferenceConfig
from pipelines.corpus.reading import find_all_files
from pipelines.evaluation.card import write_card
from pipelines.evaluation.report import EvaluationReport
from pipelines.folders import check_resumable, lock_folder, prepare_output_dir
from pipelines.job import console, render_next, run_door, warn_of_idle
from pipelines.ner.bundle import annotate_bundle
from pipelines.ner.encoding import EncodingConfig
from pipelines.ner.errors import UserError, raise_all
from pipelines.ner.model import ModelConfig
from pipelines.planning.architecture import read_architecture
from pipelines.planning.cost import count_parameters
from pipelines.planning.inventory import Inventory
from pipelines.planning.running_cluster import read_running_cluster
from pipelines.replacement import check_inputs_stay, discard
from pipelines.resources import TrainSettings, plan_search
from pipelines.run_record import RunRecord
from pipelines.runs import SHARDS_FOLDER, build_guard, score_test_split, write_bundle
from pipelines.search_results import BegunSearch, write_results
from pipelines.search_view import SearchView
from pipelines.terminal import print_shards
from pipelines.training.config import TrainingConfig
from pipelines.training.history import read_metrics, summarize_usage
from pipelines.training.job import load_result
from pipelines.training.parallel import ParallelConfig
from pipelines.training.recorder import METRICS_FILE
from pipelines.training.resources import ResourcesConfig
from pipelines.training.strategies import find_idle_alone
from pipelines.trial_jobs import Prepared, Recipe, TrialJobs, list_encodings, prepare_encodings, read_base_values
from pipelines.tuning.budget import Budget, find_hopeless
from pipelines.tuning.config import SearchConfig
from pipelines.tuning.leaders import Leader
from pipelines.tuning.rounds import Rounds
from pipelines.tuning.schedulers import check_population
from pipelines.tuning.slots import Growth, Slots, plan_slots
from pipelines.tuning.space import Space, check_ends, parse_space, resolve_space
from pipelines.tuning.trials import Journal, Trial

IDENTITY = ("corpus", "model", "encoding", "training", "parallel", "space")
"""The settings that make trials comparable; and of `search` those that say how they are drawn and stopped."""
SEARCH_IDENTITY = ("sampler", "scheduler", "grace_epochs", "reduction_factor", "cost", "seed")


@dataclass(frozen=True)
class TuneConfig:
    """Settings of `rayner tune`."""

    corpus: CorpusConfig = field(default_factory=CorpusConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    encoding: EncodingConfig = field(default_factory=EncodingConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    space: dict[str, list[str]] = field(default_factory=dict)
    """What may differ: `--space.SETTING` with values to choose from, or one of `uniform(low, high)`, `loguniform`,
    `randint`, `lograndint`, `times` (factors of the recipe's own value). In YAML also nested."""
    search: SearchConfig = field(default_factory=SearchConfig)
    resources: ResourcesConfig = field(default_factory=ResourcesConfig)
    inference: InferenceConfig = field(default_factory=InferenceConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    output_dir: str = "out/tuning"
    """The bundle, the preset `best.yaml`, the report, and a folder of each trial. On a cluster of several machines, one
    that all see."""
    fresh: bool = False
    """Start over, removing what an earlier search left in the output folder."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the door and return its exit code."""
    return run_door("tune", TuneConfig, run, __doc__ or "", argv)


def run(config: TuneConfig) -> None:
    """Search as configured, or go on with the search that is in the output folder."""
    recipe = Recipe(config.corpus, config.model, config.encoding, config.training, config.parallel)
    space = _check(config, recipe)
    folder = prepare_output_dir(config.output_dir)
    with lock_folder(folder):
        _run(config, recipe, space, folder)


def _run(config: TuneConfig, recipe: Recipe, space: Space, folder: Path) -> None:
    """Search, or go on, in a folder that is ours."""
    search = asdict(config.search)
    settings = {name: value for name, value in asdict(config).items() if name in IDENTITY}
    settings["search"] = {name: search[name] for name in SEARCH_IDENTITY}
    check_inputs_stay(folder, config)
    is_done = check_resumable(folder, settings, config.fresh, identify_corpus(config.corpus))
    if is_done and _read_search(folder) == search:
        console.print(f"this search is finished: {escape(str(folder / 'best.yaml'))}; [bold]--fresh[/] starts it over")
        return
    warn_of_idle(config.corpus.find_idle() + config.search.find_idle() + _find_idle(config))
    record = RunRecord("tune", config)
    can_forget = build_guard(folder)
    with can_forget():
        find_all_files(config.corpus.list_patterns())
        budget = Budget(folder, config.search.limit_s)
        trials = Journal(folder / "trials").read_all()
        hopeless = find_hopeless(budget, trials, is_population=config.search.sampler == "pbt")
        raise_all([hopeless] if hopeless else [])
    with connect(config.cluster):
        record.data["inventory"] = ray.cluster_resources()
        with can_forget():
            begun = _begin(config, recipe, space, folder, budget, record)
        leaders, run_folder = _search(config, begun, folder, record)
        report = _make_bundle(config, begun, leaders[0], run_folder, folder / "bundle", record)
        budget.save(now=True)
    write_results(config.search, begun, leaders, report, folder, record.data["phases_s"])
    record.write(
        folder,
        status="done",
        scores={
            "strict_micro_f1": report.to_dict()["strict"]["micro"]["f1"],
            "dev_strict_micro_f1": leaders[0].best_run.f1,
        },
        winner=leaders[0].to_dict(),
    )
    for name, path in (("bundle", "bundle"), ("preset", "best.yaml"), ("report", "report.html")):
        console.print(escape(f"{name}: {folder / path}"))
    console.print(render_next(f"rayner train --config {folder / 'best.yaml'} --output_dir out/best"))


def _begin(
    config: TuneConfig, recipe: Recipe, space: Space, folder: Path, budget: Budget, record: RunRecord
) -> BegunSearch:
    """Prepare the corpus for every encoding in the space. Raises UserError for what cannot be searched here."""
    inventory = read_running_cluster(is_private=find_address(config.cluster) is None)
    growth = _list_growth(inventory)
    slots = plan_slots(config.search, config.resources, config.search.num_trials, growth)  # raises if there is no room
    prepared, is_new = prepare_encodings(list_encodings(recipe, space), folder / SHARDS_FOLDER, record)
    base = prepared[recipe.identify_encoding()]
    base_values = read_base_values(recipe, space, base.encoder)
    space = resolve_space(space, base_values)
    check_ends(space, recipe, Recipe.find_problems)
    if is_new:
        print_shards(base.info, base.shards)
    warn_of_idle(base.info.describe_lack_of_gold())
    if config.resources.auto:
        slots = _follow_plan(config, list(prepared.values()), inventory, growth) or slots
    if config.search.sampler == "pbt" and slots.must_count and slots.concurrent < config.search.num_trials:
        warn_of_idle(
            [f"{slots.concurrent} members at a time: Ray Tune asks for the places of all of them at once here"]
        )
    warn_of_idle(find_idle_alone(config.parallel, slots.num_workers))
    jobs = TrialJobs(recipe, prepared, slots.num_workers, slots.gpus > 0)
    num_epochs = _find_most_epochs(config, space)
    resources = _plan_resources(config, slots)
    rounds = Rounds(folder, config.search, space, num_epochs, jobs, slots, resources, budget, base_values)
    return BegunSearch(base, base_values, space, jobs, slots, budget, rounds)


def _search(config: TuneConfig, begun: BegunSearch, folder: Path, record: RunRecord) -> tuple[list[Leader], Path]:
    """The leaders, the best one first, and the run folder of its best run, with its weights."""
    rounds, seed = begun.rounds, config.training.seed
    console.print(f"plan: {escape(begun.slots.describe())}; {escape(_describe_budget(config.search))}")
    with record.phase("search", "searching"), SearchView(config.search.num_trials) as view:

        def tell(trial: Trial, event: str) -> None:
            view.tell(trial, event)
            if event == "epoch":
                discard(folder)

        rounds.search(seed, tell)
    with record.phase("leaders", "repeating the leaders"), SearchView(len(rounds.list_repeats(seed))) as view:
        leaders = rounds.repeat_leaders(seed, view.tell)
        return leaders, rounds.ensure_weights(leaders[0], view.tell)


def _make_bundle(
    config: TuneConfig, begun: BegunSearch, winner: Leader, run_folder: Path, bundle: Path, record: RunRecord
) -> EvaluationReport:
    """Write the winner's bundle, and score it on the test split."""
    found = begun.jobs.find_prepared(begun.jobs.apply(winner.settings, winner.best_run.seed))
    with record.phase("bundle", "writing the bundle"):
        result = load_result(run_folder, must_be_done=False)
        usage = summarize_usage(read_metrics(run_folder / METRICS_FILE))
        job = begun.jobs(winner.settings, winner.best_run.seed)
        write_bundle(bundle, job, found.info, result, found.shards, usage["precision"])
    with record.phase("evaluate", "scoring the test split"):
        report, _ = score_test_split(bundle, found.shards, found.info, config.inference)
    scores = report.to_dict()
    strict, intervals = scores["strict"]["micro"], scores["intervals"]["strict"]["micro"]
    annotate_bundle(bundle, {"test_strict_micro": strict, "test_intervals": intervals})
    write_card(bundle, asdict(found.info), usage, scores, datasets=config.corpus.find_datasets(), hub_id=None)
    return report


def _check(config: TuneConfig, recipe: Recipe) -> Space:
    """The space. Raises every mistake that can be told before anything is begun."""
    low, _ = config.resources.read_num_workers() or (1, 1)
    problems = [
        *config.corpus.find_problems(),
        *recipe.find_problems(),
        *config.resources.find_problems(config.parallel.strategy),
        *config.inference.find_problems(),
        *config.search.find_problems(low),
        *config.cluster.find_problems(),
    ]
    space: Space = {}
    try:
        space = parse_space(config.space, config)
        check_ends(space, recipe, Recipe.find_problems)
        list_encodings(recipe, space)
        resolve_space(space, read_base_values(recipe, space, None))
        if config.search.sampler == "pbt":
            problems += check_population(space)
    except UserError as error:
        problems += getattr(error, "errors", [error])
    raise_all(list({str(one): one for one in problems}.values()))  # augmentation is of the corpus, and of the recipe
    return space


def _find_idle(config: TuneConfig) -> list[str]:
    resources, search = config.resources, config.search
    idle = config.inference.find_idle() + resources.find_idle()
    low, high = resources.read_num_workers() or (1, 1)
    if low != high:
        idle.append(
            f"the upper end of `resources.num_workers` {low}..{high} has no effect: trials have {low} each, to compare"
        )
    if resources.cpus_per_worker is not None and search.cpus_per_trial not in (None, resources.cpus_per_worker):
        idle.append(f"`resources.cpus_per_worker` has no effect: `search.cpus_per_trial` is {search.cpus_per_trial}")
    gpus = search.gpus_per_trial
    if gpus is not None and resources.use_gpu is not None and resources.use_gpu != (gpus > 0):
        idle.append(f"`resources.use_gpu` has no effect: `search.gpus_per_trial` is {gpus:g}")
    return idle


def _list_growth(inventory: Inventory) -> Growth | None:
    """The nodes that may come; None if none do."""
    if not inventory.may_grow:
        return None
    growth: list[tuple[dict[str, float], int]] = []
    left = sys.maxsize if inventory.most_added is None else inventory.most_added
    for group in sorted(inventory.groups, key=lambda group: (-group.node.gpus, -group.node.cpus)):
        kind = {f"accelerator_type:{group.node.accelerator}": 1.0} if group.node.accelerator else {}
        growth.append(({"CPU": group.node.cpus, "GPU": float(group.node.gpus), **kind}, min(group.max_count, left)))
        left -= growth[-1][1]
    return growth


def _follow_plan(
    config: TuneConfig, prepared: Sequence[Prepared], inventory: Inventory, growth: Growth | None
) -> Slots | None:
    """Places as the planner has them, where it knows encoders and devices: those of the largest encoder.

    What is given, it keeps.
    """
    search, resources = config.search, config.resources
    if search.cpus_per_trial:
        resources = replace(resources, cpus_per_worker=search.cpus_per_trial)
    if search.gpus_per_trial is not None:
        resources = replace(resources, use_gpu=search.gpus_per_trial > 0)
    largest = max(prepared, key=lambda one: (_count_parameters(one), one.info.window))
    plan = plan_search(
        TrainSettings(config.model, config.training, config.parallel, resources),
        largest.encoder,
        largest.info,
        inventory,
        num_trials=search.num_trials,
        gpus_per_trial=search.gpus_per_trial,
        max_concurrent=search.max_concurrent,
    )
    if plan is None:
        return None
    chosen = plan.settings
    search = replace(
        search,
        cpus_per_trial=max(1, int(chosen["cpus_per_worker"])),
        gpus_per_trial=float(chosen["gpus_per_worker"]),
        max_concurrent=chosen["max_concurrent_trials"],
    )
    kind = chosen["accelerator"] if len(inventory.list_accelerators()) > 1 else config.resources.accelerator
    return plan_slots(search, replace(config.resources, accelerator=kind), search.num_trials, growth)


def _count_parameters(prepared: Prepared) -> float:
    try:
        return count_parameters(read_architecture(prepared.encoder), len(prepared.info.tags))
    except UserError:  # of a kind that the planner does not know: nothing can be planned for it
        return math.inf


def _plan_resources(config: TuneConfig, slots: Slots) -> ResourcesConfig:
    """What each trial's training takes."""
    return ResourcesConfig(
        num_workers=slots.num_workers,
        cpus_per_worker=slots.cpus,
        use_gpu=slots.gpus > 0,
        accelerator=slots.accelerator if slots.gpus else None,
        storage_patience_s=config.resources.storage_patience_s,
    )


def _find_most_epochs(config: TuneConfig, space: Space) -> int:
    domain = space.get("training.num_epochs")
    ends = [end for end in domain.list_ends() if isinstance(end, int)] if domain else []
    return max([config.training.num_epochs, *ends])


def _read_search(folder: Path) -> Any:
    """The settings of the search that a finished run was made with."""
    return json.loads((folder / "tuning.json").read_text(encoding="utf-8"))["search"]


def _describe_budget(search: SearchConfig) -> str:
    trials = f"trials: {search.num_trials}, leaders: {search.num_leaders}, seeds of each: {search.num_seeds}"
    return trials if search.limit_s is None else f"{trials}, within {search.limit_s:,.0f} s"


if __name__ == "__main__":
    sys.exit(main())
