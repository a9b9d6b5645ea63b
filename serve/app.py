"""The Ray Serve application: `serve run serve.app:build_app model=out/run/bundle`, or `serve/config.yaml`."""

import asyncio
import gc
import logging
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import ray
from fastapi import FastAPI
from ray import serve
from ray.serve._private.constants import SERVE_CONTROLLER_NAME, SERVE_NAMESPACE
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy
from ray.serve.schema import LoggingConfig

from pipelines.ner.runtimes.runtime import release_memory, set_up_process
from serve.border import open_access_log
from serve.calls import GrpcCalls
from serve.ingress import DRAIN_S, MARGIN_S
from serve.metrics import Board
from serve.replica import Replica, read_redaction_key
from serve.routes import build_http
from serve.settings import Arguments, Tuning

APP_NAME = "rayner"
DEPLOYMENT = "NerServer"
MAX_ONGOING = 10_000
"""Requests in one replica. It counts sub-tokens itself, and answers 429 long before there are so many."""
TELL_EVERY_S = 1.0
RELEASE_EVERY_S = 10.0
KERNELS = 1024
"""Of oneDNN: batches of every shape come, on one core and on all. With 64 kernels batches of a few texts take a fifth
longer, and a lone one a third; 1024 take 130 MiB more."""
GC_THRESHOLDS = (20_000, 20, 50)
"""Thousands of waiting requests are looked through in each collection, which by default come every 700 objects."""
BOARDS = "rayner"
"""Ray's namespace of the boards."""

logger = logging.getLogger(__name__)


class NerServer(GrpcCalls):
    """One replica: HTTP and gRPC in, answers of one engine a model out."""

    async def __init__(self, arguments: dict[str, Any]) -> None:  # type: ignore[misc]
        """Ray Serve waits for it."""
        self.arguments = Arguments.model_validate(arguments)
        set_up_process(KERNELS)
        if self.arguments.access_log:
            open_access_log()
        if self.arguments.tracing:
            from serve.tracing import start_tracing  # its packages are an extra

            start_tracing()
        context = serve.get_replica_context()
        self.name, self.app_name = context.replica_id.unique_id, context.app_name
        self.board = self._open_board(read_redaction_key(self.arguments.redaction_key_file))
        key = await self.board.get_key.remote()
        if self.arguments.redaction_key_file:
            key = read_redaction_key(self.arguments.redaction_key_file)
        self.replica = Replica(self.arguments, key)
        await self.replica.start()
        gc.collect()
        gc.freeze()  # what is loaded stays: no need to look through it time and again
        gc.set_threshold(*GC_THRESHOLDS)
        self.telling = asyncio.create_task(self._tell_figures())
        self.releasing = asyncio.create_task(_release_memory())

    def __serve_build_asgi_app__(self) -> FastAPI:
        """The HTTP application; Ray Serve calls this once the replica is ready."""
        return build_http(self.replica, self.gather_figures, _find_version())

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Thresholds and budgets that change without a restart. Raises ValueError, and then nothing changes."""
        self.replica.tune(Tuning.model_validate(user_config))

    async def check_health(self) -> None:
        """Raise if a known text is not answered any more: Ray then replaces the replica."""
        await self.replica.check()

    def record_autoscaling_stats(self) -> dict[str, float]:
        """What `TokenPolicy` scales by."""
        return {"queued_tokens": float(self.replica.count_load())}

    async def gather_figures(self) -> dict[str, Any]:
        """The figures of all replicas, this one's as they are now."""
        self.replica.look()
        own = {self.name: self.replica.metrics.collect()}
        try:
            return {**await asyncio.wait_for(self.board.list_figures.remote(), 5), **own}
        except (ray.exceptions.RayError, TimeoutError):
            logger.warning("the figures of the other replicas are out of reach")
            return own

    def _open_board(self, key: bytes) -> Any:
        """The board that all replicas share: it outlives each of them, and ends after the last."""
        board = (
            ray.remote(LeavingBoard)
            .options(
                name=f"{self.app_name}-board", namespace=BOARDS, get_if_exists=True, lifetime="detached", num_cpus=0
            )
            .remote(key)
        )
        board.wait_until_left.remote()
        return board

    async def _tell_figures(self) -> None:
        while True:
            self.replica.look()
            try:
                await self.board.tell.remote(self.name, self.replica.metrics.collect())
            except ray.exceptions.RayError:
                self.board = self._open_board(self.replica.redaction_key)
            await asyncio.sleep(TELL_EVERY_S)


