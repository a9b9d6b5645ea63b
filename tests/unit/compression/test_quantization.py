"""Int8 forms: near the model they are made of, judged layer by layer, kept whole, refused where they cannot be had."""

import importlib
import importlib.util
import json
import logging
import os
import shutil
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import openvino
import pytest
import torch
from transformers import AutoModelForTokenClassification

from pipelines.compression.int8_form import QuantizationError
from pipelines.compression.int8_graph import GraphForm, count_int8
from pipelines.compression.int8_packed import PackedForm
from pipelines.compression.int8_settings import SETTINGS, QuantizationConfig, check_quantizable, find_left_out
from pipelines.compression.quantization import quantize_bundle
from pipelines.compression.sensitivity import Reference, measure_sensitivity, take
from pipelines.evaluation.metrics import Scored
from pipelines.ner.bundle import BUNDLE_FILE, INT8_FILES, INT8_FORMS, Bundle, BundleError, load_bundle, save_bundle
from pipelines.ner.casing import add_cases
from pipelines.ner.encoding import Encoder
from pipelines.ner.engine import NerEngine
from pipelines.ner.errors import UserError
from pipelines.ner.runtimes import calibration, int8
from pipelines.ner.runtimes.architectures import read_layers
from pipelines.ner.runtimes.calibration import Figure
from pipelines.ner.runtimes.int8 import find_int8_runtime
from pipelines.ner.runtimes.packed import PackedRuntime
from pipelines.ner.runtimes.padded import TorchRuntime
from pipelines.ner.runtimes.products import read_products, write_products
from pipelines.ner.runtimes.runtime import RuntimeUnavailable, has_fast_bf16
from pipelines.ner.runtimes.telemetry import silence_telemetry
from pipelines.ner.shapes import FIELD, set_weights
from pipelines.ner.stored import INT8_WEIGHTS
from tests.conftest import EXACT, SAMPLE, make_bundle

TEXTS = [json.loads(line)["text"] for line in (SAMPLE / "en-dev.jsonl").open(encoding="utf-8")][:16]
WORDS = [text.split() for text in TEXTS]
FAST = QuantizationConfig(num_windows=24, sensitivity_tokens=256)
OF_GRAPH = replace(FAST, runtime="openvino")
LAYER = "bert.encoder.layer.0.intermediate.dense"
CPU = torch.device("cpu")
BITS = int8.count_weight_bits(CPU)
RUNTIMES = ("packed", "openvino") if BITS == 8 else ("packed",)
"""Whose int8 form this CPU computes."""

pytestmark = pytest.mark.skipif(not BITS, reason="this CPU has no int8 products")
of_graph = pytest.mark.skipif(BITS < 8, reason="this CPU has no int8 products with weights of 8 bits")


def label_by(bundle: Bundle, documents=WORDS) -> list[Scored]:
    """Documents whose gold is what the model itself finds: its F1 is 1."""
    found = NerEngine(bundle, **EXACT).predict_words(documents)
    return [
        Scored(str(index), f"dev:{index}", spans, spans, [], words=words)
        for index, (words, spans) in enumerate(zip(documents, found, strict=True))
    ]


def quantize(bundle: Bundle, folder: Path, documents=WORDS, **settings):
    settings = {"max_f1_loss": 100.0, "folder": folder, "config": FAST} | settings
    return quantize_bundle(bundle, TEXTS, label_by(bundle, documents), **settings)


def open_int8(bundle: Bundle) -> NerEngine:
    return NerEngine(bundle, device="cpu", runtime=find_int8_runtime(bundle.int8), precision="int8")


def emissions_of(bundle: Bundle, engine=None, documents=WORDS) -> list[torch.Tensor]:
    opened = NerEngine(bundle, **engine) if engine else open_int8(bundle)
    return opened.compute_emissions([bundle.encoder.encode_words(words) for words in documents])


def list_edges(spans) -> set:
    return {(index, span.start, span.end, span.label) for index, found in enumerate(spans) for span in found}


@pytest.fixture(scope="module")
def source(tiny_encoder, tmp_path_factory) -> Bundle:
    return load_bundle(make_bundle(tiny_encoder, tmp_path_factory.mktemp("source") / "bundle"))


