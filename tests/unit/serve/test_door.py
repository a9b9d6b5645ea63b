"""`rayner serve` without Ray: what it refuses, what replicas are told of keys, how it leaves a cluster of others."""

import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from types import SimpleNamespace
from typing import Any

import pytest
from ray import serve

from pipelines import endpoint_checks
from pipelines import serve as door
from pipelines.cluster import ClusterConfig
from pipelines.ner.errors import UserErrors
from pipelines.settings import ConfigError
from serve.app import APP_NAME, is_running
from serve.config import HttpConfig, ReplicaConfig, ScalingConfig
from serve.ingress import GRPC_SERVICER, find_free_ports
from serve.keys import VARIABLE

GOOD = "a-good-key-of-many-characters"
ADDRESS = "192.0.2.1:6379"


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch):
    for name in (VARIABLE, "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)


def configure(**settings: Any) -> door.ServeConfig:
    return door.ServeConfig(**{"model": "m", "http": HttpConfig(port=find_free_ports(1)[0])} | settings)


@pytest.mark.parametrize("has_key", [False, True])
@pytest.mark.parametrize("is_flag", [False, True])
def test_cluster_demands_a_file_of_keys_and_keys_of_the_environment_do_not_count(capsys, monkeypatch, is_flag, has_key):
    if has_key:
        monkeypatch.setenv(VARIABLE, GOOD)
    if not is_flag:
        monkeypatch.setenv("RAY_ADDRESS", ADDRESS)
    assert door.main(["--model", "m", *(["--cluster.address", ADDRESS] if is_flag else [])]) == 2
    told = capsys.readouterr().err
    assert told.count("needs API keys") == 1
    assert "`--api_keys_file FILE`" in told
    assert GOOD not in told


def test_replicas_on_a_cluster_are_told_of_the_file_and_that_keys_are_needed(tmp_path):
    file = tmp_path / "keys"
    file.write_text(GOOD)
    arguments = door.check(configure(api_keys_file=str(file), cluster=ClusterConfig(ADDRESS)))
    assert (arguments.api_keys_file, arguments.needs_api_keys) == (str(file), True)
    assert GOOD not in arguments.model_dump_json()


@pytest.mark.parametrize(("given", "is_needed"), [(None, False), ("", False), (GOOD, True)])
def test_replicas_of_this_machine_need_keys_where_its_environment_has_some(monkeypatch, given, is_needed):
    if given is not None:
        monkeypatch.setenv(VARIABLE, given)
    arguments = door.check(configure())
    assert arguments.needs_api_keys == is_needed
    assert GOOD not in arguments.model_dump_json()


def test_ports_of_another_machine_are_not_tried_here(tmp_path):
    file = tmp_path / "keys"
    file.write_text(GOOD)
    http = HttpConfig(host="192.0.2.1")  # of no machine
    with pytest.raises(ConfigError, match="nothing can listen there"):
        door.check(configure(api_keys_file=str(file), http=http))
    door.check(configure(api_keys_file=str(file), http=http, cluster=ClusterConfig(ADDRESS)))


def test_http_and_grpc_at_one_port_are_refused():
    [port] = find_free_ports(1)
    with pytest.raises(ConfigError, match="cannot share a port"):
        door.check(configure(http=HttpConfig(port=port, grpc_port=port)))


def test_endpoint_is_asked_whether_it_answers_without_the_proxy_of_the_environment(monkeypatch):
    class Ready(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            """Nothing to see."""

    [closed] = find_free_ports(1)
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{closed}")
    monkeypatch.delenv("no_proxy", raising=False)
    with HTTPServer(("127.0.0.1", 0), Ready) as server:
        server.timeout = 5
        threading.Thread(target=server.handle_request, daemon=True).start()
        assert door._answers("127.0.0.1", server.server_port)


class Cluster:
    """Stands in for Ray Serve: which applications there are, in which state, and whether it was shut down."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, is_serving: bool = True, **applications: str) -> None:
        monkeypatch.setattr("serve.app.is_serving", lambda: is_serving)
        monkeypatch.setattr("serve.app.read_listening", lambda: (None, None))
        monkeypatch.setattr(door, "find_other_places", lambda *_: [])
        self.applications, self.outcome, self.is_shut_down = dict(applications), "RUNNING", False
        self.proxies = {"node": "HEALTHY"}
        for name in ("start", "run", "status", "delete", "shutdown"):
            monkeypatch.setattr(serve, name, getattr(self, name))

    def start(self, **options: Any) -> None:
        """Nothing to do."""

    def run(self, application: Any, name: str, route_prefix: str) -> None:
        self.applications[name] = self.outcome
        if self.outcome != "RUNNING":
            raise RuntimeError("Deploying application failed")

    def status(self) -> Any:
        found = {name: SimpleNamespace(status=status) for name, status in self.applications.items()}
        return SimpleNamespace(applications=found, proxies=self.proxies)

    def delete(self, name: str) -> None:
        del self.applications[name]

    def shutdown(self) -> None:
        self.is_shut_down = True


@pytest.fixture
def serve_until_stopped(monkeypatch):
    """Serves until the first look, which Ctrl-C interrupts."""

    def stop(_: float) -> None:
        raise KeyboardInterrupt

    def run(config: door.ServeConfig) -> None:
        monkeypatch.setattr(door.time, "sleep", stop)
        monkeypatch.setattr(door, "_answers", lambda *_: True)
        door._serve(config, door.build_arguments(config), ["PER"])

    return run


def test_stopped_endpoint_leaves_the_applications_of_others_on_a_cluster(monkeypatch, serve_until_stopped):
    cluster = Cluster(monkeypatch, other="RUNNING")
    serve_until_stopped(configure(cluster=ClusterConfig(ADDRESS)))
    assert (cluster.applications, cluster.is_shut_down) == ({"other": "RUNNING"}, False)


@pytest.mark.parametrize("is_serving", [True, False])
def test_serve_itself_ends_where_this_run_has_started_it(monkeypatch, serve_until_stopped, is_serving):
    cluster = Cluster(monkeypatch, is_serving=is_serving)
    serve_until_stopped(configure(cluster=ClusterConfig(ADDRESS)))
    assert (cluster.applications, cluster.is_shut_down) == ({}, not is_serving)


def test_endpoint_that_cannot_start_leaves_nothing_on_a_cluster(monkeypatch, serve_until_stopped):
    cluster = Cluster(monkeypatch, other="RUNNING")
    cluster.outcome = "DEPLOY_FAILED"
    with pytest.raises(RuntimeError, match="failed"):
        serve_until_stopped(configure(cluster=ClusterConfig(ADDRESS)))
    assert (cluster.applications, cluster.is_shut_down) == ({"other": "RUNNING"}, False)


def test_endpoint_of_others_on_a_cluster_is_neither_replaced_nor_ended(monkeypatch, serve_until_stopped):
    cluster = Cluster(monkeypatch, **{APP_NAME: "RUNNING"})
    with pytest.raises(ConfigError, match="has an endpoint already"):
        serve_until_stopped(configure(cluster=ClusterConfig(ADDRESS)))
    assert (cluster.applications, cluster.is_shut_down) == ({APP_NAME: "RUNNING"}, False)


def test_cluster_of_this_machine_alone_is_shut_down(monkeypatch, serve_until_stopped):
    cluster = Cluster(monkeypatch)
    serve_until_stopped(configure())
    assert cluster.is_shut_down


@pytest.mark.parametrize(
    ("applications", "proxy", "wanted"),
    [
        ({APP_NAME: "RUNNING"}, "HEALTHY", True),
        ({APP_NAME: "RUNNING"}, "STARTING", False),
        ({APP_NAME: "DEPLOYING"}, "HEALTHY", False),
        ({"other": "RUNNING"}, "HEALTHY", False),
    ],
)
def test_endpoint_is_ready_once_it_and_a_proxy_are(monkeypatch, applications, proxy, wanted):
    cluster = Cluster(monkeypatch, **applications)
    cluster.proxies = {"node": proxy}
    assert is_running() is wanted


def test_what_no_replica_could_use_is_refused_before_anything_starts(tmp_path):
    weak = tmp_path / "key"
    weak.write_text("short")
    replica = ReplicaConfig(runtime="foo", precision="fp8", device="gpu")
    wrong = {"models": {"x": str(tmp_path / "nowhere"), "hub": "user/model"}, "redaction_key_file": str(weak)}
    with pytest.raises(UserErrors) as caught:
        door.check(configure(replica=replica, **wrong))
    told = str(caught.value)
    for fact in ("5 mistakes", "`runtime`", "`precision`", "`device`", "`models.x`", "redaction key is too weak"):
        assert fact in told


@pytest.mark.parametrize(
    ("replica", "scaling", "nodes", "may_grow", "fits"),
    [
        ({"num_cpus": 2}, {}, [{"CPU": 4.0}], False, True),
        ({"num_cpus": 8}, {}, [{"CPU": 4.0}, {"CPU": 4.0}], False, False),
        ({"num_cpus": 8}, {}, [{"CPU": 4.0}], True, True),
        ({"num_cpus": 2}, {"min_replicas": 3, "max_replicas": 3}, [{"CPU": 5.0}], False, False),
        ({"num_cpus": 2}, {"min_replicas": 3, "max_replicas": 3}, [{"CPU": 5.0}, {"CPU": 2.0}], False, True),
        ({"num_cpus": 1, "num_gpus": 0.5}, {}, [{"CPU": 4.0}], False, False),
        (
            {"num_cpus": 1, "num_gpus": 0.1},
            {"min_replicas": 3, "max_replicas": 3},
            [{"CPU": 4, "GPU": 0.3}],
            False,
            True,
        ),
    ],
)
def test_replicas_without_room_are_refused_for_ray_serve_would_wait_for_ever(
    monkeypatch, replica, scaling, nodes, may_grow, fits
):
    monkeypatch.setattr("ray.nodes", lambda: [{"Alive": True, "Resources": node} for node in nodes])
    monkeypatch.setattr(endpoint_checks, "read_running_cluster", lambda **_: SimpleNamespace(may_grow=may_grow))
    config = configure(replica=ReplicaConfig(**replica), scaling=ScalingConfig(**scaling))
    arguments = door.build_arguments(config)
    if fits:
        endpoint_checks.check_room(arguments, may_grow=may_grow)
        return
    with pytest.raises(ConfigError, match="no room for the replicas"):
        endpoint_checks.check_room(arguments, may_grow=may_grow)


def test_replicas_of_a_small_local_cluster_take_no_more_cpus_than_it_has():
    assert door.build_arguments(configure(cluster=ClusterConfig(num_cpus=1))).num_cpus == 1


def test_serve_that_listens_elsewhere_is_told():
    http = HttpConfig(port=9000, grpc_port=9100)
    running, grpc = SimpleNamespace(host="127.0.0.1", port=8000), SimpleNamespace(port=9100, grpc_servicer_functions=[])
    elsewhere, no_service = endpoint_checks.find_other_places(http, running, grpc)
    assert "--http.host 127.0.0.1 --http.port 8000" in elsewhere.remedy
    assert no_service.where == "`http.grpc_port`"
    grpc.grpc_servicer_functions = [GRPC_SERVICER]
    assert endpoint_checks.find_other_places(http, SimpleNamespace(host="127.0.0.1", port=9000), grpc) == []
    assert endpoint_checks.find_other_places(HttpConfig(), running, grpc) == []


def test_addresses_of_ipv6_stand_in_brackets():
    assert endpoint_checks.join_host_port("::1", 8000) == "[::1]:8000"
    assert endpoint_checks.join_host_port("localhost", 8000) == "localhost:8000"


def test_settings_without_effect_are_told():
    idle = door.find_idle(door.ServeConfig(log_texts=True, scaling=ScalingConfig(upscale_delay_s=9.0)))
    assert [line.split()[0] for line in idle] == ["`log_texts`", "`scaling.upscale_delay_s`"]
    told = door.ServeConfig(log_texts=True, access_log=True, scaling=ScalingConfig(max_replicas=2, upscale_delay_s=9.0))
    assert door.find_idle(told) == []


def test_scheme_is_told_to_have_no_effect_where_all_models_are_bundles(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "bundle.json").touch()
    bundles = {"model": str(tmp_path / "one"), "models": {"two": str(tmp_path / "two")}}
    replica = ReplicaConfig(scheme="IOB1")
    [told] = door.find_idle(door.ServeConfig(**bundles, replica=replica))
    assert told.startswith("`replica.scheme` has no effect")
    (tmp_path / "two" / "bundle.json").unlink()  # may be a checkpoint of others
    assert door.find_idle(door.ServeConfig(**bundles, replica=replica)) == []
    assert door.find_idle(door.ServeConfig(model=str(tmp_path / "one"))) == []


def test_no_cpus_for_a_replica_are_refused_and_not_the_default():
    with pytest.raises(ConfigError, match=r"num_cpus"):
        door.check(door.ServeConfig(model="m", replica=ReplicaConfig(num_cpus=0)))
