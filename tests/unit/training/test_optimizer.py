"""AdamW's groups, and the learning rate step by step."""

import pytest
import torch
from transformers import AlbertConfig, AutoModelForTokenClassification, ModernBertConfig, Qwen2Config

from pipelines.ner.casing import add_cases
from pipelines.ner.model import TokenClassifier
from pipelines.training.optimizer import (
    SCHEDULES,
    LossScale,
    Optimizer,
    OptimizerConfig,
    OptimizerError,
    choose_learning_rate,
    find_rate_factor,
)
from pipelines.training.parallel import ParallelConfig, Strategy
from tests.unit.ner.runtimes.test_runtimes import SIZES, build
from tests.unit.training.conftest import SCHEME
from tests.unit.training.test_freezing import DEBERTA, T5


def build_optimizer(model, config, *, sparse=False, precision="fp32"):
    """An optimizer for one worker; its table of words as `sparse` says."""
    strategy = Strategy(model, ParallelConfig(), torch.device("cpu"))
    strategy.prepare(precision, 0.0, sparse=sparse)
    return Optimizer(strategy, config, precision)


def list_groups(optimizer):
    return [group for part in optimizer.parts for group in part.param_groups]


def group_of(optimizer, parameter):
    found = [group for group in list_groups(optimizer) if any(one is parameter for one in group["params"])]
    assert len(found) == 1
    return found[0]


def test_learning_rate_rises_over_the_warmup_and_falls_linearly_to_zero():
    rates = [find_rate_factor(step, 100, 0.1, "linear") for step in range(100)]
    assert rates[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert rates[10:] == pytest.approx([(100 - step) / 90 for step in range(10, 100)])
    assert max(rates) == 1.0


@pytest.mark.parametrize("warmup_fraction", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("num_steps", [1, 2, 7])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_learning_rate_is_positive_and_at_most_its_peak_in_the_shortest_runs(schedule, num_steps, warmup_fraction):
    rates = [find_rate_factor(step, num_steps, warmup_fraction, schedule) for step in range(num_steps)]
    assert all(0 < rate <= 1 for rate in rates)
    assert max(rates) == 1.0


def test_cosine_falls_late_and_constant_never():
    cosine = [find_rate_factor(step, 100, 0.1, "cosine") for step in range(10, 100)]
    linear = [find_rate_factor(step, 100, 0.1, "linear") for step in range(10, 100)]
    assert cosine == sorted(cosine, reverse=True)
    assert cosine[20] > linear[20] + 0.05
    assert cosine[70] < linear[70] - 0.05
    assert (cosine[0], cosine[45]) == pytest.approx((1.0, 0.5))
    assert {find_rate_factor(step, 100, 0.1, "constant") for step in range(10, 100)} == {1.0}


def test_layer_decay_slows_each_layer_more_than_the_one_above(training_room, tiny_encoder):
    model = training_room.build_model(tiny_encoder, "linear")
    optimizer = build_optimizer(model, OptimizerConfig(learning_rate=1e-3, layer_decay=0.5))
    bert = model.network.bert
    layers = bert.encoder.layer
    assert len(layers) == 2
    peaks = [group_of(optimizer, layer.output.dense.weight)["peak_lr"] for layer in layers]
    assert peaks == pytest.approx([5e-4, 1e-3])
    assert group_of(optimizer, bert.embeddings.word_embeddings.weight)["peak_lr"] == pytest.approx(2.5e-4)
    assert group_of(optimizer, model.network.classifier.weight)["peak_lr"] == pytest.approx(2e-3)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (ModernBertConfig(**SIZES, pad_token_id=1), {"model.final_norm": 1, "model.embeddings": 0.25}),
        (Qwen2Config(**SIZES, num_key_value_heads=2), {"model.norm": 1, "model.embed_tokens": 0.25}),
        (T5, {"final_layer_norm": 1, "block.2": 1, "block.0": 0.25, "shared": 0.125}),
        (DEBERTA, {"encoder.conv": 0.5, "encoder.layer.0": 0.5, "encoder.LayerNorm": 0.25, "rel_embeddings": 0.25}),
    ],
    ids=lambda value: getattr(value, "model_type", ""),
)
def test_what_stands_beside_the_layers_decays_with_what_it_belongs_to(config, expected):
    model = build(config)
    optimizer = build_optimizer(model, OptimizerConfig(learning_rate=1e-3, layer_decay=0.5))
    for part, factor in expected.items():
        parameters = [one for name, one in model.named_parameters() if f"{part}." in name]
        [peak] = {group_of(optimizer, one)["peak_lr"] for one in parameters}
        assert peak == pytest.approx(factor * 1e-3), part


