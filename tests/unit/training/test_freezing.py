"""Frozen layers keep their weights and cost no backward pass; unfreezing goes from the top, layer by layer."""

import pytest
import torch
from transformers import AlbertConfig, DebertaV2Config, ModernBertConfig, T5Config

from pipelines.ner.casing import add_cases
from pipelines.training.config import TrainingConfig
from pipelines.training.forward import build_forward
from pipelines.training.freezing import Freezing, FreezingConfig, FreezingError
from tests.unit.ner.runtimes.test_runtimes import CONFIGS, SIZES, build
from tests.unit.training.test_forward import make_batch

DEBERTA = DebertaV2Config(
    **SIZES, relative_attention=True, norm_rel_ebd="layer_norm", pos_att_type=["p2c", "c2p"], conv_kernel_size=3
)
T5 = T5Config(vocab_size=99, d_model=32, d_kv=8, d_ff=64, num_layers=3, num_heads=4)


def list_trained(model):
    """Parts of the model whose parameters train: embeddings, layers by number, head."""
    found = set()
    for name, parameter in model.named_parameters():
        part = "head" if ".classifier." in name or name.startswith("crf.") else "embeddings"
        if ".layer." in name:
            part = int(name.split(".layer.")[1].split(".")[0])
        if parameter.requires_grad:
            found.add(part)
    return found


ALL = {"embeddings", 0, 1, "head"}


@pytest.mark.parametrize(
    ("layers", "unfreeze_per_epoch", "expected"),
    [
        (None, 0, [ALL, ALL]),
        (0, 0, [{0, 1, "head"}] * 2),
        (1, 0, [{1, "head"}] * 2),
        (2, 0, [{"head"}] * 2),
        (2, 1, [{"head"}, {1, "head"}, {0, 1, "head"}, ALL, ALL]),
        (2, 2, [{"head"}, {0, 1, "head"}, ALL]),
        (1, 2, [{1, "head"}, ALL]),
    ],
)
def test_layers_unfreeze_from_the_top(training_room, tiny_encoder, head, layers, unfreeze_per_epoch, expected):
    model = training_room.build_model(tiny_encoder, head)
    freezing = Freezing(model, FreezingConfig(layers, unfreeze_per_epoch))
    before = ALL
    for epoch, parts in enumerate(expected):
        assert freezing.begin_epoch(epoch) == (parts != before)
        assert list_trained(model) == parts
        before = parts


def test_a_run_that_begins_in_a_later_epoch_freezes_what_is_frozen_then(training_room, tiny_encoder):
    model = training_room.build_model(tiny_encoder, "linear")
    assert Freezing(model, FreezingConfig(2, 1)).begin_epoch(1)
    assert list_trained(model) == {1, "head"}


@pytest.mark.parametrize(
    "config", [*CONFIGS.values(), DebertaV2Config(**SIZES), DEBERTA], ids=[*CONFIGS, "deberta", "deberta as in xlarge"]
)
def test_every_architecture_has_its_parts_found(config):
    model = build(config)
    assert Freezing(model, FreezingConfig(2)).begin_epoch(0)
    trained = {name for name, one in model.named_parameters() if one.requires_grad}
    assert trained
    assert all(name.startswith("network.classifier.") for name in trained)


def test_what_is_above_the_layers_trains():
    model = build(ModernBertConfig(**SIZES, pad_token_id=1))
    Freezing(model, FreezingConfig(2)).begin_epoch(0)
    trained = {name for name, one in model.named_parameters() if one.requires_grad}
    assert "network.model.final_norm.weight" in trained
    assert not [name for name in trained if ".layers." in name or "embeddings" in name]


@pytest.mark.parametrize(
    ("config", "layers", "expected"),
    [
        (DEBERTA, 0, {"encoder.LayerNorm": False, "encoder.rel_embeddings": False, "encoder.conv": True}),
        (DEBERTA, 1, {"encoder.LayerNorm": False, "encoder.conv": False, "encoder.layer.1": True}),
        (T5, 2, {"shared": False, "encoder.block.1": False, "encoder.block.2": True, "final_layer_norm": True}),
    ],
)
def test_what_stands_beside_the_layers_freezes_with_what_it_belongs_to(config, layers, expected):
    model = build(config)
    Freezing(model, FreezingConfig(layers)).begin_epoch(0)
    for part, trains in expected.items():
        found = {one.requires_grad for name, one in model.named_parameters() if f"{part}." in name}
        assert found == {trains}, part


@pytest.mark.parametrize(
    ("config", "layers", "what"),
    [
        (CONFIGS["bert"], 3, "more layers to freeze than the encoder has"),
        (AlbertConfig(**SIZES), 1, "the layers of `albert` cannot be told apart"),
    ],
)
def test_layers_that_are_not_there_are_refused(config, layers, what):
    with pytest.raises(FreezingError, match=what) as caught:
        Freezing(build(config), FreezingConfig(layers))
    assert caught.value.where == "`training.freezing.layers`"


@pytest.mark.parametrize("layers", [0, 2])
def test_the_new_embeddings_of_case_are_never_frozen(layers):
    model = build(CONFIGS["bert"])
    add_cases(model.network)
    freezing = Freezing(model, FreezingConfig(layers, 1))
    for epoch in range(2):
        freezing.begin_epoch(epoch)
        embeddings = model.network.bert.embeddings
        assert embeddings.token_type_embeddings.weight.requires_grad
        assert embeddings.word_embeddings.weight.requires_grad == embeddings.LayerNorm.weight.requires_grad
        assert embeddings.word_embeddings.weight.requires_grad == (epoch > layers)


def test_nothing_is_computed_backward_below_the_lowest_layer_that_trains():
    model = build(CONFIGS["bert"])
    Freezing(model, FreezingConfig(1)).begin_epoch(0)
    forward = build_forward(model, "fp32", torch.device("cpu"))
    inputs = []
    compute_layer = forward._compute_layer
    forward._compute_layer = lambda x_NH, *rest: inputs.append(x_NH) or compute_layer(x_NH, *rest)
    forward(make_batch()).sum().backward()
    assert [x_NH.requires_grad for x_NH in inputs] == [False, False]
    lower, upper = model.network.bert.encoder.layer
    assert all(one.grad is None for one in lower.parameters())
    assert all(one.grad is not None for one in upper.parameters())


def test_loop_moves_only_what_trains_in_the_epoch(training_room, tiny_encoder):
    model = training_room.build_model(tiny_encoder, "linear")
    before = {name: one.detach().clone() for name, one in model.named_parameters()}
    config = TrainingConfig(num_epochs=4, batch_tokens=60, precision="fp32", freezing=FreezingConfig(2, 1))
    told = training_room.run_loop(model, training_room.make_table(12), config)
    moved = []
    for state in told.states:
        parts = set()
        for name, weight in before.items():
            if not torch.equal(state.model[name], weight):
                parts.add(name.split(".layer.")[1][0] if ".layer." in name else name.split(".")[-3])
        moved.append(parts)
    head, embeddings = {"network"}, {"bert", "embeddings"}
    assert moved[:3] == [head, head | {"1"}, head | {"0", "1"}]
    assert moved[3] > moved[2]
    assert moved[3] - moved[2] <= embeddings
