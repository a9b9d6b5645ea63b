"""The way in: what Ray is told, and that the wrapper around HAProxy really rewrites Ray's configuration."""

import json
import os
import socket
import stat
import subprocess
from pathlib import Path

import pytest

from serve import ingress
from serve.ingress import (
    BUFFER_BYTES,
    HEADERS_TIMEOUT_S,
    PORTS,
    choose_environment,
    find_free_ports,
    find_haproxy,
    is_free,
    write_wrapper,
)

CONFIG = """\
global
    log stdout format raw local0
    stats timeout 30s
defaults
    mode http
    timeout client 300s
    errorfile 502 /tmp/ray/errors/500.http
    errorfile 503 /tmp/ray/errors/500.http
    errorfile 504 /tmp/ray/errors/500.http
frontend prometheus
    bind :9101
frontend http_frontend
    bind 127.0.0.1:8000
frontend grpc_frontend
    bind 127.0.0.1:9000 proto h2
frontend other_defaults
listen stats
  bind *:8404
"""


def write_stand_in(folder: Path) -> Path:
    """A program in HAProxy's place that shows its arguments and its configuration."""
    program = folder / "stand in 'for' haproxy"
    program.write_text('#!/bin/sh\nfor argument; do echo "$argument"; done\nexit 7\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return program


def start(wrapper: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([wrapper, *arguments], capture_output=True, text=True, timeout=20)


@pytest.fixture
def config(tmp_path) -> Path:
    file = tmp_path / "haproxy.cfg"
    file.write_text(CONFIG)
    return file


def test_wrapper_rewrites_the_configuration_and_becomes_the_program(tmp_path, config):
    wrapper = write_wrapper(str(write_stand_in(tmp_path)), tmp_path)
    ended = start(wrapper, "-db", "-f", str(config), "-x", "a socket", "-sf", "12")
    assert ended.returncode == 7
    assert ended.stderr == ""
    assert ended.stdout.splitlines() == ["-db", "-f", str(config), "-x", "a socket", "-sf", "12"]
    lines = config.read_text().splitlines()
    assert "    bind ipv4@127.0.0.1:9101" in lines
    assert "  bind ipv4@127.0.0.1:8404" in lines
    assert "    bind 127.0.0.1:8000" in lines
    assert "    bind 127.0.0.1:9000 proto h2" in lines
    assert lines.count(f"    timeout http-request {HEADERS_TIMEOUT_S}s") == 1
    assert lines[lines.index("defaults") + 1] == f"    timeout http-request {HEADERS_TIMEOUT_S}s"
    for status in (502, 503, 504):
        assert f"    errorfile {status} {tmp_path / '503.http'}" in lines
    assert "500.http" not in config.read_text()


@pytest.mark.parametrize(("host", "place"), [("0.0.0.0", "0.0.0.0"), ("::1", "[::1]"), ("10.1.2.3", "10.1.2.3")])
def test_haproxy_listens_where_the_user_wants_and_tells_its_figures_to_this_machine_alone(
    tmp_path, config, host, place
):
    wrapper = write_wrapper(str(write_stand_in(tmp_path)), tmp_path, host)
    for _ in range(2):  # Ray starts it anew, with a file of its own or the same
        start(wrapper, "-f", str(config))
        bound = [line.split()[1] for line in config.read_text().splitlines() if line.strip().startswith("bind")]
        assert bound == ["ipv4@127.0.0.1:9101", f"{place}:8000", f"{place}:9000", "ipv4@127.0.0.1:8404"]


@pytest.mark.skipif(find_haproxy() is None, reason="HAProxy is not installed")
@pytest.mark.parametrize("host", ["0.0.0.0", "::", "::1", "localhost"])
def test_haproxy_takes_the_address(tmp_path, host):
    file = tmp_path / "haproxy.cfg"
    file.write_text(
        "defaults\n    mode http\n    timeout client 1s\nfrontend one\n    bind 127.0.0.1:8000\n    http-request deny\n"
    )
    checked = start(write_wrapper(str(find_haproxy()), tmp_path, host), "-c", "-f", str(file))
    assert checked.returncode == 0, checked.stderr


def test_ray_binds_the_proxy_as_the_wrapper_expects():
    from ray.serve._private.haproxy import HAProxyConfig
    from ray.serve.config import HTTPOptions

    assert HAProxyConfig(http_options=HTTPOptions(host="127.0.0.1", port=8000)).frontend_host == "127.0.0.1"


def test_wrapper_leaves_what_is_not_its_business(tmp_path, config):
    wrapper = write_wrapper(str(write_stand_in(tmp_path)), tmp_path)
    start(wrapper, "-f", str(config))
    kept = [line for line in CONFIG.splitlines() if "bind" not in line and "errorfile" not in line]
    assert [line for line in config.read_text().splitlines() if line in kept] == kept


@pytest.mark.parametrize("arguments", [["-v"], ["-f"], []])
def test_wrapper_without_a_configuration_starts_the_program(tmp_path, arguments):
    wrapper = write_wrapper(str(write_stand_in(tmp_path)), tmp_path)
    ended = start(wrapper, *arguments)
    assert (ended.returncode, ended.stdout.split(), ended.stderr) == (7, arguments, "")


def test_wrapper_reads_rays_own_template(tmp_path):
    """What it looks for is there: an update of Ray may move it."""
    from ray.serve._private import haproxy_templates

    template = Path(haproxy_templates.__file__).read_text()
    file = tmp_path / "haproxy.cfg"
    file.write_text(template)
    start(write_wrapper("/bin/true", tmp_path), "-f", str(file))
    rewritten = file.read_text()
    assert f"\n    timeout http-request {HEADERS_TIMEOUT_S}s\n" in rewritten
    assert rewritten.count(str(tmp_path / "503.http")) >= 3
    assert "  bind ipv4@127.0.0.1:{{ config.stats_port }}" in rewritten
    assert "    bind ipv4@127.0.0.1:{{ config.metrics_port }}" in rewritten


def test_answer_without_a_replica_is_a_whole_http_answer_with_a_problem_document(tmp_path):
    write_wrapper("/bin/true", tmp_path)
    head, _, body = (tmp_path / "503.http").read_bytes().partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    assert lines[0] == "HTTP/1.1 503 Service Unavailable"
    headers = {name.lower(): value for name, value in (line.split(": ") for line in lines[1:])}
    assert int(headers["content-length"]) == len(body)
    assert headers["content-type"] == "application/problem+json"
    assert int(headers["retry-after"]) >= 1
    told = json.loads(body)
    assert {"type", "title", "status", "detail"} <= told.keys()
    assert told["status"] == 503
    assert (tmp_path / "503.http").stat().st_size < BUFFER_BYTES  # HAProxy refuses a larger one


def test_environment_of_haproxy_names_files_of_its_own_folder(tmp_path, monkeypatch):
    program = write_stand_in(tmp_path)
    monkeypatch.setattr(ingress, "find_haproxy", lambda: str(program))
    folder = tmp_path / "ingress"
    found = choose_environment("auto", folder)
    assert found["RAY_SERVE_ENABLE_HA_PROXY"] == "1"
    ports = [int(found[name]) for name in PORTS]
    assert len(set(ports)) == len(ports)
    assert all(1024 < port < 65536 for port in ports)
    assert 1 <= int(found["RAY_SERVE_HAPROXY_NBTHREAD"]) <= 4
    assert os.access(found["RAY_SERVE_HAPROXY_BINARY_PATH"], os.X_OK)
    for name, value in found.items():
        assert isinstance(value, str), name
        if name.endswith(("_LOC", "_PATH", "_FILE", "_BASE")):
            assert Path(value).is_relative_to(folder), name


@pytest.mark.parametrize(("choice", "has_program"), [("python", True), ("auto", False)])
def test_environment_of_rays_own_proxy(tmp_path, monkeypatch, choice, has_program):
    monkeypatch.setattr(ingress, "find_haproxy", lambda: "/bin/true" if has_program else None)
    found = choose_environment(choice, tmp_path / "ingress")
    assert found["RAY_SERVE_ENABLE_HA_PROXY"] == "0"
    assert not [name for name in found if "HAPROXY" in name]
    assert not (tmp_path / "ingress").exists()


def test_address_is_free_until_somebody_listens_there():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        assert not is_free("127.0.0.1", listener.getsockname()[1])
    assert is_free("127.0.0.1", find_free_ports(1)[0])
    assert not is_free("192.0.2.1", find_free_ports(1)[0])  # of no machine


def test_program_that_is_found_can_be_started():
    program = find_haproxy()
    assert program is None or os.access(program, os.X_OK)


@pytest.mark.skipif(find_haproxy() is None, reason="HAProxy is not installed")
def test_connections_live_longer_than_any_request(tmp_path):
    usual, long = (choose_environment("haproxy", tmp_path / f"{limit}", limit) for limit in (30, 1800.5))
    for name in ("RAY_SERVE_HAPROXY_TIMEOUT_SERVER_S", "RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S"):
        assert (usual[name], long[name]) == ("300", "1831")
    name = "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S"  # whenever replicas come or go
    assert (usual[name], long[name]) == ("630", "1831")
