"""Checkpoints of a run, in a folder that all its machines see: whole or not at all, checked when read, the last two.

A checkpoint is one file, `step-00000120-9f86d081884c7d65.pt`, named by its step and the start of its SHA-256. It is
written in the background under another name, and gets its own when all of it is on the disk.
"""

import hashlib
import os
import re
import tempfile
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from pipelines.training.config import TrainingError
from pipelines.training.state import TrainingState

KEPT = 2
CHUNK_BYTES = 4 << 20
_NAME = re.compile(r"step-(\d{8,})-([0-9a-f]{16})\.pt")


def list_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a folder, the last one first. Raises TrainingError if the folder cannot be read."""
    try:
        found = [(path, path.stat().st_mtime_ns) for path in folder.iterdir() if _NAME.fullmatch(path.name)]
    except OSError as error:
        raise TrainingError(
            "the folder of the checkpoints cannot be read",
            where=str(folder),
            rule="a folder that every machine of the cluster sees under the same path",
            value=error.strerror,
            remedy="bring the storage back, or give an `--output_dir` that all machines see",
        ) from error
    return [path for path, _ in sorted(found, key=lambda one: (read_step(one[0]), one[1]), reverse=True)]


def read_step(path: Path) -> int:
    """The step of a checkpoint, by its name."""
    match = _NAME.fullmatch(path.name)
    assert match is not None
    return int(match[1])


def find_last(folder: Path) -> tuple[Path | None, list[Path]]:
    """The last checkpoint that is as it was written, and the damaged ones after it, which are renamed `*.damaged`.

    Raises TrainingError if the folder cannot be read, or if all checkpoints in it are damaged.
    """
    damaged: list[Path] = []
    for path in list_checkpoints(folder):
        if _is_whole(path):
            return path, [one.replace(one.with_suffix(".damaged")) for one in damaged]
        damaged.append(path)
    if damaged:
        raise TrainingError(
            "no checkpoint is as it was written",
            where=", ".join(map(str, damaged)),
            rule="the SHA-256 of a checkpoint begins as its name says",
            remedy="bring one back from a copy under its name (`.pt`), or start over with `--fresh`",
        )
    return None, []


def _is_whole(path: Path) -> bool:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest().startswith(path.stem.rpartition("-")[2])


def save_state(state: TrainingState, path: Path) -> None:
    """Write a state to a file; weights that occur twice are written once."""
    content = {field.name: getattr(state, field.name) for field in fields(state)}
    if _is_best(content):
        content["best_model"] = {}  # the same weights again
    torch.save(content, path)


def load_state(path: Path) -> TrainingState:
    """Read what `save_state` wrote; tensors are on the CPU."""
    content = torch.load(path, map_location="cpu", weights_only=True)
    if _is_best(content):
        content["best_model"] = content["model"]
    return TrainingState(**content)


def _is_best(content: Mapping[str, Any]) -> bool:
    """Whether the present weights are those of the best epoch, just finished."""
    just_finished = content["epoch"] and content["epoch"] == content["best_epoch"] and content["epoch_step"] == 0
    return bool(just_finished and not content.get("average"))


class CheckpointWriter:
    """Writes one checkpoint after the other in the background.

    Args:
        folder: where they go; it is never made, since it may be on storage that is away for a while.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.prefix = f"rayner-{hashlib.sha256(str(folder).encode()).hexdigest()[:12]}-"
        self.error: Exception | None = None
        """Why the last one could not be written."""
        self.written: list[dict[str, Any]] = []
        """Steps, seconds and sizes of checkpoints that have not been told yet."""
        self._thread = threading.Thread()
        for left in Path(tempfile.gettempdir()).glob(f"{self.prefix}*"):  # by a worker that was killed
            left.unlink(missing_ok=True)

    @property
    def is_busy(self) -> bool:
        """Whether one is being written."""
        return self._thread.is_alive()

    def wait(self) -> None:
        """Until the one being written is written, or has failed."""
        if self._thread.ident is not None:
            self._thread.join()

    def write(self, state: TrainingState) -> None:
        """Take the state as it is now, and write it in the background, once the one before is written."""
        self.wait()
        local: Path | None = None
        try:
            handle, name = tempfile.mkstemp(prefix=self.prefix)
            local = Path(name)
            os.close(handle)
            save_state(state, local)
        except (OSError, RuntimeError) as error:  # torch turns the former into the latter
            with suppress(OSError):
                if local is not None:
                    local.unlink(missing_ok=True)
            self.error = OSError(f"in {tempfile.gettempdir()}: {error}")
            return
        self._thread = threading.Thread(target=self._store, args=(local, state.step), daemon=True)
        self._thread.start()

    def _store(self, local: Path, step: int) -> None:
        started = time.monotonic()
        staging = self.folder / f"step-{step:08}-{local.name}.partial"
        try:
            digest = hashlib.sha256()
            with local.open("rb") as source, staging.open("wb") as target:
                while chunk := source.read(CHUNK_BYTES):
                    digest.update(chunk)
                    target.write(chunk)
                size = target.tell()
                target.flush()
                os.fsync(target.fileno())
            staging.replace(self.folder / f"step-{step:08}-{digest.hexdigest()[:16]}.pt")
            _sync_folder(self.folder)
        except OSError as error:
            self.error = error
            with suppress(OSError):
                staging.unlink(missing_ok=True)
        else:
            self.error = None
            self.written.append({"step": step, "seconds": time.monotonic() - started, "mib": round(size / 2**20, 1)})
            with suppress(OSError, TrainingError):
                self._remove_old()
        finally:
            local.unlink(missing_ok=True)

    def _remove_old(self) -> None:
        """Keep the last ones; whatever else lies there was left by writers that were killed, or is damaged."""
        kept = list_checkpoints(self.folder)[:KEPT]
        for path in self.folder.glob("step-*"):
            if path not in kept:
                path.unlink()


def _sync_folder(folder: Path) -> None:
    """Make sure that a rename outlives a power failure."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
