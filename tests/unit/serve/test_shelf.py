"""Models of a replica: loaded once when asked for, put away in order, never while somebody uses them."""

import asyncio
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from pipelines.ner.engine import NerEngine
from serve import shelf as shelves
from serve.batching import Batcher
from serve.problems import Problem
from serve.shelf import Shelf
from tests.conftest import EXACT
from tests.unit.serve.replicas import WatchedEngine, run, wait_until

TEXT = "Ada met Grace in Paris."


class WatchedShelf(Shelf):
    """Notes what it opens; opening may be held up."""

    def __init__(self, paths: dict[str, str], max_mib: float) -> None:
        self.opened: list[str] = []
        self.gate = threading.Event()
        self.gate.set()
        super().__init__(paths, max_mib, self._open, self._batch)

    def _open(self, path: str) -> NerEngine:
        self.opened.append(path)
        assert self.gate.wait(10)
        return WatchedEngine.load(path, **EXACT, num_threads=2)

    def _batch(self, engine: NerEngine) -> Batcher:
        return Batcher(engine, max_batch_tokens=128, max_queued_tokens=10_000)

    async def use(self, name: str) -> None:
        async with self.borrow(name) as model:
            await model.batcher.predict(TEXT)


def use_shelf(
    bundle: Path, use: Callable[[WatchedShelf], Awaitable[None]], names: str = "abc", max_mib: float = 1e9
) -> None:
    async def check() -> None:
        shelf = WatchedShelf({name: str(bundle) for name in names} | {"broken": str(bundle / "nowhere")}, max_mib)
        try:
            await use(shelf)
        finally:
            shelf.gate.set()
            for model in shelf.loaded.values():
                model.close()

    run(check())


@pytest.fixture(scope="module")
def size_mib(shared_engine) -> float:
    return shared_engine.size_bytes / shelves.MIB


def test_nothing_is_loaded_until_it_is_asked_for(bundle):
    async def use(shelf: WatchedShelf) -> None:
        assert not shelf.loaded
        await shelf.use("b")
        assert list(shelf.loaded) == ["b"]

    use_shelf(bundle, use)


def test_concurrent_callers_load_a_model_once_and_one_that_leaves_stops_nobody(bundle):
    async def use(shelf: WatchedShelf) -> None:
        shelf.gate.clear()
        callers = [asyncio.create_task(shelf.use("a")) for _ in range(10)]
        await wait_until(lambda: bool(shelf.opened), "the model is being loaded")
        callers[0].cancel()
        shelf.gate.set()
        results = await asyncio.gather(*callers, return_exceptions=True)
        assert isinstance(results[0], asyncio.CancelledError)
        assert results[1:] == [None] * 9
        assert len(shelf.opened) == 1

    use_shelf(bundle, use)


def test_longest_unused_model_makes_room(bundle, size_mib):
    async def use(shelf: WatchedShelf) -> None:
        for name in ("a", "b", "a", "c"):
            await shelf.use(name)
        assert list(shelf.loaded) == ["a", "c"]
        await shelf.use("b")
        assert list(shelf.loaded) == ["c", "b"]
        assert len(shelf.opened) == 4

    use_shelf(bundle, use, max_mib=2.5 * size_mib)


def test_one_model_always_fits(bundle):
    async def use(shelf: WatchedShelf) -> None:
        for name in ("a", "a", "b", "b"):
            await shelf.use(name)
        assert list(shelf.loaded) == ["b"]
        assert len(shelf.opened) == 2

    use_shelf(bundle, use, max_mib=0.001)


def test_model_that_is_used_stays_and_leaves_once_it_is_not(bundle, size_mib):
    async def use(shelf: WatchedShelf) -> None:
        async with shelf.borrow("a") as first:
            await shelf.use("b")
            assert set(shelf.loaded) == {"a", "b"}
            await first.batcher.predict(TEXT)
        assert list(shelf.loaded) == ["b"]

    use_shelf(bundle, use, max_mib=1.5 * size_mib)


def test_model_with_a_text_under_way_stays(bundle, size_mib):
    async def use(shelf: WatchedShelf) -> None:
        await shelf.use("a")
        engine = shelf.loaded["a"].engine
        assert isinstance(engine, WatchedEngine)
        engine.gate.clear()
        asked = asyncio.create_task(shelf.use("a"))
        await wait_until(lambda: len(engine.batches) == 2, "a text is being computed")
        await shelf.use("b")
        assert set(shelf.loaded) == {"a", "b"}
        engine.gate.set()
        await asked
        assert list(shelf.loaded) == ["b"]

    use_shelf(bundle, use, max_mib=0.001)


