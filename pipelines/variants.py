"""Variants of a model as `compress` makes, trains, scores and measures them, each in a folder of its own."""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import ray
import ray.data
from rich.markup import escape

from pipelines.bundle_figures import measure_bundles, run_in_actor
from pipelines.cluster import list_node_cpus
from pipelines.compression.config import CompressionError
from pipelines.compression.gate import judge
from pipelines.compression.int8_form import QuantizationError
from pipelines.compression.int8_settings import choose_weight_bits
from pipelines.compression.steps import LAST_STEPS, Recipe
from pipelines.corpus.formats.options import FormatOptions
from pipelines.corpus.inference import (
    ActorPlan,
    ActorResources,
    InferenceConfig,
    plan_actors,
    predict_table,
)
from pipelines.corpus.raw_text import read_texts
from pipelines.corpus.shards import ShardsInfo, read_rows, read_split
from pipelines.corpus.targets import Lesson, read_targets, write_targets
from pipelines.evaluation.calibration import cross_fit_error, fit_temperatures, gather_scores, join_scores
from pipelines.evaluation.metrics import Scored, Tallies
from pipelines.evaluation.report import EvaluationReport
from pipelines.folders import write_json
from pipelines.job import console, find_mistake
from pipelines.ner.bundle import annotate_bundle, load_bundle, save_bundle
from pipelines.ner.encoding import fingerprint_tokenizer
from pipelines.ner.model import ModelConfig
from pipelines.replacement import discard_with_rows
from pipelines.run_record import RunRecord
from pipelines.runs import build_job, write_bundle
from pipelines.terminal import watch_training
from pipelines.training.config import TrainingConfig
from pipelines.training.history import MetricsTail, read_metrics, summarize_usage
from pipelines.training.objective import Imitation
from pipelines.training.parallel import ParallelConfig
from pipelines.training.recorder import METRICS_FILE
from pipelines.training.resources import ResourcesConfig, list_cores
from pipelines.training.trainer import fit

START = "start"
VARIANT_FILE = "variant.json"
DETAILS_FILE = "details.json"
"""What a step found on its way: F1 and layers by threshold of the exits, or the sensitivity of layers to int8."""


