"""What `--fresh` replaces: set aside at first, put back where the new run never begins, removed once it has.

What a run has prepared that never began is kept, too, for the one that starts over next with the same corpus.
All inside the output folder, by renaming, so that a kill at any point leaves all of it: who locks the folder next puts
it back.
"""

import os
import shutil
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, TypeVar

from pipelines.settings import ConfigError, iterate_texts

ASIDE = ".earlier"
MOVING, GOING = f"{ASIDE}.moving", f"{ASIDE}.removed"
"""Names of what is set aside while it is moved, to there or back, and while it is removed."""
PREPARED = ("shards", "text")
"""Folders with the prepared corpus."""
PREPARED_FOLDER = ".prepared"
"""What a run has prepared that never began, with its settings."""
SETTINGS_FILE = "settings.json"
STAGING_FOLDER = ".rayner.partial"
"""What `replace_content` is to put in the place of all else."""
OWN = {
    *("run.json", SETTINGS_FILE, PREPARED_FOLDER, "_SUCCESS", "metrics.jsonl", "checkpoints", "shards", "bundle"),
    *("report.json", "report.md", "report.html", "ledger.parquet", "tracking.json", "tensorboard", "wandb"),
    *("shards.json", "records", "scratch", STAGING_FOLDER),  # prepare
    *("text", "encoder"),  # pretrain
    *("trials", ".trials-tune", "leaders", ".leaders-tune", "spent.json"),  # tune
    *("tuning.json", "best.yaml", "front", "evaluation"),
    *("start", "lessons", "unlabelled", "variants", "compression.json"),  # compress
    *("cases", "scaling.json"),  # scale
    *(".work", "entities", "quarantine"),  # predict
}
"""Names of what doors write into an output folder."""

Rows = TypeVar("Rows")


def is_own(name: str) -> bool:
    """Whether a door writes something of this name into its output folder, or did not get to its end."""
    return name in OWN or any(name.startswith(f".{own}.") for own in OWN)


def list_own(folder: Path) -> list[Path]:
    """What in a folder is of doors."""
    return [path for path in folder.iterdir() if is_own(path.name)]


def set_aside(folder: Path) -> None:
    """Put what doors have written out of a new run's way; all else stays where it is."""
    found = list_own(folder)
    if not found:
        return
    (folder / MOVING).mkdir()
    for path in found:
        path.rename(folder / MOVING / path.name)
    (folder / MOVING).rename(folder / ASIDE)


def put_back(folder: Path) -> bool:
    """Put back what is set aside, in place of what a run has written that never began; whether there was anything."""
    shutil.rmtree(folder / GOING, ignore_errors=True)
    if (folder / ASIDE).is_dir():
        _keep_prepared(folder)
        remove_own(folder)
        (folder / ASIDE).rename(folder / MOVING)
    if not (folder / MOVING).is_dir():
        return False
    for path in (folder / MOVING).iterdir():
        path.rename(folder / path.name)
    (folder / MOVING).rmdir()
    return True


def _keep_prepared(folder: Path) -> None:
    """Put what a new run has prepared beside what is set aside, the settings last: without them it is nothing."""
    found = [folder / name for name in PREPARED if any((folder / name).rglob("*.parquet"))]
    kept = folder / ASIDE / PREPARED_FOLDER
    if found:
        kept.mkdir(exist_ok=True)
    for path in [*found, folder / SETTINGS_FILE] if kept.is_dir() else []:
        if path.exists():
            path.rename(kept / path.name)


def take_prepared(folder: Path) -> bool:
    """Give a run that starts over what the one before had prepared, with its settings; whether there was anything."""
    kept = folder / ASIDE / PREPARED_FOLDER
    if not (kept / SETTINGS_FILE).is_file():
        shutil.rmtree(kept, ignore_errors=True)
        return False
    for path in sorted(kept.iterdir(), key=lambda path: path.name == SETTINGS_FILE):
        path.rename(folder / path.name)
    kept.rmdir()
    return True


def discard(folder: Path) -> None:
    """Remove what is set aside, if anything is: the new run has begun."""
    if (folder / ASIDE).is_dir():
        (folder / ASIDE).rename(folder / GOING)
        shutil.rmtree(folder / GOING, ignore_errors=True)


def discard_with_rows(folder: Path, read: Callable[[], Rows]) -> Callable[[], Rows]:
    """As `read` does; with the first rows that it finds, what is set aside goes."""

    def read_on() -> Rows:
        rows = read()
        if rows:
            discard(folder)
        return rows

    return read_on


@contextmanager
def replace_content(folder: Path, last: str) -> Iterator[Path]:
    """A folder to be made, whose content replaces what doors have written into `folder` once the block is done.

    It lies inside: of an output folder that is a mount, or another user's gift, what is around cannot be written.

    Args:
        last: the file that says that all is there.
    """
    staging = folder / STAGING_FOLDER
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir()
    made = staging / folder.name
    try:
        yield made
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    for old in sorted(list_own(folder), key=lambda path: path.name != last):
        if old != staging:  # killed, the folder is known for ours by it
            remove(old)
    for new in sorted(made.iterdir(), key=lambda path: path.name == last):
        new.rename(folder / new.name)
    shutil.rmtree(staging)


def remove_own(folder: Path, besides: Collection[str] = ()) -> None:
    """Remove what doors have written into a folder, besides these names; of links, not what they point to."""
    for path in list_own(folder):
        if path.name not in besides:
            remove(path)


def remove(path: Path) -> None:
    """Remove a file, a folder, or a link to one."""
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def check_inputs_stay(folder: Path, config: Any) -> None:
    """Raise ConfigError where `--fresh` would remove what a setting names: a run would remove its own input."""
    if not config.fresh:
        return
    doomed = [path.name for path in list_own(folder)]
    for where, value in iterate_texts({key: one for key, one in asdict(config).items() if key != "output_dir"}):
        if doomed and _may_lie_in(value, folder, doomed):
            raise ConfigError(
                "an input lies in the output folder that `--fresh` empties",
                where=f"`{where}`",
                rule=f"what is read lies outside of {folder}",
                value=value,
                remedy="give another `--output_dir`, or move the input elsewhere",
            )


def _may_lie_in(value: str, folder: Path, names: list[str]) -> bool:
    """Whether a path or glob means a folder, or one of these names in it, or what lies below one."""
    parts, root = Path(os.path.expanduser(value)).resolve().parts, folder.resolve().parts
    if "**" in parts:  # any depth
        return all(map(fnmatchcase, root, parts[: parts.index("**")]))
    if len(parts) < len(root) or not all(map(fnmatchcase, root, parts)):
        return False
    return len(parts) == len(root) or any(fnmatchcase(name, parts[len(root)]) for name in names)
