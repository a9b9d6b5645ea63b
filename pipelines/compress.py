"""Make a model smaller and faster, step by step, each step measured and held to a bound on what it may cost.

Every step starts from the last variant that was good enough, is trained on the corpus with the given model as its
teacher, and is compared with that model on dev. The same command goes on where it was.
"""

import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import ray
import torch
from rich.markup import escape

from pipelines.cluster import ClusterConfig, connect, find_address
from pipelines.compression.config import (
    CompressionError,
    DistillationConfig,
    EarlyExitConfig,
    PruningConfig,
    Tolerance,
    VocabularyConfig,
)
from pipelines.compression.gate import FEW_DOCUMENTS
from pipelines.compression.int8_settings import QuantizationConfig, choose_runtime, choose_weight_bits
from pipelines.compression.page import choose_variant, describe, render_html, render_markdown
from pipelines.compression.steps import DEFAULT_STEPS, Recipe
from pipelines.compression_inputs import (
    count_documents,
    get_own_shards,
    keep_model,
    read_unlabelled,
    tell_unlabelled,
)
from pipelines.corpus.augmentation.config import AugmentationConfig
from pipelines.corpus.config import CorpusConfig
from pipelines.corpus.identity import identify_corpus
from pipelines.corpus.inference import InferenceConfig
from pipelines.corpus.ledger import Ledger
from pipelines.corpus.preparation import stage_folder
from pipelines.corpus.reading import find_all_files
from pipelines.corpus.shards import ShardsInfo
from pipelines.corpus.text_config import TextConfig
from pipelines.folders import check_resumable, lock_folder, prepare_output_dir, write_json
from pipelines.job import EXIT_FAILED, console, render_next, run_door, warn_of_idle
from pipelines.ner.bundle import Bundle, load_bundle
from pipelines.ner.errors import UserError, raise_all
from pipelines.ner.files import write_text
from pipelines.ner.model import ModelConfig
from pipelines.ner.runtimes.int8 import count_weight_bits
from pipelines.replacement import check_inputs_stay
from pipelines.run_record import RunRecord
from pipelines.runs import FREE, build_guard
from pipelines.terminal import describe_ledger, print_shards, print_variants
from pipelines.training.config import TrainingConfig, find_contradictions
from pipelines.training.parallel import ParallelConfig
from pipelines.training.resources import ResourcesConfig
from pipelines.variants import START, Bench, make_variants

IDENTITY = (
    "model",
    "corpus",
    "steps",
    "max_f1_loss",
    "max_label_loss",
    "distillation",
    "pruning",
    "vocabulary",
    "int8",
    "early_exit",
    "training",
)
"""The settings that make a run what it is; the others, and those in `FREE`, may change when it is resumed."""
UNLABELLED_FOLDER = "unlabelled"


