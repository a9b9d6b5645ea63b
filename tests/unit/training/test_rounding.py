"""Training as int8 will compute: what is rounded, how gradients pass, and that the model itself stays as it was."""

import copy

import pytest
import torch

from pipelines.training.batches import TrainingWindows, find_words
from pipelines.training.forward import PackedForward, PaddedForward, build_forward
from pipelines.training.objective import Objective
from pipelines.training.rounding import round_input, round_to_int8, round_weight, rounds_to_int8

CPU = torch.device("cpu")


@pytest.mark.parametrize("largest", [63, 127])
def test_rounded_weights_are_bytes_of_a_range_of_their_own_for_each_output(largest):
    weight_OI = torch.randn(5, 64, generator=torch.Generator().manual_seed(1)) * torch.tensor([[1e-3, 1, 10, 0, 5]]).T
    weight_OI.requires_grad_()
    rounded_OI = round_weight(weight_OI, largest)
    scale_O1 = weight_OI.detach().abs().amax(dim=1, keepdim=True) / largest
    assert ((rounded_OI - weight_OI).abs() <= scale_O1 / 2 + 1e-7).all()
    bytes_OI = rounded_OI.detach() / scale_O1.clamp(min=1e-12)
    torch.testing.assert_close(bytes_OI, bytes_OI.round(), atol=1e-3, rtol=0)
    rounded_OI.sum().backward()
    assert torch.equal(weight_OI.grad, torch.ones(5, 64)), "the gradient passes straight through"


@pytest.mark.parametrize("shift", [-3.0, 0.0, 3.0])
def test_rounded_inputs_have_zero_and_at_most_256_values(shift):
    x = torch.randn(40, 50, generator=torch.Generator().manual_seed(2)) + shift
    x[0, 0] = 0
    rounded = round_input(x)
    assert rounded[0, 0] == 0
    assert len(rounded.unique()) <= 256
    assert (rounded - x).abs().max() <= (max(float(x.max()), 0) - min(float(x.min()), 0)) / 255


def test_rounded_model_computes_nearly_the_same_and_every_layer_learns(training_room, tiny_encoder):
    model = training_room.build_model(tiny_encoder, "linear")
    plain = build_forward(model, "fp32", CPU).eval()
    batch = TrainingWindows(training_room.make_table(7)).collate(range(7), pad_id=0)
    names = list(model.state_dict())
    with torch.no_grad():
        expected = plain(batch)
    assert isinstance(plain, PackedForward)
    assert not rounds_to_int8(model.network)
    round_to_int8(model.network, 8)
    forward = build_forward(model, "fp32", CPU).eval()
    assert isinstance(forward, PaddedForward), "the packed way reads weights past their layers"
    assert list(model.state_dict()) == names
    found = forward(batch)
    words = find_words(batch)
    change = (found - expected)[words].std() / expected[words].std()
    assert 0 < change < 0.05
    Objective(forward)(batch).backward()
    for module in model.network.base_model.modules():
        if isinstance(module, torch.nn.Linear):
            assert module.weight.grad.abs().sum() > 0


def test_copy_of_a_rounded_model_uses_its_own_weights(training_room, tiny_encoder):
    model = training_room.build_model(tiny_encoder, "linear")
    round_to_int8(model.network, 8)
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.network.base_model.encoder.parameters():
            parameter.zero_()
    batch = TrainingWindows(training_room.make_table(3)).collate(range(3), pad_id=0)
    first, second = (build_forward(one, "fp32", CPU).eval()(batch) for one in (model, other))
    assert not torch.allclose(first, second)
