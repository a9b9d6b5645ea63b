"""Let an encoder read raw text first: continue it (or start from scratch) as a masked language model.

Text files in; an encoder folder that `rayner train --model.encoder` takes, the perplexity on held-out text before and
after, and a report out. The same command resumes an interrupted run.
"""

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path

import ray
from rich.markup import escape
from transformers import AutoConfig

from pipelines.cluster import ClusterConfig, connect, find_address
from pipelines.corpus.identity import identify_corpus
from pipelines.corpus.mentions import MentionSources
from pipelines.corpus.raw_text import TextInfo, load_text_info, prepare_text, read_text_windows
from pipelines.corpus.text_config import TextConfig, TextEncoding
from pipelines.encoder_folder import write_encoder
from pipelines.folders import check_resumable, lock_folder, prepare_output_dir
from pipelines.job import console, render_next, run_door, warn_of_idle
from pipelines.ner.bundle import DEFAULT_WINDOW
from pipelines.ner.encoders import SCRATCH, find_encoder, load_tokenizer
from pipelines.ner.encoding import Encoder, find_window_problems
from pipelines.ner.errors import UserError, raise_all
from pipelines.ner.model import ModelConfig, ModelError, get_max_window
from pipelines.planning.running_cluster import read_running_cluster
from pipelines.pretraining_report import collect_facts, list_notes, print_text, write_report
from pipelines.replacement import check_inputs_stay, discard_with_rows
from pipelines.run_record import RunRecord
from pipelines.runs import FREE, build_guard
from pipelines.terminal import watch_training
from pipelines.tracking import Tracking, TrackingConfig
from pipelines.training.config import TrainingConfig, find_contradictions, find_idle
from pipelines.training.history import MetricsTail, read_metrics, summarize_usage
from pipelines.training.job import TrainingResult
from pipelines.training.masked_model import find_model_problems, has_masked_head
from pipelines.training.masking import MaskingConfig
from pipelines.training.optimizer import choose_learning_rate
from pipelines.training.parallel import ParallelConfig
from pipelines.training.pretraining import PretrainingJob, to_perplexity
from pipelines.training.pretraining_rules import find_setting_problems, find_tokenizer_problems, with_own_loss
from pipelines.training.recorder import METRICS_FILE
from pipelines.training.resources import ResourcesConfig, plan_workers
from pipelines.training.strategies import find_encoder_misfits, find_idle_alone, find_misfits
from pipelines.training.trainer import fit

IDENTITY = ("corpus", "model", "encoding", "masking", "objective", "training")
"""The settings that make a run what it is; the others, and those in `FREE`, may change when it is resumed."""
TEXT_FOLDER = "text"
ENCODER_FOLDER = "encoder"


@dataclass(frozen=True)
class EncoderConfig:
    """What is pretrained."""

    encoder: str = "all-MiniLM-L6-v2"
    """A folder, a hub id, `all-MiniLM-L6-v2` (installed by the extra `quickstart`), or `scratch` (a small BERT with a
    vocabulary learned from the text)."""
    dropout: float | None = None
    """Dropout while pretraining; default: the encoder's own."""


@dataclass(frozen=True)
class PretrainConfig:
    """Settings of `rayner pretrain`."""

    corpus: TextConfig = field(default_factory=TextConfig)
    model: EncoderConfig = field(default_factory=EncoderConfig)
    encoding: TextEncoding = field(default_factory=TextEncoding)
    masking: MaskingConfig = field(default_factory=MaskingConfig)
    objective: str = "masks"
    """masks: tell hidden sub-tokens; masks_and_order: also, for each window of several sentences, whether its two parts
    have changed places (best with `--encoding.packing apart`)."""
    training: TrainingConfig = field(default_factory=lambda: TrainingConfig(num_epochs=3, batch_tokens=4096))
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    resources: ResourcesConfig = field(default_factory=lambda: ResourcesConfig(auto=False))
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    output_dir: str = "out/pretrained"
    """The run folder: encoder, report, metrics, checkpoints. On a cluster of several machines, one that all see."""
    fresh: bool = False
    """Start over, removing what an earlier run left in the output folder."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the door and return its exit code."""
    return run_door("pretrain", PretrainConfig, run, __doc__ or "", argv)


