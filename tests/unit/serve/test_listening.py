"""Where gRPC listens."""

import asyncio
import socket

import grpc
import pytest
from ray.serve._private import default_impl

from serve.ingress import GRPC_HOST_VARIABLE, choose_grpc_environment
from serve.listening import add_address, restrict_grpc


def find_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def is_open(host: str, port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex((host, port)) == 0


@pytest.mark.parametrize(("host", "is_wide"), [(None, False), ("", False), ("127.0.0.1", False), ("0.0.0.0", True)])
def test_port_is_open_at_the_host_that_is_wanted_and_no_other(monkeypatch, host, is_wide):
    monkeypatch.delenv(GRPC_HOST_VARIABLE, raising=False)
    if host is not None:
        monkeypatch.setenv(GRPC_HOST_VARIABLE, host)
    port = find_port()

    async def listen() -> list[bool]:
        server = grpc.aio.server()
        add_address(server, f"[::]:{port}")
        await server.start()
        found = [is_open(one, port) for one in ("127.0.0.1", "127.0.0.2")]
        await server.stop(0)
        return found

    assert asyncio.run(listen()) == [True, is_wide]


def test_hook_replaces_what_ray_binds_with(monkeypatch):
    monkeypatch.setattr(default_impl, "add_grpc_address", default_impl.add_grpc_address)
    assert restrict_grpc() == []
    assert default_impl.add_grpc_address is add_address


def test_hook_refuses_a_ray_that_binds_in_another_way(monkeypatch):
    monkeypatch.delattr(default_impl, "add_grpc_address")
    with pytest.raises(RuntimeError, match="open to every host"):
        restrict_grpc()


def test_environment_names_the_hook_and_the_host():
    environment = choose_grpc_environment("10.0.0.1")
    assert environment == {
        "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "serve.listening.restrict_grpc",
        "RAYNER_GRPC_HOST": "10.0.0.1",
    }
