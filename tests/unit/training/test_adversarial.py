"""Weights move up the loss as far as each method says, come back bit for bit, and both gradients are added."""

import math

import pytest
import torch

from pipelines.training.adversarial import EPSILONS, AdversarialConfig, Adversary
from pipelines.training.batches import TrainingWindows
from pipelines.training.config import TrainingConfig
from pipelines.training.forward import PaddedForward, build_forward
from pipelines.training.objective import Objective

CPU = torch.device("cpu")
WORDS = "network.bert.embeddings.word_embeddings.weight"


class Case:
    """A model, a batch, and what each pass saw: weights, loss, gradients."""

    def __init__(self, room, encoder, *, sparse=True):
        self.model = room.build_model(encoder, "linear")
        self.batch = TrainingWindows(room.make_table(6)).collate(range(6), pad_id=0)
        forward = build_forward(self.model, "fp32", CPU) if sparse else PaddedForward(self.model, "fp32")
        self.objective = Objective(forward)
        self.passes = []

    def compute(self):
        weights = {name: one.detach().clone() for name, one in self.model.named_parameters()}
        loss = self.objective(self.batch)
        loss.backward()
        self.passes.append((weights, float(loss.detach()), self.list_gradients()))

    def list_gradients(self):
        return {name: one.grad.to_dense().clone() for name, one in self.model.named_parameters()}

    def attack(self, **settings):
        self.compute()
        Adversary(self.model, AdversarialConfig(**settings)).add_gradients(self.compute)

    def list_changes(self, index):
        """How a pass's weights differ from those of the first; those that do."""
        (before, _, _), (after, _, _) = self.passes[0], self.passes[index]
        changes = {name: after[name] - before[name] for name in before}
        return {name: change for name, change in changes.items() if change.any()}


@pytest.fixture(params=[True, False], ids=["sparse", "dense"])
def case(request, training_room, tiny_encoder):
    return Case(training_room, tiny_encoder, sparse=request.param)


METHODS = [{"method": "fgm"}, {"method": "pgd", "steps": 3}, {"method": "awp"}]


@pytest.mark.parametrize("settings", METHODS, ids=[one["method"] for one in METHODS])
def test_weights_come_back_bit_for_bit_and_gradients_are_added(case, settings):
    case.attack(**settings)
    assert len(case.passes) == 1 + settings.get("steps", 1)
    before = case.passes[0][0]
    assert all(torch.equal(one.detach(), before[name]) for name, one in case.model.named_parameters())
    (_, loss, plain), (_, moved_loss, moved) = case.passes[0], case.passes[-1]
    assert moved_loss > loss
    assert any((plain[name] - moved[name]).abs().max() > 1e-6 for name in plain)
    for name, found in case.list_gradients().items():
        torch.testing.assert_close(found, plain[name] + moved[name], rtol=1e-5, atol=1e-6, msg=name)


def test_the_sum_of_sparse_gradients_is_sparse(training_room, tiny_encoder):
    case = Case(training_room, tiny_encoder)
    case.attack(method="fgm")
    assert case.model.get_parameter(WORDS).grad.is_sparse


def test_fgm_moves_the_embeddings_of_the_batch_along_their_gradient_by_epsilon(case):
    case.attack(method="fgm", epsilon=0.3)
    [(name, change)] = case.list_changes(1).items()
    gradient = case.passes[0][2][WORDS]
    assert name == WORDS
    assert change.norm() == pytest.approx(0.3, rel=1e-4)
    assert torch.cosine_similarity(change.flatten(), gradient.flatten(), dim=0) == pytest.approx(1.0, abs=1e-4)
    assert set(change.any(dim=1).nonzero().flatten().tolist()) <= set(case.batch.input_ids_BT.flatten().tolist())


def test_pgd_stays_within_epsilon_and_follows_each_new_gradient(case):
    case.attack(method="pgd", epsilon=2.0, steps=4)
    norms = [case.list_changes(index)[WORDS].norm() for index in range(1, 5)]
    assert norms[0] == pytest.approx(2.0 * 2.5 / 4, rel=1e-4)
    assert max(norms) <= 2.0 * (1 + 1e-5)
    assert norms[3] > norms[0]
    second = case.list_changes(2)[WORDS] - case.list_changes(1)[WORDS]
    alignments = [torch.cosine_similarity(second.flatten(), one[2][WORDS].flatten(), dim=0) for one in case.passes[:2]]
    assert alignments[1] > alignments[0]


def test_awp_moves_each_matrix_of_the_encoder_by_a_share_of_its_norm(case):
    case.attack(method="awp", epsilon=0.02)
    changes, (before, _, gradients) = case.list_changes(1), case.passes[0]
    matrices = {name for name, one in before.items() if ".encoder.layer." in name and one.ndim == 2}
    assert len(matrices) == 2 * 6
    assert changes.keys() == matrices
    for name, change in changes.items():
        assert change.norm() == pytest.approx(0.02 * float(before[name].norm()), rel=1e-3), name
        assert torch.cosine_similarity(change.flatten(), gradients[name].flatten(), dim=0) > 0.99


@pytest.mark.parametrize("bad", [0.0, math.nan])
def test_a_gradient_without_direction_leaves_the_weights_as_they_were(case, bad):
    case.compute()
    for parameter in case.model.parameters():
        parameter.grad = parameter.grad * bad
    Adversary(case.model, AdversarialConfig("fgm")).add_gradients(case.compute)
    assert all(torch.equal(one.detach(), case.passes[0][0][name]) for name, one in case.model.named_parameters())
    assert math.isfinite(case.passes[1][1]) == (bad == 0.0)


def test_an_interrupted_pass_leaves_the_weights_as_they_were(case):
    case.compute()

    def fail():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Adversary(case.model, AdversarialConfig("awp")).add_gradients(fail)
    assert all(torch.equal(one.detach(), case.passes[0][0][name]) for name, one in case.model.named_parameters())


@pytest.mark.parametrize("method", EPSILONS)
def test_the_loop_begins_with_the_epoch_given(training_room, tiny_encoder, method):
    def run(**settings):
        config = TrainingConfig(num_epochs=2, batch_tokens=60, precision="fp32", **settings)
        model = training_room.build_model(tiny_encoder, "linear", dropout=0.1)
        return training_room.run_loop(model, training_room.make_table(12), config)

    plain, told = run(), run(adversarial=AdversarialConfig(method, first_epoch=2))
    first = sum(row["epoch"] == 0 for row in plain.steps)
    for name in ("loss", "gradient_norm"):
        found, expected = ([row[name] for row in run.steps] for run in (told, plain))
        assert found[:first] == expected[:first]
        assert found[first + 1 :] != expected[first + 1 :]
    assert told.steps[first]["gradient_norm"] > plain.steps[first]["gradient_norm"]
