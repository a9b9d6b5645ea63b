"""Run another verb as a job on a Ray cluster: `rayner submit [settings] -- VERB [settings of the verb]`.

The working folder goes with the job, the log comes back while it runs, and the exit code is the job's. The job's name
is made of what it is: the same command finds its job again, running or done, and a new attempt follows one that failed.
The cluster's token comes from RAY_AUTH_TOKEN, from the file in RAY_AUTH_TOKEN_PATH, or from ~/.ray/auth_token.
"""

import hashlib
import importlib
import os
import re
import shlex
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from glob import glob, has_magic
from pathlib import Path
from typing import Any

from rich.markup import escape

from pipelines.__main__ import DOORS
from pipelines.corpus.formats.names import is_uri
from pipelines.job import console, run_door
from pipelines.job_client import JobClient, find_dashboard, read_token, tell
from pipelines.ner.errors import UserError, find_wrong_values, raise_all
from pipelines.run_record import read_versions
from pipelines.settings import SWITCHES, ConfigError, iterate_texts, parse_settings
from pipelines.shipping import MIB, ShippedFile, find_excess, list_shipped, write_package

NO_JOBS = ("submit", "serve")
OUTPUTS = ("output_dir", "output")
JOBS = tuple(verb for verb in DOORS if verb not in NO_JOBS)
MAX_PACKAGE_MIB = 500
"""Ray refuses packages of 512 MiB."""
USAGE = "`rayner submit [settings] -- VERB [settings of the verb]`"


@dataclass(frozen=True)
class SubmitConfig:
    """Settings of `rayner submit`, before the `--`."""

    address: str | None = None
    """Where the cluster's dashboard answers, `http://HOST:PORT`; default: RAY_API_SERVER_ADDRESS, or RAY_ADDRESS where
    it is such an address, or this machine's port 8265."""
    working_dir: str = "."
    """The folder that goes with the job, without what `.gitignore` and `.rayignore` name. The job runs in its copy."""
    max_working_dir_mib: float = 100.0
    """Refuse a larger folder: it is held in the memory of the head node."""
    driver_cpus: float = 0.0
    """CPUs for the job's driver, on any node that has them; 0: it runs on the head node beside what is there."""
    env: list[str] = field(default_factory=list)
    """Environment variables that the job has too: `NAME`, as it is here, or `NAME=VALUE`. Who may see the job may see
    them."""
    no_wait: bool = False
    """Return when the job is submitted, instead of following it."""
    again: bool = False
    """Run it once more, though it is done."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the door and return its exit code: the job's own, where it was followed."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if "--" in arguments:
        cut = arguments.index("--")
        ours, command = arguments[:cut], arguments[cut + 1 :]
    else:  # whatever stands there is no job; the door says what is missing
        ours, command = [one for one in arguments if one.split("=")[0] in SWITCHES], []
    return run_door("submit", SubmitConfig, partial(run, command), __doc__ or "", ours)


def run(command: Sequence[str], config: SubmitConfig) -> int:
    """Submit a verb with its settings, or find the job that does this already; returns the exit code."""
    verb, settings = read_command(command)
    folder = Path(config.working_dir).expanduser().absolute()
    problems = _find_problems(config)
    files: list[ShippedFile] = []
    if folder.is_dir():
        files = list_shipped(folder)
        excess = find_excess(folder, files, config.max_working_dir_mib)
        problems += [excess] if excess else []
        problems += find_left_behind(settings | {"config": list_presets(command)}, folder, files)
    else:
        problems.append(ConfigError("there is no such folder", where="`working_dir`", value=str(folder)))
    problems += find_lost_output(verb, settings)
    raise_all(problems)
    client = JobClient.open(find_dashboard(config.address), read_token())
    with tempfile.TemporaryDirectory(prefix="rayner-submit-") as scratch:
        package = Path(scratch) / "working_dir.zip"
        entrypoint = shlex.join(["python", "-m", f"pipelines.{verb}", *command[1:]])
        name = name_job(verb, write_package(folder, files, package), entrypoint, config)
        attempt = client.find_attempt(name, config.again)
        if attempt.is_done:
            console.print(f"this job is done: {escape(attempt.job_id)}; [bold]--again[/] runs it once more")
            console.print(escape(f"its log: {client.render_command('logs', attempt.job_id)}"))
            return 0
        if attempt.is_running:
            tell(f"this job runs already: {escape(attempt.job_id)}")
        else:
            client.submit(
                attempt.job_id,
                entrypoint,
                package,
                env=read_environment(config.env),
                num_cpus=config.driver_cpus,
                metadata={"verb": verb, "rayner": read_versions().get("rayner", "from a checkout")},
            )
            size = sum(file.num_bytes for file in files) / MIB
            facts = f"{len(files):,} files, {size:,.1f} MiB, went with it"
            retried = f", attempt {attempt.number}" if attempt.number > 1 else ""
            tell(escape(f"submitted: {attempt.job_id}{retried} to {client.address}; {facts}"))
    if config.no_wait:
        console.print(escape(f"job:    {attempt.job_id}"))
        console.print(escape(client.render_ways(attempt.job_id)))
        return 0
    return client.follow(attempt.job_id)


def read_command(command: Sequence[str]) -> tuple[str, dict[str, Any]]:
    """The verb of a job and its settings, as the verb itself reads them. Raises UserError for mistakes in them."""
    if not command:
        raise ConfigError("no job is given", rule=USAGE, remedy="`rayner submit -- train --config quickstart …`")
    verb, *arguments = command
    if verb not in JOBS:
        raise ConfigError(
            f"no job `{verb}`",
            where="after `--`",
            rule="one of " + ", ".join(JOBS),
            remedy="for an endpoint on a cluster: `serve deploy serve/config.yaml`" if verb == "serve" else None,
        )
    door = importlib.import_module(f"pipelines.{verb}")
    config_class = getattr(door, f"{verb.capitalize()}Config")
    return verb, asdict(parse_settings(verb, config_class, arguments, door.__doc__ or ""))


def list_presets(command: Sequence[str]) -> list[str]:
    """What `--config` names in a command: it is read here, and again where the job runs."""
    found: list[str] = []
    is_preset = False
    for one in command:
        name, _, value = one.partition("=")
        if one.startswith("--"):
            is_preset = name == "--config"
            one = value
        found += [one] if is_preset and one else []
    return found


def name_job(verb: str, digest: str, entrypoint: str, config: SubmitConfig) -> str:
    """The name of a job, by what it is: its files, its command, and what it is given."""
    what = "\0".join([digest, entrypoint, f"{config.driver_cpus:g}", *sorted(config.env)])
    return f"rayner-{verb}-{hashlib.sha256(what.encode(errors='surrogateescape')).hexdigest()[:12]}"


def find_lost_output(verb: str, settings: Mapping[str, Any]) -> list[UserError]:
    """The mistake of writing into the job's copy of the working folder, which goes when the job is over."""
    return [
        ConfigError(
            "a job's output needs an absolute path",
            where=f"`{key}` of {verb}",
            rule="one that every node sees; the folder that the job runs in is a copy, and goes after it",
            value=output,
            remedy=None
            if is_uri(output)
            else f"`--{key} {Path(output).expanduser().absolute()}`, if the cluster is this machine",
        )
        for key in OUTPUTS
        if (output := settings.get(key)) is not None and not Path(output).is_absolute()
    ]


