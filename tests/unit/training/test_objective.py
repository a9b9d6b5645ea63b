"""The loss: the Hugging Face model's own for a linear head, brute force over all tag sequences for a CRF."""

import itertools
import math
from dataclasses import replace

import pytest
import torch

from pipelines.ner.exits import NEVER, Exits
from pipelines.ner.labels import LabelScheme
from pipelines.ner.model import TokenClassifier
from pipelines.training.batches import Batch, TrainingWindows, find_words
from pipelines.training.forward import Forward, PackedForward, PaddedForward, build_forward
from pipelines.training.objective import (
    Imitation,
    Objective,
    sum_divergence,
    sum_exit_loss,
    sum_loss,
    sum_relation_divergence,
)

IGNORED = -100


def build(training_room, encoder, head):
    model = training_room.build_model(encoder, head).eval()
    if model.crf is not None:
        with torch.no_grad():
            for parameter in model.crf.parameters():
                parameter.normal_()
    return model


def compute_emissions(model, batch):
    return model(batch.input_ids_BT, batch.attention_mask_BT, batch.word_starts_BW)


def make_batch(tags, starts, ends):
    """A batch of which only the objective's part matters; tags are padded with a tag that would cost something."""
    width = max(map(len, tags))
    padded = torch.tensor([[*row, *[1] * (width - len(row))] for row in tags])
    none = torch.zeros(len(tags), 1, dtype=torch.int64)
    lengths = torch.tensor([len(row) for row in tags])
    return Batch(none, none, none, padded, lengths, torch.tensor(starts), torch.tensor(ends))


def test_linear_loss_is_the_hugging_face_loss_times_the_words(training_room, tiny_encoder):
    model = build(training_room, tiny_encoder, "linear")
    windows = TrainingWindows(training_room.make_table(7))
    batch = windows.collate(range(7), pad_id=0)
    labels_BT = torch.full_like(batch.input_ids_BT, IGNORED)
    for row in range(7):
        length = batch.lengths_B[row]
        labels_BT[row, batch.word_starts_BW[row, :length]] = batch.tag_ids_BW[row, :length]
    output = model.network(input_ids=batch.input_ids_BT, attention_mask=batch.attention_mask_BT, labels=labels_BT)
    loss = sum_loss(model, compute_emissions(model, batch), batch)
    torch.testing.assert_close(loss, output.loss * batch.lengths_B.sum(), rtol=1e-5, atol=1e-5)


