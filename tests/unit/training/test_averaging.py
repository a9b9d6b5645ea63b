"""Averages against their formulas; they are scored and kept, while training goes on from the weights themselves."""

import pytest
import torch

from pipelines.training.averaging import Average, AveragingConfig
from pipelines.training.config import TrainingConfig
from pipelines.training.parallel import ParallelConfig, Strategy

CPU = torch.device("cpu")


class Walk:
    """A model whose weights go somewhere in each step, and the average on the way."""

    def __init__(self, room, encoder, **settings):
        self.model = room.build_model(encoder, "linear")
        self.average = Average(Strategy(self.model, ParallelConfig(), CPU), AveragingConfig(**settings))
        self.seen = []

    def go(self, num_steps, epoch_steps=1000):
        for step in range(1, num_steps + 1):
            with torch.no_grad():
                for parameter in self.model.parameters():
                    parameter.add_(torch.randn_like(parameter))
            self.seen.append(copy(self.model))
            self.average.end_step(step, num_steps)
            if step % epoch_steps == 0:
                self.average.end_epoch(step, num_steps)
        return self

    def check(self, expected):
        for name, weight in self.average.weights.items():
            torch.testing.assert_close(weight, expected[name], rtol=1e-4, atol=1e-5)


def copy(model):
    return {name: value.detach().clone() for name, value in model.named_parameters()}


def mean(weights):
    return {name: torch.stack([one[name] for one in weights]).mean(dim=0) for name in weights[0]}


def are_equal(some, others):
    return some.keys() == others.keys() and all(torch.equal(some[name], others[name]) for name in some)


def test_ema_fades_faster_in_the_first_steps(training_room, tiny_encoder):
    walk = Walk(training_room, tiny_encoder, method="ema", decay=0.25).go(7)
    expected = walk.seen[0]
    for step, present in enumerate(walk.seen[1:], 1):
        decay = min(0.25, (1 + step) / (10 + step))
        assert (decay == 0.25) == (step >= 2)
        expected = {name: decay * expected[name] + (1 - decay) * present[name] for name in present}
    walk.check(expected)


def test_ema_of_every_few_steps_fades_as_fast(training_room, tiny_encoder):
    walk = Walk(training_room, tiny_encoder, method="ema", decay=0.1, every_steps=2).go(5)
    expected = {name: 0.1**2 * one + (1 - 0.1**2) * walk.seen[3][name] for name, one in walk.seen[1].items()}
    walk.check(expected)
    assert walk.average.count == 2


def test_swa_weighs_the_ends_of_the_last_epochs_alike(training_room, tiny_encoder):
    walk = Walk(training_room, tiny_encoder, method="swa", start_fraction=0.5).go(12, epoch_steps=3)
    walk.check(mean([walk.seen[step - 1] for step in (6, 9, 12)]))
    assert walk.average.count == 3


def test_swa_of_every_few_steps(training_room, tiny_encoder):
    walk = Walk(training_room, tiny_encoder, method="swa", start_fraction=0.4, every_steps=2).go(11, epoch_steps=3)
    walk.check(mean([walk.seen[step - 1] for step in (6, 8, 10)]))
    assert walk.average.count == 3


def test_the_model_has_the_average_within_the_block_alone(training_room, tiny_encoder):
    walk = Walk(training_room, tiny_encoder, method="ema").go(3)
    average = {name: one.clone() for name, one in walk.average.weights.items()}

    def fail():
        with walk.average.in_place():
            assert are_equal(copy(walk.model), average)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert are_equal(copy(walk.model), walk.seen[-1])
    assert are_equal(walk.average.weights, average)


@pytest.mark.parametrize("method", ["none", "swa"])
def test_without_an_average_the_model_stays_as_it_is(training_room, tiny_encoder, method):
    walk = Walk(training_room, tiny_encoder, method=method, start_fraction=1.0, every_steps=2).go(3)
    with walk.average.in_place():
        assert are_equal(copy(walk.model), walk.seen[-1])
    assert walk.average.state_dict() == {}


def test_loaded_average_is_a_copy_and_goes_on_the_same(training_room, tiny_encoder):
    walk = Walk(training_room, tiny_encoder, method="ema").go(3)
    state = walk.average.state_dict()
    kept = {name: one.clone() for name, one in state["weights"].items()}
    again = Walk(training_room, tiny_encoder, method="ema")
    again.average.load_state_dict(state)
    again.model.load_state_dict(walk.model.state_dict())
    again.go(1)
    assert again.average.count == 4
    assert are_equal(state["weights"], kept)
    assert not are_equal(again.average.weights, kept)


def test_loop_scores_and_keeps_the_average_and_trains_on_from_the_weights(training_room, tiny_encoder):
    def run(method):
        config = TrainingConfig(num_epochs=3, batch_tokens=120, precision="fp32", averaging=AveragingConfig(method))
        scored = []
        told = training_room.run_loop(
            training_room.build_model(tiny_encoder, "linear", dropout=0.1),
            training_room.make_table(16),
            config,
            f1s=[0.1, 0.3, 0.2],
            watch=lambda model: scored.append(copy(model)),
        )
        return told, scored

    plain, _ = run("none")
    for method in ("ema", "swa"):
        told, scored = run(method)
        assert told.losses == plain.losses
        assert are_equal(told.states[-1].model, plain.states[-1].model)
        best = {name: told.final.best_model[name] for name in scored[1]}
        assert are_equal(best, scored[1])
        assert are_equal(scored[2], told.states[-1].average["weights"])
    raw = [{name: state.model[name] for name in scored[0]} for state in plain.states]
    assert scored[0].keys() == raw[0].keys()
    assert are_equal(scored[0], raw[0])  # swa has not begun
    for name, weight in mean(raw[1:]).items():
        torch.testing.assert_close(scored[2][name], weight)
