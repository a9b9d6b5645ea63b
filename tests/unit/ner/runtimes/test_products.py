"""Products of bytes: what oneDNN computes is what the arithmetic says, and files give back what was written."""

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from pipelines.ner.runtimes.int8 import count_weight_bits
from pipelines.ner.runtimes.products import (
    WEIGHT_BITS,
    Int8Linear,
    Int8Product,
    find_largest_weight,
    read_products,
    read_weight_bits,
    write_products,
)

BITS = count_weight_bits(torch.device("cpu"))
pytestmark = pytest.mark.skipif(not BITS, reason="this CPU has no int8 products")
PLAIN = ("none", "")


def make_product(inputs=48, outputs=32, *, scale=0.03, zero_point=101, seed=0) -> Int8Product:
    torch.manual_seed(seed)
    largest = find_largest_weight(BITS)
    return Int8Product(
        torch.randint(-largest, largest + 1, (outputs, inputs), dtype=torch.int8),
        torch.rand(outputs) * 0.01 + 0.001,
        torch.randn(outputs),
        torch.rand(inputs) + 0.5,
        scale,
        zero_point,
    )


def read_bytes(product: Int8Product, x_NI: torch.Tensor) -> torch.Tensor:
    """As `Int8Product` says, in double precision."""
    return (x_NI.double() * product.smooth_I / product.input_scale + product.zero_point).round().clamp(0, 255)


def compute(product: Int8Product, x_NI: torch.Tensor) -> torch.Tensor:
    whole_NO = (read_bytes(product, x_NI) - product.zero_point) @ product.weight_OI.double().T
    return (whole_NO * product.scale_O * product.input_scale + product.bias_O).float()


@pytest.mark.parametrize("rows", [1, 4, 37, 300])
@pytest.mark.parametrize("zero_point", [0, 101, 255])
def test_product_is_that_of_whole_numbers_also_beyond_the_range(rows, zero_point):
    product = make_product(zero_point=zero_point)
    x_NI = torch.randn(rows, 48) * 3  # beyond what bytes reach
    assert torch.isin(read_bytes(product, x_NI), torch.tensor([0.0, 255.0], dtype=torch.float64)).any()
    found_NO = Int8Linear(product, PLAIN, torch.float32)(x_NI)
    torch.testing.assert_close(found_NO, compute(product, x_NI), atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize(
    ("activation", "function"),
    [(("gelu", "none"), F.gelu), (("gelu", "tanh"), lambda x: F.gelu(x, approximate="tanh")), (("relu", ""), F.relu)],
)
def test_activations_are_those_of_pytorch_and_come_as_the_bytes_of_what_follows(activation, function):
    product, following = make_product(), make_product(32, 16, scale=0.02, zero_point=9, seed=1)
    following = following._replace(smooth_I=torch.ones(32))
    x_NI = torch.randn(64, 48)
    expected_NO = function(compute(product, x_NI))
    assert 0 < (expected_NO > 0.02 * 246).float().mean() < 0.5  # some are beyond the bytes that follow
    found_NO = Int8Linear(product, activation, torch.float32)(x_NI)
    torch.testing.assert_close(found_NO, expected_NO, atol=2e-3, rtol=1e-3)
    between_NO = Int8Linear(product, activation, torch.float32, following)(x_NI)
    assert between_NO.dtype == torch.uint8
    assert (between_NO.int() - read_bytes(following, expected_NO).int()).abs().max() <= 1
    behind = Int8Linear(following, PLAIN, torch.float32)
    torch.testing.assert_close(behind(between_NO), behind(expected_NO), atol=0.2, rtol=0)


def test_residual_is_added_in_its_own_precision():
    product = make_product()
    x_NI, residual_NO = torch.randn(9, 48), torch.randn(9, 32) * 1000
    expected_NO = compute(product, x_NI) + residual_NO
    torch.testing.assert_close(
        Int8Linear(product, PLAIN, torch.bfloat16).add(x_NI, residual_NO), expected_NO, atol=1e-3, rtol=1e-6
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_outputs_are_in_the_precision_asked_for(dtype):
    product, x_NI = make_product(), torch.randn(9, 48)
    found_NO = Int8Linear(product, PLAIN, dtype)(x_NI.to(dtype))
    assert found_NO.dtype == dtype
    expected_NO = compute(product, x_NI.to(dtype).float())
    torch.testing.assert_close(found_NO.float(), expected_NO, atol=1e-3 + 0.01 * (dtype == torch.bfloat16), rtol=0.01)


@pytest.mark.parametrize("bits", [bits for bits in WEIGHT_BITS if bits <= BITS])
@pytest.mark.parametrize("rows", [1, 16, 257])
def test_sums_of_the_largest_numbers_do_not_overflow(bits, rows):
    """As they do on CPUs that add up pairs in 16 bits, where weights have more bits than `count_weight_bits` tells."""
    largest = find_largest_weight(bits)
    weight_OI = torch.tensor([[largest], [-largest]], dtype=torch.int8).repeat(24, 96)
    ones_O, ones_I = torch.ones(48), torch.ones(96)
    product = Int8Product(weight_OI, ones_O, torch.zeros(48), ones_I, 1.0, 0)
    found_NO = Int8Linear(product, PLAIN, torch.float32)(torch.full((rows, 96), 255.0))
    assert torch.equal(found_NO, torch.tensor([255.0 * largest * 96, -255.0 * largest * 96]).repeat(rows, 24))


def test_file_gives_back_what_was_written(tmp_path):
    products = {"layer.0.feed_in": make_product(), "layer.11.attention_in": make_product(8, 24, zero_point=255, seed=2)}
    write_products(tmp_path / "form.safetensors", products, 7)
    assert read_weight_bits(tmp_path / "form.safetensors") == 7
    again = read_products(tmp_path / "form.safetensors")
    assert again.keys() == products.keys()
    for name, product in products.items():
        assert all(map(torch.equal, again[name][:4], product[:4]))
        assert again[name][4:] == product[4:]
        assert again[name].weight_OI.dtype == torch.int8


def test_file_that_does_not_tell_has_weights_of_8_bits(tmp_path):
    save_file({"one": torch.ones(1)}, tmp_path / "form.safetensors", metadata={"inputs": "{}"})
    assert read_weight_bits(tmp_path / "form.safetensors") == 8
