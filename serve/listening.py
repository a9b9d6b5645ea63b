"""Where Ray Serve's gRPC servers listen. Ray has no setting for it, and takes every interface.

Ray calls the function that `RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH` names in each process that is about to listen,
proxy or replica, before it opens the gRPC port; there its function that binds an address is replaced.
"""

import os
from typing import Any

from ray.serve._private import default_impl

from serve.ingress import GRPC_HOST_VARIABLE, LOOPBACK


def restrict_grpc() -> list[Any]:
    """Let gRPC servers of this process listen at `RAYNER_GRPC_HOST`, or this machine alone; adds no middleware."""
    if not hasattr(default_impl, "add_grpc_address"):
        raise RuntimeError("this version of Ray binds its gRPC port in another way; it would be open to every host")
    default_impl.add_grpc_address = add_address
    return []


def add_address(server: Any, address: str) -> None:
    """Bind the port of an address that Ray chose at the host that is wanted."""
    host = os.environ.get(GRPC_HOST_VARIABLE) or LOOPBACK[0]
    port = address.rpartition(":")[2]
    server.add_insecure_port(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
