"""An endpoint in a process of its own, as `rayner serve` starts it, that takes orders: a line of JSON each.

    python -m tests.integration.endpoint '{"arguments": {"model": …}, "port": 8001, "ingress": "haproxy"}'

Orders: `{"deploy": ARGUMENTS}` deploys again, `{"configure": CONFIG}` does what `serve deploy` does, `{"status": true}`
tells of the replicas, `{"stop": true}` ends it. Each is answered with a line of JSON.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from serve.ingress import choose_environment, find_free_ports
from tests.integration.processes import list_descendants, wait_until

ROOT = Path(__file__).parents[2]
REPLICA = "ray::ServeReplica"


def serve_orders(order: dict[str, Any]) -> None:
    """Start the endpoint, then do what the lines of standard input say."""
    from pipelines.cluster import ClusterConfig, connect

    with tempfile.TemporaryDirectory(prefix="e") as folder:
        os.environ.update(choose_environment(order["ingress"], Path(folder)))
        os.environ.update(order.get("environment", {}))
        with connect(ClusterConfig(num_cpus=8, object_store_mib=200, log_workers=True), is_private=True):
            from ray import serve

            serve.start(
                proxy_location="HeadOnly",
                http_options={"host": "127.0.0.1", "port": order["port"]},
                grpc_options=order["grpc_options"],
            )
            deploy(order["arguments"])
            print(json.dumps({"deployed": True}), flush=True)
            for line in sys.stdin:
                asked = json.loads(line)
                if "deploy" in asked:
                    deploy(asked["deploy"])
                    print(json.dumps({"deployed": True}), flush=True)
                elif "configure" in asked:
                    configure(asked["configure"], order["port"])
                    print(json.dumps({"configured": True}), flush=True)
                elif "status" in asked:
                    print(json.dumps(tell_status()), flush=True)
                else:
                    break
            serve.shutdown()


def deploy(arguments: dict[str, Any]) -> None:
    """Run the application, or replace it."""
    from ray import serve

    from serve.app import APP_NAME, build_app
    from serve.settings import Arguments

    serve.run(build_app(Arguments.model_validate(arguments)), name=APP_NAME, route_prefix="/")


def configure(config: dict[str, Any], port: int) -> None:
    """What `serve deploy` has the cluster do with a file."""
    from ray.serve.context import _get_global_client
    from ray.serve.schema import ServeDeploySchema

    config["http_options"] = {"host": "127.0.0.1", "port": port}
    _get_global_client().deploy_apps(ServeDeploySchema.model_validate(config), _blocking=True)


def tell_status() -> dict[str, Any]:
    """How many replicas there are in which state."""
    from ray import serve

    application = serve.status().applications["rayner"]
    [deployment] = application.deployments.values()
    return {"status": application.status.value, "replicas": dict(deployment.replica_states)}


class Endpoint:
    """A running endpoint, seen from a test."""

    def __init__(self, process: subprocess.Popen[str], port: int, log: Path) -> None:
        self.process, self.port, self.log = process, port, log
        self.url = f"http://127.0.0.1:{port}"

    def order(self, order: dict[str, Any], deadline_s: float = 90) -> dict[str, Any]:
        """Send an order and read its answer."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith("{"):  # what workers print comes here too
                answer: dict[str, Any] = json.loads(line)
                return answer
        raise AssertionError(self.log.read_text()[-3000:])

    def tell_replicas(self) -> dict[str, int]:
        """How many replicas are in which state."""
        states: dict[str, int] = self.order({"status": True})["replicas"]
        return states

    def count_replicas(self) -> int:
        """Replicas that run."""
        return self.tell_replicas().get("RUNNING", 0)

    def list_replicas(self) -> list[int]:
        """Their processes."""
        return list_descendants(self.process.pid, REPLICA)

    def ask(self, path: str, body: Any = None, headers: dict[str, str] | None = None) -> tuple[int, Any]:
        """Status and parsed answer of one request; 0 where none came."""
        data = None if body is None else json.dumps(body).encode()
        given = {"content-type": "application/json", **(headers or {})}
        request = urllib.request.Request(self.url + path, data, given)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                raw = answer.read()
                return answer.status, json.loads(raw) if raw[:1] in (b"{", b"[") else raw.decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except OSError:
            return 0, None

    @contextmanager
    def load(self, folder: Path, *flags: str, texts: list[str] | None = None) -> Iterator[dict[str, Any]]:
        """Requests from another process during the block; the report is in the dictionary after it."""
        bodies = folder / "bodies.jsonl"
        lines = [{"body": {"text": text}, "path": "/v1/entities"} for text in texts or ["Ada met Grace in Paris."]]
        bodies.write_text("".join(json.dumps(line) + "\n" for line in lines))
        command = [sys.executable, "-m", "benchmarks.load", "--url", f"{self.url}/v1/entities", "--bodies", str(bodies)]
        running = subprocess.Popen([*command, *flags], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        report: dict[str, Any] = {}
        try:
            yield report
            told, _ = running.communicate(timeout=600)
            report.update(json.loads(told))
        finally:
            running.kill()


@contextmanager
def open_endpoint(
    arguments: dict[str, Any],
    folder: Path,
    ingress: str = "haproxy",
    environment: dict[str, str] | None = None,
    grpc_options: dict[str, Any] | None = None,
) -> Iterator[Endpoint]:
    """Start an endpoint for the time of the block; it is ready."""
    [port] = find_free_ports(1)
    order = {
        "arguments": arguments,
        "port": port,
        "ingress": ingress,
        "environment": environment or {},
        "grpc_options": grpc_options,
    }
    log = folder / "endpoint.log"
    with log.open("w") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.integration.endpoint", json.dumps(order)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            start_new_session=True,
        )
        endpoint = Endpoint(process, port, log)
        try:
            assert process.stdout is not None
            while not process.stdout.readline().startswith("{"):
                assert process.poll() is None, log.read_text()[-3000:]
            wait_until(lambda: endpoint.ask("/readyz")[0] == 200, "the endpoint is ready", 300)
            yield endpoint
        finally:
            below = list_descendants(process.pid)
            if process.poll() is None and process.stdin is not None:
                process.stdin.write('{"stop": true}\n')
                process.stdin.close()
            end = time.monotonic() + 30
            while process.poll() is None and time.monotonic() < end:
                time.sleep(0.1)
            for pid in [process.pid, *below]:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue


if __name__ == "__main__":
    serve_orders(json.loads(sys.argv[1]))
