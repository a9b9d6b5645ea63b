"""What every door shares: exit codes and messages, logging, terminal output, the run record."""

import dataclasses
import errno
import importlib.metadata
import json
import logging
import os
import platform
import re
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock, Timeout
from rich.console import Console
from rich.markup import escape

from pipelines.ner.errors import UserError
from pipelines.settings import ConfigError as ConfigError
from pipelines.settings import parse_settings

RECORDED_PACKAGES = ("rayner", "ray", "torch", "transformers", "tokenizers", "datasets", "pyarrow", "numpy")
RUN_FILE = "run.json"
SETTINGS_FILE = "settings.json"
SUCCESS_FILE = "_SUCCESS"
LOCK_FILE = ".lock"
MARKS = (RUN_FILE, SETTINGS_FILE, "shards.json", SUCCESS_FILE)
"""Files by which a door's output is known."""
UNWRITABLE = (errno.EACCES, errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EFBIG)
RAY_NOTE = re.compile(r"\nFailed to .* after \d+/\d+ attempts .*", re.DOTALL)
"""What Ray Data writes at the end of any error in a worker: advice for programmers."""
EXIT_OK, EXIT_FAILED, EXIT_MISTAKE, EXIT_STOPPED = 0, 1, 2, 130

Config = TypeVar("Config")
logger = logging.getLogger("rayner")
console = Console(highlight=False, soft_wrap=True, emoji=False)
"""What a door has made, on stdout."""
progress_console = Console(highlight=False, stderr=True, emoji=False)
"""How far it is, on stderr."""


def run_door(
    verb: str,
    config_class: type[Config],
    run: Callable[[Config], None],
    description: str,
    argv: Sequence[str] | None = None,
) -> int:
    """Parse the command line, run a door, and turn what happens into one message and an exit code.

    0: done; 1: the run failed; 2: the user's mistake; 130: stopped by the user.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    set_up_logging(debug)
    try:
        run(parse_settings(verb, config_class, arguments, description))
        return EXIT_OK
    except KeyboardInterrupt:
        print(f"\nrayner {verb}: stopped; the same command goes on where it was", file=sys.stderr)
        return EXIT_STOPPED
    except BrokenPipeError:  # whoever read the output has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED
    except Exception as error:
        if debug:
            logger.exception("rayner %s", verb)
        mistake = find_mistake(error)
        if mistake is not None:
            print(f"rayner {verb}: {mistake}", file=sys.stderr)
            return EXIT_MISTAKE
        bare = next((one for one in iterate_causes(error) if not _is_wrapper(one)), error)
        told = RAY_NOTE.sub("", str(bare)).strip()
        reason = next((line for line in reversed(told.splitlines()) if line.strip()), "")
        print(f"rayner {verb} failed: {type(bare).__name__}: {reason}", file=sys.stderr)
        print("  `--debug` shows the whole story, `--cluster.log_workers true` what the workers print", file=sys.stderr)
        return EXIT_FAILED


def find_mistake(error: BaseException | None) -> UserError | None:
    """The user's mistake at the bottom of an error, under the layers in which Ray wraps what a worker raised."""
    for one in iterate_causes(error):
        if _is_wrapper(one):  # also where it passes for what it wraps
            continue
        if isinstance(one, UserError):
            return one
        if isinstance(one, OSError) and one.errno in UNWRITABLE:
            return ConfigError(
                "a file cannot be written",
                where=str(one.filename) if one.filename else None,
                value=one.strerror,
                remedy="give an `--output_dir` that can be written, on a disk with room",
            )
    return None


def iterate_causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error, what caused it, what caused that, and so on; also where Ray wraps what a worker raised."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        yield error
        seen.add(id(error))
        cause = getattr(error, "cause", None)
        error = cause if isinstance(cause, BaseException) else error.__cause__


def _is_wrapper(error: BaseException) -> bool:
    return type(error).__module__.startswith("ray.")


