"""The models of a replica: loaded when they are asked for, and put away when memory is needed for others."""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.ner.engine import NerEngine
from pipelines.ner.errors import UserError
from serve.batching import Batcher
from serve.problems import Problem

MIB = 1 << 20
RETRY_S = 60.0
"""A model that cannot be loaded is tried again after this; each try would hold up the others' loading."""

logger = logging.getLogger(__name__)


@dataclass(eq=False)
class LoadedModel:
    """A model in memory, ready to answer."""

    name: str
    engine: NerEngine
    batcher: Batcher
    size_mib: float
    num_borrowed: int = 0

    def describe(self) -> dict[str, Any]:
        """What `/v1/model` says."""
        engine, info = self.engine.describe(), self.engine.info
        return {
            "name": self.name,
            "labels": list(self.engine.scheme.labels),
            "scheme": info.scheme,
            "fingerprint": info.fingerprint,
            "runtime": engine["runtime"],
            "precision": engine["precision"],
            "device": engine["device"],
            "window": self.engine.encoder.window,
            "stride": self.engine.encoder.stride,
            "metrics": {name: value for name, value in info.training.items() if isinstance(value, int | float | str)},
        }

    def close(self) -> None:
        """Free its threads and its memory."""
        self.batcher.close()
        self.engine.close()


class Shelf:
    """Models by name.

    Args:
        paths: where each model is.
        max_mib: memory for weights; one model always fits.
        open_engine: loads a model; on a thread of its own.
        make_batcher: for a loaded engine.
    """

    def __init__(
        self,
        paths: Mapping[str, str],
        max_mib: float,
        open_engine: Callable[[str], NerEngine],
        make_batcher: Callable[[NerEngine], Batcher],
    ) -> None:
        self.paths, self.max_mib = paths, max_mib
        self.open_engine, self.make_batcher = open_engine, make_batcher
        self.loaded: dict[str, LoadedModel] = {}
        """The last used one last."""
        self.loading: dict[str, asyncio.Task[LoadedModel]] = {}
        self.awaited: Counter[str] = Counter()
        """How many wait for each of these, and will use it: it is not put away before."""
        self.broken: dict[str, float] = {}
        """Until when a model that could not be loaded is not tried again."""
        self.lock = asyncio.Lock()

    @asynccontextmanager
    async def borrow(self, name: str) -> AsyncIterator[LoadedModel]:
        """The model of this name, which stays in memory during the block.

        Raises Problem where there is none, or it cannot be loaded.
        """
        if name not in self.paths:
            raise Problem(404, f"no model `{name[:100]}`; there are {', '.join(self.paths)}")
        while name not in self.loaded:
            if self.broken.get(name, 0.0) > time.monotonic():
                raise self._refuse(name)
            task = self.loading.get(name)
            if task is None:
                task = self.loading[name] = asyncio.create_task(self._load(name))
            self.awaited[name] += 1
            try:
                await asyncio.shield(task)  # who gives up does not stop it for the others
            finally:
                self.awaited[name] -= 1
        self.loaded[name] = self.loaded.pop(name)
        with self.look(name) as model:
            assert model is not None
            yield model

    @contextmanager
    def look(self, name: str) -> Iterator[LoadedModel | None]:
        """The model if it is in memory, where it stays during the block; that does not count as a use."""
        model = self.loaded.get(name)
        if model is None:
            yield None
            return
        model.num_borrowed += 1
        try:
            yield model
        finally:
            model.num_borrowed -= 1
            self._make_room(0)

    async def _load(self, name: str) -> LoadedModel:
        thread = ThreadPoolExecutor(1, "loading")  # it ends, and with it OpenMP's threads that it had for its own
        try:
            async with self.lock:
                self._make_room(estimate_mib(self.paths[name]))  # before there are both
                engine = await asyncio.get_running_loop().run_in_executor(thread, self.open_engine, self.paths[name])
        except Exception as error:
            is_clear = isinstance(error, UserError)
            logger.error("model %s cannot be loaded: %s", name, error, exc_info=None if is_clear else error)
            self.broken[name] = time.monotonic() + RETRY_S
            raise self._refuse(name) from error
        finally:
            thread.shutdown(wait=False)
            self.loading.pop(name, None)
        model = LoadedModel(name, engine, self.make_batcher(engine), engine.size_bytes / MIB)
        self._make_room(model.size_mib)
        self.loaded[name] = model
        return model

    def _refuse(self, name: str) -> Problem:
        headers = {"retry-after": str(max(1, round(self.broken[name] - time.monotonic())))}
        return Problem(503, f"the model `{name}` cannot be loaded; the log says why", headers=headers)

    def _make_room(self, size_mib: float) -> None:
        """Put away what nobody uses, the longest unused first, until so much fits besides; the last one used stays."""
        for name, model in list(self.loaded.items())[: None if size_mib else -1]:
            if size_mib + sum(one.size_mib for one in self.loaded.values()) <= self.max_mib:
                return
            if not model.num_borrowed and not self.awaited[name] and model.batcher.is_idle:
                del self.loaded[name]
                model.close()


def estimate_mib(path: str) -> float:
    """About what a model's weights take, by their files; 0 of one that is no folder."""
    return sum(file.stat().st_size for file in Path(path).glob("*.safetensors")) / MIB
