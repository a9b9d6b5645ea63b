"""Output folders: made, marked, locked, resumed or refused, and never half-written."""

import json
import os
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from rich.markup import escape

from pipelines.job import NEVER_BEGAN, find_mistake, progress_console
from pipelines.ner.files import write_text
from pipelines.replacement import (
    PREPARED,
    SETTINGS_FILE,
    STAGING_FOLDER,
    discard,
    is_own,
    put_back,
    remove_own,
    set_aside,
    take_prepared,
)
from pipelines.settings import ConfigError

RUN_FILE = "run.json"
SUCCESS_FILE = "_SUCCESS"
LOCK_FILE = ".lock"
CORPUS_KEY = "corpus_fingerprint"
REFUSED_KEY = "refused"
"""In the settings of a run that a mistake has ended before there was work to lose."""
NOT_OF_CORPUS = ("training", "parallel", "space", "search")
"""Groups of settings that it does not depend on, but for this one, of a `scratch` encoder."""
SEED = "training.seed"
MARKS = (
    (RUN_FILE, {"verb", "config", "versions"}),
    (SETTINGS_FILE, {"corpus", "model", "training"}),
    (SETTINGS_FILE, {"model", "input", "inference"}),
    ("shards.json", {"tokenizer_fingerprint", "splits"}),
)
"""Files by which a door's output is known, with keys that they have: other programs' files have the same names."""


