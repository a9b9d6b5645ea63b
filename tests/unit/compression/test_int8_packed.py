"""How ranges are set and outliers split: products in bytes stay near those in floating point."""

import pytest
import torch
import torch.nn.functional as F

from pipelines.compression.int8_packed import LEAST_RANGE, SPLIT, Inputs, PackedForm, quantize, split_outliers
from pipelines.ner.exits import Exits
from pipelines.ner.runtimes.architectures import read_architecture
from pipelines.ner.runtimes.int8 import count_weight_bits
from pipelines.ner.runtimes.packed import PackedRuntime
from pipelines.ner.runtimes.products import WEIGHT_BITS
from pipelines.ner.shapes import set_weights
from tests.unit.ner.runtimes.test_runtimes import CONFIGS, CPU, build, make_windows, open_two

BITS = count_weight_bits(CPU)
pytestmark = pytest.mark.skipif(not BITS, reason="this CPU has no int8 products")


def see(x_NI: torch.Tensor) -> Inputs:
    seen = Inputs(*torch.zeros(2, x_NI.shape[1]))
    seen.add(x_NI)
    return seen


def undo(product) -> torch.Tensor:
    """The weights that a product stands for."""
    return product.weight_OI * product.scale_O[:, None] * product.smooth_I


@pytest.mark.parametrize("bits", WEIGHT_BITS)
@pytest.mark.parametrize("smooth", [None, 0.0, 0.5, 1.0])
def test_weights_and_ranges_are_those_of_what_was_seen(smooth, bits):
    torch.manual_seed(0)
    weight_OI, bias_O, x_NI = torch.randn(24, 16), torch.randn(24), torch.randn(500, 16) + 1
    product = quantize(weight_OI, bias_O, see(x_NI), smooth, bits)
    assert (undo(product) - weight_OI).abs().max() < {7: 0.1, 8: 0.05}[bits]
    assert product.weight_OI.abs().max() == {7: 63, 8: 127}[bits]
    bytes_NI = x_NI * product.smooth_I / product.input_scale + product.zero_point
    assert bytes_NI.min() > -1
    assert bytes_NI.max() < 256
    assert bytes_NI.max() - bytes_NI.min() > 250
    assert torch.equal(product.bias_O, bias_O)


def test_smoothing_moves_an_outlier_of_the_inputs_into_the_weights():
    torch.manual_seed(0)
    weight_OI, x_NI = torch.randn(24, 16), torch.randn(500, 16)
    x_NI[:, 5] *= 100
    expected_NO = x_NI @ weight_OI.T
    errors = {}
    for smooth in (None, 0.5):
        product = quantize(weight_OI, torch.zeros(24), see(x_NI), smooth, 8)
        rounded = (x_NI * product.smooth_I / product.input_scale).round() * product.input_scale / product.smooth_I
        errors[smooth] = float((rounded @ undo(product).T - expected_NO).square().mean().sqrt())
    assert errors[0.5] < errors[None] / 2


@pytest.mark.parametrize(("low", "high"), [(-0.17, 3.0), (0.0, 2.0), (-2.0, 0.0), (0.0, 0.0), (-5.0, 1.0)])
def test_range_reaches_both_ends_with_zero_and_the_highest_as_whole_bytes(low, high):
    seen = Inputs(torch.full((4,), low), torch.full((4,), high))
    product = quantize(torch.randn(3, 4), torch.zeros(3), seen, None, 8)
    ends = [product.input_scale * (byte - product.zero_point) for byte in (0, 255)]
    assert 0 <= product.zero_point <= 255
    assert ends[0] <= low + 1e-6
    assert ends[1] == pytest.approx(max(high, 0.0), abs=1e-6) if low > -2 else ends[1] >= high
    assert product.input_scale <= (high - low) / 250 + 1e-9


@pytest.mark.parametrize("function", [F.relu, F.gelu])
def test_split_columns_add_up_to_the_one_before_and_have_a_small_range(function):
    torch.manual_seed(0)
    weight_MI, bias_M, weight_OM = torch.randn(200, 16) * 0.3, torch.randn(200), torch.randn(8, 200)
    weight_MI[7] *= 20
    weight_MI[[30, 60]] *= 2
    x_NI = torch.randn(400, 16)
    between_NM = function(x_NI @ weight_MI.T + bias_M)
    before, behind = split_outliers((weight_MI, bias_M, see(x_NI)), (weight_OM, torch.zeros(8), see(between_NM)), 0.0)
    assert 200 < len(before[0]) == len(before[1]) == behind[0].shape[1] <= 200 * (1 + SPLIT)
    limit = float(behind[2].high_I.max())
    assert limit < between_NM.max() / 3
    split = function(x_NI @ before[0].T + before[1]).clamp(max=limit)  # as bytes end
    error = split @ behind[0].T - between_NM @ weight_OM.T
    cut = between_NM.clamp(max=limit) @ weight_OM.T - between_NM @ weight_OM.T
    if function is F.relu:
        torch.testing.assert_close(error, torch.zeros_like(error), atol=1e-3, rtol=0)
    assert error.abs().mean() < 0.05 * cut.abs().mean()