@pytest.fixture(scope="module", params=RUNTIMES)
def made(request, source, tmp_path_factory):
    return quantize(source, tmp_path_factory.mktemp("made"), config=replace(FAST, runtime=request.param))


@pytest.fixture(scope="module")
def saved(made, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "bundle"
    save_bundle(folder, made.bundle)
    return folder


def test_int8_emissions_are_near_fp32_and_entities_nearly_the_same(source, made):
    found, expected = torch.cat(emissions_of(made.bundle)), torch.cat(emissions_of(source, EXACT))
    assert not torch.equal(found, expected)
    assert (found - expected).square().mean().sqrt() < 0.05 * expected.std()
    ours = list_edges(open_int8(made.bundle).predict_words(WORDS))
    theirs = list_edges(NerEngine(source, **EXACT).predict_words(WORDS))
    assert len(theirs) > 100
    assert len(ours & theirs) > 0.95 * len(ours | theirs)
    assert [one.left_out for one in made.attempts] == [0]
    assert 95 < 100 * made.f1 - made.attempts[0].f1_loss <= 100


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_crf_and_cases_live_in_an_int8_bundle_too(tiny_encoder, tmp_path, runtime):
    bundle = load_bundle(make_bundle(tiny_encoder, tmp_path / "source", head="crf"))
    add_cases(bundle.model.network)
    with torch.no_grad():
        bundle.model.network.bert.embeddings.token_type_embeddings.weight.normal_(0, 0.1)
    old = bundle.encoder
    encoder = Encoder(old.tokenizer, window=old.window, stride=old.stride, splitter=old.splitter, casing=True)
    bundle = replace(bundle, encoder=encoder)
    save_bundle(tmp_path / "saved", quantize(bundle, tmp_path / "made", config=replace(FAST, runtime=runtime)).bundle)
    loaded = load_bundle(tmp_path / "saved")
    assert loaded.encoder.casing
    assert all(map(torch.equal, loaded.model.chain.transitions_KK, bundle.model.chain.transitions_KK))
    found, expected = torch.cat(emissions_of(loaded)), torch.cat(emissions_of(bundle, EXACT))
    assert (found - expected).square().mean().sqrt() < 0.05 * expected.std()
    (lower,) = emissions_of(loaded, documents=[[word.lower() for word in WORDS[0]]])
    assert not torch.allclose(lower, emissions_of(loaded, documents=[WORDS[0]])[0], atol=0.1 * float(lower.std()))


def test_a_document_has_the_same_int8_emissions_in_any_batch(made):
    share = 0.1 if has_fast_bf16(torch.device("cpu")) else 1e-3  # there, what is not int8 is rounded to bf16
    together = emissions_of(made.bundle)
    for words, expected in list(zip(WORDS, together, strict=True))[:5]:
        (alone,) = emissions_of(made.bundle, documents=[words])
        torch.testing.assert_close(alone, expected, atol=share * float(expected.std()), rtol=0)


def test_saved_bundle_gives_the_same_int8_emissions_and_is_read_by_transformers(made, saved, tmp_path):
    again = load_bundle(saved)
    runtime = find_int8_runtime(again.int8)
    assert again.info.format_version == {"openvino": 2, "packed": 3}[runtime]
    assert again.info.int8["runtime"] == runtime
    whole = len(read_products(again.int8)) if runtime == "packed" else count_int8(read_graph(saved))["weights"]
    assert again.info.int8["num_int8"]["weights"] == whole >= 8
    assert all(map(torch.equal, emissions_of(again), emissions_of(made.bundle)))
    copied = save_bundle(tmp_path / "again", again)
    assert copied == again.info.fingerprint
    assert all(map(torch.equal, emissions_of(load_bundle(tmp_path / "again")), emissions_of(again)))
    network = AutoModelForTokenClassification.from_pretrained(saved)
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}
    assert all(map(torch.equal, network.parameters(), again.model.network.parameters()))


def test_weights_beside_it_are_those_given_rounded_to_half_their_bytes(source, saved):
    half = (saved / "model.safetensors").stat().st_size
    assert half < 0.6 * sum(4 * one.numel() for one in source.model.network.parameters())
    assert sum(one.stat().st_size for one in (saved / "int8").glob("*.[bs]*")) < 0.7 * half
    found, expected = torch.cat(emissions_of(load_bundle(saved), EXACT)), torch.cat(emissions_of(source, EXACT))
    assert (found - expected).square().mean().sqrt() < 2e-3 * expected.std()


