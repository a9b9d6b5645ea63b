"""What would keep an endpoint from starting, or from being reached, found before it is started."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipelines.cluster import ClusterConfig, find_address
from pipelines.ner.errors import UserError
from pipelines.planning.running_cluster import read_running_cluster
from pipelines.settings import ConfigError
from serve.config import HttpConfig
from serve.ingress import GRPC_SERVICER, LOOPBACK, find_free_ports, is_free
from serve.keys import VARIABLE, read_keys
from serve.replica import read_redaction_key
from serve.settings import Arguments


def check_room(arguments: Arguments, *, may_grow: bool) -> None:
    """Raise ConfigError for replicas that this cluster has no room for: Ray Serve would wait for it without end."""
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    shares = {"CPU": arguments.num_cpus, "GPU": arguments.num_gpus}
    fitting = [min(int(node.get(name, 0) / share + 1e-6) for name, share in shares.items() if share) for node in nodes]
    wanted = max(1, arguments.min_replicas)
    if sum(fitting) >= wanted or (may_grow and read_running_cluster(is_private=False).may_grow):
        return
    largest = max(node.get("CPU", 0) for node in nodes)
    has = f"the largest node has {largest:g} CPUs; all have {sum(node.get('GPU', 0) for node in nodes):g} GPUs"
    raise ConfigError(
        "no room for the replicas",
        where="`replica.num_cpus`, `replica.num_gpus`, `scaling.min_replicas`",
        rule=f"{has}, room for {sum(fitting)}",
        value=f"{wanted} with {arguments.num_cpus:g} CPUs and {arguments.num_gpus:g} GPUs each",
        remedy="lower what is too large; `--cluster.num_cpus` is what the local cluster has",
    )


def find_key_mistakes(http: HttpConfig, cluster: ClusterConfig, api_keys_file: str | None) -> list[UserError]:
    """Keys that are needed and not given, or cannot be read."""
    if find_address(cluster) and not api_keys_file:
        rule = f"a file that every node has at this path: `{VARIABLE}` of this machine does not reach the replicas"
        remedy = "`--api_keys_file FILE`"
        return [
            ConfigError("an endpoint on a cluster needs API keys", where="`api_keys_file`", rule=rule, remedy=remedy)
        ]
    try:
        keys = read_keys(api_keys_file)
    except UserError as error:
        return [error]
    if keys or http.host in LOOPBACK:
        return []
    remedy = "`--api_keys_file FILE`, or listen at 127.0.0.1"
    what = "an endpoint open to others needs API keys"
    return [ConfigError(what, where="`http.host`", value=http.host, remedy=remedy)]


def join_host_port(host: str, port: int) -> str:
    """As URLs have it: an IPv6 address stands in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def find_other_places(http: HttpConfig, running: Any, running_grpc: Any) -> list[UserError]:
    """Where a Ray Serve that runs already listens otherwise than asked: it would not move, nor say so.

    Args:
        running: its `HTTPOptions`.
        running_grpc: its `gRPCOptions`.
    """
    problems: list[UserError] = []
    what, rule = "Ray Serve runs on this cluster already, and listens elsewhere", "one address for all its applications"
    if (http.host, http.port) != (running.host, running.port):
        remedy = f"`--http.host {running.host} --http.port {running.port}`"
        value = join_host_port(http.host, http.port)
        problems.append(ConfigError(what, where="`http`", rule=rule, value=value, remedy=remedy))
    servicers = running_grpc.grpc_servicer_functions
    if http.grpc_port is not None and (http.grpc_port != running_grpc.port or GRPC_SERVICER not in servicers):
        remedy = "leave it out, or start Ray Serve with this service: `grpc_options` of `serve/config.yaml`"
        where = "`http.grpc_port`"
        problems.append(ConfigError(what, where=where, rule=rule, value=http.grpc_port, remedy=remedy))
    return problems


def find_file_mistakes(models: Mapping[str, str], redaction_key_file: str | None) -> list[UserError]:
    """What replicas on this machine would look for in vain."""
    problems: list[UserError] = []
    try:
        read_redaction_key(redaction_key_file)
    except UserError as error:
        problems.append(error)
    for name, path in models.items():
        is_path = path.startswith(("/", ".", "~")) or path.count("/") > 1  # else it may be a hub id
        if is_path and not Path(path).exists():
            problems.append(ConfigError("there is no such model", where=f"`models.{name}`", value=path))
    return problems


def find_port_mistakes(http: HttpConfig, cluster: ClusterConfig) -> list[UserError]:
    """Ports that are none, or that something of this machine listens at."""
    problems: list[UserError] = []
    if http.port == http.grpc_port:
        remedy = "`--http.grpc_port`, another one"
        where = "`http.port` and `http.grpc_port`"
        problems.append(ConfigError("HTTP and gRPC cannot share a port", where=where, value=http.port, remedy=remedy))
    for name in ("port", "grpc_port"):
        port = getattr(http, name)
        if port is None:
            continue
        where = f"`http.{name}`"
        if not 1 <= port <= 65535:
            problems.append(ConfigError("no such port", where=where, rule="1 to 65535", value=port))
        elif not find_address(cluster) and not is_free(http.host, port):
            free = find_free_ports(1)[0]
            if not is_free(http.host, free):
                rule = "0.0.0.0, 127.0.0.1, or an address of this machine"
                problems.append(
                    ConfigError("nothing can listen there", where="`http.host`", rule=rule, value=http.host)
                )
                break
            remedy = f"`--http.{name} {free}`, or end what listens there"
            what = "the port is taken" if port >= 1024 else "the port is taken, or the system's own"
            problems.append(ConfigError(what, where=where, value=port, remedy=remedy))
    return problems