@dataclass(frozen=True)
class Bench:
    """What all variants of a run share."""

    folder: Path
    start: Path
    """The bundle given: every variant's teacher, and what it is compared with."""
    shards: Path
    info: ShardsInfo
    recipe: Recipe
    training: TrainingConfig
    reader: FormatOptions
    """Of raw text."""
    max_bad_fraction: float
    """Of its records."""
    resources: ResourcesConfig
    inference: InferenceConfig
    record: RunRecord

    def make(self, name: str, step: str, source: Path) -> Path:
        """The folder of a variant: made from the bundle `source` by a step, trained, and written; what is there stays.

        Raises CompressionError where the model cannot be made so.
        """
        folder = self.folder / "variants" / name
        if (folder / "bundle").is_dir():
            return folder
        work = folder / "work"
        work.mkdir(parents=True, exist_ok=True)
        trained = work / "trained"
        if step == "early_exit" and self.recipe.early_exit.joint and not trained.is_dir():
            layers = self.recipe.choose_exits(load_bundle(source))
            self._train(name, source, work / "training", trained, exit_layers=layers)
        try:
            self._cut(name, step, trained if trained.is_dir() else source, work)
        except CompressionError:
            if step != "int8" or not self.recipe.int8.num_epochs or trained.is_dir():
                raise
            console.print(f"{name}: no int8 form is good enough; training one that is rounded as int8 is")
            self._train(name, source, work / "training", trained, int8_epochs=self.recipe.int8.num_epochs)
            self._cut(name, step, trained, work)
        if step in LAST_STEPS:
            (work / "bundle").rename(folder / "bundle")
        else:
            self._train(name, work / "bundle", work, folder / "bundle")
        shutil.rmtree(work, ignore_errors=True)
        return folder

    def _cut(self, name: str, step: str, source: Path, work: Path) -> None:
        """Take a step from the bundle `source` to one in `work`, untrained; what is there stays."""
        if (work / "bundle").is_dir():
            return
        with self.record.phase(f"{name}: cut", f"{name}: cutting"):
            lessons = None if step in ("distill", "int8") else self._write_lessons(source)
            plan = self._plan_process(num_gpus=0)
            gold = self._read_gold("train"), self._read_gold("dev")
            start = self.score(self.folder / "variants" / START, self.start)["documents"]
            try:
                run_in_actor(plan, _cut, step, source, work / "bundle", lessons, self.recipe, *gold, start)
            except ray.exceptions.RayTaskError as error:
                raise find_mistake(error) or error from error

    def _train(
        self,
        name: str,
        start: Path,
        work: Path,
        target: Path,
        *,
        exit_layers: Sequence[int] = (),
        int8_epochs: int | None = None,
    ) -> None:
        """Train a bundle on what its teacher says, with checkpoints in `work`, to a bundle.

        With `int8_epochs`, so many, as int8 will compute it.
        """
        work.mkdir(parents=True, exist_ok=True)
        lessons = self._write_lessons(start)
        teacher, student, taught = load_bundle(self.start), load_bundle(start), self.recipe.distillation
        training = self.training if int8_epochs is None else replace(self.training, num_epochs=int8_epochs)
        job = replace(
            build_job(
                self.shards,
                self.info,
                str(start),
                ModelConfig(str(start), teacher.info.head, teacher.info.scheme),
                training,
                ParallelConfig(),
                load_windows=partial(read_targets, lessons, has_states=taught.follows_states),
            ),
            window=student.encoder.window,
            stride=student.encoder.stride,
            splitter=student.encoder.splitter,
            casing=student.encoder.casing,
            imitation=Imitation(taught.states, taught.relations) if taught.follows_states else None,
            scheme=teacher.model.scheme,
            start=str(start),
            exit_layers=exit_layers,
            weight_bits=None if int8_epochs is None else choose_weight_bits(student.model.network, self.recipe.int8),
        )
        with (
            self.record.phase(f"{name}: train", f"{name}: training"),
            watch_training(discard_with_rows(self.folder, MetricsTail(work / METRICS_FILE).read)),
        ):
            result = fit(job, self.resources, work)
        precision = summarize_usage(read_metrics(work / METRICS_FILE))["precision"]
        write_bundle(target, job, self.info, result, self.shards, precision)

    def score(self, folder: Path, bundle: Path) -> dict[str, Any]:
        """F1 on dev with its interval, the tallies of each document, and how true its scores are.

        A variant's scores are calibrated on dev; the start keeps its own. Noted in the variant's folder.
        """
        path = folder / VARIANT_FILE
        if path.is_file():
            found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            return found
        if bundle != self.start:
            annotate_bundle(bundle, {}, temperatures={})  # of a run that ended before its scores were noted
        with self.record.phase(f"{folder.name}: score", f"{folder.name}: scoring dev"):
            records = self._predict_dev(bundle)
        report = EvaluationReport()
        for record in records:
            report.add(record)
        scores = report.to_dict()
        given = gather_scores(records)
        temperatures = {} if bundle == self.start else fit_temperatures(given)
        if temperatures:
            annotate_bundle(bundle, {}, temperatures=temperatures)
        error = join_scores(given).error
        found = {
            "f1": scores["strict"]["micro"]["f1"],
            "f1_interval": scores["intervals"]["strict"]["micro"]["f1"],
            "documents": report.documents,
            "temperatures": temperatures,
            "calibration_error": [error, cross_fit_error(records) if temperatures else error],
        }
        write_json(path, found)
        return found

    def read_details(self, name: str) -> dict[str, Any] | None:
        """What the step of a variant found on its way, if it told anything."""
        path = self.folder / "variants" / name / DETAILS_FILE
        found: dict[str, Any] | None = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
        return found

    def judge(self, start: dict[str, Tallies], variant: dict[str, Tallies]) -> dict[str, Any]:
        """What the gate says."""
        return judge(start, variant, self.recipe.tolerance).to_dict()

    def measure(self, bundles: Sequence[Path], price_per_hour: float | None) -> list[dict[str, Any]]:
        """Speed, memory, size and cost of bundles, on dev."""
        documents = [record.content for record in self._read_gold("dev")]
        plan = self._plan_process(self._plan_actors().num_gpus)
        with self.record.phase("measure", "measuring speed, memory and size"):
            return measure_bundles(bundles, self.inference, plan, documents, price_per_hour)

    def _read_gold(self, split: str) -> list[Scored]:
        return [Scored.from_row(row, self.info.corpus_scheme) for row in read_rows(self.shards, split)]

    def _predict_dev(self, bundle: Path) -> list[Scored]:
        records = read_split(self.shards, "dev").sort_by("record_id")
        predicted = predict_table(records, str(bundle), self.inference, self._plan_actors())
        return [Scored.from_row(row, self.info.corpus_scheme) for row in predicted.to_pylist()]

    def _plan_actors(self) -> ActorPlan:
        num_gpus = 0 if self.inference.device == "cpu" else ray.cluster_resources().get("GPU", 0)
        return plan_actors(ActorResources(), list_node_cpus(ray.nodes()), num_gpus)

    def _plan_process(self, num_gpus: float) -> ActorPlan:
        """One process with all cores of a node, one that has so many GPUs."""
        gpus = [node["Resources"].get("GPU", 0) for node in ray.nodes() if node["Alive"]]
        fitting = [cores for cores, has in zip(list_cores(), gpus, strict=True) if has >= num_gpus]
        return replace(self._plan_actors(), num_cpus=max(1, *fitting), num_gpus=num_gpus)

    def _write_lessons(self, student: Path) -> Path:
        """The training windows in a student's sub-tokens, with what the teacher says of them."""
        encoder = load_bundle(student).encoder
        parts = (encoder.window, encoder.stride, encoder.splitter, "cased" if encoder.casing else "plain")
        name = "-".join(map(str, (fingerprint_tokenizer(encoder.tokenizer), *parts)))
        folder = self.folder / "lessons" / name
        if folder.is_dir():
            return folder
        staging = folder.with_name(f".{folder.name}.partial")
        shutil.rmtree(staging, ignore_errors=True)
        taught = self.recipe.distillation
        lesson = Lesson(
            str(self.start), str(student), taught.teacher_share, taught.temperature, has_states=taught.follows_states
        )
        texts = None
        if taught.unlabelled:
            texts, _ = read_texts({"train": taught.unlabelled}, self.reader, self.max_bad_fraction)
        records = ray.data.from_arrow(read_split(self.shards, "train").sort_by("record_id"))
        write_targets(records, lesson, self.inference, self._plan_actors(), staging / "labelled")
        if texts is not None:
            write_targets(
                texts, replace(lesson, share=1.0), self.inference, self._plan_actors(), staging / "unlabelled"
            )
        staging.rename(folder)
        return folder