def test_label_smoothing_spreads_its_share_over_all_tags(training_room, tiny_encoder):
    model = build(training_room, tiny_encoder, "linear")
    batch = TrainingWindows(training_room.make_table(7)).collate(range(7), pad_id=0)
    emissions_BWK = compute_emissions(model, batch).detach()
    log_p = emissions_BWK.log_softmax(dim=2)
    expected = 0.0
    for row, length in enumerate(batch.lengths_B.tolist()):
        gold_W = log_p[row, torch.arange(length), batch.tag_ids_BW[row, :length]]
        expected -= float((0.8 * gold_W + 0.2 * log_p[row, :length].mean(dim=1)).sum())
    assert float(sum_loss(model, emissions_BWK, batch, 0.2)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("scheme_name", ["BIO", "BIOES"])
def test_crf_loss_equals_brute_force_over_all_tag_sequences(scheme_name):
    scheme = LabelScheme.from_labels(["PER", "X"] if scheme_name == "BIO" else ["PER"], scheme_name)
    torch.manual_seed(0)
    model = TokenClassifier(torch.nn.Identity(), scheme, "crf")
    for parameter in model.crf.parameters():
        torch.nn.init.normal_(parameter)
    gold = [scheme.ids[tag] for tag in (["O", "B-PER", "I-PER"] if scheme_name == "BIO" else ["O", "B-PER", "E-PER"])]
    batch = make_batch([gold, [0], [gold[2], 0]], [True, True, False], [True, False, False])
    emissions_BWK = torch.randn(3, 3, len(scheme.tags)) * 2
    expected = sum(
        -log_probability(model.crf, scheme, emissions_BWK[row, :length], tags, start, end)
        for row, (length, tags, start, end) in enumerate(
            [(3, gold, True, True), (1, [0], True, False), (2, [gold[2], 0], False, False)]
        )
    )
    assert sum_loss(model, emissions_BWK, batch).item() == pytest.approx(expected, rel=1e-5)


def log_probability(crf, scheme, emissions_WK, gold, begins, ends):
    def score(tags):
        names = [scheme.tags[tag] for tag in tags]
        legal = all(scheme.allows(a, b) for a, b in itertools.pairwise(names))
        legal = legal and (not begins or scheme.allows(None, names[0])) and (not ends or scheme.allows(names[-1], None))
        if not legal:
            return -math.inf
        total = sum(emissions_WK[word, tag].item() for word, tag in enumerate(tags))
        total += sum(crf.transitions[a, b].item() for a, b in itertools.pairwise(tags))
        return total + begins * crf.start[tags[0]].item() + ends * crf.end[tags[-1]].item()

    every = itertools.product(range(len(scheme.tags)), repeat=len(gold))
    return score(gold) - math.log(sum(math.exp(score(tags)) for tags in every))


def test_loss_of_a_padded_batch_is_the_sum_of_its_windows_losses(training_room, tiny_encoder, head):
    model = build(training_room, tiny_encoder, head)
    windows = TrainingWindows(training_room.make_table(9))
    together = windows.collate(range(9), pad_id=0)
    alone = [windows.collate([index], pad_id=0) for index in range(9)]
    assert len(set(windows.num_tokens.tolist())) > 3
    loss = sum_loss(model, compute_emissions(model, together), together)
    parts = sum(sum_loss(model, compute_emissions(model, batch), batch) for batch in alone)
    torch.testing.assert_close(loss, parts, rtol=1e-5, atol=1e-4)


def test_padding_gets_no_gradient_and_its_emissions_do_not_matter(training_room, tiny_encoder, head):
    model = build(training_room, tiny_encoder, head)
    batch = make_batch([[1, 2, 0, 3], [3]], [True, True], [True, True])
    emissions_BWK = torch.randn(2, 4, 5, requires_grad=True)
    loss = sum_loss(model, emissions_BWK, batch)
    loss.backward()
    assert torch.equal(emissions_BWK.grad[1, 1:], torch.zeros(3, 5))
    assert emissions_BWK.grad[1, 0].abs().max() > 0
    changed_BWK = emissions_BWK.detach().clone()
    changed_BWK[1, 1:] = 1e4
    torch.testing.assert_close(sum_loss(model, changed_BWK, batch), loss.detach())


def test_loss_is_float32_for_emissions_in_bf16(training_room, tiny_encoder, head):
    model = build(training_room, tiny_encoder, head)
    batch = make_batch([[1, 2, 0, 3], [3]], [True, True], [True, True])
    emissions_BWK = torch.randn(2, 4, 5).bfloat16()
    loss = sum_loss(model, emissions_BWK, batch)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, sum_loss(model, emissions_BWK.float(), batch), rtol=0, atol=0)


class Given(Forward):
    """Emissions as given, whatever the batch."""

    def __init__(self, model, emissions_XWK):
        super().__init__()
        self.model, self.emissions_XWK, self.batches = model, emissions_XWK, []

    def forward(self, batch):
        self.batches.append(batch)
        return self.emissions_XWK


def test_divergence_is_the_mean_of_both_ways_over_words_alone():
    one_BWK, other_BWK = torch.randn(2, 2, 4, 5)
    is_word_BW = torch.tensor([[True] * 4, [True, False, False, False]])
    log_p, log_q = one_BWK[is_word_BW].log_softmax(1), other_BWK[is_word_BW].log_softmax(1)
    both = [
        torch.nn.functional.kl_div(a, b, reduction="sum", log_target=True) for a, b in ((log_p, log_q), (log_q, log_p))
    ]
    found = sum_divergence(one_BWK[None], other_BWK[None], is_word_BW)
    torch.testing.assert_close(found, sum(both) / 2)
    assert sum_divergence(one_BWK[None], one_BWK[None], is_word_BW) == 0


@pytest.mark.parametrize("samples", [1, 3])
def test_r_drop_adds_the_divergence_of_two_passes_to_their_mean_loss(training_room, tiny_encoder, samples):
    model = build(training_room, tiny_encoder, "linear")
    batch = make_batch([[1, 2, 0, 3], [3]], [True, True], [True, True])
    emissions_S2BWK = torch.randn(samples, 2, 2, 4, 5)
    forward = Given(model, emissions_S2BWK.flatten(0, 2))
    losses = [sum_loss(model, one, batch, 0.1) for one in emissions_S2BWK.flatten(0, 1)]
    divergences = [sum_divergence(a[None], b[None], find_words(batch)) for a, b in emissions_S2BWK]
    expected = sum(losses) / len(losses) + 0.7 * sum(divergences) / samples
    torch.testing.assert_close(Objective(forward, 0.1, 0.7)(batch), expected)
    assert forward.batches[0].tag_ids_BW.tolist() == batch.tag_ids_BW.tolist() * 2


