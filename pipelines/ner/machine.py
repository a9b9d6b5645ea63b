"""What this machine has."""

import os


def count_cores() -> int:
    """Cores that this process may use; all of the machine's where the system does not tell (macOS, Windows)."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