def test_weights_stored_as_bytes_are_a_quarter_and_read_back_as_they_were_measured(source, tmp_path):
    made = quantize(source, tmp_path / "made", config=replace(FAST, stored="int8"))
    save_bundle(tmp_path / "bundle", made.bundle)
    again = load_bundle(tmp_path / "bundle")
    assert (again.info.format_version, again.info.stored) == (3, "int8")
    names = {file.name for file in (tmp_path / "bundle").iterdir()}
    assert INT8_WEIGHTS in names
    assert "model.safetensors" not in names
    whole = sum(4 * one.numel() for one in source.model.network.parameters())
    assert (tmp_path / "bundle" / INT8_WEIGHTS).stat().st_size < 0.35 * whole  # rows of this encoder are short
    assert all(map(torch.equal, again.model.network.parameters(), made.bundle.model.network.parameters()))
    assert all(map(torch.equal, emissions_of(again), emissions_of(made.bundle)))
    found, expected = torch.cat(emissions_of(again, EXACT)), torch.cat(emissions_of(source, EXACT))
    assert 1e-4 < (found - expected).square().mean().sqrt() / expected.std() < 0.05
    assert save_bundle(tmp_path / "again", again) == again.info.fingerprint
    with pytest.raises(OSError, match=r"model\.safetensors"):
        AutoModelForTokenClassification.from_pretrained(tmp_path / "bundle", use_safetensors=True)
    (tmp_path / "bundle" / INT8_WEIGHTS).write_bytes(b"other")
    with pytest.raises(BundleError, match="not those it was saved with"):
        load_bundle(tmp_path / "bundle")


def test_pruned_network_is_stored_as_bytes_too(tiny_encoder, tmp_path):
    bundle = load_bundle(make_bundle(tiny_encoder, tmp_path / "source"))
    layers = read_layers(bundle.model.network)
    head = layers[0].query.weight.shape[0] // 2
    for part in (layers[0].query, layers[0].key, layers[0].value):
        set_weights(part, part.weight[:head], part.bias[:head])
    set_weights(layers[0].attention_out, layers[0].attention_out.weight[:, :head], layers[0].attention_out.bias)
    widths = [layer.query.weight.shape[0] for layer in layers]
    setattr(bundle.model.network.config, FIELD, widths)
    save_bundle(tmp_path / "bundle", replace(bundle, info=replace(bundle.info, stored="int8")))
    again = load_bundle(tmp_path / "bundle")
    assert [layer.query.weight.shape[0] for layer in read_layers(again.model.network)] == widths
    found, expected = torch.cat(emissions_of(again, EXACT)), torch.cat(emissions_of(bundle, EXACT))
    assert (found - expected).square().mean().sqrt() / expected.std() < 0.05


def test_weights_too_large_for_what_they_are_stored_in_are_refused(tiny_encoder, tmp_path):
    bundle = load_bundle(make_bundle(tiny_encoder, tmp_path / "source"))
    gold = label_by(bundle)
    with torch.no_grad():
        bundle.model.network.classifier.bias[0] = 1e5
    for stored in ("fp16", "int8"):
        config = replace(FAST, stored=stored)
        with pytest.raises(QuantizationError, match=f"do not fit {stored}") as told:
            quantize_bundle(bundle, TEXTS, gold, max_f1_loss=100.0, folder=tmp_path / "made", config=config)
        assert "classifier.bias" in str(told.value)


@pytest.mark.parametrize("damage", ["weights", "graph", "missing"])
def test_fingerprint_notices_a_damaged_int8_form(saved, tmp_path, damage):
    folder = Path(shutil.copytree(saved, tmp_path / "bundle"))
    names = INT8_FORMS[load_bundle(saved).info.int8["runtime"]]
    file = folder / names[-1 if damage == "weights" else 0]
    if damage == "missing":
        file.unlink()
    else:
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    with pytest.raises(BundleError, match="not those it was saved with"):
        load_bundle(folder)


