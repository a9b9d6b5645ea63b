"""A bundle, an engine that tells what it computes, and texts, for what serves them."""

from pathlib import Path

import pytest

from tests.conftest import EXACT, make_bundle
from tests.unit.serve.replicas import WatchedEngine


@pytest.fixture(scope="session")
def bundle(tiny_encoder: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tiny_encoder, tmp_path_factory.mktemp("served") / "bundle")


@pytest.fixture(scope="session")
def shared_engine(bundle: Path) -> WatchedEngine:
    return WatchedEngine.load(bundle, **EXACT, num_threads=2)


@pytest.fixture
def engine(shared_engine: WatchedEngine) -> WatchedEngine:
    shared_engine.forget()
    return shared_engine