def test_samples_of_dropout_are_averaged(training_room, tiny_encoder, head):
    model = build(training_room, tiny_encoder, head)
    batch = make_batch([[1, 2, 0, 3], [3]], [True, True], [True, True])
    emissions_SBWK = torch.randn(3, 2, 4, 5)
    losses = [sum_loss(model, one, batch) for one in emissions_SBWK]
    torch.testing.assert_close(Objective(Given(model, emissions_SBWK.flatten(0, 1)))(batch), sum(losses) / 3)


def test_r_drop_pulls_passes_together(training_room, tiny_encoder):
    """Both passes have a gradient; where they agree, it is that of the plain loss."""
    model = training_room.build_model(tiny_encoder, "linear")
    batch = TrainingWindows(training_room.make_table(5)).collate(range(5), pad_id=0)
    gradients = []
    for r_drop in (0.0, 5.0):
        forward = build_forward(model, "fp32", torch.device("cpu"))
        model.zero_grad()
        Objective(forward, r_drop=r_drop)(batch).backward()
        gradients.append(model.network.classifier.weight.grad.clone())
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)
    one, other = torch.randn(2, 1, 1, 3, 5, requires_grad=True)
    leaves = [one.detach().requires_grad_(), other.detach().requires_grad_()]
    before = sum_divergence(*leaves, torch.ones(1, 3, dtype=torch.bool))
    before.backward()
    assert all(leaf.grad.abs().max() > 0 for leaf in leaves)
    moved = [leaf.detach() - 0.05 * leaf.grad for leaf in leaves]
    assert sum_divergence(*moved, torch.ones(1, 3, dtype=torch.bool)) < before


def test_targets_that_are_certain_cost_what_the_tags_cost_with_either_head(training_room, tiny_encoder):
    windows = TrainingWindows(training_room.make_table(7))
    batch = windows.collate(range(7), pad_id=0)
    for head in ("linear", "crf"):
        model = build(training_room, tiny_encoder, head)
        emissions_BWK = compute_emissions(model, batch).detach()
        certain = torch.nn.functional.one_hot(batch.tag_ids_BW, emissions_BWK.shape[2]).float()
        soft = replace(batch, targets_BWK=certain)
        torch.testing.assert_close(sum_loss(model, emissions_BWK, soft), sum_loss(model, emissions_BWK, batch))


def test_loss_of_targets_is_least_where_the_model_agrees_with_them(training_room, tiny_encoder):
    model = build(training_room, tiny_encoder, "linear")
    batch = TrainingWindows(training_room.make_table(5)).collate(range(5), pad_id=0)
    emissions_BWK = compute_emissions(model, batch).detach()
    agreed = replace(batch, targets_BWK=emissions_BWK.softmax(dim=2))
    scores_BWK = emissions_BWK.clone().requires_grad_()
    sum_loss(model, scores_BWK, agreed).backward()
    torch.testing.assert_close(scores_BWK.grad, torch.zeros_like(scores_BWK), rtol=0, atol=1e-5)
    words = find_words(batch)
    log_p = emissions_BWK.log_softmax(dim=2)[words]
    torch.testing.assert_close(sum_loss(model, emissions_BWK, agreed), -(log_p.exp() * log_p).sum())


def give_states(batch, hidden, seed=0):
    """The batch with states of a teacher; of places without a word they are huge, for nothing may read those."""
    states_BWH = torch.randn(*batch.tag_ids_BW.shape, hidden, generator=torch.Generator().manual_seed(seed))
    states_BWH[~find_words(batch)] = 1e4
    return replace(batch, states_BWH=states_BWH)


@pytest.mark.parametrize("way", ["packed", "padded"])
def test_states_are_what_the_classifier_reads_of_each_word(training_room, tiny_encoder, way):
    model = build(training_room, tiny_encoder, "linear")
    forward = build_forward(model, "fp32", torch.device("cpu")) if way == "packed" else PaddedForward(model, "fp32")
    forward.keeps_states = True
    batch = TrainingWindows(training_room.make_table(7)).collate(range(7), pad_id=0)
    emissions_BWK = forward.eval()(batch)
    assert isinstance(forward, PackedForward) == (way == "packed")
    found_VK = model.network.classifier(forward.states_VH)
    torch.testing.assert_close(found_VK, emissions_BWK[find_words(batch)], rtol=1e-4, atol=1e-5)


