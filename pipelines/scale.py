"""Measure what more workers bring: speed-up, efficiency, cost, memory and exchange of each strategy, and equal losses.

Trains for a few steps in every case, one after the other, and tells which strategy to take. The same command goes on
where it was, and more workers or strategies add to what is measured already.
"""

import math
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import ray
import ray.train
from rich.markup import escape

from pipelines.cluster import ClusterConfig, connect
from pipelines.corpus.config import CorpusConfig
from pipelines.corpus.identity import identify_corpus
from pipelines.corpus.reading import find_all_files
from pipelines.corpus.shards import ShardsInfo, find_shards_encoder, sample_windows
from pipelines.evaluation.scaling import ALONE, WARMUP_STEPS, Case, advise, choose_case, compare_cases, list_notes
from pipelines.evaluation.scaling_page import render_scaling_html, render_scaling_markdown
from pipelines.folders import SUCCESS_FILE, check_resumable, lock_folder, prepare_output_dir, write_json
from pipelines.job import console, progress_console, render_next, run_door, warn_of_idle
from pipelines.ner.encoding import EncodingConfig
from pipelines.ner.errors import UserError, UserErrors, find_wrong_values, raise_all
from pipelines.ner.model import ModelConfig
from pipelines.replacement import check_inputs_stay, discard
from pipelines.run_record import RunRecord
from pipelines.runs import SHARDS_FOLDER, build_guard, build_job, check_encoder, get_shards
from pipelines.settings import ConfigError
from pipelines.terminal import print_scaling
from pipelines.training.config import TrainingConfig, find_contradictions, find_idle
from pipelines.training.devices import DeviceMemoryError
from pipelines.training.history import read_metrics
from pipelines.training.job import TrainingJob
from pipelines.training.parallel import STRATEGIES, ParallelConfig
from pipelines.training.recorder import METRICS_FILE
from pipelines.training.resources import ResourcesConfig, list_cores, plan_workers
from pipelines.training.strategies import find_misfits, find_strategy
from pipelines.training.trainer import fit

IDENTITY = ("corpus", "model", "encoding", "training", "parallel", "num_steps", "use_gpu")
"""The settings that make cases comparable; the others may change from one call to the next."""
MIN_STEPS = 3 * WARMUP_STEPS
MIN_ROUNDS = 3
"""Of local_sgd, from one exchange to the next: the first one, in which workers are also measured, does not count."""


