"""The endpoint's application under a real HTTP server in a process of its own, without Ray.

    python -m tests.e2e.endpoint_server '{"model": …}'

It prints its port once it is ready and ends when its standard input does.
"""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn

from pipelines.ner.runtimes.runtime import set_up_process
from serve import bodies
from serve.replica import Replica
from serve.routes import build_http
from serve.settings import Arguments
from tests.conftest import ROOT

BODY_TIMEOUT_S = 2.0
"""Short, so that a test need not wait as long as a user may."""

MALLOC = {"MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "131072", "MALLOC_ARENA_MAX": "2"}
"""Large buffers are given back at once, so that memory that grows is memory that is held."""


async def serve(arguments: dict[str, Any]) -> None:
    """Answer until standard input ends."""
    set_up_process()  # as a replica does
    bodies.BODY_TIMEOUT_S = BODY_TIMEOUT_S
    replica = Replica(Arguments.model_validate(arguments), b"k" * 32)
    await replica.start()

    async def gather_figures() -> dict[str, Any]:
        replica.look()
        return {"one": replica.metrics.collect()}

    server = uvicorn.Server(uvicorn.Config(build_http(replica, gather_figures, "0"), port=0, log_level="warning"))
    serving = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    print(server.servers[0].sockets[0].getsockname()[1], flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    server.should_exit = server.force_exit = True
    await serving


@dataclass
class Server:
    """A running server, seen from a test."""

    port: int
    pid: int
    log: Path

    @property
    def url(self) -> str:
        """Of its root."""
        return f"http://127.0.0.1:{self.port}"

    def read_rss_mib(self) -> float:
        """Its resident memory."""
        return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


@contextmanager
def open_server(arguments: dict[str, Any], folder: Path) -> Iterator[Server]:
    """Start a server for the time of the block."""
    log = folder / "server.log"
    command = [sys.executable, "-m", "tests.e2e.endpoint_server", json.dumps(arguments)]
    pipe = subprocess.PIPE
    with (
        log.open("w") as errors,
        subprocess.Popen(
            command, cwd=ROOT, env=os.environ | MALLOC, stdin=pipe, stdout=pipe, stderr=errors, text=True
        ) as process,
    ):
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            port = process.stdout.readline().strip()
            assert port.isdigit(), log.read_text()[-3000:]
            yield Server(int(port), process.pid, log)
        finally:
            process.stdin.close()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()


if __name__ == "__main__":
    asyncio.run(serve(json.loads(sys.argv[1])))
