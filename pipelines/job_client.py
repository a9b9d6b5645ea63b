"""A cluster's jobs, over its dashboard: found, submitted, followed."""

import asyncio
import os
import socket
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, urlsplit

from rich.markup import escape

from pipelines.cluster import ClusterError
from pipelines.job import EXIT_FAILED, EXIT_OK, EXIT_STOPPED, progress_console
from pipelines.ner.machine import set_environment

DEFAULT_ADDRESS = "http://127.0.0.1:8265"
ADDRESS_VARIABLE = "RAY_API_SERVER_ADDRESS"
TOKEN_FILE = ".ray/auth_token"
CONNECT_TIMEOUT_S = 10.0
PATIENCE_S = 60.0
"""So long is a lost dashboard tried again, while a job is followed."""
RETRY_EVERY_S = 1.0
POLL_S = 0.2
QUIET = ("ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk")


@dataclass(frozen=True)
class Attempt:
    """A job of a name: the first, or one that follows others that are over."""

    job_id: str
    number: int
    is_running: bool = False
    is_done: bool = False


def find_dashboard(given: str | None) -> str:
    """The address of the dashboard to ask. Raises ClusterError for what is no such address."""
    by_environment = os.environ.get("RAY_ADDRESS", "")
    address = (
        given
        or os.environ.get(ADDRESS_VARIABLE)
        or (by_environment if by_environment.startswith(("http://", "https://")) else DEFAULT_ADDRESS)
    )
    parts = urlsplit(address if "://" in address else f"http://{address}")
    if parts.scheme not in ("http", "https") or not parts.hostname or find_port(parts) is None:
        raise ClusterError(
            "this is no address of a dashboard",
            where="`address`",
            rule="http://HOST:PORT or https://HOST:PORT; the port is 8265 unless the cluster was told otherwise",
            value=address,
        )
    return parts.geturl().rstrip("/")


def find_port(parts: SplitResult) -> int | None:
    """The port of an address; None if it has an impossible one."""
    try:
        return parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError:
        return None


def read_token() -> str | None:
    """The cluster's token, from where Ray looks for it too. Raises ClusterError for a file that holds none."""
    token = os.environ.get("RAY_AUTH_TOKEN", "").strip()
    path = os.environ.get("RAY_AUTH_TOKEN_PATH")
    if not token and path:
        try:
            token = Path(path).expanduser().read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise _no_token_in(path, getattr(error, "strerror", None) or "it is no text") from error
        if not token:
            raise _no_token_in(path, "it is empty")
    elif not token and os.environ.get("RAY_AUTH_MODE", "").lower() != "disabled":
        usual = Path.home() / TOKEN_FILE
        token = usual.read_text(encoding="utf-8").strip() if usual.is_file() else ""
    if not (token.isascii() and token.isprintable()) or " " in token:
        raise ClusterError("the token has characters that no token has", rule="printable ASCII without spaces")
    return token or None