def test_imitation_costs_nothing_where_student_and_teacher_agree_and_is_normalized_by_words(
    training_room, tiny_encoder
):
    model = build(training_room, tiny_encoder, "linear")
    forward = build_forward(model, "fp32", torch.device("cpu")).eval()
    plain = TrainingWindows(training_room.make_table(5)).collate(range(5), pad_id=0)
    objective = Objective(forward, imitation=Imitation(states=0.5, relations=2.0))
    forward(plain)
    states_VH = forward.states_VH.detach()
    same = give_states(plain, states_VH.shape[1])
    same.states_BWH[find_words(same)] = states_VH
    torch.testing.assert_close(objective(same), Objective(forward)(same), rtol=1e-4, atol=1e-4)
    objective = Objective(forward, imitation=Imitation(states=0.5, relations=2.0))
    other = replace(same, states_BWH=same.states_BWH + 0.3 * find_words(same)[:, :, None])
    more = objective(other) - Objective(forward)(other)
    objective.imitation = Imitation(states=0.5)
    forward.keeps_states = True
    moved = objective(other) - Objective(forward, imitation=None)(other)
    assert moved.item() == pytest.approx(0.5 * 0.3**2 * len(states_VH), rel=1e-3)
    assert more > moved


def test_relations_take_a_teacher_of_another_width_and_have_a_gradient(training_room, tiny_encoder):
    model = build(training_room, tiny_encoder, "linear")
    forward = build_forward(model, "fp32", torch.device("cpu")).eval()
    batch = give_states(TrainingWindows(training_room.make_table(5)).collate(range(5), pad_id=0), 48)
    hidden = model.network.config.hidden_size
    assert hidden != 48
    loss = Objective(forward, imitation=Imitation(relations=1.0))(batch)
    assert torch.isfinite(loss)
    loss.backward()
    layer = model.network.base_model.encoder.layer[-1].output.dense.weight
    assert layer.grad.abs().sum() > 0


def test_relation_divergence_is_that_of_each_window_alone():
    lengths = [4, 2, 1]
    is_word_BW = torch.arange(4) < torch.tensor(lengths)[:, None]
    own, wanted = (torch.randn(3, 4, width, generator=torch.Generator().manual_seed(width)) for width in (24, 12))
    expected = 0.0
    for row, length in enumerate(lengths):
        for head in range(12):
            logs = []
            for states in (own, wanted):
                size = states.shape[2] // 12
                x = states[row, :length, head * size : (head + 1) * size]
                logs.append((x @ x.T / size**0.5).log_softmax(dim=1))
            expected += (logs[1].exp() * (logs[1] - logs[0])).sum() / 12
    torch.testing.assert_close(sum_relation_divergence(own, wanted, is_word_BW), expected)


@pytest.mark.parametrize("soft", [False, True])
def test_exits_learn_in_the_mean_beside_the_end(training_room, tiny_encoder, soft):
    """By what they say of the states that the whole network has there, gold tags or a teacher's."""
    model = build(training_room, tiny_encoder, "linear")
    batch = TrainingWindows(training_room.make_table(5)).collate(range(5), pad_id=0)
    num_tags = len(model.scheme.tags)
    if soft:
        generator = torch.Generator().manual_seed(2)
        targets = torch.rand(*batch.tag_ids_BW.shape, num_tags, generator=generator).softmax(dim=2)
        batch = replace(batch, targets_BWK=targets)
    plain = Objective(build_forward(model, "fp32", torch.device("cpu")).eval())(batch)
    with torch.no_grad():
        states = model.network.base_model(
            batch.input_ids_BT, batch.attention_mask_BT, output_hidden_states=True
        ).hidden_states[1]
    model.exits = Exits([1], states.shape[2], num_tags, NEVER)
    wanted = batch.targets_BWK if soft else torch.nn.functional.one_hot(batch.tag_ids_BW, num_tags).float()
    expected = 0.0
    for row, length in enumerate(batch.lengths_B.tolist()):
        found_WK = model.exits.classify(0, states[row, batch.word_starts_BW[row, :length]]).log_softmax(dim=1)
        expected -= (wanted[row, :length] * found_WK).sum()
    for forward in (build_forward(model, "fp32", torch.device("cpu")), PaddedForward(model, "fp32")):
        loss = Objective(forward.eval())(batch)
        torch.testing.assert_close(loss - plain, expected, rtol=1e-4, atol=1e-4)
        model.zero_grad()
        loss.backward()
        assert model.exits.heads[0].weight.grad.abs().sum() > 0
    one = sum_exit_loss(model.exits, forward.exit_states, batch)
    model.exits.heads.append(model.exits.heads[0])
    torch.testing.assert_close(sum_exit_loss(model.exits, [*forward.exit_states] * 2, batch), one)
