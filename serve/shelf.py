"""The models of a replica: loaded when they are asked for, and put away when memory is needed for others."""

import asyncio
import logging
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from pipelines.ner.engine import NerEngine
from pipelines.ner.errors import UserError
from serve.batching import Batcher
from serve.problems import Problem

MIB = 1 << 20

logger = logging.getLogger(__name__)


@dataclass(eq=False)
class LoadedModel:
    """A model in memory, ready to answer."""

    name: str
    engine: NerEngine
    batcher: Batcher
    size_mib: float

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
        self.thread = ThreadPoolExecutor(1, "loading")

    async def find(self, name: str) -> LoadedModel:
        """The model of this name. Raises Problem where there is none, or it cannot be loaded."""
        model = self.loaded.pop(name, None)
        if model is not None:
            self.loaded[name] = model
            return model
        if name not in self.paths:
            raise Problem(404, f"no model `{name[:100]}`; there are {', '.join(self.paths)}")
        task = self.loading.get(name)
        if task is None:
            task = self.loading[name] = asyncio.create_task(self._load(name))
        return await asyncio.shield(task)  # who gives up does not stop it for the others

    async def _load(self, name: str) -> LoadedModel:
        try:
            loop = asyncio.get_running_loop()
            engine = await loop.run_in_executor(self.thread, self.open_engine, self.paths[name])
        except UserError as error:
            logger.error("model %s cannot be loaded: %s", name, error)
            headers = {"retry-after": "60"}
            raise Problem(503, f"the model `{name}` cannot be loaded: {error.what}", headers=headers) from error
        finally:
            self.loading.pop(name, None)
        model = LoadedModel(name, engine, self.make_batcher(engine), engine.size_bytes / MIB)
        self._make_room(model.size_mib)
        self.loaded[name] = model
        return model

    def _make_room(self, size_mib: float) -> None:
        for name, model in list(self.loaded.items()):
            if size_mib + sum(one.size_mib for one in self.loaded.values()) <= self.max_mib:
                return
            if model.batcher.is_idle:
                del self.loaded[name]
                model.close()
