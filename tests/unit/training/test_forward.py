"""Both ways from a batch to emissions train the same model: equal emissions, equal gradients."""

import random
from dataclasses import replace

import pytest
import torch
from transformers import XLNetConfig

from pipelines.ner.casing import CASE_STEP, NUM_CASES, add_cases
from pipelines.training.batches import Batch
from pipelines.training.forward import (
    ForwardError,
    PackedForward,
    PaddedForward,
    _Attention,
    build_forward,
    draw_mask,
    pack,
)
from tests.unit.ner.runtimes.test_runtimes import CONFIGS, SCHEME, build

CPU = torch.device("cpu")
NUM_SAMPLES = 256


def make_batch(count=9, longest=30, seed=0):
    dice = random.Random(seed)
    lengths = [dice.randint(3, longest) for _ in range(count)]
    starts = [sorted(dice.sample(range(1, length - 1), dice.randint(1, length - 2))) for length in lengths]
    width, words = max(lengths), max(map(len, starts))
    ids_BT = torch.ones(count, width, dtype=torch.long)
    starts_BW = torch.zeros(count, words, dtype=torch.long)
    for row, (length, places) in enumerate(zip(lengths, starts, strict=True)):
        ids_BT[row, :length] = torch.tensor([dice.randrange(2, 99) for _ in range(length)])
        starts_BW[row, : len(places)] = torch.tensor(places)
    edges_B = torch.ones(count, dtype=torch.bool)
    return Batch(
        ids_BT,
        (torch.arange(width) < torch.tensor(lengths)[:, None]).long(),
        starts_BW,
        torch.randint(len(SCHEME.tags), starts_BW.shape, generator=torch.Generator().manual_seed(seed)),
        torch.tensor([len(places) for places in starts]),
        edges_B,
        edges_B,
    )


def run(forward, batch):
    """Emissions of the words, and the gradient of each parameter, dense."""
    forward.eval()  # no dropout, which the two ways draw in another order
    is_word_BW = torch.arange(batch.word_starts_BW.shape[1]) < batch.lengths_B[:, None]
    emissions_VK = forward(batch)[is_word_BW]
    loss = torch.nn.functional.cross_entropy(emissions_VK, batch.tag_ids_BW[is_word_BW])
    forward.model.zero_grad()
    loss.backward()
    found = {name: one.grad for name, one in forward.model.named_parameters() if one.grad is not None}
    return emissions_VK.detach(), {name: one.to_dense().clone() for name, one in found.items()}


@pytest.mark.parametrize("name", [*CONFIGS, "bert with cases", "electra with cases"])
def test_packed_emissions_and_gradients_equal_padded_ones(name):
    cases = name.endswith(" with cases")
    model, batch = build(CONFIGS[name.removesuffix(" with cases")]), make_batch()
    if cases:
        add_cases(model.network)
        batch = replace(batch, input_ids_BT=batch.input_ids_BT + batch.input_ids_BT % NUM_CASES * CASE_STEP)
    packed = build_forward(model, "fp32", CPU)
    assert isinstance(packed, PackedForward)
    expected_VK, expected = run(PaddedForward(model, "fp32"), batch)
    found_VK, found = run(packed, batch)
    torch.testing.assert_close(found_VK, expected_VK, atol=2e-5, rtol=2e-5)
    assert found.keys() == expected.keys()
    for parameter, gradient in expected.items():
        torch.testing.assert_close(found[parameter], gradient, atol=1e-6, rtol=2e-4, msg=parameter)
        if cases and "token_type" in parameter:
            assert (gradient != 0).any(dim=1).all()


@pytest.mark.parametrize("fused", [True, False])
def test_bf16_gradients_point_the_same_way(fused, monkeypatch):
    if not fused:  # as on a CPU that lacks the instructions
        monkeypatch.setattr("pipelines.training.forward.has_fused_linear", lambda dtype: False)
    model = build(CONFIGS["bert"])
    batch = make_batch()
    _, exact = run(PaddedForward(model, "fp32"), batch)
    _, found = run(build_forward(model, "bf16", CPU), batch)
    for parameter, gradient in exact.items():
        assert found[parameter].dtype == torch.float32
        if gradient.norm() > 1e-4:  # a bias of keys changes nothing
            assert torch.cosine_similarity(found[parameter].flatten(), gradient.flatten(), dim=0) > 0.98, parameter


def test_packing_leaves_out_padding_and_finds_every_word_again():
    batch = make_batch()
    ids_N, positions_N, places_V, is_word_BW, groups = pack(batch, 2)
    num_real = int(batch.attention_mask_BT.sum())
    assert num_real <= len(ids_N) == len(positions_N) <= num_real * 1.125 + 4
    assert sum(count * length for count, length in groups) == num_real
    rows = zip(batch.input_ids_BT, batch.word_starts_BW, batch.lengths_B.tolist(), strict=True)
    expected = torch.cat([ids_T[starts_W[:count]] for ids_T, starts_W, count in rows])
    assert torch.equal(ids_N[places_V][: len(expected)], expected)
    assert int(is_word_BW.sum()) == len(expected)