@dataclass(frozen=True)
class ScaleConfig:
    """Settings of `rayner scale`."""

    corpus: CorpusConfig = field(default_factory=CorpusConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    encoding: EncodingConfig = field(default_factory=EncodingConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    workers: list[int] = field(default_factory=lambda: [1, 2, 4])
    """Numbers of workers to measure; the smallest is what the others are compared with."""
    strategies: list[str] = field(default_factory=lambda: ["ddp"])
    """Strategies to measure, with `parallel`'s other settings: ddp, fsdp, tensor, pipeline, hybrid, local_sgd."""
    num_steps: int = 40
    """Steps of each case; the first few do not count."""
    growing_corpus: bool = True
    """Also measure several workers on a batch and a corpus that grow with them (weak scaling)."""
    cpus_per_worker: int | None = None
    """CPUs, and threads, of a worker, the same in all cases; default: its share of the cores with the most workers."""
    use_gpu: bool | None = None
    """Whether each worker has a GPU; default: if the cluster has one."""
    price_per_hour: float | None = None
    """Of one worker, in whatever currency: the report then tells what a million sub-tokens cost."""
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    output_dir: str = "out/scaling"
    """The report, and a folder of each case."""
    fresh: bool = False
    """Measure again what is measured already."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the door and return its exit code."""
    return run_door("scale", ScaleConfig, run, __doc__ or "", argv)


def run(config: ScaleConfig) -> None:
    """Measure as configured, and report."""
    raise_all(_find_problems(config))
    folder = prepare_output_dir(config.output_dir)
    with lock_folder(folder):
        _run(config, folder)


def _run(config: ScaleConfig, folder: Path) -> None:
    """Measure and report, in a folder that is ours."""
    settings = {name: value for name, value in asdict(config).items() if name in IDENTITY}
    check_inputs_stay(folder, config)
    check_resumable(folder, settings, config.fresh, identify_corpus(config.corpus))
    warn_of_idle(config.corpus.find_idle() + _find_idle(config))
    record = RunRecord("scale", config)
    can_forget = build_guard(folder)
    with can_forget():
        find_all_files(config.corpus.list_patterns())
        check_encoder(config.corpus, _fix_model(config), config.training, config.parallel)
    left_out: dict[Case, str] = {}
    with connect(config.cluster):
        with can_forget():
            resources = _plan_cases(config, left_out)
            shards, info, _ = get_shards(
                config.corpus, config.encoding, config.model, config.training.seed, folder / SHARDS_FOLDER, record
            )
            encoder = find_shards_encoder(shards, info)
            _leave_out_misfits(config, resources, encoder, left_out)
        jobs = {case: _plan_job(config, case, shards, info, encoder) for case in resources}
        runs = _measure_all(jobs, resources, folder / "cases", record, left_out)
        num_cores = sum(list_cores())
    results = compare_cases(runs, config.price_per_hour)
    scaling = {
        "cases": results,
        "left_out": [{"name": case.describe(), **vars(case), "reason": reason} for case, reason in left_out.items()],
        "advice": advise(results),
        "notes": list_notes(results, num_cores, is_dense=_is_dense(config)),
        "facts": _collect_facts(config, info, results[0]),
    }
    write_json(folder / "scaling.json", scaling)
    title = f"Scaling of {info.encoder}"
    (folder / "report.html").write_text(render_scaling_html(scaling, title), encoding="utf-8")
    (folder / "report.md").write_text(render_scaling_markdown(scaling, title), encoding="utf-8")
    record.write(folder, status="done")
    print_scaling(scaling)
    console.print(escape(f"\nreport: {folder / 'report.html'}"))
    chosen = choose_case(results)
    flags = "" if chosen["strategy"] == ALONE else f" --parallel.strategy {chosen['strategy']}"
    flags += f" --resources.num_workers {chosen['num_workers']}"
    console.print(render_next(f"rayner train --corpus.shards {shards}{flags} --output_dir out/run"))


def _list_cases(config: ScaleConfig) -> Iterator[Case]:
    workers = sorted(set(config.workers))
    strategies = list(dict.fromkeys(config.strategies))
    if workers[0] == 1:
        yield Case(ALONE, 1)
    several = [number for number in workers if number > 1]
    for is_growing in (False, True)[: 1 + config.growing_corpus]:
        for number in several:
            for strategy in strategies:
                yield Case(strategy, number, number if is_growing else 1)


def _plan_cases(config: ScaleConfig, left_out: dict[Case, str]) -> dict[Case, ResourcesConfig]:
    """What each case takes of the cluster; those without room are left out. Raises UserError if none is left."""
    found: dict[Case, ResourcesConfig] = {}
    errors: list[UserError] = []
    cpus = config.cpus_per_worker
    for case in sorted(_list_cases(config), key=lambda case: -case.num_workers):
        needs = ResourcesConfig(case.num_workers, cpus, config.use_gpu)
        try:
            scaling = plan_workers(needs)
        except UserError as error:
            errors.append(error)
            left_out[case] = _tell(error)
            continue
        cpus = int(scaling.resources_per_worker["CPU"])  # as the most workers have it that there is room for
        found[case] = ResourcesConfig(case.num_workers, cpus, scaling.use_gpu)
    if not found:
        raise errors[0]
    return {case: found[case] for case in _list_cases(config) if case in found}


def _leave_out_misfits(
    config: ScaleConfig, resources: dict[Case, ResourcesConfig], encoder: str, left_out: dict[Case, str]
) -> None:
    """Take out what a strategy or the encoder cannot do. Raises UserError if nothing is left to compare with."""
    problems: list[UserError] = []
    for case, needs in list(resources.items()):
        parallel = _choose_parallel(config, case)
        found = [
            *parallel.find_problems(),
            *find_contradictions(_fix_model(config), _fix_training(config, case), parallel),
            *find_misfits(parallel, case.num_workers, bool(needs.use_gpu), encoder, config.training, dropout=0.0),
        ]
        if found:
            del resources[case]
            left_out[case] = " ".join(_tell(problem) for problem in found)
            problems += [problem for problem in found if str(problem) not in map(str, problems)]
    if not any(case.growth == 1 for case in resources):
        raise_all(problems)


def _plan_job(config: ScaleConfig, case: Case, shards: Path, info: ShardsInfo, encoder: str) -> TrainingJob:
    training = _fix_training(config, case)
    return build_job(
        shards,
        info,
        encoder,
        _fix_model(config),
        training,
        _choose_parallel(config, case),
        load_windows=partial(sample_windows, shards, config.num_steps, training.batch_tokens, training.seed),
        load_dev=list,  # nothing to score
    )


def _choose_parallel(config: ScaleConfig, case: Case) -> ParallelConfig:
    if case.strategy == ALONE:
        return replace(config.parallel, strategy="ddp", gradient_compression="none", cpu_offload=False)
    return replace(config.parallel, strategy=case.strategy)


def _fix_model(config: ScaleConfig) -> ModelConfig:
    """Without dropout, since workers draw different masks: losses are to agree."""
    return replace(config.model, dropout=0.0)


def _fix_training(config: ScaleConfig, case: Case) -> TrainingConfig:
    """One epoch without checkpoints, the same for all cases: with dense gradients where one of them needs those."""
    return replace(
        config.training,
        num_epochs=1,
        patience=None,
        checkpoint_every_steps=sys.maxsize,
        batch_tokens=config.training.batch_tokens * case.growth,
        r_drop=0.0,  # refused before, as is the next
        dropout_samples=1,
        optimizer=replace(config.training.optimizer, sparse_embeddings=not _is_dense(config)),
    )


def _is_dense(config: ScaleConfig) -> bool:
    """Whether the embeddings have dense gradients, in all cases."""
    may_be_sparse = config.parallel.gradient_compression == "none" and all(
        find_strategy(name).may_be_sparse and find_strategy(name).may_pack
        for name in config.strategies
        if name in STRATEGIES  # others are refused with what is wrong besides
    )
    return not (config.training.optimizer.sparse_embeddings and may_be_sparse)


def _name_folder(case: Case, needs: ResourcesConfig, training: TrainingConfig) -> str:
    """By all that differs between calls: with other strategies, the same case may have other gradients."""
    grown = f"-batch-{case.growth}" if case.growth > 1 else ""
    gradients = "sparse" if training.optimizer.sparse_embeddings else "dense"
    return f"{case.strategy}-{case.num_workers}-workers-{needs.cpus_per_worker}-cpus{grown}-{gradients}"


def _measure_all(
    jobs: dict[Case, TrainingJob],
    resources: dict[Case, ResourcesConfig],
    folder: Path,
    record: RunRecord,
    left_out: dict[Case, str],
) -> dict[Case, list[dict[str, Any]]]:
    """The rows of every case; those that fail are left out. Raises what failed if nothing is left to compare with."""
    runs: dict[Case, list[dict[str, Any]]] = {}
    failed: list[Exception] = []
    for number, (case, job) in enumerate(jobs.items(), 1):
        needs, message = resources[case], f"case {number} of {len(jobs)}: {case.describe()}"
        if case.growth > 1 and not runs:
            break
        try:
            runs[case] = _measure(job, needs, folder / _name_folder(case, needs, job.training), record, message)
            discard(folder.parent)
        except (ray.train.TrainingFailedError, DeviceMemoryError) as error:
            failed.append(error)
            left_out[case] = _tell(error) if isinstance(error, UserError) else str(error).strip().splitlines()[-1]
            progress_console.print(f"[yellow]![/] {escape(case.describe())}: {escape(left_out[case])}")
    if not runs:
        raise failed[-1]
    return runs


def _measure(
    job: TrainingJob, needs: ResourcesConfig, folder: Path, record: RunRecord, message: str
) -> list[dict[str, Any]]:
    """The rows of a case, trained unless it is finished already."""
    if not (folder / SUCCESS_FILE).exists():
        folder.mkdir(parents=True, exist_ok=True)
        with record.phase(folder.name, message):
            fit(job, needs, folder)
        (folder / SUCCESS_FILE).touch()
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    return read_metrics(folder / METRICS_FILE)


def _collect_facts(config: ScaleConfig, info: ShardsInfo, result: dict[str, Any]) -> dict[str, Any]:
    return {
        "encoder": info.encoder,
        "head": config.model.head,
        "sub-tokens of a batch": f"{config.training.batch_tokens:,}",
        "steps of a case": result["num_steps"],
        "precision": result["precision"],
        "device": result["device"],
        "threads of a worker": result["threads"],
        "price of a worker's hour": config.price_per_hour if config.price_per_hour is not None else "not given",
    }


def _tell(error: UserError) -> str:
    """A mistake as one sentence."""
    if isinstance(error, UserErrors):
        return " ".join(_tell(one) for one in error.errors)
    return f"{error.what[:1].upper()}{error.what[1:]}: {error.rule}, not {error.value}."


def _find_idle(config: ScaleConfig) -> list[str]:
    plain = TrainingConfig()
    idle = {
        "model.dropout": (config.model.dropout, None, "losses are compared, and dropout is drawn anew by each worker"),
        **{
            f"training.{name}": (getattr(config.training, name), getattr(plain, name), "`num_steps` ends each case")
            for name in ("num_epochs", "patience", "checkpoint_every_steps")
        },
    }
    told = [f"`{name}` has no effect: {why}" for name, (given, default, why) in idle.items() if given != default]
    training = _fix_training(config, Case(ALONE, 1))
    by_case = [find_idle(training, _choose_parallel(config, case)) for case in _list_cases(config)]
    return told + [one for one in by_case[0] if all(one in others for others in by_case)]


def _find_problems(config: ScaleConfig) -> list[UserError]:
    known, cpus, price = f"one or more of {', '.join(STRATEGIES)}", config.cpus_per_worker, config.price_per_hour
    training, plain = config.training, "scale trains without dropout: leave it out"
    rounds = MIN_ROUNDS * config.parallel.sync_every * ("local_sgd" in config.strategies)
    steps = f"at least {max(MIN_STEPS, rounds)}, for the first do not count"
    steps += f"; local_sgd needs {MIN_ROUNDS} rounds of `parallel.sync_every`" if rounds > MIN_STEPS else ""
    checks = [
        ("workers", "one number or more, each at least 1", min(config.workers, default=0) >= 1),
        ("strategies", known, bool(config.strategies) and {*config.strategies} <= {*STRATEGIES}),
        ("num_steps", steps, config.num_steps >= max(MIN_STEPS, rounds)),
        ("cpus_per_worker", "at least 1", cpus is None or cpus >= 1),
        ("price_per_hour", "0 ≤ price < ∞", price is None or 0 <= price < math.inf),
        ("training.r_drop", plain, training.r_drop <= 0),
        ("training.dropout_samples", plain, training.dropout_samples <= 1),
        ("parallel.strategy", "left out, for `strategies` says which", config.parallel.strategy == "ddp"),
    ]
    return [
        *find_wrong_values(ConfigError, config, checks),
        *config.corpus.find_problems(),
        *config.model.find_problems(),
        *config.training.find_problems(),
        *replace(config.parallel, strategy="ddp").find_problems(),
        *config.cluster.find_problems(),
        *find_contradictions(_fix_model(config), _fix_training(config, Case(ALONE, 1)), ParallelConfig()),
    ]


if __name__ == "__main__":
    sys.exit(main())