def test_bundle_without_int8_is_written_as_before(source, tmp_path):
    folder = tmp_path / "plain"
    save_bundle(folder, source)
    info = json.loads((folder / BUNDLE_FILE).read_text())
    assert info["format_version"] == 1
    assert not {"int8", "stored"} & info.keys()
    assert not (folder / "int8").exists()
    (folder / "int8").mkdir()
    (folder / INT8_FILES[1]).write_bytes(b"of an earlier bundle in this place")
    assert load_bundle(folder).int8 is None


def test_form_of_other_weights_is_not_saved(made, tmp_path, caplog):
    bundle = replace(made.bundle, model=load_bundle_again(made.bundle, tmp_path).model)
    with torch.no_grad():
        bundle.model.network.classifier.bias.add_(1)
    with caplog.at_level(logging.WARNING):
        save_bundle(tmp_path / "changed", bundle)
    assert "of other weights" in caplog.text
    assert load_bundle(tmp_path / "changed").int8 is None


def load_bundle_again(bundle: Bundle, folder: Path) -> Bundle:
    save_bundle(folder / "copy", bundle)
    return load_bundle(folder / "copy")


def test_auto_measures_the_int8_form_and_takes_it_only_where_it_is_faster(saved):
    told = NerEngine.load(saved, device="cpu").describe()
    (figure,) = [one for one in told["candidates"] if one["precision"] == "int8"]
    runtime = load_bundle(saved).info.int8["runtime"]
    assert figure["runtime"] == runtime
    assert not figure["problem"]
    assert figure["tokens_per_s"] > 0
    slow = [Figure("packed", "fp32", 100), Figure("openvino", "int8", 99), Figure("packed", "bf16", 110)]
    fast = [Figure("packed", "fp32", 100), Figure("openvino", "int8", 105), Figure("packed", "bf16", 110)]
    assert calibration._choose(slow) == slow[0]
    assert calibration._choose(fast) == fast[1]
    asked = NerEngine.load(saved, device="cpu", precision="int8").describe()
    assert (asked["runtime"], asked["precision"]) == (runtime, "int8")
    exact = NerEngine.load(saved, device="cpu", precision="fp32").describe()
    assert "int8" not in {one["precision"] for one in exact["candidates"]}


def test_int8_is_refused_where_the_bundle_has_none_or_another_runtime_is_asked_for(source, saved):
    with pytest.raises(RuntimeUnavailable, match="has no int8 form"):
        NerEngine(source, device="cpu", precision="int8")
    own = load_bundle(saved).info.int8["runtime"]
    (other,) = SETTINGS.keys() - {own}
    with pytest.raises(RuntimeUnavailable, match=f"by the runtime `{own}` only"):
        NerEngine.load(saved, device="cpu", runtime=other, precision="int8")


