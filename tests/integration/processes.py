"""Finding and ending the processes that a test has started: descendants only, by id."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from tests.conftest import ROOT

POLL_S = 0.05


def start_door(
    door: str,
    arguments: Iterable[str],
    environment: Mapping[str, str] | None = None,
    *,
    stderr: int = subprocess.STDOUT,
) -> subprocess.Popen[str]:
    """A door in a process group of its own and with a Ray of its own; by default both its streams come in one."""
    inherited = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "RAY_ADDRESS")}
    return subprocess.Popen(
        [sys.executable, "-m", "pipelines", door, *arguments],
        cwd=ROOT,
        env=inherited | dict(environment or {}),
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
        start_new_session=True,
    )


def list_descendants(pid: int, name: str = "") -> list[int]:
    """Ids of the processes below `pid` whose command line holds `name`."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(stat.parent.name))
    found: list[int] = []
    todo = [pid]
    while todo:
        below = children.get(todo.pop(), [])
        found += below
        todo += below
    return sorted(one for one in found if name in read_command(one))


def read_command(pid: int) -> str:
    """The command line of a process; empty if it is gone."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    return ""


def kill(pids: Iterable[int]) -> None:
    """SIGKILL; processes that are gone are no error."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def wait_until(holds: Callable[[], object], what: str, deadline_s: float = 300) -> None:
    """Poll until something holds; fail with `what` at the deadline."""
    end = time.monotonic() + deadline_s
    while not holds():
        assert time.monotonic() < end, f"after {deadline_s:g} s still not: {what}"
        time.sleep(POLL_S)
