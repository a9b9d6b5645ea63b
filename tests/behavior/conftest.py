"""The Ray that the integration tests use, for what runs in this process."""

from tests.integration.conftest import ray_session

__all__ = ["ray_session"]
