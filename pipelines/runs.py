"""Runs that train on a corpus and go on where they were: what the doors `train` and `scale` do alike."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa

from pipelines.corpus.config import CorpusConfig
from pipelines.corpus.preparation import prepare_shards
from pipelines.corpus.shards import SHARDS_FILE, ShardsInfo, find_shards_misfits, load_shards_info
from pipelines.folders import leave_no_trace_of_mistakes
from pipelines.ner.encoding import EncodingConfig
from pipelines.ner.errors import raise_all
from pipelines.ner.model import ModelConfig
from pipelines.run_record import RunRecord
from pipelines.training.config import TrainingConfig
from pipelines.training.parallel import ParallelConfig
from pipelines.training.trainer import TrainingJob

SHARDS_FOLDER = "shards"


class RunSettings(Protocol):
    """The settings that these doors share."""

    @property
    def corpus(self) -> CorpusConfig:
        """Files, or shards."""

    @property
    def model(self) -> ModelConfig:
        """What shards are made for."""

    @property
    def encoding(self) -> EncodingConfig:
        """How shards are tokenized."""

    @property
    def training(self) -> TrainingConfig:
        """Whose seed makes a `scratch` encoder's weights."""


def build_guard(folder: Path) -> Callable[[], AbstractContextManager[None]]:
    """What makes blocks that leave no trace of a mistake, as long as the run folder has no shards."""
    return partial(leave_no_trace_of_mistakes, folder, (folder / SHARDS_FOLDER).exists)


def get_shards(
    config: RunSettings,
    folder: Path,
    record: RunRecord,
    tell: Callable[[ShardsInfo, Path], object] = lambda info, shards: None,
) -> tuple[Path, ShardsInfo]:
    """The shards given, those that an earlier call has left in the run folder, or new ones, which are told of."""
    if config.corpus.shards:
        shards = Path(config.corpus.shards).expanduser().absolute()
        info = load_shards_info(shards)
        raise_all(find_shards_misfits(shards, info, config.model, config.encoding))
        return shards, info
    shards = folder / SHARDS_FOLDER
    if (shards / SHARDS_FILE).is_file():
        return shards, load_shards_info(shards)
    with record.phase("prepare", "reading, checking and tokenizing the corpus"):
        info = prepare_shards(
            config.corpus, config.encoding, config.model, shards, seed=config.training.seed, num_actors=1
        )
    tell(info, shards)
    return shards, info


def build_job(
    info: ShardsInfo,
    encoder: str,
    model: ModelConfig,
    training: TrainingConfig,
    parallel: ParallelConfig,
    load_windows: Callable[[], pa.Table],
    load_dev: Callable[[], Sequence[dict[str, Any]]],
) -> TrainingJob:
    """A job on shards, whose words and tags it takes as they were encoded; `encoder` is a resolved path or hub id."""
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
        load_windows=load_windows,
        load_dev=load_dev,
        corpus_scheme=info.corpus_scheme,
    )