class JobClient:
    """The jobs of one cluster."""

    def __init__(self, address: str, client: Any, has_token: bool = False) -> None:
        self.address, self.client, self.has_token = address, client, has_token

    @classmethod
    def open(cls, address: str, token: str | None) -> "JobClient":
        """A client of a dashboard that answers and takes the token. Raises ClusterError."""
        import logging

        from ray.exceptions import AuthenticationError
        from ray.job_submission import JobSubmissionClient

        for name in QUIET:
            logging.getLogger(name).setLevel(logging.WARNING)
        parts = urlsplit(address)
        try:
            socket.create_connection((parts.hostname or "", find_port(parts) or 0), CONNECT_TIMEOUT_S).close()
        except OSError as error:
            raise ClusterError(
                "the cluster's dashboard cannot be reached",
                where=address,
                value=str(error),
                remedy="check the address, and the tunnel to it (`ray dashboard cluster.yaml`, `kubectl port-forward`)",
            ) from error
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        try:
            # by itself Ray prefers the environment's address, and would send job and token there
            with set_environment({ADDRESS_VARIABLE: address}):
                client = JobSubmissionClient(address, headers=headers)
            client.list_jobs()
        except AuthenticationError as error:
            raise ClusterError(
                "the cluster refuses the token" if token else "the cluster asks for a token",
                where=address,
                rule="the token that its nodes have",
                remedy="set RAY_AUTH_TOKEN, or RAY_AUTH_TOKEN_PATH to a file that holds it",
            ) from error
        except Exception as error:  # whatever a server that is none of Ray's may answer
            value = f"{type(error).__name__}: {error}".splitlines()[0]
            rule = "the dashboard of a Ray cluster"
            raise ClusterError("what answers is no Ray dashboard", where=address, rule=rule, value=value) from error
        return cls(address, client, has_token=token is not None)

    def find_attempt(self, name: str, again: bool) -> Attempt:
        """The job of this name that runs or is done, or a new one.

        Ray takes a name only once, and never forgets it: attempts after the first have a number.

        Args:
            again: pass over those that are done, too.
        """
        statuses = {job.submission_id: job.status for job in self.client.list_jobs()}
        number = 1
        while True:
            job_id = name if number == 1 else f"{name}-{number}"
            status = statuses.get(job_id)
            if status is None:
                return Attempt(job_id, number)
            if not status.is_terminal():
                return Attempt(job_id, number, is_running=True)
            if status == "SUCCEEDED" and not again:
                return Attempt(job_id, number, is_done=True)
            number += 1

    def submit(
        self,
        job_id: str,
        entrypoint: str,
        package: Path,
        *,
        env: Mapping[str, str],
        num_cpus: float,
        metadata: Mapping[str, str],
    ) -> None:
        """Send the package and start the job."""
        self.client.submit_job(
            entrypoint=entrypoint,
            submission_id=job_id,
            runtime_env={"working_dir": str(package)} | ({"env_vars": dict(env)} if env else {}),
            metadata=dict(metadata),
            entrypoint_num_cpus=num_cpus or None,
        )

    def follow(self, job_id: str) -> int:
        """Show the job's log on stdout until it ends; returns its exit code, and what ended it on stderr."""
        try:
            info = self._show_log(job_id)
        except KeyboardInterrupt:
            tell(escape(f"\nthe job goes on: {job_id}\n{self.render_ways(job_id)}"))
            return EXIT_STOPPED
        code = read_exit_code(info)
        if info.status == "SUCCEEDED":
            tell(escape(f"done: {job_id}"))
        elif info.status == "STOPPED":
            tell(escape(f"the job was stopped: {job_id}; the same command starts it again"))
        elif info.driver_exit_code is None:  # it never ran, or Ray lost it: then there is no log to tell
            tell(escape(f"the job failed: {job_id}: {info.message}"))
        else:
            tell(escape(f"the job failed with exit code {code}: {job_id}"))
        return code

    def render_ways(self, job_id: str) -> str:
        """How to follow a job and how to stop it."""
        logs, stop = self.render_command("logs --follow", job_id), self.render_command("stop", job_id)
        return f"follow: the same command, or {logs}\nstop:   {stop}"

    def render_command(self, command: str, job_id: str) -> str:
        """A command line of Ray's own that does something with a job, whatever the environment says."""
        mode = " RAY_AUTH_MODE=token" if self.has_token else ""
        return f"{ADDRESS_VARIABLE}={self.address}{mode} ray job {command} {job_id}"

    def _show_log(self, job_id: str) -> Any:
        """Write the log from its beginning; after a lost connection, from where it was. Returns what ended."""
        import aiohttp

        num_shown = 0
        lost_at: float | None = None

        async def tail() -> None:
            """Write what is new until the log ends."""
            nonlocal num_shown, lost_at
            position = 0
            async for text in self.client.tail_job_logs(job_id):
                lost_at = None
                new = text[max(0, num_shown - position) :]
                position += len(text)
                num_shown = max(num_shown, position)
                sys.stdout.write(new)
                sys.stdout.flush()

        while True:
            try:
                asyncio.run(tail())
                while not (info := self.client.get_job_info(job_id)).status.is_terminal():
                    lost_at = None
                    time.sleep(POLL_S)
                return info
            except (RuntimeError, OSError, aiohttp.ClientError) as error:
                if isinstance(error, BrokenPipeError):  # whoever read our output has gone
                    raise
                now = time.monotonic()
                if lost_at is None:
                    lost_at = now
                    tell("[yellow]![/] the dashboard does not answer: the job goes on; trying again")
                if now - lost_at > PATIENCE_S:
                    raise ConnectionError(
                        f"the dashboard at {self.address} has gone; the same command finds the job again"
                    ) from error
                time.sleep(RETRY_EVERY_S)


def tell(line: str) -> None:
    """A line on stderr, whole however narrow the terminal is: names and addresses in it are there to be copied."""
    progress_console.print(line, soft_wrap=True)


def read_exit_code(info: Any) -> int:
    """What a job that is over ended with, as a shell would tell it."""
    if info.status == "SUCCEEDED":
        return EXIT_OK
    if info.status == "STOPPED":
        return EXIT_STOPPED
    code = info.driver_exit_code
    if not code:
        return EXIT_FAILED
    return int(code) if code > 0 else 128 - int(code)  # ended by a signal


def _no_token_in(path: str, why: str) -> ClusterError:
    remedy = "let it name a file with the cluster's token, or set RAY_AUTH_TOKEN"
    return ClusterError("the token cannot be read", where=f"RAY_AUTH_TOKEN_PATH: {path}", value=why, remedy=remedy)
