"""What this machine has, and what this process takes of it."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path


def count_cores() -> int:
    """Cores that this process may use; all of the machine's where the system does not tell (macOS, Windows)."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def read_memory_bytes() -> int:
    """Memory of the machine. Raises OSError or ValueError where the system does not tell."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def read_peak_memory_mib() -> int:
    """The largest memory that this process has had, since it was last forgotten.

    (`ru_maxrss` begins at that of the process that started it.)
    """
    try:
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        return int(status.partition("VmHWM:")[2].split()[0]) // 1024
    except (OSError, IndexError):
        import resource  # Windows has none

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def forget_peak_memory() -> None:
    """Count the largest memory from now on, where the system can (Linux): one process may train several models."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")


@contextmanager
def set_environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Have these variables in the environment for the time of the block, and what was there before after it."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
