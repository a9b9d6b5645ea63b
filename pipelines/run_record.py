"""What a run did and used, and with what: `run.json`."""

import dataclasses
import importlib.metadata
import platform
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipelines.folders import RUN_FILE, write_json
from pipelines.job import progress_console
from pipelines.ner.machine import count_cores, read_peak_memory_mib

RECORDED_PACKAGES = ("rayner", "ray", "torch", "transformers", "tokenizers", "datasets", "pyarrow", "numpy")


class RunRecord:
    """What a run did and used: `run.json`."""

    def __init__(self, verb: str, config: Any) -> None:
        self.started = time.time()
        self.data: dict[str, Any] = {
            "verb": verb,
            "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "config": dataclasses.asdict(config),
            "versions": {"python": platform.python_version()} | read_versions(),
            "git_revision": read_git_revision(),
            "machine": {"platform": platform.platform(), "cores": count_cores()},
            "phases_s": {},
        }

    @contextmanager
    def phase(self, name: str, message: str) -> Iterator[None]:
        """Time a phase, and say on stderr that it runs."""
        started = time.monotonic()
        with progress_console.status(f"{message} …"):
            yield
        elapsed = time.monotonic() - started
        self.data["phases_s"][name] = round(elapsed, 3)
        progress_console.print(f"[green]✓[/] {message} [dim]{elapsed:.1f} s[/]")

    def write(self, folder: Path, **facts: Any) -> None:
        """Write `run.json`, with these facts added."""
        used_mib = read_peak_memory_mib()
        self.data |= {"seconds": round(time.time() - self.started, 3), "driver_peak_memory_mib": used_mib, **facts}
        write_json(folder / RUN_FILE, self.data)


def read_versions() -> dict[str, str]:
    """Versions of the packages that decide what a run does."""
    versions = {}
    for name in RECORDED_PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # a checkout that is not installed has no version of its own
    return versions


def read_git_revision() -> str | None:
    """The commit of the checkout that runs, `-dirty` if it was changed; None outside a checkout."""
    checkout = Path(__file__).parents[1]
    if not (checkout / ".git").exists():  # installed: a repository around it is another one
        return None
    command = ["git", "-C", str(checkout), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.SubprocessError):  # no git, or a file system too slow to be waited for
        return None
    return found.stdout.strip() or None if found.returncode == 0 else None
