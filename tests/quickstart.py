"""The README's first command, run once for all tests that want a model that has learned something."""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
COMMAND = "make quickstart"


@dataclass
class Quickstart:
    """A copy of the checkout without its tests, in which `make quickstart` has run."""

    checkout: Path
    environment: dict[str, str]
    told: str = ""

    @property
    def bundle(self) -> Path:
        return self.checkout / "out" / "quickstart" / "bundle"

    def run(self, *command: str) -> str:
        """What a command prints that is expected to succeed."""
        done = subprocess.run(
            command, cwd=self.checkout, env=self.environment, capture_output=True, text=True, timeout=1200, check=False
        )
        assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
        return done.stdout


def make_quickstart(checkout: Path) -> Quickstart:
    """Copy what git knows of, and run the command there in the environment of this checkout."""
    if not (Path(sys.prefix) / ".installed").exists():
        pytest.skip("the environment was not made by `make install`")
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    for name in subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines():
        if (ROOT / name).is_file() and not name.startswith("tests/"):
            (checkout / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, checkout / name)
    (checkout / ".venv").symlink_to(sys.prefix)
    environment = {name: value for name, value in os.environ.items() if name not in ("OMP_NUM_THREADS", "PYTHONPATH")}
    environment["PATH"] = f"{sys.prefix}/bin:{environment['PATH']}"
    quickstart = Quickstart(checkout, environment)
    quickstart.told = quickstart.run(*COMMAND.split())
    return quickstart
