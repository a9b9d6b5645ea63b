"""Memory of a command and of all that it starts."""

import subprocess
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

POLL_S = 0.5


def run_watched(command: Sequence[str]) -> tuple[float, float]:
    """Run a command; returns the largest memory of its processes together, in MiB, and its seconds.

    Memory is the proportional set size: what processes share, such as Ray's object store, counts once.
    """
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    peak = 0.0
    stop = threading.Event()

    def watch() -> None:
        """Look at the memory of the whole tree of processes until told to stop."""
        nonlocal peak
        while not stop.wait(POLL_S):
            peak = max(peak, sum(map(read_memory_mib, list_tree(process.pid))))

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    code = process.wait()
    seconds = time.perf_counter() - started
    stop.set()
    thread.join()
    if code:
        raise subprocess.CalledProcessError(code, command)
    return round(peak, 1), round(seconds, 2)


def list_tree(pid: int) -> list[int]:
    """A process and all below it."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(stat.parent.name))
    tree, todo = [pid], [pid]
    while todo:
        below = children.get(todo.pop(), [])
        tree += below
        todo += below
    return tree


def read_memory_mib(pid: int) -> float:
    """Proportional set size of a process; 0 if it is gone."""
    with suppress(OSError, ValueError, StopIteration):
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("Pss:")).split()[1]) / 1024
    return 0.0
