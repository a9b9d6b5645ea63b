"""`predict` in a process of its own, its documents, and its output."""

import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.conftest import ROOT
from tests.integration.processes import kill, list_descendants

SEED = 20
NAMES = ("Angela Merkel", "Ada Lovelace", "José", "西门子", "Siemens", "São Paulo", "Utrecht", "👩‍💻 Grace")
VERBS = ("visited", "left", "hired", "saw")


def make_documents(number: int) -> list[dict[str, Any]]:
    """Documents of all lengths up to some 2 000 characters, mostly short; always the same ones."""
    dice = random.Random(SEED)
    documents = []
    for n in range(number):
        sentences = [
            f"{dice.choice(NAMES)} {dice.choice(VERBS)} {dice.choice(NAMES)} {dice.randrange(1000)} times."
            for _ in range(1 + int(dice.expovariate(0.2)))
        ]
        documents.append({"id": f"d{n:05d}", "text": " ".join(sentences), "number": n})
    return documents


def start_predict(*arguments: object, **environment: str) -> subprocess.Popen[str]:
    """Begin a job; its output is one stream."""
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "RAY_ADDRESS")}
    return subprocess.Popen(
        [sys.executable, "-m", "pipelines", "predict", *map(str, arguments)],
        cwd=ROOT,
        env=kept | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(job: subprocess.Popen[str], timeout_s: float = 600) -> str:
    """What a job told by its end, which is expected to be a good one."""
    try:
        told, _ = job.communicate(timeout=timeout_s)
    finally:
        kill([*list_descendants(job.pid), job.pid])
    assert job.returncode == 0, told
    return told


def crash(job: subprocess.Popen[str]) -> None:
    """End a job and all that it has started at once, as a power failure does."""
    kill([job.pid, *list_descendants(job.pid)])
    kill(list_descendants(job.pid))
    job.communicate()


def list_parts(folder: Path) -> set[str]:
    """The chunks that are done in an unfinished job."""
    return {path.name for path in (folder / ".work" / "parts").rglob("[!.]*.parquet")}
