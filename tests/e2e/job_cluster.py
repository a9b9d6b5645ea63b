"""A Ray cluster of its own that takes jobs from whoever has its token."""

import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from serve.ingress import find_free_ports
from tests.integration.processes import kill, list_descendants, wait_until

NUM_CPUS = 4


@dataclass(frozen=True)
class JobCluster:
    """Where its dashboard answers, and to whom."""

    address: str
    token: str
    environment: dict[str, str]
    """Of a process that has the token."""

    def ask(self, path: str, token: str | None = None) -> int:
        """The status of a plain request to the dashboard."""
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
    folder = tempfile.mkdtemp(prefix="rj")  # short: sockets have their paths in it
    token = secrets.token_hex(32)
    ports = find_free_ports(4)
    names = (
        "--dashboard-port",
        "--dashboard-agent-listen-port",
        "--dashboard-agent-grpc-port",
        "--ray-client-server-port",
    )
    options = [part for name, port in zip(names, ports, strict=True) for part in (name, str(port))]
    without = ("PYTHONPATH", "RAY_ADDRESS", "RAY_AUTH_MODE")
    environment = {name: value for name, value in os.environ.items() if name not in without}
    environment |= {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",  # the `python` of jobs
        "RAY_AUTH_TOKEN": token,
        "HOME": folder,  # a token in the home folder of whoever runs the tests is none of theirs
    }
    options += ["--head", "--port", "0", "--node-ip-address", "127.0.0.1", "--dashboard-host", "127.0.0.1"]
    options += ["--include-dashboard", "true", "--temp-dir", folder, "--num-cpus", str(NUM_CPUS)]
    options += ["--object-store-memory", str(256 << 20), "--disable-usage-stats", "--block"]
    log = Path(folder) / "start.log"
    with log.open("w") as told:
        process = subprocess.Popen(
            [Path(sys.executable).with_name("ray"), "start", *options],
            env=environment | {"RAY_AUTH_MODE": "token"},
            stdout=told,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    cluster = JobCluster(f"http://127.0.0.1:{ports[0]}", token, environment)
    try:
        wait_until(lambda: cluster.ask("/api/jobs/", token) == 200, "the dashboard answers")
        yield cluster
    finally:
        below = list_descendants(process.pid)
        kill([process.pid, *below, *list_descendants(process.pid)])
        process.wait()
        shutil.rmtree(folder, ignore_errors=True)
