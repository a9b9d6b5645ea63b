"""Replicas without Ray, their HTTP application without a socket, and an engine that can be watched and hindered."""

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

import httpx
import torch
from torch import Tensor

from pipelines.ner.encoding import Window
from pipelines.ner.engine import NerEngine, PreparedText
from pipelines.ner.entities import Prediction
from serve.replica import Replica
from serve.routes import build_http
from serve.settings import Arguments

KEY = b"k" * 32
DEADLINE_S = 30.0


class WatchedEngine(NerEngine):
    """The real engine; it notes its batches, may be held up, and fails for texts with a marked word in them."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.forget()

    def forget(self) -> None:
        """Behave as any engine again."""
        self.batches: list[list[int]] = []
        self.num_threads_of_batches: list[int] = []
        self.gate = threading.Event()
        self.gate.set()
        self.poison_token: int | None = None
        self.poison_text: str | None = None
        self.pause_s = 0.0

    def poison(self, word: str, stage: str) -> None:
        """From now on the stage fails where this word is in the batch."""
        if stage == "compute":
            [self.poison_token] = self.prepare(word).document.windows[0].input_ids[1:2]
        else:
            self.poison_text = word

    def compute(self, windows: Sequence[Window]) -> list[Tensor]:
        self.num_threads_of_batches.append(torch.get_num_threads())
        self.batches.append([len(window.input_ids) for window in windows])
        assert self.gate.wait(DEADLINE_S)
        time.sleep(self.pause_s)
        if any(self.poison_token in window.input_ids for window in windows if self.poison_token is not None):
            raise RuntimeError("a poisonous window")
        return super().compute(windows)

    def finish(self, texts: Sequence[PreparedText], emissions: Sequence[Sequence[Tensor]]) -> list[Prediction]:
        if any(self.poison_text in text.text for text in texts if self.poison_text is not None):
            raise RuntimeError("a poisonous text")
        return super().finish(texts, emissions)


class WatchedReplica(Replica):
    """The real replica with engines that can be watched."""

    def open_engine(self, path: str) -> WatchedEngine:
        return WatchedEngine.load(path, device="cpu", runtime="torch", precision="fp32", num_threads=2)

    @property
    def engine(self) -> WatchedEngine:
        """That of the default model."""
        engine = self.shelf.loaded[self.arguments.model_name].engine
        assert isinstance(engine, WatchedEngine)
        return engine


class Talk:
    """A replica and a client of its application."""

    def __init__(self, replica: WatchedReplica, client: httpx.AsyncClient) -> None:
        self.replica, self.client = replica, client

    async def ask(self, body: Any, path: str = "/v1/entities", **options: Any) -> httpx.Response:
        """Post JSON."""
        return await self.client.post(path, json=body, **options)

    async def stream(self, lines: bytes, path: str = "/v1/entities/stream", **options: Any) -> httpx.Response:
        """Post lines."""
        headers = {"content-type": "application/x-ndjson"}
        return await self.client.post(path, content=lines, headers=headers, **options)


def talk(
    bundle: Path | str,
    conversation: Callable[[Talk], Awaitable[None]],
    *,
    is_started: bool = True,
    **arguments: Any,
) -> None:
    """Have a conversation with a fresh replica's HTTP application."""

    async def converse() -> None:
        replica = WatchedReplica(Arguments(**{"model": str(bundle), "page": False, **arguments}), KEY)
        if is_started:
            await replica.start()

        async def gather_figures() -> dict[str, Any]:
            replica.look()
            return {"one": replica.metrics.collect()}

        transport = httpx.ASGITransport(build_http(replica, gather_figures, "1.2.3"))
        try:
            async with httpx.AsyncClient(transport=transport, base_url="http://ner") as client:
                await conversation(Talk(replica, client))
        finally:
            for model in replica.shelf.loaded.values():
                model.close()

    run(converse())


def run(coroutine: Coroutine[Any, Any, None]) -> None:
    """Run it; what hangs fails."""
    asyncio.run(asyncio.wait_for(coroutine, DEADLINE_S))


async def wait_until(condition: Callable[[], bool], what: str) -> None:
    """Poll, with a deadline."""
    end = time.monotonic() + DEADLINE_S / 2
    while not condition():
        assert time.monotonic() < end, f"not within {DEADLINE_S / 2:.0f} s: {what}"
        await asyncio.sleep(0.002)
