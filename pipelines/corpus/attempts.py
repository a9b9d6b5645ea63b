"""How often actors died, and over what: what kills whoever tries it must not do so for ever.

Ray starts a dead actor anew and gives it the same chunk again, without end. So an actor notes an attempt before it
begins, in a file that outlives it. After some deaths it goes document by document and notes which; a document that was
in work at several deaths is given up. Where actors die before they have a model, the job ends.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

ATTEMPTS_FOLDER = "attempts"
MAX_CHUNK_ATTEMPTS = 2
"""Attempts at a whole chunk; later ones go document by document."""
MAX_DOCUMENT_DEATHS = 2
MAX_LOADING_DEATHS = 3
"""Of actors on one machine, one after the other."""


@dataclass
class Attempts:
    """The attempts at one chunk in one run of the driver."""

    path: Path
    run: str
    number: int = 0
    """Attempts that have begun."""
    index: int | None = None
    """The document in work."""
    deaths: dict[int, int] = field(default_factory=dict)
    """Index of a document → deaths while it was in work."""

    @property
    def is_careful(self) -> bool:
        """Whether the next attempt, or the one that has begun, goes document by document."""
        return self.number >= MAX_CHUNK_ATTEMPTS

    def begin(self) -> None:
        """Note one more attempt."""
        self.number += 1
        self._write()

    def is_deadly(self, index: int) -> bool:
        """Whether a document has been in work at too many deaths."""
        return self.deaths.get(index, 0) >= MAX_DOCUMENT_DEATHS

    def note(self, index: int) -> None:
        """Say which document is in work from now on."""
        self.index = index
        self._write()

    def finish(self) -> None:
        """Forget the attempts: the chunk is done."""
        self.path.unlink(missing_ok=True)

    def _write(self) -> None:
        content = {name: value for name, value in asdict(self).items() if name != "path"}
        staging = self.path.with_name(f".{self.path.name}.partial")
        staging.write_text(json.dumps(content), encoding="utf-8")
        staging.replace(self.path)


def read_attempts(folder: Path, chunk: str, run: str) -> Attempts:
    """What is noted of a chunk. Attempts of another run do not count: its driver may have been killed."""
    attempts = Attempts(folder / chunk, run)
    if attempts.path.is_file():
        content = json.loads(attempts.path.read_text(encoding="utf-8"))
        if content["run"] == run:
            deaths = {int(index): number for index, number in content["deaths"].items()}
            attempts = Attempts(attempts.path, run, content["number"], content["index"], deaths)
    if attempts.index is not None:  # the last attempt died over it
        attempts.deaths[attempts.index] = attempts.deaths.get(attempts.index, 0) + 1
        attempts.index = None
    return attempts


@contextmanager
def note_loading(folder: Path, run: str) -> Iterator[None]:
    """Note that this process loads a model for the time of the block. Raises RuntimeError if others have died of it."""
    host = f"loading-{run}-{os.uname().nodename}-"
    dead = [path for path in folder.glob(f"{host}*") if not _is_alive(int(path.name.removeprefix(host)))]
    if len(dead) >= MAX_LOADING_DEATHS:
        raise RuntimeError(f"{len(dead)} actors on {os.uname().nodename} died while they loaded the model")
    mark = folder / f"{host}{os.getpid()}"
    mark.touch()
    try:
        yield
    finally:
        mark.unlink()
    for path in dead:
        path.unlink(missing_ok=True)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