@dataclass(frozen=True)
class CompressConfig:
    """Settings of `rayner compress`."""

    model: str | None = None
    """What is made smaller: a bundle folder, a Hugging Face token-classification checkpoint folder, or a hub id."""
    corpus: CorpusConfig = field(default_factory=CorpusConfig)
    steps: list[str] = field(default_factory=list)
    """What is done, in this order; default: distill, prune, vocabulary and, unless this machine's CPU has no int8
    products for it, int8. distill: a student with fewer layers; prune: the attention heads and feed-forward
    columns go that matter least; vocabulary: sub-tokens go that the corpus does not use; as the last one either int8:
    products of bytes, but for layers that it would harm; or early_exit: windows
    leave the network as soon as it is sure of all their words."""
    max_f1_loss: float = 1.0
    """Points of strict F1 that a variant may lose on dev against the model given: its loss must be shown to be less, by
    the 95 % interval of a paired bootstrap over documents."""
    max_label_loss: float = 5.0
    """Points that a label may lose; a variant is refused if one of them is shown to lose more."""
    distillation: DistillationConfig = field(default_factory=DistillationConfig)
    pruning: PruningConfig = field(default_factory=PruningConfig)
    vocabulary: VocabularyConfig = field(default_factory=VocabularyConfig)
    int8: QuantizationConfig = field(default_factory=QuantizationConfig)
    early_exit: EarlyExitConfig = field(default_factory=EarlyExitConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    resources: ResourcesConfig = field(default_factory=lambda: ResourcesConfig(auto=False))
    inference: InferenceConfig = field(default_factory=InferenceConfig)
    price_per_hour: float | None = None
    """Of the machine, in whatever currency: the report then tells what a million documents cost."""
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    output_dir: str = "out/small"
    """The bundle, the report, and a folder of each variant. On a cluster of several machines, one that all see."""
    fresh: bool = False
    """Start over, removing what an earlier run left in the output folder."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the door and return its exit code."""
    return run_door("compress", CompressConfig, run, __doc__ or "", argv)


def run(config: CompressConfig) -> int:
    """Compress as configured, or go on with what is in the output folder. 1 if no variant is good enough."""
    settings = {name: value for name, value in asdict(config).items() if name in IDENTITY}
    raise_all(_find_problems(replace(config, steps=config.steps or list(DEFAULT_STEPS))))
    folder = prepare_output_dir(config.output_dir)
    with lock_folder(folder):
        return _run(config, settings, folder)


def choose_steps(config: CompressConfig, network: Any) -> list[str]:
    """The default steps; without int8, told on stderr, where this machine's CPU is to measure it and computes none."""
    needed = choose_weight_bits(network, config.int8)
    if find_address(config.cluster) or count_weight_bits(torch.device("cpu")) >= needed:
        return list(DEFAULT_STEPS)
    steps = [step for step in DEFAULT_STEPS if step != "int8"]
    why = f"this CPU has no int8 products with weights of {needed} bits"
    warn_of_idle([f"`steps` without `int8`, for {why}: {', '.join(steps)}"])
    return steps


def _run(config: CompressConfig, settings: dict[str, Any], folder: Path) -> int:
    """Compress, or go on, in a folder that is ours."""
    bundle = load_bundle(str(config.model), scheme=config.inference.scheme)
    config = replace(config, steps=config.steps or choose_steps(config, bundle.model.network))
    recipe = _build_recipe(config)
    recipe.check(bundle)
    raise_all(find_contradictions(ModelConfig(head=bundle.info.head), config.training, ParallelConfig()))
    recipe.check_runtime(bundle, config.inference.runtime)
    if config.training.r_drop:
        recipe.check_r_drop(bundle)
    settings["fingerprint"] = bundle.info.fingerprint
    settings |= {"scheme": config.inference.scheme} if config.inference.scheme else {}
    corpus = identify_corpus(config.corpus, config.distillation.unlabelled)
    check_inputs_stay(folder, config)
    if check_resumable(folder, settings, config.fresh, corpus, FREE):
        console.print(f"this run is finished: {escape(str(folder / 'report.html'))}; [bold]--fresh[/] starts it over")
        return 0 if (folder / "bundle").is_dir() else EXIT_FAILED
    warn_of_idle(recipe.find_idle() + _find_idle(config, bundle))
    record = RunRecord("compress", config)
    can_forget = build_guard(folder)
    with can_forget():
        find_all_files(config.corpus.list_patterns())
        raise_all(TextConfig(config.distillation.unlabelled).find_file_problems())
    with connect(config.cluster):
        record.data["inventory"] = ray.cluster_resources()
        with can_forget():
            raw = read_unlabelled(config.distillation.unlabelled, config.corpus, folder / UNLABELLED_FOLDER, record)
            shards, info, is_new = get_own_shards(
                str(config.model), bundle, config.corpus, config.training.seed, folder, record
            )
            if is_new:
                print_shards(info, shards)
        if raw is not None:
            tell_unlabelled(raw, folder / UNLABELLED_FOLDER)
        bench = Bench(
            folder=folder,
            start=keep_model(str(config.model), bundle, folder / START),
            shards=shards,
            info=info,
            recipe=recipe,
            training=config.training,
            reader=config.corpus.reader,
            max_bad_fraction=config.corpus.max_bad_fraction,
            resources=config.resources,
            inference=config.inference,
            record=record,
        )
        variants, not_made = make_variants(bench, config.steps, config.price_per_hour)
    result = {
        "start": START,
        "chosen": choose_variant(variants)["name"],
        "variants": variants,
        "not_made": not_made,
        "facts": _collect_facts(config, info, bundle, count_documents(shards), raw),
    }
    _write_report(folder, result, str(config.model))
    is_smaller = result["chosen"] != START
    if is_smaller:
        with stage_folder(folder / "bundle") as staging:
            shutil.copytree(folder / "variants" / result["chosen"] / "bundle", staging, dirs_exist_ok=True)
    record.write(folder, status="done", chosen=result["chosen"])
    _tell(folder, result)
    return 0 if is_smaller else EXIT_FAILED


def _write_report(folder: Path, result: Mapping[str, Any], model: str) -> None:
    write_json(folder / "compression.json", result)
    path = Path(model)
    title = f"Compression of {path.absolute().parent.name if path.name == 'bundle' else model}"
    write_text(folder / "report.md", render_markdown(result, title))
    write_text(folder / "report.html", render_html(result, title))


def _tell(folder: Path, result: Mapping[str, Any]) -> None:
    print_variants(result)
    console.print(f"\n{escape(describe(result))}")
    console.print(escape(f"report: {folder / 'report.html'}"))
    if result["chosen"] == START:
        return
    console.print(escape(f"bundle: {folder / 'bundle'}"))
    console.print(
        render_next(f"rayner predict --model {folder / 'bundle'} --input YOUR_TEXTS.txt --output_dir out/entities")
    )


def _build_recipe(config: CompressConfig) -> Recipe:
    return Recipe(
        steps=config.steps,
        tolerance=Tolerance(config.max_f1_loss, config.max_label_loss),
        distillation=config.distillation,
        pruning=config.pruning,
        vocabulary=config.vocabulary,
        int8=config.int8,
        early_exit=config.early_exit,
        seed=config.training.seed,
    )


def _find_idle(config: CompressConfig, bundle: Bundle) -> list[str]:
    corpus = config.corpus
    if config.distillation.unlabelled and corpus.shards:  # it is read so
        plain = CorpusConfig()
        corpus = replace(corpus, reader=plain.reader, max_bad_fraction=plain.max_bad_fraction)
    told = corpus.find_idle() + config.inference.find_idle(str(config.model)) + config.resources.find_idle()
    if config.resources.auto:
        told.append("`resources.auto` has no effect: variants are trained with the workers that are given")
    if config.corpus.test:
        told.append(
            "`corpus.test` has no effect: variants are judged on dev; `rayner evaluate` scores the bundle on test"
        )
    if config.corpus.augmentation != AugmentationConfig():
        why = "a variant learns what the given model says of the corpus as it is"
        told.append(f"`corpus.augmentation` has no effect: {why}")
    if "int8" in config.steps and config.distillation.encoder is None:
        network = bundle.model.network
        told += config.int8.find_idle(network)
        computes = choose_runtime(network, config.int8.runtime)
        if config.inference.runtime not in ("auto", computes):
            asked = config.inference.runtime
            told.append(f"`int8` is measured without int8: that is for the runtime `{computes}`, not for `{asked}`")
    return told


def _collect_facts(
    config: CompressConfig, info: ShardsInfo, bundle: Bundle, num_documents: int, raw: Ledger | None
) -> dict[str, Any]:
    few = ": few, so that intervals are narrower than they should be" if num_documents < FEW_DOCUMENTS else ""
    return {
        "model": config.model,
        "fingerprint": bundle.info.fingerprint or "none (a foreign checkpoint)",
        "dev": f"{info.splits['dev'].num_records:,} records, {num_documents:,} documents with entities{few}",
        "train": f"{info.splits['train'].num_records:,} records",
        **({} if raw is None else {"unlabelled text": describe_ledger(asdict(raw.counts()))}),
        "may lose": f"{config.max_f1_loss:g} points of strict F1, {config.max_label_loss:g} of a label",
        "steps": ", ".join(config.steps),
        "epochs of each step": config.training.num_epochs,
        "the teacher's share": config.distillation.teacher_share,
    }


def _find_problems(config: CompressConfig) -> list[UserError]:
    problems: list[UserError] = []
    if not config.model:
        problems.append(CompressionError("no model is given", remedy="`--model out/run/bundle`"))
    if config.price_per_hour is not None and config.price_per_hour < 0:
        price = config.price_per_hour
        problems.append(
            CompressionError("a value out of range", where="`price_per_hour`", rule="at least 0", value=price)
        )
    if config.corpus.train and not config.corpus.dev:
        problems.append(
            CompressionError(
                "no dev set to judge by",
                where="`corpus.dev`",
                rule="documents that the model was not trained on",
                remedy="give files as `--corpus.dev`, or `--corpus.shards` of the run that trained the model",
            )
        )
    return [
        *problems,
        *config.corpus.find_problems(),
        *_build_recipe(config).find_problems(),
        *config.training.find_problems(),
        *config.resources.find_problems(),
        *config.inference.find_problems(),
        *config.cluster.find_problems(),
    ]


if __name__ == "__main__":
    sys.exit(main())
