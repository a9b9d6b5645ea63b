"""The Ray cluster that a door runs on: the one given, or a local one. The only module that calls `ray.init`."""

import logging
import os
import re
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from pipelines.ner.errors import UserError, tell_first_line
from pipelines.ner.machine import count_cores, read_memory_bytes

MIB = 1 << 20
LOCAL = {"num_cpus": 1, "object_store_mib": 80}
"""Settings of a local cluster, and the least that each may be."""
CONNECT_S = 10.0
_HOST_PORT = re.compile(r"(?:ray://)?(?P<host>[^/]+|\[[^]]+\]):(?P<port>\d+)")
# Ray reads these when it is imported or started. Values already set by the user win.
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # workers have the environment of the driver
    "RAY_DATA_PARQUET_FOOTER_NUM_ACTORS": "1",  # 32 by default, whatever the machine
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",  # who asks for no GPU sees none
    "RAY_TRAIN_ENABLE_STATE_TRACKING": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.25",  # a worker's report waits for the next poll: 2 s by default
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}


class ClusterError(UserError):
    """A cluster that cannot be reached or started."""


@dataclass(frozen=True)
class ClusterConfig:
    """Where the door runs."""

    address: str | None = None
    """Address of a running cluster; default: `RAY_ADDRESS` if set (as in a submitted job), else a cluster of this
    machine alone, started for the run and ended with it."""
    num_cpus: int | None = None
    """Logical CPUs of the local cluster; default: this machine's cores and two more, which read and write files."""
    object_store_mib: int | None = None
    """Memory for Ray's object store in the local cluster; default: 30 % of the memory, at most 2 GiB."""
    log_workers: bool = False
    """Show what the workers print."""

    def find_problems(self) -> list[UserError]:
        """Every mistake in these settings."""
        return [
            ClusterError("a number out of range", where=f"`cluster.{name}`", rule=f"at least {least}", value=value)
            for name, least in LOCAL.items()
            if not find_address(self) and (value := getattr(self, name)) is not None and value < least
        ]

    def find_idle(self) -> list[str]:
        """Settings given that change nothing, each with its reason."""
        address = find_address(self)
        given = [name for name in LOCAL if address and getattr(self, name) is not None]
        return [f"`cluster.{name}` has no effect: the cluster at {address} runs already" for name in given]


def find_address(config: ClusterConfig) -> str | None:
    """The address of the running cluster that is given; None for a cluster of this machine alone."""
    return config.address or os.environ.get("RAY_ADDRESS")


@contextmanager
def connect(config: ClusterConfig, *, is_private: bool = False) -> Iterator[None]:
    """A connection to the cluster for the time of the block. Raises ClusterError.

    Args:
        is_private: a cluster of this machine alone listens to this machine alone, too.
    """
    address = find_address(config)
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import ray
    import ray.data

    settings: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": config.log_workers}
    if address:
        settings["address"] = address
    else:
        cores = count_cores()
        settings |= {"address": "local", "num_cpus": config.num_cpus or cores + 2, "include_dashboard": False}
        if is_private:
            settings["_node_ip_address"] = "127.0.0.1"
        settings["object_store_memory"] = (config.object_store_mib or _choose_object_store_mib()) * MIB
    already = ray.is_initialized()
    if address:
        _check_listening(address)
    if not already:
        try:
            with _silence_stderr(not config.log_workers):
                ray.init(**settings)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise ClusterError(
                "the Ray cluster cannot be reached" if address else "a local Ray cluster cannot be started",
                where=address,
                value=tell_first_line(error),
                remedy="check the address and the token; leave `--cluster.address` out for this machine alone"
                if address
                else "check free memory and disk space, and whether `/dev/shm` and the temporary folder can be written",
            ) from error
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False  # doors show their own progress
    context.execution_options.preserve_order = True
    context.execution_options.verbose_progress = False
    context.raise_original_map_exception = True  # else what a worker raised is wrapped, and its kind is lost
    context.read_op_min_num_blocks = 1
    for name in ("ray.train", "ray.tune"):
        logging.getLogger(name).setLevel(logging.ERROR)
    is_debugging = logging.getLogger().isEnabledFor(logging.DEBUG)
    logging.getLogger("ray.data").setLevel(logging.ERROR if is_debugging else logging.CRITICAL)  # its errors are raised
    try:
        yield
    finally:
        if not already:
            ray.shutdown()


def list_node_cpus(nodes: list[dict[str, Any]]) -> list[int]:
    """CPUs of every living node: for this machine, no more than it has cores, whatever was declared, plus one."""
    import ray

    here = ray.util.get_node_ip_address()
    cores = count_cores()
    declared = [(node, int(node["Resources"].get("CPU", 0))) for node in nodes if node["Alive"]]
    return [min(cpus, cores + 1) if node["NodeManagerAddress"] == here else cpus for node, cpus in declared]


def _check_listening(address: str) -> None:
    """Raise ClusterError if nobody listens there: Ray itself tries for minutes."""
    match = _HOST_PORT.fullmatch(address)
    if match is None:  # `auto`, or an address of another kind
        return
    try:
        socket.create_connection((match["host"].strip("[]"), int(match["port"])), timeout=CONNECT_S).close()
    except OSError as error:
        raise ClusterError(
            "the Ray cluster cannot be reached",
            where=address,
            value=error.strerror or str(error),
            remedy="check the address; leave `--cluster.address` out for this machine alone",
        ) from error


@contextmanager
def _silence_stderr(silent: bool) -> Iterator[None]:
    """Keep what Ray's C++ side prints at its start off the terminal; its errors come as exceptions."""
    if not silent:
        yield
        return
    sys.stderr.flush()
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _choose_object_store_mib() -> int:
    return max(100, min(2048, int(read_memory_bytes() * 0.3) // MIB))