def test_many_callers_of_many_models_in_little_memory_are_all_answered(bundle, size_mib):
    async def use(shelf: WatchedShelf) -> None:
        await asyncio.gather(*(shelf.use("abc"[at % 3]) for at in range(30)))
        assert sum(model.size_mib for model in shelf.loaded.values()) <= 1.5 * size_mib

    use_shelf(bundle, use, max_mib=1.5 * size_mib)


def test_looking_is_no_use_and_loads_nothing(bundle, size_mib):
    async def use(shelf: WatchedShelf) -> None:
        with shelf.look("a") as model:
            assert model is None
        await shelf.use("a")
        await shelf.use("b")
        with shelf.look("a") as model:
            assert model is not None
        assert list(shelf.loaded) == ["a", "b"]
        assert len(shelf.opened) == 2

    use_shelf(bundle, use)


def test_unknown_model_is_404_and_names_those_there_are(bundle):
    async def use(shelf: WatchedShelf) -> None:
        with pytest.raises(Problem) as refused:
            await shelf.use("d" * 1000)
        assert refused.value.status == 404
        assert "a, b, c" in refused.value.detail
        assert len(refused.value.detail) < 200

    use_shelf(bundle, use)


def test_broken_model_is_503_and_not_tried_again_by_each_request(bundle, monkeypatch, caplog):
    async def use(shelf: WatchedShelf) -> None:
        for _ in range(3):
            with pytest.raises(Problem) as refused:
                await shelf.use("broken")
            assert refused.value.status == 503
            assert 1 <= int(refused.value.headers["retry-after"]) <= 60
            assert str(bundle) not in refused.value.detail
        assert len(shelf.opened) == 1
        assert "nowhere" in caplog.text  # the log says why
        monkeypatch.setattr(shelves, "RETRY_S", -1.0)
        shelf.broken.clear()
        for _ in range(2):
            with pytest.raises(Problem):
                await shelf.use("broken")
        assert len(shelf.opened) == 3
        await shelf.use("a")  # the others are not hindered

    use_shelf(bundle, use)


def test_model_that_fails_in_any_way_is_503_and_not_tried_again_by_each_request(bundle, monkeypatch, caplog):
    async def use(shelf: WatchedShelf) -> None:
        def fail(path: str) -> NerEngine:
            shelf.opened.append(path)
            raise RuntimeError("CUDA out of memory")

        monkeypatch.setattr(shelf, "open_engine", fail)
        for _ in range(3):
            with pytest.raises(Problem) as refused:
                await shelf.use("a")
            assert refused.value.status == 503
            assert "CUDA" not in refused.value.detail
        assert len(shelf.opened) == 1
        assert "CUDA out of memory" in caplog.text
        assert "Traceback" in caplog.text

    use_shelf(bundle, use)


def test_room_is_made_before_a_model_is_loaded(bundle, size_mib):
    async def use(shelf: WatchedShelf) -> None:
        await shelf.use("a")
        shelf.gate.clear()
        asked = asyncio.create_task(shelf.use("b"))
        await wait_until(lambda: len(shelf.opened) == 2, "the second is being loaded")
        assert not shelf.loaded
        shelf.gate.set()
        await asked

    use_shelf(bundle, use, max_mib=1.5 * size_mib)


def test_model_that_was_broken_is_loaded_once_it_is_mended(bundle, monkeypatch):
    monkeypatch.setattr(shelves, "RETRY_S", 0.0)

    async def use(shelf: WatchedShelf) -> None:
        with pytest.raises(Problem):
            await shelf.use("broken")
        shelf.paths = {**shelf.paths, "broken": str(bundle)}
        await shelf.use("broken")

    use_shelf(bundle, use)


@pytest.mark.parametrize("wrong", ["model.safetensors", "config.json", "bundle.json", "tokenizer.json"])
def test_any_broken_file_of_a_bundle_is_503(bundle, tmp_path, wrong):
    folder = tmp_path / "bundle"
    folder.mkdir()
    for file in bundle.iterdir():
        (folder / file.name).write_bytes(file.read_bytes() if file.name != wrong else b'{"half')

    async def use(shelf: WatchedShelf) -> None:
        shelf.paths = {"wrong": str(folder)}
        with pytest.raises(Problem) as refused:
            await shelf.use("wrong")
        assert refused.value.status == 503

    use_shelf(bundle, use)


def test_description_has_what_the_contract_promises(bundle):
    async def use(shelf: WatchedShelf) -> None:
        async with shelf.borrow("a") as model:
            told = model.describe()
        assert told["labels"] == sorted(told["labels"])
        assert (told["name"], told["scheme"], told["window"], told["stride"]) == ("a", "BIO", 32, 8)
        assert (told["runtime"], told["precision"], told["device"]) == ("torch", "fp32", "cpu")
        assert told["fingerprint"]

    use_shelf(bundle, use)
