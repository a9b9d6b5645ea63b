"""What the report of a compression tells of its variants, and whether the page and the text tell the same."""

import pytest
import torch

from pipelines.compression.config import Tolerance
from pipelines.compression.int8_settings import QuantizationConfig
from pipelines.compression.page import describe, list_tables, render_html, render_markdown
from pipelines.compression.steps import Recipe
from pipelines.evaluation.metrics import Scored
from pipelines.ner.bundle import load_bundle
from pipelines.ner.engine import NerEngine
from pipelines.ner.runtimes.int8 import count_weight_bits
from tests.conftest import EXACT, make_bundle

LAYERS = {"layers": [{"name": "layer.0.feed", "error": 0.01, "changed": 0.002}], "left_out": []}


def make_variant(name, runtime, precision, details=None):
    overall = {"difference": -0.1, "low": -0.4, "high": 0.1}
    return {
        "name": name,
        "f1": 0.6,
        "f1_interval": [0.55, 0.65],
        "calibration_error": [0.02, 0.01],
        "verdict": None if name == "start" else {"passes": True, "reasons": [], "overall": overall, "labels": {}},
        "details": details,
        "tokens_per_s": 1000.0,
        "runtime": runtime,
        "precision": precision,
        "peak_memory_mib": 500,
        "num_parameters": 10**6,
        "size_mib": 4.0,
        "cost_per_million_documents": None,
    }


def test_runtimes_of_variants_and_of_an_int8_form_are_told():
    variants = [
        make_variant("start", "packed", "bf16"),
        make_variant("1-int8", "openvino", "int8", LAYERS | {"runtime": "openvino"}),
    ]
    result = {"start": "start", "chosen": "1-int8", "variants": variants, "not_made": {}, "facts": {"dev": "9 records"}}
    [(_, header, rows), *_, (title, *_)] = list_tables(variants)
    assert [row[header.index("runtime")] for row in rows] == ["packed bf16", "openvino int8"]
    assert title == "1-int8: the layers, computed by the runtime `openvino`"
    for page in (render_html(result, "small"), render_markdown(result, "small")):
        assert all(fact in page for fact in (title, "packed bf16", "openvino int8"))


@pytest.mark.parametrize(
    ("precision", "left_out", "told"),
    [
        ("fp32", ["layer.0.feed"], "1-int8 is computed in fp32 here, not in int8: 1 of 1 layers are left out for what"),
        ("bf16", [], "1-int8 is computed in bf16 here, not in int8."),
        ("int8", ["layer.0.feed"], ""),
    ],
)
def test_int8_form_that_is_of_no_use_here_is_told(precision, left_out, told):
    variants = [make_variant("start", "packed", "fp32")]
    variants += [make_variant("1-int8", "packed", precision, LAYERS | {"left_out": left_out})]
    result = {"start": "start", "chosen": "1-int8", "variants": variants, "not_made": {}, "facts": {}}
    [_, rest] = describe(result).split("points.")
    assert rest.strip().startswith(told)
    assert bool(rest.strip()) == bool(told)


def test_details_of_an_older_run_name_no_runtime():
    *_, (title, *_) = list_tables([make_variant("start", "packed", "bf16"), make_variant("1-int8", "a", "b", LAYERS)])
    assert title == "1-int8: the layers"


@pytest.mark.skipif(not count_weight_bits(torch.device("cpu")), reason="this CPU has no int8 products")
def test_step_tells_what_computes_its_int8_form(tiny_encoder, tmp_path):
    bundle = load_bundle(make_bundle(tiny_encoder, tmp_path / "bundle"))
    words = ["Angela", "Merkel", "visited", "Utrecht", "."] * 4
    [spans] = NerEngine(bundle, **EXACT).predict_words([words])
    dev = [Scored("d", "d:1", spans, spans, [], words=words)]
    recipe = Recipe(["int8"], Tolerance(100, 100), int8=QuantizationConfig(num_windows=1, sensitivity_tokens=20))
    made, details = recipe.take("int8", bundle, None, dev, dev, accept=lambda _: True, folder=tmp_path / "int8")
    assert details["runtime"] == made.info.int8["runtime"] == "packed"