@pytest.mark.parametrize("lack", ["openvino", "instructions"])
def test_machine_without_int8_refuses_it_by_name_and_auto_takes_the_other_weights(saved, monkeypatch, tmp_path, lack):
    needs_openvino = load_bundle(saved).info.int8["runtime"] == "openvino"
    if lack == "openvino":
        monkeypatch.setattr(int8.importlib.util, "find_spec", lambda name: None)
        monkeypatch.setattr(calibration, "_is_installed", lambda name: name != "openvino")
    else:
        pretend_cpu(monkeypatch, tmp_path, "flags\t\t: fpu sse2\n", has_avx2=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    if lack == "openvino" and not needs_openvino:
        assert NerEngine.load(saved, device="cpu", precision="int8").describe()["runtime"] == "packed"
        return
    told = {"openvino": "OpenVINO is not installed", "instructions": "this CPU has no int8 products"}[lack]
    with pytest.raises(RuntimeUnavailable, match=told):
        NerEngine.load(saved, device="cpu", precision="int8")
    engine = NerEngine.load(saved, device="cpu")
    (figure,) = [one for one in engine.describe()["candidates"] if one["precision"] == "int8"]
    assert figure["problem"].startswith(told)
    assert ("pip install" in figure["problem"]) == (lack == "openvino")
    assert "auto" not in figure["problem"]
    assert engine.describe()["precision"] in ("fp32", "bf16")
    assert sum(len(one.entities) for one in engine.predict(TEXTS[:3])) > 5


def pretend_cpu(monkeypatch, folder: Path, flags: str, *, has_avx2: bool) -> None:
    (folder / "cpuinfo").write_text(f"processor : 0\n{flags}")
    monkeypatch.setattr(int8, "_CPU_FLAGS", folder / "cpuinfo")
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_avx2_supported", lambda: has_avx2)


@pytest.mark.parametrize(
    ("flags", "has_avx2", "expected"),
    [
        ("flags\t\t: fpu avx512f avx512_vnni\n", True, 8),
        ("flags : avx2 avx_vnni\n", True, 8),
        ("Features\t: fp asimd asimddp\n", False, 8),
        ("flags : avx2 avx512f vnni_like\n", True, 7),
        ("flags : fpu sse4_1\n", False, 0),
    ],
)
def test_bits_of_int8_products_are_read_off_the_cpus_flags(monkeypatch, tmp_path, flags, has_avx2, expected):
    pretend_cpu(monkeypatch, tmp_path, flags, has_avx2=has_avx2)
    assert int8.count_weight_bits(CPU) == expected
    assert int8.count_weight_bits(torch.device("cuda")) == 0


def test_form_with_weights_of_7_bits_is_taken_where_there_is_no_vnni_and_one_with_8_is_not(
    source, tmp_path, monkeypatch
):
    pretend_cpu(monkeypatch, tmp_path, "flags : avx2\n", has_avx2=True)
    made = quantize(source, tmp_path / "made")
    assert made.bundle.info.int8["weight_bits"] == 7
    products = read_products(made.bundle.int8)
    assert {int(one.weight_OI.abs().max()) for one in products.values()} == {63}
    assert open_int8(made.bundle).describe()["precision"] == "int8"
    write_products(made.bundle.int8, products, 8)
    with pytest.raises(RuntimeUnavailable, match="no int8 products with weights of 8 bits"):
        open_int8(made.bundle)
    with pytest.raises(QuantizationError, match="8 bits") as told:
        check_quantizable(source.model.network, QuantizationConfig(weight_bits=8))
    assert told.value.remedy == "`--int8.weight_bits 7`"
    with pytest.raises(QuantizationError, match="8 bits") as told:
        check_quantizable(source.model.network, QuantizationConfig(runtime="openvino"))
    assert "leave the step out" in told.value.remedy


def read_graph(folder: Path):
    return openvino.Core().read_model(folder / INT8_FILES[0])


@of_graph
def test_layers_left_out_are_not_int8_in_the_file_and_a_tolerance_leaves_out_the_worst(source, tmp_path):
    given = quantize(source, tmp_path, config=OF_GRAPH).bundle
    config = replace(OF_GRAPH, left_out=("layer.1.output.dense", LAYER))
    tried = []

    def accept(documents):  # not before four layers are left out
        tried.append(documents)
        return len(documents) == len(WORDS) and count_int8(read_graph(tmp_path))["weights"] <= whole - 4

    whole = given.info.int8["num_int8"]["weights"]
    found = quantize(replace(given, int8=None), tmp_path, config=config, accept=accept)
    assert found.left_out[:2] == [LAYER, "bert.encoder.layer.1.output.dense"]
    sensitive = [one.name for one in found.layers if one.name not in found.left_out[:2]]
    assert found.left_out[2:] == sensitive[: len(found.left_out) - 2]
    fewer = [one for one in found.attempts if one.left_out < len(found.left_out)]
    assert [one.accepted for one in found.attempts if one.left_out == len(found.left_out)] == [True]
    assert fewer
    assert not any(one.accepted for one in fewer)
    assert max(one.left_out for one in fewer) == len(found.left_out) - 1
    graph = read_graph(tmp_path)
    assert not find_int8_layers(graph) & set(found.left_out)
    assert len(find_int8_layers(graph)) == count_int8(graph)["weights"]
    assert count_int8(graph) == found.bundle.info.int8["num_int8"]
    assert found.bundle.info.int8["left_out"] == found.left_out


def find_int8_layers(graph) -> set[str]:
    """Layers with a table of bytes, by the names of the products that read them."""
    found = set()
    for node in graph.get_ordered_ops():
        if node.get_type_name() in ("MatMul", "Gather"):
            for port in node.inputs():
                chain = [port.get_source_output().get_node()]
                while chain[-1].get_type_name() in ("Multiply", "Subtract", "Convert"):
                    chain.append(chain[-1].input_value(0).get_node())
                if chain[-1].get_type_name() == "Constant" and chain[-1].get_element_type().get_type_name() == "i8":
                    found.add(node.get_friendly_name().split("/")[0].removeprefix("__module.network."))
    return found


def test_nothing_is_published_where_no_choice_of_layers_is_good_enough(source, tmp_path):
    config = replace(FAST, num_windows=4, sensitivity_tokens=32)
    found = quantize(source, tmp_path, WORDS[:2], config=config, accept=lambda documents: False)
    assert found.bundle is None
    assert found.num_bytes == 0
    assert not any(one.accepted for one in found.attempts)
    assert max(one.left_out for one in found.attempts) == len(found.layers) - 1
    json.dumps(found.to_dict())


def test_products_left_out_are_computed_in_floating_point(source, tmp_path):
    def accept(documents):
        return len(read_products(tmp_path / INT8_FORMS["packed"][0])) <= 3

    found = quantize(source, tmp_path, config=replace(FAST, left_out=("layer.1.feed",)), accept=accept)
    assert found.left_out[0] == "layer.1.feed"
    assert len(found.left_out) == 3  # of six, one of which is two products
    sensitive = [one.name for one in found.layers if one.name != "layer.1.feed"]
    assert found.left_out[1:] == sensitive[:2]
    products = read_products(tmp_path / INT8_FORMS["packed"][0])
    assert not {name for name in products if name.startswith(tuple(found.left_out))}
    assert found.bundle.info.int8["num_int8"]["weights"] == len(products)
    found_WK, expected_WK = torch.cat(emissions_of(found.bundle)), torch.cat(emissions_of(source, EXACT))
    assert (found_WK - expected_WK).square().mean().sqrt() < 0.03 * expected_WK.std()


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_one_outlier_channel_is_found_by_the_sensitivity_and_mended(tiny_encoder, tmp_path, runtime, monkeypatch):
    """One of the numbers between two products is a thousand times as large as the others, as in real encoders."""
    bundle = load_bundle(make_bundle(tiny_encoder, tmp_path / "bundle"))
    layer = bundle.model.network.bert.encoder.layer[1]
    with torch.no_grad():
        layer.output.dense.weight[:, 7] /= 1000
        layer.intermediate.dense.weight[7] *= 1000
        layer.intermediate.dense.bias[7] += 50
    windows = take(TEXTS, 12, bundle.encoder)
    reference = Reference.measure(bundle, windows[:6])
    monkeypatch.setattr("pipelines.compression.int8_packed.SPLIT", 0)
    rough = calibrate(bundle, windows, runtime, None)
    found = measure_sensitivity(reference, rough)
    worst = next(one for one in found if one.kind == "linear")
    assert worst.name == {"packed": "layer.1.feed", "openvino": "bert.encoder.layer.1.output.dense"}[runtime]
    monkeypatch.setattr("pipelines.compression.int8_packed.SPLIT", 0.3)
    smooth = calibrate(bundle, windows, runtime, 0.95)
    (site,) = [one for one in smooth.sites if one.name == worst.name]
    mended = reference.compare(site, smooth.open({worst.name}))
    assert mended.error < worst.error / 3


def calibrate(bundle: Bundle, windows, runtime: str, smooth: float | None):
    if runtime == "packed":
        return PackedForm(bundle.model, windows, bundle.encoder.pad_id, smooth=smooth, weight_bits=BITS)
    return GraphForm(bundle.model, windows, bundle.encoder.pad_id, preset="mixed", smooth=smooth, correct_bias=True)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_no_layer_int8_is_the_model_itself(source, runtime):
    windows = take(TEXTS, 8, source.encoder)
    form = calibrate(source, windows, runtime, 0.5)
    assert form.sites
    exact = TorchRuntime(source.model, device=torch.device("cpu"), precision="fp32", pad_id=source.encoder.pad_id)
    expected = exact.compute(windows)
    torch.testing.assert_close(form.open(()).compute(windows), expected, atol=2e-5 * float(expected.std()), rtol=2e-5)


def test_auto_makes_the_packed_form_where_there_is_one_and_refuses_what_there_is_not(source, monkeypatch, tmp_path):
    found = quantize(source, tmp_path, config=replace(FAST, num_windows=4, sensitivity_tokens=32))
    assert found.bundle.info.int8["runtime"] == "packed"
    assert found.bundle.info.int8["versions"].keys() == {"torch"}
    with open_int8_runtime(found.bundle) as runtime:
        assert isinstance(runtime, PackedRuntime)
    monkeypatch.setattr("pipelines.compression.int8_settings.read_architecture", lambda network: None)
    with pytest.raises(QuantizationError, match="there is no int8 by `packed`"):
        check_quantizable(source.model.network, replace(FAST, runtime="packed"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(QuantizationError, match="packages that are not installed"):
        check_quantizable(source.model.network, FAST)


@contextmanager
def open_int8_runtime(bundle: Bundle):
    engine = open_int8(bundle)
    yield engine.runtime
    engine.close()


def test_every_mistake_is_told_at_once_before_anything_is_computed(source, tmp_path):
    config = QuantizationConfig(smooth=2, preset="int4", stored="bf16", num_windows=1, runtime="onnx", weight_bits=4)
    with pytest.raises(UserError) as told:
        quantize_bundle(source, ["", " \n"], [], max_f1_loss=-1, folder=tmp_path / "int8", config=config)
    for part in (
        "calibration text is empty",
        "no entities to judge",
        "`max_f1_loss`",
        "`int8.smooth`",
        "`int8.stored`",
        "`int8.runtime`",
        "`int8.preset`",
        "`int8.weight_bits`",
    ):
        assert part in str(told.value)
    assert not (tmp_path / "int8").exists()


def test_settings_of_the_other_form_are_told(source):
    config = QuantizationConfig(preset="symmetric", correct_bias=False, weight_bits=7)
    assert [told.split()[0] for told in config.find_idle(source.model.network)] == [
        "`int8.preset`",
        "`int8.correct_bias`",
    ]
    (told,) = replace(config, runtime="openvino").find_idle(source.model.network)
    assert told.startswith("`int8.weight_bits` has no effect: it is for `packed`")
    assert not QuantizationConfig().find_idle(source.model.network)


def test_form_of_an_unknown_runtime_is_no_bundle_and_one_without_a_name_is_openvinos(made, saved, tmp_path):
    folder = Path(shutil.copytree(saved, tmp_path / "bundle"))
    info = json.loads((folder / BUNDLE_FILE).read_text())
    info["int8"]["runtime"] = "another"
    (folder / BUNDLE_FILE).write_text(json.dumps(info))
    with pytest.raises(BundleError, match="not those it was saved with"):
        load_bundle(folder)
    if info["format_version"] == 2:  # as bundles were before there was another form
        facts = {name: value for name, value in made.bundle.info.int8.items() if name != "runtime"}
        old = replace(made.bundle, info=replace(made.bundle.info, int8=facts))
        save_bundle(tmp_path / "old", old)
        again = load_bundle(tmp_path / "old")
        assert again.info.format_version == 2
        assert all(map(torch.equal, emissions_of(again), emissions_of(made.bundle)))


def test_unknown_layers_are_refused_with_the_nearest_names(source, tmp_path):
    if BITS == 8:
        with pytest.raises(QuantizationError, match="no such layer") as told:
            quantize(source, tmp_path, config=replace(OF_GRAPH, num_windows=2, left_out=("layer.9.intermediate",)))
        assert LAYER in str(told.value)
    with pytest.raises(QuantizationError, match="no such layer") as told:
        quantize(source, tmp_path, config=replace(FAST, num_windows=2, left_out=("layer.9.feed",)))
    assert "layer.0.feed" in str(told.value)
    with pytest.raises(QuantizationError, match="no layer would be int8"):
        find_left_out([LAYER], ["dense"])
    assert not (tmp_path / "int8").exists()


def test_nothing_tells_intel_who_uses_it(monkeypatch):
    monkeypatch.setenv("CI", "false")
    with silence_telemetry():
        assert (os.environ["CI"], os.environ["NNCF_CI"]) == ("true", "1")
        checker = importlib.import_module("openvino_telemetry.utils.opt_in_checker")
        assert checker.OptInChecker().check(False, disable_in_ci=True) == checker.ConsentCheckResult.DECLINED
    assert os.environ["CI"] == "false"
    assert "NNCF_CI" not in os.environ
    assert type(importlib.import_module("nncf.telemetry").telemetry).__name__ == "MagicMock"
