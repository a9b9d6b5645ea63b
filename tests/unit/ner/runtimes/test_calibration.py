"""The choice of a runtime: measured, remembered, never a wrong one."""

import json
import logging

import pytest
import torch

from pipelines.ner.bundle import load_bundle
from pipelines.ner.engine import NerEngine
from pipelines.ner.runtimes import calibration
from pipelines.ner.runtimes.calibration import Figure, find_cache
from pipelines.ner.runtimes.packed import PackedRuntime
from pipelines.ner.runtimes.runtime import RuntimeUnavailable
from tests.conftest import EXACT, make_bundle

TEXT = "Angela Merkel visited Utrecht with Siemens."


@pytest.fixture(scope="module")
def saved(tiny_encoder, tmp_path_factory):
    return make_bundle(tiny_encoder, tmp_path_factory.mktemp("calibrated") / "bundle")


@pytest.fixture
def bundle(saved, tmp_path, monkeypatch):
    """A bundle of which nothing is remembered."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(calibration, "SAMPLE_TOKENS", 512)
    return saved


def list_places(prediction):
    return [(entity.start, entity.end, entity.label) for entity in prediction.entities]


def read_figures():
    (path,) = (find_cache() / "calibration").glob("*.json")
    return path, json.loads(path.read_text())


def test_auto_measures_every_candidate_and_takes_the_fastest(bundle, caplog):
    with caplog.at_level(logging.INFO):
        told = NerEngine.load(bundle, device="cpu", precision="fp32").describe()
    figures = told["candidates"]
    assert [(figure["runtime"], figure["precision"]) for figure in figures] == [
        ("torch", "fp32"),
        ("packed", "fp32"),
        ("openvino", "fp32"),
    ]
    assert all(figure["tokens_per_s"] > 0 and figure["error"] < 1e-3 and not figure["problem"] for figure in figures)
    assert told["runtime"] == max(figures, key=lambda figure: figure["tokens_per_s"])["runtime"]
    assert told["precision"] == "fp32"
    assert f"runtime {told['runtime']} in fp32" in caplog.text


def test_close_candidates_are_measured_in_turns_so_that_other_work_does_not_decide(bundle, monkeypatch):
    time_alone, seen = calibration._time, []

    def time(runtime, windows, num_threads):
        """As fast as it is, but the first timing of `packed`, during which the machine does something else."""
        time_alone(runtime, windows, num_threads)
        seen.append(runtime.name)
        is_disturbed = runtime.name == "packed" and seen.count("packed") == 1
        return {"torch": 1.0, "packed": 1.25 if is_disturbed else 0.8, "openvino": 3.0}[runtime.name]

    monkeypatch.setattr(calibration, "_time", time)
    told = NerEngine.load(bundle, device="cpu", precision="fp32").describe()
    assert seen == ["torch", "packed", "openvino", *["torch", "packed"] * calibration.TURNS]
    assert told["runtime"] == "packed"
    speeds = {figure["runtime"]: figure["tokens_per_s"] for figure in told["candidates"]}
    assert speeds["packed"] == pytest.approx(speeds["torch"] / 0.8, rel=1e-3)


def test_fastest_in_fp32_is_measured_in_turns_whatever_else_is_faster(bundle, monkeypatch):
    seen = []

    def time(runtime, windows, num_threads):
        seen.append((runtime.name, runtime.precision))
        return 1.0 if runtime.precision == "bf16" else 1.5

    monkeypatch.setattr(calibration, "_time", time)
    monkeypatch.setattr(calibration, "has_fast_bf16", lambda device: True)
    monkeypatch.setattr(calibration, "FINALISTS", 1)
    monkeypatch.setattr(calibration, "_is_installed", lambda package: False)
    NerEngine.load(bundle, device="cpu")
    assert seen[4:6] == [("torch", "bf16"), ("torch", "fp32")]


def test_candidates_that_cannot_lie_in_memory_together_keep_their_first_figures(bundle, monkeypatch):
    opened, open_one = [], calibration.open_runtime

    def open_runtime(name, precision, place):
        opened.append(name)
        if len(opened) > 4:
            raise MemoryError
        return open_one(name, precision, place)

    monkeypatch.setattr(calibration, "open_runtime", open_runtime)
    monkeypatch.setattr(calibration, "CLOSE", 0.0)
    told = NerEngine.load(bundle, device="cpu", precision="fp32", runtime="auto")
    assert all(one["tokens_per_s"] > 0 and not one["problem"] for one in told.describe()["candidates"])


def test_the_figures_are_remembered_for_this_model_and_question_only(bundle):
    NerEngine.load(bundle, device="cpu", precision="fp32")
    path, figures = read_figures()
    figures[0]["tokens_per_s"] = 1e12  # what is remembered decides
    path.write_text(json.dumps(figures))
    assert NerEngine.load(bundle, device="cpu", precision="fp32").describe()["runtime"] == "torch"
    NerEngine.load(bundle, device="cpu", precision="bf16", runtime="auto")
    assert len(list((find_cache() / "calibration").glob("*.json"))) == 2


def test_a_damaged_memory_is_measured_again(bundle):
    NerEngine.load(bundle, device="cpu", precision="fp32")
    path, figures = read_figures()
    path.write_text("{")
    NerEngine.load(bundle, device="cpu", precision="fp32")
    assert [one["runtime"] for one in read_figures()[1]] == [one["runtime"] for one in figures]


def test_a_cache_that_cannot_be_written_does_not_matter(bundle, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert NerEngine.load(bundle, device="cpu", precision="fp32").describe()["candidates"]


def test_a_runtime_with_wrong_emissions_is_never_chosen(bundle, monkeypatch):
    right = PackedRuntime.compute
    monkeypatch.setattr(PackedRuntime, "compute", lambda self, windows: right(self, windows).roll(1, dims=0))
    told = NerEngine.load(bundle, device="cpu", precision="fp32").describe()
    (figure,) = [one for one in told["candidates"] if one["runtime"] == "packed"]
    assert "differ too much" in figure["problem"]
    assert told["runtime"] != "packed"


def test_a_runtime_that_fails_is_a_figure_not_a_failure(bundle, monkeypatch):
    def fail(self, windows):
        raise RuntimeError("no such instruction\nmore")

    monkeypatch.setattr(PackedRuntime, "compute", fail)
    told = NerEngine.load(bundle, device="cpu", precision="fp32").describe()
    assert [one["problem"] for one in told["candidates"] if one["runtime"] == "packed"] == ["no such instruction"]
    with pytest.raises(RuntimeUnavailable, match="no runtime can be used"):
        NerEngine.load(bundle, device="cpu", runtime="packed", precision="auto")


def test_reduced_precision_is_taken_only_where_it_pays():
    slow = [Figure("packed", "fp32", 100), Figure("packed", "bf16", 115)]
    fast = [Figure("packed", "fp32", 100), Figure("packed", "bf16", 300), Figure("openvino", "bf16", 900, problem="x")]
    assert calibration._choose(slow) == slow[0]
    assert calibration._choose(fast) == fast[1]


def test_out_of_memory_halves_the_batches_and_is_remembered(bundle):
    engine = NerEngine.load(bundle, **EXACT)
    expected = engine.predict([TEXT * 3] * 20)
    before, compute, refused = engine.streams.max_batch_tokens, engine.runtime.compute, []

    def compute_little(windows):
        num_tokens = sum(len(window.input_ids) for window in windows)
        if num_tokens > 200:
            refused.append(num_tokens)
            raise torch.OutOfMemoryError("CUDA out of memory")
        return compute(windows)

    engine.runtime.compute = compute_little
    found = engine.predict([TEXT * 3] * 20)
    assert [list_places(one) for one in found] == [list_places(one) for one in expected]
    assert refused
    assert engine.streams.max_batch_tokens < before
    assert engine.describe()["max_batch_tokens"] <= 200
    refused.clear()
    engine.predict([TEXT * 3] * 20)
    assert not refused


def test_one_window_without_memory_and_other_errors_are_told(bundle):
    engine = NerEngine.load(bundle, **EXACT)

    def fail(windows):
        raise RuntimeError(message)

    engine.runtime.compute = fail
    for message, count in (("DefaultCPUAllocator: can't allocate memory", 1), ("shapes differ", 9)):
        with pytest.raises(RuntimeError, match=message.partition(":")[0]):
            engine.predict([TEXT] * count)


def test_threads_are_those_given_and_the_callers_are_left_alone(bundle):
    before = torch.get_num_threads()
    torch.set_num_threads(2)  # a thread takes this at its first look at it, unless told otherwise after that
    try:
        engine = NerEngine.load(bundle, **EXACT, num_threads=3)
        assert engine.describe()["num_threads"] == 3
        assert engine.streams.pool._max_workers == 3
        assert [engine.streams.pool.submit(torch.get_num_threads).result() for _ in range(6)] == [1] * 6
        assert engine.decoding.submit(torch.get_num_threads).result() == 1
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_sample_is_of_sub_tokens_that_a_text_may_have(bundle, monkeypatch):
    monkeypatch.setattr(calibration, "SAMPLE_TOKENS", 50_000)
    loaded = load_bundle(bundle)
    place = calibration.Place(loaded.model, loaded.encoder, torch.device("cpu"), 2, None)
    inner = {one for window in calibration._build_sample(place) for one in window.input_ids[1:-1]}
    assert len(inner) > 500
    assert inner.isdisjoint(loaded.encoder.tokenizer.all_special_ids)


def test_failure_that_may_pass_is_not_remembered(bundle, monkeypatch):
    def fail(*arguments, **settings):
        raise MemoryError("no room")

    with monkeypatch.context() as broken:
        broken.setattr(PackedRuntime, "__init__", fail)
        told = NerEngine.load(bundle, device="cpu", precision="fp32").describe()
    assert {one["runtime"]: one["problem"] for one in told["candidates"]}["packed"] == "no room"
    told = NerEngine.load(bundle, device="cpu", precision="fp32").describe()
    assert [one["problem"] for one in told["candidates"]] == ["", "", ""]
