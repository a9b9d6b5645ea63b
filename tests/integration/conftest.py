"""One small Ray for all tests that run a door or a room in this process."""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pyarrow as pa
import pytest
import ray
import ray.data

from pipelines.cluster import ENVIRONMENT
from pipelines.corpus.config import CorpusConfig
from pipelines.corpus.preparation import prepare_shards
from pipelines.corpus.shards import load_shards_info, read_windows
from pipelines.ner.encoding import EncodingConfig
from pipelines.ner.model import ModelConfig
from pipelines.runs import build_job
from pipelines.training.job import TrainingJob, TrainingResult
from pipelines.training.parallel import ParallelConfig
from pipelines.training.resources import ResourcesConfig
from pipelines.training.trainer import fit
from tests.conftest import SAMPLE
from tests.integration.trainings import TRAINING


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """A local Ray with eight logical CPUs, whatever the machine has; `connect` uses it as it is."""
    if ray.is_initialized():  # another folder's instance of this fixture
        yield
        return
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    folder = tempfile.mkdtemp(prefix="r")  # pytest's own folders make paths too long for sockets
    ray.init(
        address="local",
        num_cpus=8,
        object_store_memory=256 << 20,
        include_dashboard=False,
        log_to_driver=False,
        _temp_dir=folder,
        _system_config={"health_check_period_ms": 500},  # a node that is killed is missed after some seconds
    )
    context = ray.data.DataContext.get_current()
    context.execution_options.verbose_progress = False
    context.execution_options.preserve_order = True
    context.read_op_min_num_blocks = 1
    context.enable_progress_bars = False
    yield
    ray.shutdown()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def make_job(
    ray_session: None, tiny_encoder: str, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., TrainingJob]:
    """Jobs on forty documents of the sample, without dropout."""
    folder = tmp_path_factory.mktemp("corpus")
    some = folder / "train.jsonl"
    some.write_text("".join((SAMPLE / "en-train.jsonl").open().readlines()[:40]), encoding="utf-8")
    corpus = CorpusConfig(train=[str(some)], dev=["sample:en-dev.jsonl"], test=["sample:en-dev.jsonl"])
    shards, model = folder / "shards", ModelConfig(encoder=tiny_encoder, dropout=0.0)
    prepare_shards(corpus, EncodingConfig(window=64), model, shards, seed=1, num_actors=1)
    info = load_shards_info(shards)

    def make(load_windows: Callable[[], pa.Table] = partial(read_windows, shards)) -> TrainingJob:  # noqa: B008
        return build_job(shards, info, tiny_encoder, model, TRAINING, ParallelConfig(), load_windows)

    return make


@pytest.fixture(scope="session")
def undisturbed(make_job, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TrainingResult]:
    """A run with one worker."""
    folder = tmp_path_factory.mktemp("undisturbed")
    return folder, fit(make_job(), ResourcesConfig(num_workers=1, cpus_per_worker=1), folder)