def run(config: PretrainConfig) -> None:
    """Pretrain as configured, or go on with the run that is in the output folder."""
    mentions = MentionSources(tuple(config.masking.gazetteer), config.masking.bundle)
    problems = [*_find_problems(config), *config.corpus.find_file_problems(), *mentions.find_problems()]
    raise_all(problems + _find_encoder_problems(config))
    folder = prepare_output_dir(config.output_dir)
    with lock_folder(folder):
        _run(config, mentions, folder)


def _run(config: PretrainConfig, mentions: MentionSources, folder: Path) -> None:
    """Pretrain, or go on, in a folder that is ours."""
    settings = {name: value for name, value in asdict(config).items() if name in IDENTITY}
    corpus = identify_corpus(config.corpus, config.masking.gazetteer)
    check_inputs_stay(folder, config)
    if check_resumable(folder, settings, config.fresh, corpus, FREE):
        console.print(f"this run is finished: {escape(str(folder / ENCODER_FOLDER))}; [bold]--fresh[/] starts it over")
        return
    warn_of_idle(_find_idle(config) + config.tracking.find_idle() + find_idle(config.training, config.parallel))
    record = RunRecord("pretrain", config)
    can_forget = build_guard(folder)
    with can_forget():
        config.tracking.check_servers()
    with connect(config.cluster), Tracking(config.tracking, folder, asdict(config)) as tracking:
        record.data["inventory"] = ray.cluster_resources()
        with can_forget():
            inventory = read_running_cluster(is_private=find_address(config.cluster) is None)
            scaling = plan_workers(config.resources, may_grow=inventory.may_grow)
            info = load_text_info(folder / TEXT_FOLDER)
            if info is None:
                with record.phase("prepare", "reading, tokenizing and packing the text"):
                    info = _prepare(config, mentions, folder / TEXT_FOLDER)
                print_text(info, folder / TEXT_FOLDER)
            is_scratch = config.model.encoder == SCRATCH
            encoder = str(folder / TEXT_FOLDER / SCRATCH) if is_scratch else find_encoder(config.model.encoder)
            workers = scaling.max_workers
            raise_all(find_misfits(config.parallel, workers, scaling.use_gpu, encoder, config.training))
            warn_of_idle(find_idle_alone(config.parallel, scaling.max_workers))
        has_head = has_masked_head(encoder)
        job = _build_job(config, encoder, folder / TEXT_FOLDER, has_head)
        read_rows = discard_with_rows(folder, MetricsTail(folder / METRICS_FILE).read)
        with can_forget():  # workers find mistakes, too
            tracking.start(folder / METRICS_FILE)
            with record.phase("train", "pretraining"), watch_training(read_rows):
                result = fit(job, config.resources, folder, may_grow=inventory.may_grow)
    _finish(config, folder, job, info, result, record, has_head)


def _prepare(config: PretrainConfig, mentions: MentionSources, folder: Path) -> TextInfo:
    is_scratch = config.model.encoder == SCRATCH
    encoder = SCRATCH if is_scratch else find_encoder(config.model.encoder)
    window = config.encoding.window
    if window is None and not is_scratch:
        window = min(DEFAULT_WINDOW, _find_longest(encoder))
    return prepare_text(
        config.corpus,
        config.encoding,
        encoder,
        mentions,
        folder,
        window=window or DEFAULT_WINDOW,
        num_segments=2 if config.objective == "masks_and_order" else 1,
        rare_count=config.masking.rare_count if config.masking.rare_weight != 1 else None,
        seed=config.training.seed,
    )


def _build_job(config: PretrainConfig, encoder: str, text: Path, has_head: bool) -> PretrainingJob:
    training, optimizer = config.training, config.training.optimizer
    if has_head and optimizer.head_learning_rate is None:  # a head that has learned needs no rate of its own
        hidden_size = AutoConfig.from_pretrained(encoder, trust_remote_code=False).hidden_size
        rate = optimizer.learning_rate or choose_learning_rate(hidden_size)
        training = replace(training, optimizer=replace(optimizer, head_learning_rate=rate))
    return PretrainingJob(
        encoder=encoder,
        dropout=config.model.dropout,
        masking=config.masking,
        tells_order=config.objective == "masks_and_order",
        training=training,
        parallel=config.parallel,
        load_windows=partial(read_text_windows, text),
    )