def set_up_logging(debug: bool) -> None:
    """Logs on stderr: ours always, libraries' only where something is wrong, or with `--debug`."""
    level = logging.DEBUG if debug else logging.WARNING
    logging.basicConfig(level=level, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    if debug:
        return
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # what concerns the run comes as an exception
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    for name in ("huggingface_hub", "httpx", "datasets", "fsspec"):
        logging.getLogger(name).setLevel(logging.ERROR)


def prepare_output_dir(output_dir: str) -> Path:
    """The absolute folder, made if it is not there. Raises ConfigError if it cannot be written."""
    folder = Path(output_dir).expanduser().absolute()
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


def warn_of_idle(settings: Sequence[str]) -> None:
    """Say on stderr which settings change nothing in this run."""
    for setting in settings:
        progress_console.print(f"[yellow]![/] {escape(setting)}")


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file, whole or not at all."""
    staging = path.with_name(f".{path.name}.partial")
    staging.write_text(json.dumps(content, indent=2, ensure_ascii=False, default=str) + "\n", encoding="utf-8")
    staging.replace(path)


def check_resumable(folder: Path, settings: dict[str, Any], fresh: bool) -> bool:
    """Prepare a run folder for a run with these settings; whether a run with them is finished there already.

    Raises ConfigError if the folder holds a run with other settings, or something else.
    """
    path = folder / SETTINGS_FILE
    settings = json.loads(json.dumps(settings, default=str))
    if fresh:
        check_replaceable(folder)
        for old in _list_content(folder):
            shutil.rmtree(old) if old.is_dir() and not old.is_symlink() else old.unlink()
    if path.is_file():
        before = json.loads(path.read_text(encoding="utf-8"))
        changes = [f"`{key}`: {old!r} then, {new!r} now" for key, old, new in _compare(before, settings)]
        if changes:
            raise ConfigError(
                "the output folder holds a run with other settings",
                where=str(folder),
                rule="the same settings go on with that run",
                value="; ".join(changes),
                remedy="give another `--output_dir`, or start over with `--fresh`",
            )
        run = folder / RUN_FILE
        return run.is_file() and json.loads(run.read_text(encoding="utf-8")).get("status") == "done"
    if _list_content(folder):
        raise ConfigError(
            "the output folder holds something else",
            where=str(folder),
            rule="a new or empty folder, or one of an interrupted run",
            remedy="give another `--output_dir`",
        )
    write_json(path, settings)
    return False


def check_replaceable(folder: Path) -> None:
    """Raise ConfigError for a folder with files in it that no door has written: `--fresh` removes only our own."""
    if _list_content(folder) and not any((folder / mark).exists() for mark in MARKS):
        raise ConfigError(
            "the output folder holds something else",
            where=str(folder),
            rule="`--fresh` replaces only what an earlier run has written",
            value=", ".join(sorted(path.name for path in _list_content(folder))[:5]),
            remedy="give another `--output_dir`, or empty the folder yourself",
        )


def _list_content(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.name != LOCK_FILE]


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Keep an output folder to this process for the time of the block. Raises ConfigError if another one has it."""
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
        yield
    finally:
        (folder / LOCK_FILE).unlink(missing_ok=True)
        lock.release()


@contextmanager
def leave_no_trace_of_mistakes(folder: Path, has_begun: Callable[[], bool]) -> Iterator[None]:
    """If the run cannot begin: forget its settings, so that the mended command is not taken for another run."""
    try:
        yield
    except Exception as error:
        if find_mistake(error) is not None and not has_begun():
            (folder / SETTINGS_FILE).unlink(missing_ok=True)
            with suppress(OSError):
                folder.rmdir()
        raise


def render_next(command: str) -> str:
    """The last line a door prints: what to run next, as rich markup."""
    return f"next:   [bold]{escape(command)}[/]"


def _compare(before: Any, now: Any, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    if isinstance(before, dict) and isinstance(now, dict):
        for key in [*before, *(key for key in now if key not in before)]:
            yield from _compare(before.get(key), now.get(key), f"{prefix}.{key}" if prefix else key)
    elif before != now:
        yield prefix, before, now


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
            "machine": {"platform": platform.platform(), "cores": len(os.sched_getaffinity(0))},
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


def read_peak_memory_mib() -> int:
    """The largest memory that this process has had. (`ru_maxrss` begins at that of the process that started it.)"""
    try:
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        return int(status.partition("VmHWM:")[2].split()[0]) // 1024
    except (OSError, IndexError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


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
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except OSError:
        return None
    return found.stdout.strip() or None if found.returncode == 0 else None
