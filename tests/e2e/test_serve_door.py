"""`rayner serve` as a user starts it, and what it refuses."""

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from serve.ingress import find_free_ports
from tests.conftest import ROOT, make_bundle
from tests.integration.processes import list_descendants, wait_until

RAYNER = [sys.executable, "-m", "pipelines"]
HAPROXY, REPLICA = "bin/haproxy", "ray::ServeReplica"


@pytest.fixture(scope="module")
def bundle(tiny_encoder, tmp_path_factory) -> Path:
    return make_bundle(tiny_encoder, tmp_path_factory.mktemp("served") / "bundle")


@contextmanager
def start(command: list[str], port: int, folder: Path):
    """A server process that is ready, and what it printed so far."""
    log = folder / "output.log"
    with log.open("w") as output:
        process = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=output, start_new_session=True)
    try:
        wait_until(lambda: fetch(port, "/readyz") or process.poll() is not None, "the endpoint is ready", 300)
        assert process.poll() is None, log.read_text()
        yield process, log
    finally:
        below = list_descendants(process.pid)
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
        for pid in below:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue


def fetch(port: int, path: str) -> bool:
    done = subprocess.run(["curl", "-sf", f"http://127.0.0.1:{port}{path}"], capture_output=True)
    return done.returncode == 0


def list_listeners(pids: list[int]) -> set[str]:
    """Addresses at which processes listen, as `ss` would tell: 0100007F:1F90 and the like, of IPv4 and IPv6."""
    inodes = set()
    for pid in pids:
        for link in Path(f"/proc/{pid}/fd").glob("*"):
            found = re.fullmatch(r"socket:\[(\d+)\]", os.readlink(link)) if link.is_symlink() else None
            if found:
                inodes.add(found[1])
    lines = [
        line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]
    ]
    return {columns[1] for columns in lines if columns[3] == "0A" and columns[9] in inodes}


def test_the_printed_command_works_and_the_endpoint_ends_when_told(bundle, tmp_path):
    [port, grpc_port] = find_free_ports(2)
    ports = ["--http.port", str(port), "--http.grpc_port", str(grpc_port)]
    with start([*RAYNER, "serve", "--model", str(bundle), *ports], port, tmp_path) as (process, log):
        wait_until(lambda: "Ctrl-C ends it" in log.read_text(), "all is printed", 30)
        told = log.read_text()
        assert f"http://127.0.0.1:{port}/" in told
        command = next(line for line in told.splitlines() if line.startswith("try:")).removeprefix("try:").strip()
        answered = subprocess.run(shlex.split(command), capture_output=True, check=True)
        assert json.loads(answered.stdout)["coverage"]["fraction"] == 1
        assert fetch(port, "/")
        assert fetch(port, "/page/app.js")
        below = list_descendants(process.pid)
        front = list_listeners([pid for pid in below if HAPROXY in Path(f"/proc/{pid}/cmdline").read_text()])
        assert front
        assert {address.partition(":")[0] for address in front} == {"0100007F"}  # 127.0.0.1
        for open_port in (port, grpc_port):
            assert f"0100007F:{open_port:04X}" in front
        with socket.create_connection(("127.0.0.1", port)):
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0
        wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in below), "no process is left", 30)
        assert "Traceback" not in log.read_text()


def test_serve_run_takes_the_application_by_its_path(bundle, tmp_path):
    """As the README tells: `serve run serve.app:build_app model=…`; it listens at Ray Serve's own port."""
    with socket.socket() as listener:
        if listener.connect_ex(("127.0.0.1", 8000)) == 0:
            pytest.fail("something listens at port 8000, which `serve run` takes")
    command = [str(Path(sys.executable).with_name("serve")), "run", "serve.app:build_app", f"model={bundle}"]
    with start(command, 8000, tmp_path) as (process, _):
        body = json.dumps({"text": "Ada met Grace in Paris."})
        asked = ["curl", "-s", "http://127.0.0.1:8000/v1/entities", "-H", "content-type: application/json", "-d", body]
        answered = json.loads(subprocess.run(asked, capture_output=True, check=True).stdout)
        assert answered["coverage"]["num_characters"] == 23
        process.send_signal(signal.SIGINT)
        process.wait(60)


def refuse(*flags: str, environment: dict[str, str] | None = None) -> str:
    started = time.monotonic()
    done = subprocess.run(
        [*RAYNER, "serve", *flags], cwd=ROOT, capture_output=True, text=True, env=os.environ | (environment or {})
    )
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert time.monotonic() - started < 60
    return done.stderr


def test_every_mistake_is_told_at_once(bundle, tmp_path):
    weak = tmp_path / "keys"
    weak.write_text("short\n")
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        taken = str(listener.getsockname()[1])
        flags = ["--http.port", taken, "--http.ingress", "nginx", "--api_keys_file", str(weak)]
        told = refuse(*flags, "--scaling.min_replicas", "3", "--scaling.max_replicas", "2", "--limits.min_score", "2")
    for part in ("no model is given", "the port is taken", "no such ingress", "an API key is too weak", "min_score"):
        assert part in told


def test_an_open_endpoint_needs_keys(bundle):
    told = refuse("--model", str(bundle), "--http.host", "0.0.0.0", "--http.port", str(find_free_ports(1)[0]))
    assert "an endpoint open to others needs API keys" in told
    assert "--api_keys_file" in told


def test_a_folder_that_is_no_model_is_refused(tmp_path):
    told = refuse("--model", str(tmp_path), "--http.port", str(find_free_ports(1)[0]))
    assert "is not a model" in told


def test_unknown_setting_names_the_nearest(bundle):
    assert "http.port" in refuse("--model", str(bundle), "--http.prot", "1")