def prepare_output_dir(output_dir: str) -> Path:
    """The absolute folder, made if it is not there. Raises ConfigError if it cannot be written."""
    if "://" in output_dir:
        raise ConfigError(
            "the output cannot go there",
            where="`output_dir`",
            rule="a folder; only what is read may lie in an object store",
            value=output_dir,
            remedy="a folder that every node sees, and copy it afterwards",
        )
    folder = Path(output_dir).expanduser().absolute()
    if lies_in_copy(output_dir):
        progress_console.print(
            f"[yellow]![/] the output goes to {escape(str(folder))}, in the job's copy of its working folder, which is "
            "on one node alone and goes after the job: give an absolute `--output_dir` that every node sees",
            soft_wrap=True,
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ConfigError(
            "the output folder cannot be written",
            where=str(folder),
            rule="a folder that exists or can be made, with the right to write into it",
            value=error.strerror,
            remedy="give another `--output_dir`",
        ) from error
    return folder


def lies_in_copy(output_dir: str) -> bool:
    """Whether an output folder lies in the copy of the working folder that a submitted job runs in."""
    job = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR") or "{}")  # what Ray tells the driver of a job
    has_copy = bool((job.get("runtime_env") or {}).get("working_dir"))
    return has_copy and not Path(output_dir).expanduser().is_absolute()


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file, whole or not at all."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False, default=str) + "\n")


def check_resumable(
    folder: Path, settings: dict[str, Any], fresh: bool, corpus: str | None = None, free: Collection[str] = ()
) -> bool:
    """Prepare a run folder for a run with these settings; whether a run with them is finished there already.

    Args:
        fresh: set aside what an earlier run has left.
        corpus: a hash of the corpus, where it is known.
        free: dotted settings that may change when the run goes on; told when they do.

    Raises ConfigError if the folder holds a run with other settings or on another corpus, or something else.
    """
    settings = json.loads(json.dumps(settings, default=str))
    takes_prepared = False
    if fresh:
        check_replaceable(folder)
        set_aside(folder)
        takes_prepared = take_prepared(folder)
    if _holds(folder / SETTINGS_FILE, set()):
        return _resume(folder, settings, corpus, free, takes_prepared)
    if list_content(folder) and not fresh:
        raise ConfigError(
            "the output folder holds something else",
            where=str(folder),
            rule="a new or empty folder, or one of an interrupted run",
            remedy="give another `--output_dir`",
        )
    _write_settings(folder, settings, corpus)
    return False


def _resume(
    folder: Path, settings: dict[str, Any], corpus: str | None, free: Collection[str], takes_prepared: bool
) -> bool:
    """Hold a run against the one whose settings are there; whether that one is finished.

    Args:
        takes_prepared: whether what is there is of a run that never began, and this one starts over.
    """
    before = json.loads((folder / SETTINGS_FILE).read_text(encoding="utf-8"))
    corpus_before, was_refused = before.pop(CORPUS_KEY, None), before.pop(REFUSED_KEY, False) or takes_prepared
    told = {key: f"`{key}`: {old!r} then, {new!r} now" for key, old, new in _compare(before, settings)}
    changes = [change for key, change in told.items() if key not in free]
    is_known = bool(corpus and corpus_before)
    is_other_corpus = corpus != corpus_before if is_known else takes_prepared
    if was_refused and (changes or is_other_corpus):
        stays = not is_other_corpus and all(key.split(".")[0] in NOT_OF_CORPUS and key != SEED for key in told)
        remove_own(folder, besides=(SETTINGS_FILE, *(PREPARED if stays else ())))  # killed, it is taken again
        _write_settings(folder, settings, corpus)
        _tell_of_prepared(folder, stays and takes_prepared)
        return False
    if changes:
        raise ConfigError(
            "the output folder holds a run with other settings",
            where=str(folder),
            rule="the same settings go on with that run",
            value="; ".join(changes),
            remedy="give another `--output_dir`, or start over with `--fresh`",
        )
    if is_other_corpus:
        raise ConfigError(
            "the corpus has changed since the run began",
            where=str(folder),
            rule="a run goes on with the corpus that it began with",
            remedy="bring the files back as they were, give another `--output_dir`, or start over with `--fresh`",
        )
    run = folder / RUN_FILE
    if run.is_file() and json.loads(run.read_text(encoding="utf-8")).get("status") == "done":
        return True
    for change in told.values():
        progress_console.print(f"[yellow]![/] the run goes on with {escape(change)}", soft_wrap=True)
    if told or was_refused:
        _write_settings(folder, settings, corpus_before)
    _tell_of_prepared(folder, takes_prepared)
    return False


def _write_settings(folder: Path, settings: dict[str, Any], corpus: str | None) -> None:
    write_json(folder / SETTINGS_FILE, settings | ({CORPUS_KEY: corpus} if corpus else {}))


def _tell_of_prepared(folder: Path, is_taken: bool) -> None:
    """Say that a run that starts over takes what one that never began has prepared of the same corpus."""
    if is_taken:
        taken = ", ".join(f"{name}/" for name in PREPARED if (folder / name).is_dir())
        progress_console.print(f"[yellow]![/] {taken} is taken as the run has prepared it that never began")


def check_replaceable(folder: Path) -> None:
    """Raise ConfigError for a folder with files in it, and no sign of a door: `--fresh` removes only our own."""
    is_ours = any(_holds(folder / name, keys) for name, keys in MARKS) or (folder / STAGING_FOLDER).is_dir()
    if list_content(folder) and not is_ours:
        raise ConfigError(
            "the output folder holds something else",
            where=str(folder),
            rule="`--fresh` replaces only what an earlier run has written",
            value=", ".join(sorted(path.name for path in list_content(folder))[:5]),
            remedy="give another `--output_dir`, or empty the folder yourself",
        )


def check_unshared(folder: Path) -> None:
    """Raise ConfigError for a folder with what no door writes, where the folder as a whole is replaced."""
    others = sorted(path.name for path in list_content(folder) if not is_own(path.name))
    if others:
        raise ConfigError(
            "the output folder holds something else, too",
            where=str(folder),
            rule="`--fresh` replaces only what an earlier run has written",
            value=", ".join(others[:5]),
            remedy="give another `--output_dir`, or move these elsewhere",
        )


def check_own(folder: Path, verb: str) -> None:
    """Raise ConfigError for a folder with the output of another door: what is written anew would take its place."""
    holds_run = _holds(folder / RUN_FILE, {"verb"})
    found = json.loads((folder / RUN_FILE).read_text(encoding="utf-8"))["verb"] if holds_run else None
    if found == verb or (found is None and not any(_holds(folder / name, keys) for name, keys in MARKS)):
        return
    raise ConfigError(
        "the output folder holds another run",
        where=str(folder),
        rule=f"a new or empty folder, or one that `rayner {verb}` has written",
        value=f"a run of `rayner {found}`" if found else "a run that is not finished, or prepared shards",
        remedy="give another `--output_dir`",
    )


def list_content(folder: Path) -> list[Path]:
    """What lies in a folder besides its lock."""
    return [path for path in folder.iterdir() if path.name != LOCK_FILE]


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Keep an output folder to this process for the time of the block. Raises ConfigError if another one has it.

    What `--fresh` has set aside goes at the end, and is put back if an error comes before the new run has begun: in
    this process, or in one that was killed.
    """
    lock = FileLock(folder / LOCK_FILE, timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise ConfigError(
            "another run writes into the output folder",
            where=str(folder),
            rule="one run at a time",
            remedy="wait for it, or give another `--output_dir`",
        ) from error
    try:
        _restore(folder)
        try:
            yield
        except BaseException as error:
            if _restore(folder):
                error.add_note(NEVER_BEGAN)
            raise
        discard(folder)
    finally:
        (folder / LOCK_FILE).unlink(missing_ok=True)
        lock.release()


def _restore(folder: Path) -> bool:
    """Put back what a run was to replace that never began, and say so; whether there was anything."""
    is_back = put_back(folder)
    if is_back:
        told = f"the run that was to replace it did not begin: {folder} is as it was before"
        progress_console.print(f"[yellow]![/] {escape(told)}", soft_wrap=True)
    return is_back


@contextmanager
def leave_no_trace_of_mistakes(folder: Path, has_begun: Callable[[], bool]) -> Iterator[None]:
    """If a mistake ends a run with no work to lose: let the mended command not be taken for another run.

    Its settings are forgotten; where something lies beside them, like shards, they are marked as refused.
    """
    try:
        yield
    except Exception as error:
        if find_mistake(error) is not None and not has_begun():
            _forget(folder)
        raise


def _forget(folder: Path) -> None:
    path = folder / SETTINGS_FILE
    if any(one != path for one in list_content(folder)):
        if _holds(path, set()):
            with suppress(OSError):  # of which the mistake may tell
                write_json(path, json.loads(path.read_text(encoding="utf-8")) | {REFUSED_KEY: True})
        return
    for name in (SETTINGS_FILE, LOCK_FILE):
        (folder / name).unlink(missing_ok=True)
    with suppress(OSError):
        folder.rmdir()


def _compare(before: Any, now: Any, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    if isinstance(before, dict) and isinstance(now, dict):
        for key in [*before, *(key for key in now if key not in before)]:
            yield from _compare(before.get(key), now.get(key), f"{prefix}.{key}" if prefix else key)
    elif before != now:
        yield prefix, before, now


def _holds(path: Path, keys: set[str]) -> bool:
    """Whether a file is there, and is a JSON object with these keys."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and keys <= content.keys()