def make_variants(
    bench: Bench, steps: Sequence[str], price_per_hour: float | None
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """The start and a variant of each step, scored, judged and measured; and why there is none of a step."""
    start = bench.folder / "variants" / START
    start.mkdir(parents=True, exist_ok=True)
    scored = {START: bench.score(start, bench.start)}
    bundles: dict[str, Path] = {START: bench.start}
    verdicts: dict[str, Any] = {START: None}
    last_good, taken, not_made = bench.start, list[str](), dict[str, str]()
    for number, step in enumerate(steps, 1):
        name = f"{number}-{step}"
        try:
            made = bench.make(name, step, last_good)
        except (CompressionError, QuantizationError) as error:
            not_made[name] = "; ".join(str(fact) for fact in (error.what, error.value) if fact is not None)
            console.print(f"{escape(name)}: [red]not made[/] {escape(not_made[name])}")
            continue
        bundles[name] = made / "bundle"
        scored[name] = bench.score(made, bundles[name])
        verdicts[name] = bench.judge(scored[START]["documents"], scored[name]["documents"])
        passes = verdicts[name]["passes"]
        overall = verdicts[name]["overall"]
        told = (
            f"{name}: strict F1 {overall['difference']:+.2f} points ({overall['low']:+.2f} to {overall['high']:+.2f})"
        )
        console.print(escape(told) + (" [green]good enough[/]" if passes else " [red]not good enough[/]"))
        for reason in verdicts[name]["reasons"]:
            console.print(f"  {escape(reason)}")
        if passes:
            last_good = bundles[name]
            taken.append(step)
            annotate_bundle(last_good, {"compression": {"steps": list(taken), "from": str(bench.start)}})
    figures = bench.measure(list(bundles.values()), price_per_hour)
    variants = [
        {
            "name": name,
            "f1": scored[name]["f1"],
            "f1_interval": scored[name]["f1_interval"],
            "calibration_error": scored[name]["calibration_error"],
            "verdict": verdicts[name],
            "details": bench.read_details(name),
            **one,
        }
        for name, one in zip(bundles, figures, strict=True)
    ]
    return variants, not_made


def _cut(
    step: str,
    source: Path,
    target: Path,
    lessons: Path | None,
    recipe: Recipe,
    train: Sequence[Scored],
    dev: Sequence[Scored],
    start: Mapping[str, Tallies],
) -> None:
    """Write what training begins with, or what needs none."""
    small, details = recipe.take(
        step,
        load_bundle(source),
        None if lessons is None else read_targets(lessons),
        train,
        dev,
        accept=lambda found: judge(start, found, recipe.tolerance).passes,
        folder=target.with_name("int8"),
    )
    if details is not None:
        write_json(target.parents[1] / DETAILS_FILE, details)
    save_bundle(target, small)