def test_the_new_embeddings_of_case_have_the_whole_rate_of_the_encoder(training_room, tiny_encoder):
    model = training_room.build_model(tiny_encoder, "linear")
    add_cases(model.network)
    optimizer = build_optimizer(model, OptimizerConfig(learning_rate=1e-3, layer_decay=0.5))
    embeddings = model.network.bert.embeddings
    assert group_of(optimizer, embeddings.token_type_embeddings.weight)["peak_lr"] == 1e-3
    assert group_of(optimizer, embeddings.word_embeddings.weight)["peak_lr"] == 2.5e-4


def test_a_step_scales_every_group_by_its_own_peak_and_forgets_the_gradients(training_room, tiny_encoder):
    model = training_room.build_model(tiny_encoder, "linear")
    optimizer = build_optimizer(model, OptimizerConfig(learning_rate=1e-4, head_learning_rate=1e-3))
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    rate, norm = optimizer.step(0, 20)
    assert rate == pytest.approx(1e-3 * find_rate_factor(0, 20, 0.1, "linear"))
    assert norm == pytest.approx(sum(one.numel() for one in model.parameters()) ** 0.5, rel=1e-4)
    assert {group["lr"] / group["peak_lr"] for group in list_groups(optimizer)} == {
        find_rate_factor(0, 20, 0.1, "linear")
    }
    assert all(parameter.grad is None for parameter in model.parameters())


def test_gradients_that_are_not_finite_move_nothing(training_room, tiny_encoder):
    model = training_room.build_model(tiny_encoder, "linear")
    before = [parameter.detach().clone() for parameter in model.parameters()]
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, torch.nan)
    _, norm = build_optimizer(model, OptimizerConfig()).step(0, 20)
    assert not torch.isfinite(norm)
    assert all(torch.equal(one, other) for one, other in zip(before, model.parameters(), strict=True))


def test_sparse_and_dense_gradients_are_clipped_to_one_norm(training_room, tiny_encoder):
    model = training_room.build_model(tiny_encoder, "linear")
    optimizer = build_optimizer(model, OptimizerConfig(max_grad_norm=1e-3), sparse=True)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    words = model.network.bert.embeddings.word_embeddings
    words.weight.grad = None
    words(torch.tensor([2, 2, 7])).sum().backward()
    norm = optimizer._clip(1.0)
    assert norm > 1
    clipped = torch.stack([parameter.grad.to_dense().norm() for parameter in model.parameters()]).norm()
    assert clipped == pytest.approx(1e-3, rel=1e-3)


def test_the_sparse_table_has_an_adam_of_its_own(training_room, tiny_encoder):
    model = training_room.build_model(tiny_encoder, "linear")
    words = model.network.bert.embeddings.word_embeddings
    optimizer = build_optimizer(model, OptimizerConfig(), sparse=True)
    before = words.weight.detach().clone()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    words.weight.grad = None
    words(torch.tensor([3, 5])).sum().backward()
    optimizer.step(0, 1)
    moved = (words.weight != before).any(dim=1).nonzero().flatten().tolist()
    assert moved == [3, 5]
    assert group_of(optimizer, words.weight)["peak_lr"] == choose_learning_rate(128)
    again = build_optimizer(model, OptimizerConfig(), sparse=True)
    again.load_state_dict(optimizer.state_dict())
    table = again.state_dict()["moments"]["network.bert.embeddings.word_embeddings.weight"]
    assert table["step"] == 1
    assert (table["exp_avg"] != 0).any(dim=1).nonzero().flatten().tolist() == [3, 5]


def test_overflow_of_fp16_halves_the_scale_and_moves_nothing(training_room, tiny_encoder):
    model = training_room.build_model(tiny_encoder, "linear")
    optimizer = build_optimizer(model, OptimizerConfig(), precision="fp16")
    before, scale = [one.detach().clone() for one in model.parameters()], optimizer.scale.value
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, torch.inf)
    optimizer.step(0, 10)
    assert all(torch.equal(one, other) for one, other in zip(before, model.parameters(), strict=True))
    assert optimizer.scale.value == scale / 2
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, optimizer.scale.value)
    _, norm = optimizer.step(1, 10)
    assert norm == pytest.approx(sum(one.numel() for one in model.parameters()) ** 0.5, rel=1e-4)
    again = build_optimizer(model, OptimizerConfig(), precision="fp16")
    again.load_state_dict(optimizer.state_dict())
    assert again.scale == optimizer.scale


def test_the_scale_doubles_after_many_good_steps_and_is_one_where_none_is_needed():
    scale = LossScale(value=8.0, grows_after=3)
    for fits in (True, True, False, True, True, True):
        scale.adapt(fits)
    assert (scale.value, scale.good_steps) == (8.0, 0)
    for _ in range(2000):
        scale.adapt(False)
    assert scale.value > 0
    fixed = LossScale(value=1.0, grows_after=0)
    fixed.adapt(False)
    assert fixed.value == 1.0