def test_gelu_is_not_split_where_it_is_no_line_yet():
    """With small ranges the sum of its copies would be another function: worse than any rounding."""
    torch.manual_seed(0)
    weight_MI, bias_M, weight_OM = torch.randn(400, 16) * 0.05, torch.zeros(400), torch.randn(8, 400)
    weight_MI[7] *= 10
    x_NI = torch.randn(400, 16)
    between_NM = F.gelu(x_NI @ weight_MI.T + bias_M)
    errors = {}
    for least in (0.0, LEAST_RANGE):
        before, behind = split_outliers(
            (weight_MI, bias_M, see(x_NI)), (weight_OM, torch.zeros(8), see(between_NM)), least
        )
        product = quantize(*behind, None, 8)
        split = F.gelu(x_NI @ before[0].T + before[1])
        rounded = (split / product.input_scale + product.zero_point).round().clamp(0, 255) - product.zero_point
        found = rounded * product.input_scale @ undo(product).T
        errors[least] = float((found - between_NM @ weight_OM.T).square().mean().sqrt())
    assert errors[LEAST_RANGE] < errors[0.0] / 2


def test_nothing_is_split_where_all_columns_are_alike():
    torch.manual_seed(0)
    before = (torch.randn(40, 8), torch.randn(40), see(torch.randn(9, 8)))
    behind = (torch.randn(8, 40), torch.randn(8), Inputs(torch.zeros(40), torch.ones(40)))
    split = split_outliers(before, behind, 0.0)
    assert torch.equal(split[0][0], before[0])
    assert torch.equal(split[0][1], before[1])
    assert torch.equal(split[1][0], behind[0])


@pytest.mark.parametrize("name", CONFIGS)
def test_all_layers_in_int8_are_near_transformers_for_every_architecture(name):
    model, windows = build(CONFIGS[name]), make_windows(40)
    exact, _ = open_two(model)
    form = PackedForm(model, windows, 1, smooth=0.85, weight_bits=BITS)
    assert [site.name for site in form.sites][:3] == ["layer.0.attention_in", "layer.0.attention_out", "layer.0.feed"]
    assert len(form.sites) == 6
    expected_WK = exact.compute(windows)
    found_WK = form.open([site.name for site in form.sites]).compute(windows)
    error = float((found_WK - expected_WK).square().mean().sqrt() / expected_WK.std())
    assert 1e-5 < error < 0.05
    alone = [form.open([site.name]).compute(windows) for site in form.sites]
    errors = [float((one - expected_WK).square().mean().sqrt() / expected_WK.std()) for one in alone]
    assert all(1e-5 < one < 0.04 for one in errors)
    torch.testing.assert_close(form.open([]).compute(windows), expected_WK, atol=2e-5, rtol=2e-5)


def test_layers_of_which_parts_were_cut_out_are_int8_too():
    model, windows = build(CONFIGS["bert"]), make_windows(40)
    layers = read_architecture(model.network).layers
    for part in (layers[0].query, layers[0].key, layers[0].value):
        set_weights(part, part.weight[:16], part.bias[:16])
    set_weights(layers[0].attention_out, layers[0].attention_out.weight[:, :16], layers[0].attention_out.bias)
    set_weights(layers[1].feed_in, layers[1].feed_in.weight[:37], layers[1].feed_in.bias[:37])
    set_weights(layers[1].feed_out, layers[1].feed_out.weight[:, :37], layers[1].feed_out.bias)
    expected_WK = PackedRuntime(model, device=CPU, precision="fp32", pad_id=1).compute(windows)
    form = PackedForm(model, windows, 1, smooth=0.85, weight_bits=BITS)
    found_WK = form.open([site.name for site in form.sites]).compute(windows)
    assert 1e-5 < (found_WK - expected_WK).square().mean().sqrt() / expected_WK.std() < 0.05


def test_ranges_are_those_of_all_windows_also_of_a_model_with_exits():
    model, windows = build(CONFIGS["bert"]), make_windows(20)
    plain = PackedForm(model, windows, 1, smooth=None, weight_bits=BITS).products
    model.exits = Exits([1], 32, len(model.scheme.tags), threshold=0.0)  # all leave at once
    found = PackedForm(model, windows, 1, smooth=None, weight_bits=BITS).products
    scales = [one["layer.1.feed"]["layer.1.feed_in"].input_scale for one in (plain, found)]
    assert scales[0] == scales[1]
    assert model.exits is not None


def test_a_window_has_the_same_int8_emissions_in_any_batch():
    model, windows = build(CONFIGS["bert"]), make_windows(40)
    runtime = PackedForm(model, windows, 1, smooth=0.85, weight_bits=BITS).open(
        [f"layer.{n}.{p}" for n in (0, 1) for p in ("attention_in", "feed")]
    )
    together_WK = runtime.compute(windows)
    alone_WK = torch.cat([runtime.compute([window]) for window in windows])
    # a byte may be the next one where sums come in another order
    assert (together_WK - alone_WK).square().mean().sqrt() < 0.005 * together_WK.std()


def test_no_int8_without_onednn(monkeypatch):
    from pipelines.ner.errors import UserError
    from pipelines.ner.runtimes import packed

    model = build(CONFIGS["bert"])
    form = PackedForm(model, make_windows(4), 1, smooth=None, weight_bits=BITS)
    monkeypatch.setattr(packed, "has_int8_kernels", lambda: False)
    with pytest.raises(UserError, match="no int8 products"):
        form.open(["layer.0.feed"])
    assert isinstance(form.open([]), PackedRuntime)