def test_attention_of_filled_up_windows_is_that_of_each_alone():
    generator = torch.Generator().manual_seed(5)
    groups, size = [(2, 80), (1, 71), (3, 12)], 8
    num_rows = sum(count * length for count, length in groups) + 5
    qkv_N3H = torch.randn(num_rows, 48, generator=generator).bfloat16().requires_grad_()
    context_NH = _Attention.apply(qkv_N3H, groups, size, 0.0)
    weights_NH = torch.randn(num_rows, 16, generator=generator)
    (context_NH.float() * weights_NH).sum().backward()
    plain_N3H = qkv_N3H.detach().float().requires_grad_()
    windows, at = [], 0
    for length in [length for count, length in groups for _ in range(count)]:
        q, k, v = plain_N3H[at : at + length].view(length, 3, 2, size).permute(1, 2, 0, 3)
        windows.append(torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(0, 1).flatten(1))
        at += length
    expected_NH = torch.cat([*windows, torch.zeros(5, 16)])
    (expected_NH * weights_NH).sum().backward()
    assert torch.allclose(context_NH.float(), expected_NH, atol=0.02)
    assert torch.allclose(qkv_N3H.grad.float(), plain_N3H.grad, atol=0.03)
    assert not context_NH[-5:].any()


@pytest.mark.parametrize("probability", [0.1, 0.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dropout_keeps_its_share_and_makes_up_for_the_rest(probability, dtype):
    torch.manual_seed(3)
    mask = draw_mask((64, 501), probability, dtype)
    assert mask.shape == (64, 501)
    assert mask.dtype == (dtype if dtype.itemsize == 2 else torch.bfloat16)
    nothing, factor = mask.double().unique().tolist()
    assert nothing == 0
    assert factor == pytest.approx(1 / (1 - probability), rel=0.004)
    kept = (mask != 0).double()
    assert abs(kept.mean() * factor - 1) < 0.02
    assert kept.view(-1)[: 64 * 500].view(-1, 4).mean(dim=0).std() < 0.02  # every part of a draw alike
    assert not torch.equal(mask, draw_mask((64, 501), probability, dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_least_and_the_most_of_dropout_can_be_drawn(dtype):
    assert set(draw_mask((8, 9), 1e-9, dtype).double().unique().tolist()) == {1.0}
    assert draw_mask((64, 64), 0.0013, dtype).double().mean() == pytest.approx(1, abs=0.02)
    assert (draw_mask((64, 64), 0.9999, dtype) != 0).double().mean() < 0.01


def test_training_drops_and_evaluation_does_not():
    forward = build_forward(build(CONFIGS["bert"]), "fp32", CPU)
    batch = make_batch()
    with torch.no_grad():
        assert not torch.equal(forward(batch), forward(batch))
        forward.eval()
        assert torch.equal(forward(batch), forward(batch))


def test_the_embeddings_of_words_have_sparse_gradients_unless_they_are_frozen():
    model = build(CONFIGS["bert"])
    words = model.network.bert.embeddings.word_embeddings.weight
    forward = build_forward(model, "fp32", CPU)
    assert forward.sparse_table is words
    forward(make_batch()).sum().backward()
    assert words.grad.is_sparse
    words.requires_grad_(False)
    assert forward.sparse_table is None
    assert PaddedForward(model, "fp32").sparse_table is None


def build_sampling(name, way, *, count=NUM_SAMPLES):
    """A forward that drops out before the classifier alone, and there `count` times."""
    model = build(CONFIGS[name]).train()
    for parent in model.network.modules():
        for child in parent.children():
            if isinstance(child, torch.nn.Dropout) and parent is not model.network:
                child.p = 0.0
    forward = PaddedForward(model, "fp32") if way == "padded" else build_forward(model, "fp32", CPU)
    forward.sample_dropout(count)
    return forward


@pytest.mark.parametrize("way", ["padded", "packed"])
@pytest.mark.parametrize("name", CONFIGS)
def test_samples_of_the_classifiers_dropout_differ_and_their_mean_is_the_undropped(name, way):
    forward, batch = build_sampling(name, way), make_batch()
    assert isinstance(forward, PackedForward) == (way == "packed")
    is_word_BW = torch.arange(batch.word_starts_BW.shape[1]) < batch.lengths_B[:, None]
    with torch.no_grad():
        samples_SVK = forward(batch).unflatten(0, (NUM_SAMPLES, -1))[:, is_word_BW]
        forward.eval()
        whole_BWK = forward(batch)
    assert len(whole_BWK) == len(batch.lengths_B)
    expected_VK = whole_BWK[is_word_BW]
    spread = samples_SVK.std(dim=0)
    assert spread.min() > 0
    assert ((samples_SVK.mean(dim=0) - expected_VK).abs() < 5 * spread / NUM_SAMPLES**0.5 + 1e-5).all()


@pytest.mark.parametrize("way", ["padded", "packed"])
def test_a_network_without_dropout_before_its_classifier_has_no_samples(way):
    forward = PaddedForward if way == "padded" else lambda model, precision: build_forward(model, precision, CPU)
    still = build(CONFIGS["bert"])
    still.network.dropout.p = 0.0
    none = build(XLNetConfig(vocab_size=99, d_model=32, n_layer=2, n_head=4, d_inner=64))
    for model in (still, none):
        with pytest.raises(
            ForwardError, match=f"no dropout before the classifier of `{model.network.config.model_type}`"
        ):
            forward(model, "fp32").sample_dropout(4)
