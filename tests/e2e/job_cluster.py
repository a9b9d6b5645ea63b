"""A Ray cluster of its own that takes jobs from whoever has its token."""

import os
import secrets
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from serve.ingress import find_free_ports
from tests.integration.heads import run_head
from tests.integration.processes import wait_until

NUM_CPUS = 4
PORTS = ("--dashboard-port", "--dashboard-agent-listen-port", "--dashboard-agent-grpc-port", "--ray-client-server-port")


@dataclass(frozen=True)
class JobCluster:
    """Where its dashboard answers, and to whom."""

    address: str
    token: str
    environment: dict[str, str]
    """Of a process that has the token, and that the address is told."""

    def ask(self, path: str, token: str | None = None) -> int:
        """The status of a plain request to the dashboard; 0 where nobody answers."""
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        try:
            with urllib.request.urlopen(
                urllib.request.Request(self.address + path, headers=headers), timeout=10
            ) as one:
                return one.status
        except urllib.error.HTTPError as error:
            return error.code
        except OSError:
            return 0


@contextmanager
def run_job_cluster() -> Iterator[JobCluster]:
    """A head node on this machine alone, with a dashboard and a token, for the time of the block."""
    ports = find_free_ports(len(PORTS))
    address, token = f"http://127.0.0.1:{ports[0]}", secrets.token_hex(32)
    without = ("PYTHONPATH", "RAY_ADDRESS")
    environment = {name: value for name, value in os.environ.items() if name not in without}
    environment |= {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",  # the `python` of jobs
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": token,
        "RAY_API_SERVER_ADDRESS": address,
    }
    options = [part for name, port in zip(PORTS, ports, strict=True) for part in (name, port)]
    options += ["--port", 0, "--dashboard-host", "127.0.0.1", "--include-dashboard", "true", "--num-cpus", NUM_CPUS]
    options += ["--object-store-memory", 256 << 20]
    with (
        tempfile.TemporaryDirectory() as home,  # whatever Ray keeps in a home folder is not put into the tester's
        run_head(*options, environment=environment | {"HOME": home}),
    ):
        cluster = JobCluster(address, token, environment)
        wait_until(lambda: cluster.ask("/api/jobs/", token) == 200, "the dashboard answers")
        yield cluster