def find_left_behind(settings: Mapping[str, Any], folder: Path, files: Sequence[ShippedFile]) -> list[UserError]:
    """The mistake of naming what is here, relative to the working folder, but does not go with the job."""
    names = {file.name for file in files}
    problems: list[UserError] = []
    for key, value in iterate_texts(settings):
        if key in OUTPUTS or Path(value).is_absolute():
            continue
        found = [os.path.normpath(one).replace(os.sep, "/") for one in _find_paths(value, folder)]
        if all(one == "." or one in names or any(name.startswith(f"{one}/") for name in names) for one in found):
            continue
        problems.append(
            ConfigError(
                "what the job names does not go with it",
                where=f"`{key}`",
                rule="`.gitignore`, `.rayignore` and what lies outside of the working folder stay here",
                value=value,
                remedy="give an absolute path that every node sees, or take it out of the ignore file",
            )
        )
    return problems


def read_environment(names: Sequence[str]) -> dict[str, str]:
    """The variables that the job has too."""
    pairs = [name.partition("=") for name in names]
    return {name: value if given else os.environ[name] for name, given, value in pairs}


def _find_problems(config: SubmitConfig) -> list[UserError]:
    problems: list[UserError] = [
        ConfigError(
            "no such environment variable", where="`env`", rule="`NAME`, as it is here, or `NAME=VALUE`", value=one
        )
        for one in config.env
        if not one.partition("=")[0] or ("=" not in one and one not in os.environ)
    ]
    ranges = (
        ("max_working_dir_mib", f"above 0, up to {MAX_PACKAGE_MIB}", 0 < config.max_working_dir_mib <= MAX_PACKAGE_MIB),
        ("driver_cpus", "at least 0", config.driver_cpus >= 0),
    )
    return problems + find_wrong_values(ConfigError, config, ranges, what="a number out of range")


def _find_paths(value: str, folder: Path) -> list[str]:
    """What a setting names that is there; of a pattern, all of it. Not a word that some folder happens to be called."""
    try:
        here = folder / value
        if here.is_file() or ("/" in value and here.exists()):
            return [value]
        return glob(value, root_dir=folder, recursive=True) if has_magic(value) else []
    except (OSError, ValueError, re.error):  # too long for a path, or a NUL in it
        return []


if __name__ == "__main__":
    sys.exit(main())
