"""One small Ray for all tests that run a door or a room in this process."""

import os
import shutil
import tempfile
from collections.abc import Iterator

import pytest
import ray
import ray.data

from pipelines.cluster import ENVIRONMENT


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
    )
    context = ray.data.DataContext.get_current()
    context.execution_options.verbose_progress = False
    context.execution_options.preserve_order = True
    context.read_op_min_num_blocks = 1
    context.enable_progress_bars = False
    yield
    ray.shutdown()
    shutil.rmtree(folder, ignore_errors=True)
