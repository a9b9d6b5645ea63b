"""What every door shares: exit codes and messages, logging, terminal output."""

import errno
import gc
import logging
import os
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from rich.console import Console
from rich.markup import escape

from pipelines.ner.errors import UserError, iterate_causes
from pipelines.settings import ConfigError, list_keys, parse_settings

UNWRITABLE = (errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EFBIG)
RAY_NOTE = re.compile(r"\nFailed to .* after \d+/\d+ attempts .*", re.DOTALL)
"""What Ray Data writes at the end of any error in a worker: advice for programmers."""
STARTS_OVER = ("evaluate", "plan", "prepare")
"""Verbs that keep nothing for the next time."""
SAME_COMMAND = "the same command"
"""How messages name what goes on with a run."""
NEVER_BEGAN = "the run never began: what it was to replace is back"
"""A note to the error that has ended a run so: to start over again is to go on."""
EXIT_OK, EXIT_FAILED, EXIT_MISTAKE, EXIT_STOPPED = 0, 1, 2, 130

Config = TypeVar("Config")
logger = logging.getLogger("rayner")
console = Console(highlight=False, soft_wrap=True, emoji=False)
"""What a door has made, on stdout."""
progress_console = Console(highlight=False, stderr=True, emoji=False, soft_wrap=not sys.stderr.isatty())
"""How far it is, on stderr; lines of a log stay whole."""


def run_door(
    verb: str,
    config_class: type[Config],
    run: Callable[[Config], int | None],
    description: str,
    argv: Sequence[str] | None = None,
) -> int:
    """Parse the command line, run a door, and turn what happens into one message and an exit code.

    0: done, or the code that the run returned; 1: the run failed; 2: the user's mistake; 130: stopped by the user.
    """
    code = _run_door(verb, config_class, run, description, argv)
    if code:
        gc.collect()  # what failed refers to itself, and to actors: in a driver that lives on, they would too
    return code


def _run_door(
    verb: str,
    config_class: type[Config],
    run: Callable[[Config], int | None],
    description: str,
    argv: Sequence[str] | None,
) -> int:
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    set_up_logging(debug)
    config: Config | None = None
    try:
        config = parse_settings(verb, config_class, arguments, description)
        cluster: Any = getattr(config, "cluster", None)
        if hasattr(cluster, "find_idle"):  # what all doors that have one say of it
            warn_of_idle(cluster.find_idle())
        return run(config) or EXIT_OK
    except KeyboardInterrupt as error:
        goes_on = "" if verb in STARTS_OVER else f"; {SAME_COMMAND} goes on where it was"
        print(f"\nrayner {verb}: stopped{_spare_work(goes_on, config, error)}", file=sys.stderr)
        return EXIT_STOPPED
    except BrokenPipeError:  # whoever read the output has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED
    except Exception as error:
        if debug:
            logger.exception("rayner %s", verb)
        mistake = find_mistake(error)
        if mistake is not None:
            print(f"rayner {verb}: {_spare_work(str(mistake), config, error)}", file=sys.stderr)
            return EXIT_MISTAKE
        bare = next((one for one in iterate_causes(error) if not _is_wrapper(one)), error)
        told = RAY_NOTE.sub("", str(bare)).strip()
        reason = next((line for line in reversed(told.splitlines()) if line.strip()), "")
        print(f"rayner {verb} failed: {type(bare).__name__}: {_spare_work(reason, config, error)}", file=sys.stderr)
        has_workers = "cluster.log_workers" in list_keys(config_class)
        more = ", `--cluster.log_workers true` what the workers print" if has_workers else ""
        print(f"  `--debug` shows the whole story{more}", file=sys.stderr)
        return EXIT_FAILED


def _spare_work(told: str, config: object, error: BaseException) -> str:
    """A message that says what goes on with a run: where the command has started over, it goes on only without that."""
    fresh = getattr(config, "fresh", False) and NEVER_BEGAN not in getattr(error, "__notes__", ())
    return told.replace(SAME_COMMAND, f"{SAME_COMMAND} without `--fresh`") if fresh else told


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
        if isinstance(one, OSError) and (one.errno == errno.EACCES or (one.errno == errno.EPERM and one.filename)):
            return ConfigError(
                "no right to a file",
                where=str(one.filename) if one.filename else None,
                rule="the right to read the input, and to write into the `--output_dir`",
                value=one.strerror,
                remedy="give this user the right, or name another file or folder",
            )
    return None


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


def warn_of_idle(settings: Sequence[str]) -> None:
    """Say on stderr which settings change nothing in this run."""
    for setting in settings:
        progress_console.print(f"[yellow]![/] {escape(setting)}")


def render_next(command: str) -> str:
    """The last line a door prints: what to run next, as rich markup."""
    return f"next:   [bold]{escape(command)}[/]"
