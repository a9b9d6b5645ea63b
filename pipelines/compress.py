"""Make a model smaller and faster, step by step, each step measured and held to a bound on what it may cost.

Every step starts from the last variant that was good enough, is trained on the corpus with the given model as its
teacher, and is compared with that model on dev. The same command goes on where it was.
"""

import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
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
from pipelines.compression.gate import FEW_DOCUMENTS, LEAST_DOCUMENTS
from pipelines.compression.int8_form import QuantizationError
from pipelines.compression.int8_settings import QuantizationConfig, choose_runtime, choose_weight_bits
from pipelines.compression.page import choose_variant, describe, render_html, render_markdown
from pipelines.compression.steps import DEFAULT_STEPS, Recipe
from pipelines.compression.students import check_student
from pipelines.corpus.augmentation.config import AugmentationConfig
from pipelines.corpus.config import CorpusConfig
from pipelines.corpus.identity import identify_corpus
from pipelines.corpus.inference import InferenceConfig
from pipelines.corpus.ledger import Ledger
from pipelines.corpus.raw_text import read_texts
from pipelines.corpus.reading import find_all_files
from pipelines.corpus.shards import ShardsInfo, read_split
from pipelines.corpus.text_config import TextConfig
from pipelines.folders import check_resumable, lock_folder, prepare_output_dir, write_json
from pipelines.job import EXIT_FAILED, console, render_next, run_door, warn_of_idle
from pipelines.ner.bundle import BUNDLE_FILE, Bundle, annotate_bundle, load_bundle, save_bundle
from pipelines.ner.encoding import EncodingConfig
from pipelines.ner.errors import UserError, raise_all
from pipelines.ner.files import write_text
from pipelines.ner.model import ModelConfig
from pipelines.ner.runtimes.architectures import may_pack
from pipelines.ner.runtimes.int8 import count_weight_bits
from pipelines.replacement import check_inputs_stay
from pipelines.run_record import RunRecord
from pipelines.runs import FREE, SHARDS_FOLDER, build_guard, get_shards
from pipelines.terminal import describe_ledger, print_ledger, print_shards, print_variants
from pipelines.training.config import TrainingConfig, find_contradictions
from pipelines.training.forward import check_passes_differ
from pipelines.training.parallel import ParallelConfig
from pipelines.training.resources import ResourcesConfig
from pipelines.variants import START, Bench

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
NEEDED = ("train", "dev")
UNLABELLED_FOLDER, LEDGER_FILE = "unlabelled", "ledger.parquet"


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
    _check_runtime(config, bundle)
    _check_r_drop(config, bundle)
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
            raw = _read_unlabelled(config, folder / UNLABELLED_FOLDER, record)
            shards, info, is_new = _get_shards(config, bundle, folder, record)
            if is_new:
                print_shards(info, shards)
        if raw is not None:
            _tell_unlabelled(raw, folder / UNLABELLED_FOLDER)
        bench = Bench(
            folder=folder,
            start=_keep_start(config, bundle, folder),
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
        variants, not_made = _make_variants(bench, config.steps, config.price_per_hour)
    chosen = choose_variant(variants)
    result = {
        "start": START,
        "chosen": chosen["name"],
        "variants": variants,
        "not_made": not_made,
        "facts": _collect_facts(config, info, bundle, _count_documents(shards), raw),
    }
    write_json(folder / "compression.json", result)
    model = Path(str(config.model))
    title = f"Compression of {model.absolute().parent.name if model.name == 'bundle' else config.model}"
    write_text(folder / "report.md", render_markdown(result, title))
    write_text(folder / "report.html", render_html(result, title))
    if chosen["name"] != START:
        _publish(folder / "variants" / chosen["name"] / "bundle", folder / "bundle")
    record.write(folder, status="done", chosen=chosen["name"])
    print_variants(result)
    console.print(f"\n{escape(describe(result))}")
    console.print(escape(f"report: {folder / 'report.html'}"))
    if chosen["name"] == START:
        return EXIT_FAILED
    console.print(escape(f"bundle: {folder / 'bundle'}"))
    console.print(
        render_next(f"rayner predict --model {folder / 'bundle'} --input YOUR_TEXTS.txt --output_dir out/entities")
    )
    return 0


def _publish(variant: Path, bundle: Path) -> None:
    """Copy a variant's bundle to where one looks for it, whole or not at all."""
    staging = bundle.with_name(f".{bundle.name}.partial")
    for old in (staging, bundle):
        shutil.rmtree(old, ignore_errors=True)
    shutil.copytree(variant, staging)
    staging.rename(bundle)


def _make_variants(
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


def _get_shards(
    config: CompressConfig, bundle: Bundle, folder: Path, record: RunRecord
) -> tuple[Path, ShardsInfo, bool]:
    """The corpus in the model's own sub-tokens; nothing of train is split off, for the model may have learned it."""
    corpus, encoder = config.corpus, bundle.encoder
    if not corpus.shards:
        corpus = CorpusConfig(**{**vars(corpus), "test": [], "dev_fraction": 0.0, "test_fraction": 0.0})
    encoding = EncodingConfig(encoder.window, encoder.stride, encoder.splitter)
    model = ModelConfig(str(config.model), bundle.info.head, bundle.info.scheme, casing=encoder.casing or None)
    if corpus.shards:
        encoding, model = EncodingConfig(), ModelConfig()
    found = get_shards(corpus, encoding, model, config.training.seed, folder / SHARDS_FOLDER, record, NEEDED)
    try:
        _check_labels(bundle, found[1])
        _check_dev(found[0])
    except CompressionError:
        if found[2]:
            shutil.rmtree(found[0])
        raise
    return found


def _read_unlabelled(config: CompressConfig, folder: Path, record: RunRecord) -> Ledger | None:
    """What becomes of the records of raw text, or has become, if that is noted. Raises CorpusError."""
    files, corpus = config.distillation.unlabelled, config.corpus
    if not files:
        return None
    if (folder / LEDGER_FILE).is_file():
        return Ledger.from_table(pq.read_table(folder / LEDGER_FILE))
    with record.phase("unlabelled", "reading the unlabelled text"):
        return read_texts({"train": files}, corpus.reader, corpus.max_bad_fraction)[1].ledger


def _tell_unlabelled(ledger: Ledger, folder: Path) -> None:
    """Note and say what becomes of the records of raw text, unless an earlier try has."""
    if (folder / LEDGER_FILE).is_file():
        return
    folder.mkdir(exist_ok=True)
    ledger.write_parquet(folder / LEDGER_FILE)
    console.print("[bold]unlabelled text[/]")
    print_ledger(asdict(ledger.counts()), folder)


def _check_labels(bundle: Bundle, info: ShardsInfo) -> None:
    unknown = sorted(set(info.label_scheme.labels) - set(bundle.model.scheme.labels))
    if unknown:
        raise CompressionError(
            "the corpus has labels that the model does not know",
            rule="labels of the model: " + ", ".join(bundle.model.scheme.labels),
            value="only in the corpus: " + ", ".join(unknown),
            remedy="give the corpus that the model was trained on, or train a model on this one first",
        )


def _check_dev(shards: Path) -> None:
    """Raise CompressionError for a dev set of which the gate could let no variant through."""
    number = _count_documents(shards)
    if number < LEAST_DOCUMENTS:
        raise CompressionError(
            "the dev set shows nothing",
            where="`corpus.dev`",
            rule=f"entities in at least {LEAST_DOCUMENTS} documents, which the bootstrap draws",
            value=f"entities in {number} documents",
            remedy="give more text, annotated; in CoNLL files a `-DOCSTART-` begins a document",
        )


def _count_documents(shards: Path) -> int:
    """Documents of dev with entities."""
    rows = read_split(shards, "dev", ["doc_id", "spans"]).to_pylist()
    return len({row["doc_id"] for row in rows if row["spans"]})


def _keep_start(config: CompressConfig, bundle: Bundle, folder: Path) -> Path:
    """The model given as a bundle folder; one from elsewhere is written down."""
    path = Path(str(config.model)).expanduser().absolute()
    if (path / BUNDLE_FILE).is_file():
        return path
    if not (folder / START).is_dir():
        save_bundle(folder / START, bundle)
    return folder / START


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


def _check_runtime(config: CompressConfig, bundle: Bundle) -> None:
    """Raise CompressionError where the runtime asked for, by which all variants are measured, cannot compute one."""
    if "early_exit" in config.steps and config.inference.runtime not in ("auto", "packed", "torch"):
        raise CompressionError(
            "a variant that the runtime cannot compute",
            where="`inference.runtime`",
            rule="auto, packed or torch, for windows that leave early",
            value=config.inference.runtime,
            remedy="leave it `auto`, or leave `early_exit` out of `--steps`",
        )
    if config.inference.runtime != "packed":
        return
    network = bundle.model.network
    if "distill" in config.steps and config.distillation.encoder is not None and may_pack(network.config):
        network, _ = check_student(bundle, config.distillation)
    if not may_pack(network.config):
        raise CompressionError(
            "a variant that the runtime cannot compute",
            where="`inference.runtime`",
            rule="`packed` is for encoders built like BERT, RoBERTa, ELECTRA or DistilBERT",
            value=network.config.model_type,
            remedy="leave it `auto`, which takes the fastest that can",
        )


def _check_r_drop(config: CompressConfig, bundle: Bundle) -> None:
    """Raise ForwardError for R-Drop with a variant that is trained without dropout: that takes time for nothing."""
    if not config.training.r_drop:
        return
    network = bundle.model.network
    trains = dict.fromkeys(config.steps, True) | {
        "int8": config.int8.num_epochs > 0,
        "early_exit": config.early_exit.joint,
    }
    for step in config.steps:
        if step == "distill" and config.distillation.encoder is not None:
            network, _ = check_student(bundle, config.distillation)
        if trains[step]:
            check_passes_differ(network, remedy="leave it out")


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
        "steps": json.dumps(config.steps),
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
