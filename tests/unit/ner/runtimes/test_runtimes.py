"""Every runtime against fp32 PyTorch: the same emissions within its tolerance, the same entities."""

import copy
import os
import random

import openvino
import pytest
import torch
from torch.nn.attention.varlen import varlen_attn
from transformers import (
    AlbertConfig,
    BertConfig,
    CamembertConfig,
    DistilBertConfig,
    ElectraConfig,
    FNetConfig,
    ModernBertConfig,
    RobertaConfig,
    XLMRobertaConfig,
)
from transformers import AutoModelForTokenClassification as Auto

from pipelines.ner.bundle import load_bundle
from pipelines.ner.encoding import Window
from pipelines.ner.engine import NerEngine
from pipelines.ner.labels import LabelScheme
from pipelines.ner.model import TokenClassifier
from pipelines.ner.runtimes import packed
from pipelines.ner.runtimes.architectures import read_architecture
from pipelines.ner.runtimes.exported import export_graph
from pipelines.ner.runtimes.packed import PackedRuntime, fill_rows, pack_windows
from pipelines.ner.runtimes.padded import TorchRuntime
from pipelines.ner.runtimes.runtime import RuntimeUnavailable
from tests.conftest import EXACT, SAMPLE, make_bundle

CPU = torch.device("cpu")
SIZES = {"vocab_size": 99, "hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2, "intermediate_size": 64}
PADDED = {"pad_token_id": 1, "max_position_embeddings": 66}
CONFIGS = {
    "bert": BertConfig(**SIZES),
    "bert with tanh": BertConfig(**SIZES, hidden_act="gelu_new"),
    "bert with relu": BertConfig(**SIZES, hidden_act="relu"),
    "roberta": RobertaConfig(**SIZES, **PADDED),
    "xlm-roberta": XLMRobertaConfig(**SIZES, **PADDED),
    "camembert": CamembertConfig(**SIZES, **PADDED),
    "electra": ElectraConfig(**SIZES, embedding_size=16),
    "distilbert": DistilBertConfig(vocab_size=99, dim=32, n_heads=4, n_layers=2, hidden_dim=64),
}
SCHEME = LabelScheme.from_labels(["LOC", "PER"])


def build(config, **settings):
    torch.manual_seed(0)
    config = copy.deepcopy(config)  # which a model that learns cases changes
    config.num_labels = len(SCHEME.tags)
    network = Auto.from_config(config, **settings).eval()
    with torch.no_grad():
        for parameter in network.parameters():  # biases and norms are trivial otherwise
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return TokenClassifier(network, SCHEME)


def make_windows(count=23, longest=40, vocabulary=99, seed=0):
    dice = random.Random(seed)
    windows = []
    for _ in range(count):
        length = dice.randint(3, longest)
        ids = [dice.randrange(2, vocabulary) for _ in range(length)]
        starts = sorted(dice.sample(range(1, length - 1), dice.randint(1, length - 2)))
        windows.append(Window(ids, starts, True, True))
    return windows


def open_two(model, precision="fp32", pad_id=1):
    exact = TorchRuntime(model, device=CPU, precision="fp32", pad_id=pad_id)
    return exact, PackedRuntime(model, device=CPU, precision=precision, pad_id=pad_id)


@pytest.mark.parametrize("name", CONFIGS)
def test_packed_emissions_equal_those_of_transformers(name):
    exact, packed_runtime = open_two(build(CONFIGS[name]))
    windows = make_windows()
    expected_WK = exact.compute(windows)
    assert expected_WK.shape == (sum(len(window.word_starts) for window in windows), len(SCHEME.tags))
    assert expected_WK.std() > 0.1
    torch.testing.assert_close(packed_runtime.compute(windows), expected_WK, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("name", ["bert", "roberta", "distilbert"])
def test_packed_without_the_fused_operators_is_the_same(name, monkeypatch):
    monkeypatch.setattr(packed, "has_fused_linear", lambda dtype: False)
    exact, packed_runtime = open_two(build(CONFIGS[name]))
    windows = make_windows()
    torch.testing.assert_close(packed_runtime.compute(windows), exact.compute(windows), atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_reduced_precision_stays_within_its_tolerance(precision):
    exact, packed_runtime = open_two(build(CONFIGS["bert"]), precision)
    windows = make_windows()
    found_WK, expected_WK = packed_runtime.compute(windows), exact.compute(windows)
    assert found_WK.dtype == torch.float32
    assert not torch.equal(found_WK, expected_WK)
    assert (found_WK - expected_WK).square().mean().sqrt() < 0.05 * expected_WK.std()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_window_has_the_same_emissions_in_any_batch(precision):
    """So a job cut into chunks in another way gives the same rows."""
    _, packed_runtime = open_two(build(CONFIGS["bert"]), precision)
    windows = make_windows(40)
    together_WK = packed_runtime.compute(windows)
    alone_WK = torch.cat([packed_runtime.compute([window]) for window in windows])
    torch.testing.assert_close(together_WK, alone_WK, atol=1e-6 if precision == "fp32" else 2e-2, rtol=0)


def test_attention_in_fp16_stays_within_its_range():
    q_bTd = torch.full((1, 2, 4), 4.5, dtype=torch.float16)
    v_bTd = torch.full((1, 2, 4), 4.0, dtype=torch.float16)
    torch.testing.assert_close(packed._attend(q_bTd, q_bTd, v_bTd), v_bTd)


@pytest.mark.parametrize("size", [60.0, 3e3])
def test_attention_without_the_maximum_is_left_where_it_would_overflow_or_underflow(size):
    """Scores of thousands: `exp2` alone would give infinities, or rows of zeros."""
    torch.manual_seed(1)
    q_bTd, k_bTd, v_bTd = torch.randn(3, 6, 9, 8)
    q_bTd[:3] = size
    k_bTd[:3] = torch.linspace(-size, size, 9)[:, None].expand(9, 8)
    q_bTd[1] *= -1
    k_bTd[2] = -size
    scores_bTT = (q_bTd.double() @ k_bTd.double().transpose(1, 2)) / 8**0.5
    expected_bTd = (scores_bTT.softmax(dim=2) @ v_bTd.double()).float()
    torch.testing.assert_close(packed._attend(q_bTd, k_bTd, v_bTd), expected_bTd, atol=1e-4, rtol=1e-4)


def test_packing_puts_equal_lengths_together_and_words_in_the_order_of_the_windows():
    windows = [
        Window([5] * 3, [1], True, True),
        Window([6] * 5, [1, 3], True, True),
        Window([7] * 3, [0, 2], True, True),
    ]
    ids_N, positions_N, places_W, groups = pack_windows(windows, 2)
    assert groups == [(1, 5), (2, 3)]
    assert ids_N.tolist() == [6] * 5 + [5] * 3 + [7] * 3 + [6]  # filled to 12: the first again
    assert positions_N.tolist()[:11] == [2, 3, 4, 5, 6, 2, 3, 4, 2, 3, 4]
    assert places_W.tolist() == [6, 1, 3, 8, 10]


def test_rows_are_filled_to_few_counts_with_little_waste():
    counts = {num_rows: len(fill_rows(torch.arange(num_rows))) for num_rows in range(1, 2049)}
    assert all(0 <= filled - num_rows < max(4, num_rows / 8) for num_rows, filled in counts.items())
    assert len(set(counts.values())) == 64
    assert {filled % 64 for num_rows, filled in counts.items() if num_rows >= 512} == {0}
    assert fill_rows(torch.tensor([7, 8, 9, 10, 11])).tolist() == [7, 8, 9, 10, 11, 7, 7, 7]
    assert fill_rows(torch.empty(0)).tolist() == []


@pytest.mark.parametrize(
    "config",
    [
        AlbertConfig(**SIZES, embedding_size=16),
        ModernBertConfig(**SIZES, pad_token_id=0),
        BertConfig(**SIZES, hidden_act="silu"),
    ],
    ids=["albert", "modernbert", "bert with another activation"],
)
def test_other_architectures_have_no_packed_form_and_run_padded(config):
    model = build(config)
    assert read_architecture(model.network) is None
    with pytest.raises(RuntimeUnavailable, match="has no packed form"):
        PackedRuntime(model, device=CPU, precision="fp32", pad_id=0)
    windows = make_windows(6)
    found_WK = TorchRuntime(model, device=CPU, precision="fp32", pad_id=0).compute(windows)
    alone_WK = torch.cat(
        [TorchRuntime(model, device=CPU, precision="fp32", pad_id=0).compute([one]) for one in windows]
    )
    torch.testing.assert_close(found_WK, alone_WK, atol=1e-5, rtol=1e-5)


def test_the_callers_model_keeps_its_precision():
    model = build(CONFIGS["bert"])
    TorchRuntime(model, device=CPU, precision="bf16", pad_id=0)
    PackedRuntime(model, device=CPU, precision="bf16", pad_id=0)
    assert {parameter.dtype for parameter in model.network.parameters()} == {torch.float32}


def test_variable_length_attention_is_there_for_gpus():
    assert callable(varlen_attn)


TEXTS = [line.split('"text": "')[1].split('", "')[0] for line in (SAMPLE / "en-dev.jsonl").open(encoding="utf-8")][:16]


@pytest.mark.parametrize("head", ["linear", "crf"])
@pytest.mark.parametrize("runtime", ["packed", "openvino", "torch-compiled"])
def test_every_runtime_gives_the_entities_of_the_reference(tiny_encoder, tmp_path, runtime, head):
    folder = make_bundle(tiny_encoder, tmp_path / "bundle", head=head)
    expected = NerEngine.load(folder, **EXACT).predict(TEXTS)
    found = NerEngine.load(folder, **EXACT | {"runtime": runtime}).predict(TEXTS)
    assert sum(len(one.entities) for one in expected) > 50
    assert [one.coverage for one in found] == [one.coverage for one in expected]
    for ours, theirs in zip(found, expected, strict=True):
        assert [(e.start, e.end, e.label) for e in ours.entities] == [
            (e.start, e.end, e.label) for e in theirs.entities
        ]
        scores = [entity.score for entity in theirs.entities]
        assert [entity.score for entity in ours.entities] == pytest.approx(scores, abs=1e-3)


def test_compiled_code_is_compiled_once_for_all_shapes(tiny_encoder, tmp_path):
    engine = NerEngine.load(make_bundle(tiny_encoder, tmp_path / "bundle"), **EXACT | {"runtime": "torch-compiled"})
    torch._dynamo.utils.counters.clear()
    for length in (1, 2, 7, 19, 31):
        engine.predict(["Ada " * length] * length)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 0


def test_an_exported_model_is_kept_beside_the_bundle_and_read_from_there(tiny_encoder, tmp_path):
    folder = make_bundle(tiny_encoder, tmp_path / "bundle")
    first = NerEngine.load(folder, **EXACT | {"runtime": "openvino"})
    (kept,) = (tmp_path / "bundle.cache").iterdir()
    assert kept.name == first.info.fingerprint
    written = (kept / "openvino.xml").stat().st_mtime_ns
    second = NerEngine.load(folder, **EXACT | {"runtime": "openvino"})
    assert (kept / "openvino.xml").stat().st_mtime_ns == written
    assert second.predict(TEXTS[:3]) == first.predict(TEXTS[:3])


def test_an_export_that_fails_leaves_nothing_and_one_of_another_process_alone(tiny_encoder, tmp_path, monkeypatch):
    model = load_bundle(make_bundle(tiny_encoder, tmp_path / "bundle")).model
    (tmp_path / "kept").mkdir()
    other = tmp_path / "kept" / ".partial-elsewhere-1-openvino.xml"
    other.touch()
    save, written = openvino.save_model, []

    def save_and_fail(graph, path, **settings):
        save(graph, path, **settings)
        written.extend(one.name for one in path.parent.iterdir() if one != other)
        raise OSError("no space left")

    monkeypatch.setattr(openvino, "save_model", save_and_fail)
    with pytest.raises(OSError, match="no space left"):
        export_graph(model, tmp_path / "kept" / "openvino.xml")
    assert len(written) == 2
    assert all(os.uname().nodename in name and str(os.getpid()) in name for name in written)
    assert list((tmp_path / "kept").iterdir()) == [other]
    monkeypatch.undo()
    export_graph(model, tmp_path / "kept" / "openvino.xml")
    assert {path.name for path in (tmp_path / "kept").iterdir()} == {other.name, "openvino.xml", "openvino.bin"}


def test_answers_do_not_depend_on_what_is_computed_beside_where_padding_is_mixed_in():
    model = build(FNetConfig(vocab_size=99, hidden_size=32, num_hidden_layers=2, intermediate_size=64))
    runtime = TorchRuntime(model, device=CPU, precision="fp32", pad_id=0)
    windows = [Window([2, *range(5, 5 + length), 3], list(range(1, 1 + length)), True, True) for length in (3, 9, 3, 5)]
    together = runtime.compute(windows)
    alone = torch.cat([runtime.compute([window]) for window in windows])
    assert together.shape == (20, 5)
    assert torch.allclose(together, alone, atol=1e-5)