def _finish(
    config: PretrainConfig,
    folder: Path,
    job: PretrainingJob,
    info: TextInfo,
    result: TrainingResult,
    record: RunRecord,
    has_head: bool,
) -> None:
    """Write the encoder, the report and the record, and say what was made."""
    history = read_metrics(folder / METRICS_FILE)
    usage = summarize_usage(history)
    before = next(row["held_out_perplexity"] for row in history if row["kind"] == "epoch")
    best = to_perplexity(result.best_dev_f1)
    name = config.model.encoder
    facts = collect_facts(name, config.objective, config.encoding.packing, config.training.seed, info, result, usage)
    notes = list_notes(name, before, best, has_head=has_head)
    masks = job.open_windows("train").describe_masks([0])
    encoder = folder / ENCODER_FOLDER
    with record.phase("encoder", "writing the encoder"):
        card = {"perplexity on held-out text": f"{best:,.2f} (before: {before:,.2f})"}
        card |= {key: str(value) for group in facts.values() for key, value in group.items() if key != "continued from"}
        write_encoder(encoder, job.encoder, result.best_model, name, card)
    report = write_report(folder, history, masks, facts, notes)
    told = {key: value for key, value in vars(result).items() if key not in ("best_model", "best_dev_f1")}
    record.write(
        folder,
        status="done",
        text=asdict(info),
        seed=config.training.seed,
        masks=masks,
        training=told | usage,
        scores={"held_out_perplexity_before": before, "held_out_perplexity": best},
    )
    console.print(f"held-out perplexity [bold]{best:,.2f}[/], before training {before:,.2f}")
    for note in notes[1:]:
        console.print(f"  {escape(note)}")
    console.print(escape(f"\nencoder: {encoder}\nreport: {report}"))
    console.print(render_next(f"rayner train --model.encoder {encoder} --corpus.train YOUR_FILES --output_dir out/run"))


def _find_problems(config: PretrainConfig) -> list[UserError]:
    dropout = config.model.dropout
    problems: list[UserError] = []
    if dropout is not None and not 0 <= dropout < 1:
        rule, where = "0 ≤ dropout < 1", "`model.dropout`"
        problems.append(ModelError("a dropout out of range", where=where, rule=rule, value=dropout))
    return [
        *config.corpus.find_problems(),
        *config.cluster.find_problems(),
        *problems,
        *config.encoding.find_problems(),
        *config.masking.find_problems(),
        *find_setting_problems(config.objective, config.training, config.parallel),
        *find_contradictions(ModelConfig(), with_own_loss(config.training), config.parallel),
        *config.training.find_problems(),
        *config.parallel.find_problems(),
        *config.resources.find_problems(config.parallel.strategy),
        *config.tracking.find_problems(),
    ]


def _find_encoder_problems(config: PretrainConfig) -> list[UserError]:
    """What the encoder is not, or cannot read; nothing of one that is yet to be made."""
    window = config.encoding.window
    if config.model.encoder == SCRATCH:
        return find_window_problems(window, 512, SCRATCH)
    try:
        encoder = find_encoder(config.model.encoder)
        tokenizer = load_tokenizer(encoder)
        problems = find_model_problems(encoder) + find_tokenizer_problems(tokenizer, config.objective)
        problems += find_encoder_misfits(config.parallel, encoder, config.training)
        longest = _find_longest(encoder)
        if window is not None and window <= longest:
            Encoder(tokenizer, window=window, stride=0, splitter="whitespace")
    except UserError as error:
        return [error]
    return problems + find_window_problems(window, longest, config.model.encoder)


def _find_longest(encoder: str) -> int:
    return get_max_window(AutoConfig.from_pretrained(encoder, trust_remote_code=False), load_tokenizer(encoder))


def _find_idle(config: PretrainConfig) -> list[str]:
    """Settings given that change nothing in this run, each with its reason."""
    plain, masking = MaskingConfig(), config.masking
    told = config.corpus.reader.find_idle("corpus.reader") + config.resources.find_idle()
    if masking.entity_weight != plain.entity_weight and not masking.gazetteer and not masking.bundle:
        told.append("`masking.entity_weight` has no effect: neither a gazetteer nor a bundle tells mentions")
    if masking.rare_count != plain.rare_count and masking.rare_weight == 1:
        told.append("`masking.rare_count` has no effect: `masking.rare_weight` is 1")
    if config.resources.auto:
        told.append("`resources.auto` has no effect: pretraining takes its workers as they are given")
    if config.corpus.held_out and config.corpus.held_out_fraction != TextConfig().held_out_fraction:
        told.append("`corpus.held_out_fraction` has no effect: held-out files are given")
    return told


if __name__ == "__main__":
    sys.exit(main())
