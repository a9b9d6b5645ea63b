"""Runs that train on a corpus: the steps that `train`, `tune` and `scale` take alike."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray
import ray.data

from pipelines.cluster import list_node_cpus
from pipelines.corpus.config import CorpusConfig
from pipelines.corpus.inference import ActorResources, InferenceConfig, plan_actors, predict_table
from pipelines.corpus.preparation import prepare_shards
from pipelines.corpus.shards import (
    SHARDS_FILE,
    ShardsInfo,
    find_shards_misfits,
    hash_seen_mentions,
    load_shards_info,
    read_rows,
    read_split,
    read_windows,
)
from pipelines.corpus.summary import SPLITS
from pipelines.evaluation.report import EvaluationReport
from pipelines.folders import leave_no_trace_of_mistakes
from pipelines.ner.bundle import Bundle, BundleInfo, hash_mention, save_bundle
from pipelines.ner.encoders import SCRATCH, find_encoder
from pipelines.ner.encoding import EncodingConfig
from pipelines.ner.errors import raise_all
from pipelines.ner.model import ModelConfig
from pipelines.run_record import RunRecord, read_versions
from pipelines.training.config import TrainingConfig
from pipelines.training.history import read_metrics
from pipelines.training.job import TrainingJob, TrainingResult
from pipelines.training.parallel import ParallelConfig
from pipelines.training.recorder import METRICS_FILE
from pipelines.training.strategies import find_encoder_misfits

NUM_EXAMPLES = 20
SHARDS_FOLDER = "shards"
FREE = ("training.device_batch_tokens", "training.checkpoint_every_steps")
"""Settings of training that may change when a run goes on, as its workers may: each step has the same windows, and only
dropout is drawn otherwise where they are cut otherwise. With `local_sgd`, workers meet at checkpoints, too."""
WORK = ("checkpoints/*.pt", "trials/*", "variants/*", "cases/*")
"""What a run of any door has done that other settings would lose."""


def build_guard(folder: Path) -> Callable[[], AbstractContextManager[None]]:
    """What makes blocks that leave no trace of a mistake, as long as the run folder has no work in it but shards."""

    def has_begun() -> bool:
        told = any(row["kind"] == "checkpoint" for row in read_metrics(folder / METRICS_FILE))  # also of what is gone
        return told or any(next(folder.glob(pattern), None) for pattern in WORK)

    return partial(leave_no_trace_of_mistakes, folder, has_begun)


def check_encoder(corpus: CorpusConfig, model: ModelConfig, training: TrainingConfig, parallel: ParallelConfig) -> None:
    """Raise UserError for an encoder that cannot do what is asked of it; nothing of one that only shards will tell."""
    if model.encoder != SCRATCH and not corpus.shards:
        raise_all(find_encoder_misfits(parallel, find_encoder(model.encoder), training, model.dropout))


def get_shards(
    corpus: CorpusConfig,
    encoding: EncodingConfig,
    model: ModelConfig,
    seed: int,
    folder: Path,
    record: RunRecord,
    needed: Sequence[str] = SPLITS,
) -> tuple[Path, ShardsInfo, bool]:
    """The shards given, those that an interrupted run has left in `folder`, or new ones there; whether they are new.

    Args:
        needed: the splits that must not be empty.
    """
    if corpus.shards:
        shards = Path(corpus.shards).expanduser().absolute()
        info = load_shards_info(shards)
        raise_all(find_shards_misfits(shards, info, model, encoding))
        if model.encoder != ModelConfig().encoder and Path(model.encoder).is_dir():
            info = replace(info, encoder=model.encoder)  # as it is called from here
        return shards, info, False
    if (folder / SHARDS_FILE).is_file():
        return folder, load_shards_info(folder), False
    with record.phase("prepare", "reading, checking and tokenizing the corpus"):
        info = prepare_shards(corpus, encoding, model, folder, seed=seed, num_actors=1, needed=needed)
    return folder, info, True


def build_job(
    shards: Path,
    info: ShardsInfo,
    encoder: str,
    model: ModelConfig,
    training: TrainingConfig,
    parallel: ParallelConfig,
    load_windows: Callable[[], pa.Table] | None = None,
    load_dev: Callable[[], Sequence[dict[str, Any]]] | None = None,
) -> TrainingJob:
    """What workers need to train on these shards, whose words and tags are taken as they were encoded.

    Args:
        encoder: a resolved path or hub id.
        load_windows, load_dev: default: all that the shards have.
    """
    return TrainingJob(
        encoder=encoder,
        model=model,
        scheme=info.label_scheme,
        window=info.window,
        stride=info.stride,
        splitter=info.splitter,
        casing=info.casing,
        training=training,
        parallel=parallel,
        load_windows=load_windows or partial(read_windows, shards),
        load_dev=load_dev or partial(read_rows, shards, "dev"),
        corpus_scheme=info.corpus_scheme,
    )


def write_bundle(
    folder: Path, job: TrainingJob, info: ShardsInfo, result: TrainingResult, shards: Path, precision: str
) -> None:
    """The best model of a training as a bundle."""
    model = job.build_model()
    model.load_state_dict(result.best_model)
    bundle = Bundle(
        model=model,
        encoder=job.build_encoder(),
        info=BundleInfo(
            scheme=job.scheme.name,
            head=job.model.head,
            splitter=job.splitter,
            window=job.window,
            stride=job.stride,
            precision=precision,
            training={
                "encoder": info.encoder,
                "seed": job.training.seed,
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
    save_bundle(folder, bundle)


def score_test_split(
    bundle: Path, shards: Path, info: ShardsInfo, inference: InferenceConfig
) -> tuple[EvaluationReport, list[dict[str, Any]]]:
    """The report on the test split, and a few predicted records to show."""
    seen = hash_seen_mentions(shards)
    report = EvaluationReport(lambda mention, label: hash_mention(mention, label) in seen)
    plan = plan_actors(ActorResources(), list_node_cpus(ray.nodes()), ray.cluster_resources().get("GPU", 0))
    test: pa.Table = read_split(shards, "test").sort_by("record_id")
    examples: list[dict[str, Any]] = []
    for batch in predict_table(test, str(bundle), inference, plan).to_batches():
        rows = batch.to_pylist()
        report.add_rows(rows, info.corpus_scheme)
        examples += rows[: max(0, NUM_EXAMPLES - len(examples))]
    return report, examples
