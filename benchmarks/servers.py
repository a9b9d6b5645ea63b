"""Servers that a benchmark starts: each in a process group of its own, watched, loaded, and ended by process id."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.processes import list_tree

START_S = 240
"""Deadline for a server to be ready: it may measure runtimes on its first start."""
END_S = 30
"""Deadline for a server to end after SIGINT."""
POLL_S = 0.2
REPLICA = "ray::ServeReplica"
"""How the process titles of Ray Serve's replicas begin."""


@dataclass(frozen=True)
class Server:
    """A server that is ready."""

    pid: int
    address: str

    def list_replicas(self) -> list[int]:
        """The processes that hold the model: Ray Serve's replicas, or the server itself where there are none."""
        return [pid for pid in list_tree(self.pid) if _read_title(pid).startswith(REPLICA)] or [self.pid]

    def read_memory_mib(self) -> dict[str, float]:
        """Resident memory of each process that holds the model, by process id."""
        return {str(pid): read_resident_mib(pid) for pid in self.list_replicas()}


@contextmanager
def start_server(command: Sequence[str], ready_path: str, log: Path) -> Iterator[Server]:
    """A server for the time of the block; `{port}` in the command is a free port. Raises RuntimeError with its log."""
    port = find_free_port()
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    with log.open("ab") as output:
        process = subprocess.Popen(
            [part.replace("{port}", str(port)) for part in command],
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
    server = Server(process.pid, f"http://127.0.0.1:{port}")
    try:
        _wait_until_ready(process, server.address + ready_path, log)
        yield server
    finally:
        end_server(process)


def end_server(process: "subprocess.Popen[bytes]", deadline_s: float = END_S) -> None:
    """End a server as Ctrl-C does; after the deadline, kill what is left of all that it had started."""
    started = [(pid, _read_start(pid)) for pid in {*list_tree(process.pid), *_list_group(process.pid)}]
    process.send_signal(signal.SIGINT)
    with suppress(subprocess.TimeoutExpired):
        process.wait(deadline_s)
    # A process id may belong to another process by now: the moment of its start tells.
    for pid, moment in started:
        if moment is not None and _read_start(pid) == moment:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    process.wait()


def _wait_until_ready(process: "subprocess.Popen[bytes]", url: str, log: Path) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        with suppress(OSError, urllib.error.URLError), urllib.request.urlopen(url, timeout=5) as answer:
            if answer.status == 200:
                return
        time.sleep(POLL_S)
    tail = log.read_text(encoding="utf-8", errors="replace")[-2000:]
    raise RuntimeError(f"the server is not ready (exit code {process.returncode}):\n{tail}")


def find_free_port() -> int:
    """A port that nothing listens on now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def run_load(url: str, bodies: Path, *, connections: int, seconds: float, **settings: float) -> dict[str, Any]:
    """The report of the load generator in a process of its own; further settings are its flags."""
    command = [sys.executable, "-m", "benchmarks.load", "--url", url, "--bodies", str(bodies)]
    command += ["--connections", str(connections), "--seconds", str(seconds)]
    for name, value in settings.items():
        command += [f"--{name}", str(value)]
    found = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    report: dict[str, Any] = json.loads(found.stdout)
    return report


def fetch_json(url: str) -> Any:
    """What a GET of this address answers."""
    with urllib.request.urlopen(url, timeout=30) as answer:
        return json.load(answer)


def read_resident_mib(pid: int) -> float:
    """Resident set size of a process; 0 if it is gone."""
    with suppress(OSError, IndexError):
        status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
        return int(status.partition("VmRSS:")[2].split()[0]) / 1024
    return 0.0


def _read_title(pid: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    return ""


def _list_group(group: int) -> list[int]:
    """The processes of a group: also those whose parents have ended."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            if int(stat.read_text().rpartition(")")[2].split()[2]) == group:
                found.append(int(stat.parent.name))
    return found


def _read_start(pid: int) -> str | None:
    """When a process started, in the kernel's ticks; None if it is gone or waits to be reaped."""
    with suppress(OSError, IndexError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if fields[0] == "Z" else fields[19]
    return None
