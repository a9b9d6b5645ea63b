"""AdamW's groups, and the learning rate step by step."""

import pytest
import torch

from pipelines.training.optimizer import OptimizerConfig, build_optimizer, choose_learning_rate, set_learning_rate


def schedule(num_steps, warmup_fraction, peaks=(1.0,)):
    parameters = [torch.nn.Parameter(torch.zeros(1)) for _ in peaks]
    groups = [{"params": [one], "peak_lr": peak} for one, peak in zip(parameters, peaks, strict=True)]
    optimizer = torch.optim.AdamW(groups)
    for step in range(num_steps):
        yield (
            set_learning_rate(optimizer, step, num_steps, warmup_fraction),
            [group["lr"] for group in optimizer.param_groups],
        )


def group_of(optimizer, parameter):
    found = [group for group in optimizer.param_groups if any(one is parameter for one in group["params"])]
    assert len(found) == 1
    return found[0]


def test_learning_rate_rises_over_the_warmup_and_falls_linearly_to_zero():
    rates = [rate for rate, _ in schedule(100, 0.1)]
    assert rates[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert rates[10:] == pytest.approx([(100 - step) / 90 for step in range(10, 100)])
    assert max(rates) == 1.0


@pytest.mark.parametrize("warmup_fraction", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("num_steps", [1, 2, 7])
def test_learning_rate_is_positive_and_at_most_its_peak_in_the_shortest_runs(num_steps, warmup_fraction):
    rates = [rate for rate, _ in schedule(num_steps, warmup_fraction)]
    assert all(0 < rate <= 1 for rate in rates)
    assert max(rates) == 1.0


def test_learning_rate_scales_every_group_by_its_own_peak():
    for rate, (small, large) in schedule(20, 0.1, peaks=(1e-4, 1e-3)):
        assert large == pytest.approx(10 * small)
        assert rate == large


@pytest.mark.parametrize(
    ("hidden_size", "rate"), [(128, 1e-3), (256, 1e-3), (384, 3e-4), (512, 3e-4), (768, 5e-5), (1024, 2e-5)]
)
def test_default_learning_rate_falls_with_the_hidden_size(hidden_size, rate):
    assert choose_learning_rate(hidden_size) == rate


def test_each_trainable_parameter_is_in_exactly_one_group_and_frozen_ones_in_none(training_room, tiny_encoder, head):
    model = training_room.build_model(tiny_encoder, head)
    frozen = model.network.bert.embeddings.word_embeddings.weight.requires_grad_(False)
    optimizer = build_optimizer(model, OptimizerConfig())
    listed = [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]
    assert sorted(listed) == sorted(id(one) for one in model.parameters() if one.requires_grad)
    assert id(frozen) not in listed


def test_head_and_crf_have_the_heads_learning_rate_and_the_encoder_its_own(training_room, tiny_encoder, head):
    model = training_room.build_model(tiny_encoder, head)
    optimizer = build_optimizer(model, OptimizerConfig(learning_rate=1e-4, head_learning_rate=5e-3))
    for name, parameter in model.named_parameters():
        expected = 1e-4 if name.startswith("network.bert.") else 5e-3
        assert group_of(optimizer, parameter)["peak_lr"] == expected, name


@pytest.mark.parametrize(("head", "factor"), [("linear", 1), ("crf", 10)])
def test_default_head_rate_is_the_encoders_or_tenfold_with_a_crf(training_room, tiny_encoder, head, factor):
    model = training_room.build_model(tiny_encoder, head)
    optimizer = build_optimizer(model, OptimizerConfig())
    assert group_of(optimizer, model.network.bert.embeddings.LayerNorm.weight)["peak_lr"] == 1e-3
    assert group_of(optimizer, model.network.classifier.weight)["peak_lr"] == pytest.approx(1e-3 * factor)


def test_weight_decay_spares_biases_norms_and_the_crf(training_room, tiny_encoder, head):
    model = training_room.build_model(tiny_encoder, head)
    optimizer = build_optimizer(model, OptimizerConfig(weight_decay=0.05))
    decayed = set()
    for name, parameter in model.named_parameters():
        spared = name.endswith("bias") or "LayerNorm" in name or name.startswith("crf.")
        assert group_of(optimizer, parameter)["weight_decay"] == (0.0 if spared else 0.05), name
        decayed.add(spared)
    assert decayed == {True, False}