@pytest.mark.parametrize(
    ("hidden_size", "rate"), [(128, 1e-3), (256, 1e-3), (384, 2e-4), (512, 2e-4), (768, 5e-5), (1024, 2e-5)]
)
def test_default_learning_rate_falls_with_the_hidden_size(hidden_size, rate):
    assert choose_learning_rate(hidden_size) == rate


def test_each_trainable_parameter_is_in_exactly_one_group_and_frozen_ones_in_none(training_room, tiny_encoder, head):
    model = training_room.build_model(tiny_encoder, head)
    frozen = model.network.bert.embeddings.word_embeddings.weight.requires_grad_(False)
    optimizer = build_optimizer(model, OptimizerConfig())
    listed = [id(parameter) for group in list_groups(optimizer) for parameter in group["params"]]
    assert sorted(listed) == sorted(id(one) for one in model.parameters() if one.requires_grad)
    assert id(frozen) not in listed


def test_head_and_crf_have_the_heads_learning_rate_and_the_encoder_its_own(training_room, tiny_encoder, head):
    model = training_room.build_model(tiny_encoder, head)
    optimizer = build_optimizer(model, OptimizerConfig(learning_rate=1e-4, head_learning_rate=5e-3))
    for name, parameter in model.named_parameters():
        expected = 1e-4 if name.startswith("network.bert.") else 5e-3
        assert group_of(optimizer, parameter)["peak_lr"] == expected, name


def test_what_of_the_head_comes_with_the_encoder_has_the_encoders_learning_rate():
    model = build(ModernBertConfig(**SIZES, pad_token_id=1))
    model.pretrained_head = {"head.dense.weight", "head.norm.weight"}
    config = OptimizerConfig(learning_rate=1e-4, head_learning_rate=5e-3, layer_decay=0.5)
    optimizer = build_optimizer(model, config)
    for name, parameter in model.network.named_parameters():
        if not name.startswith("model."):
            expected = 5e-3 if name.startswith("classifier.") else 1e-4
            assert group_of(optimizer, parameter)["peak_lr"] == expected, name


@pytest.mark.parametrize(("rate", "head_rate"), [(None, 2e-3), (2e-5, 2e-4), (1e-4, 1e-3), (5e-3, 5e-3)])
def test_default_head_rate_is_tenfold_up_to_a_limit(training_room, tiny_encoder, head, rate, head_rate):
    model = training_room.build_model(tiny_encoder, head)
    optimizer = build_optimizer(model, OptimizerConfig(learning_rate=rate))
    assert group_of(optimizer, model.network.bert.embeddings.LayerNorm.weight)["peak_lr"] == (rate or 1e-3)
    assert group_of(optimizer, model.network.classifier.weight)["peak_lr"] == pytest.approx(head_rate)


def test_weight_decay_spares_biases_norms_and_the_crf(training_room, tiny_encoder, head):
    model = training_room.build_model(tiny_encoder, head)
    optimizer = build_optimizer(model, OptimizerConfig(weight_decay=0.05))
    decayed = set()
    for name, parameter in model.named_parameters():
        spared = name.endswith("bias") or "LayerNorm" in name or name.startswith("crf.")
        assert group_of(optimizer, parameter)["weight_decay"] == (0.0 if spared else 0.05), name
        decayed.add(spared)
    assert decayed == {True, False}


def test_state_of_sparse_embeddings_goes_on_dense_and_back(training_room, tiny_encoder):
    """As when a run on CPUs goes on with another strategy, or on GPUs."""
    sparse_kinds, state = {True: torch.optim.SparseAdam, False: torch.optim.AdamW}, None
    for sparse in (True, False, True):
        model = training_room.build_model(tiny_encoder, "linear", seed=1)
        optimizer = build_optimizer(model, OptimizerConfig(learning_rate=1e-3), sparse=sparse)
        assert any(isinstance(part, sparse_kinds[sparse]) for part in optimizer.parts)
        if state is not None:
            optimizer.load_state_dict(state)
        ids = torch.tensor([[2, 11, 12, 3]])
        optimizer.strategy.forward.model.network(input_ids=ids).logits.sum().backward()
        for part in optimizer.parts:
            part.step()
        state = optimizer.state_dict()
    steps = {float(one["step"]) for one in state["moments"].values() if "step" in one}
    assert steps == {3.0}


def test_layers_without_numbers_of_their_own_have_no_rates_of_their_own(tmp_path):
    config = AlbertConfig(
        vocab_size=99, embedding_size=8, hidden_size=16, num_attention_heads=2, intermediate_size=16, num_labels=5
    )
    model = TokenClassifier(AutoModelForTokenClassification.from_config(config), SCHEME)
    with pytest.raises(OptimizerError, match="rates of their own"):
        build_optimizer(model, OptimizerConfig(learning_rate=1e-3, layer_decay=0.9))
    build_optimizer(model, OptimizerConfig(learning_rate=1e-3))