async def _release_memory() -> None:
    while True:
        await asyncio.sleep(RELEASE_EVERY_S)
        await asyncio.to_thread(release_memory)


class LeavingBoard(Board):
    """A board as an actor that ends itself."""

    async def wait_until_left(self) -> bool:
        """End once no replica has been heard of for long."""
        is_left = await super().wait_until_left()
        if is_left:
            ray.actor.exit_actor()
        return is_left


def build_app(arguments: Arguments) -> serve.Application:
    """The application for `serve run`, `serve deploy` and `rayner serve`."""
    actor: dict[str, Any] = {"num_cpus": arguments.num_cpus}
    if arguments.num_gpus:
        actor["num_gpus"] = arguments.num_gpus
    scaling: dict[str, Any] = {"num_replicas": arguments.min_replicas}
    if arguments.max_replicas > arguments.min_replicas:
        scaling = {"num_replicas": None, "autoscaling_config": plan_scaling(arguments)}
    deployment = serve.deployment(serve.ingress()(NerServer)).options(
        name=DEPLOYMENT,
        ray_actor_options=actor,
        user_config=arguments.tuning.model_dump(),
        max_ongoing_requests=MAX_ONGOING,
        health_check_period_s=5,
        health_check_timeout_s=30,
        graceful_shutdown_timeout_s=max(DRAIN_S, arguments.tuning.timeout_s + MARGIN_S),
        logging_config=LoggingConfig(enable_access_log=False),  # it has its own
        **scaling,
    )
    return deployment.bind(arguments.model_dump(exclude={"tuning"}))


def is_serving() -> bool:
    """Whether Serve runs on the cluster, with applications or without."""
    try:
        ray.get_actor(SERVE_CONTROLLER_NAME, namespace=SERVE_NAMESPACE)
    except ValueError:
        return False
    return True


def read_listening() -> tuple[Any, Any]:
    """Where a Serve that runs listens: its HTTP and its gRPC options."""
    controller = ray.get_actor(SERVE_CONTROLLER_NAME, namespace=SERVE_NAMESPACE)
    return tuple(ray.get([controller.get_http_config.remote(), controller.get_grpc_config.remote()]))


def is_deployed() -> bool:
    """Whether Serve has the application, in whatever state."""
    return APP_NAME in serve.status().applications


def is_running() -> bool:
    """Whether the application answers, and a proxy that leads to it."""
    status = serve.status()
    application = status.applications.get(APP_NAME)
    return application is not None and application.status == "RUNNING" and "HEALTHY" in status.proxies.values()


def plan_scaling(arguments: Arguments) -> AutoscalingConfig:
    """How the number of replicas follows the load."""
    return AutoscalingConfig(
        min_replicas=arguments.min_replicas,
        initial_replicas=max(1, arguments.min_replicas),
        max_replicas=arguments.max_replicas,
        target_ongoing_requests=MAX_ONGOING,  # the policy counts sub-tokens
        metrics_interval_s=1,  # as the environment of `serve.ingress` has it
        look_back_period_s=3,
        upscale_delay_s=arguments.upscale_delay_s,
        downscale_delay_s=arguments.downscale_delay_s,
        policy=AutoscalingPolicy(
            policy_function="serve.scaling:TokenPolicy", policy_kwargs={"target_tokens": arguments.target_queued_tokens}
        ),
    )


def _find_version() -> str:
    try:
        return version("rayner")
    except PackageNotFoundError:
        return "0"
