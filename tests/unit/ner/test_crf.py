"""The log-likelihood of a chain against enumeration of all tag sequences, and its gradients."""

import itertools

import pytest
import torch

from pipelines.ner.crf import Chain, LinearChainCRF, build_legal_chain
from pipelines.ner.entities import Span
from pipelines.ner.labels import SCHEMES, LabelScheme

LENGTHS = [5, 1, 3, 2, 4]


def build_crf(scheme, seed=0):
    torch.manual_seed(seed)
    crf = LinearChainCRF(scheme).double()
    with torch.no_grad():
        for parameter in crf.parameters():
            parameter.normal_()
    return crf


def enumerate_scores(emissions_WK, chain, starts=True, ends=True):
    """Score of every tag sequence; the oracle."""
    scores = {}
    for tags in itertools.product(range(emissions_WK.shape[1]), repeat=len(emissions_WK)):
        score = sum(emissions_WK[word, tag].item() for word, tag in enumerate(tags))
        score += sum(chain.transitions_KK[a, b].item() for a, b in itertools.pairwise(tags))
        score += chain.start_K[tags[0]].item() if starts else 0.0
        score += chain.end_K[tags[-1]].item() if ends else 0.0
        scores[tags] = score
    return scores


def sum_log(scores):
    return torch.tensor(list(scores), dtype=torch.double).logsumexp(0).item()


def random_batch(num_tags, seed=1, pad_with=0.0):
    generator = torch.Generator().manual_seed(seed)
    emissions = torch.randn(len(LENGTHS), max(LENGTHS), num_tags, generator=generator).double() * 2
    for row, length in enumerate(LENGTHS):
        emissions[row, length:] = pad_with
    return emissions, torch.tensor(LENGTHS)


SCHEMES_WITH_FEW_TAGS = [(scheme, ["PER"]) for scheme in SCHEMES] + [("BIO", ["LOC", "PER"]), ("IO", ["LOC", "PER"])]


@pytest.mark.parametrize(("name", "labels"), SCHEMES_WITH_FEW_TAGS)
@pytest.mark.parametrize(("starts", "ends"), itertools.product([True, False], repeat=2))
def test_log_likelihood_equals_enumeration(name, labels, starts, ends):
    scheme = LabelScheme.from_labels(labels, name)
    crf = build_crf(scheme)
    emissions, lengths = random_batch(len(scheme.tags), pad_with=7.0)
    generator = torch.Generator().manual_seed(2)
    tags = torch.randint(len(scheme.tags), (len(LENGTHS), max(LENGTHS)), generator=generator)
    flags = torch.full((len(LENGTHS),), starts), torch.full((len(LENGTHS),), ends)
    found = crf.log_likelihood(emissions, tags, lengths, *flags)
    chain = Chain(*(scores.detach() for scores in vars(crf.chain).values()))
    for row, length in enumerate(LENGTHS):
        scores = enumerate_scores(emissions[row, :length], chain, starts, ends)
        expected = scores[tuple(tags[row, :length].tolist())] - sum_log(scores.values())
        assert found[row].item() == pytest.approx(expected, abs=1e-9)


def test_log_likelihood_sums_to_one_over_all_sequences_and_illegal_ones_have_none():
    scheme = LabelScheme.from_labels(["PER"], "BIOES")
    crf = build_crf(scheme)
    sequences = list(itertools.product(range(5), repeat=3))
    count = len(sequences)
    emissions = torch.randn(1, 3, 5, generator=torch.Generator().manual_seed(4)).double().expand(count, -1, -1)
    flags = torch.ones(count, dtype=torch.bool)
    found = crf.log_likelihood(emissions, torch.tensor(sequences), torch.full((count,), 3), flags, flags).exp()
    assert found.sum().item() == pytest.approx(1, abs=1e-9)
    legal = build_legal_chain(scheme)
    for tags, probability in zip(sequences, found.tolist(), strict=True):
        score = sum(legal.transitions_KK[a, b].item() for a, b in itertools.pairwise(tags))
        score += legal.start_K[tags[0]].item() + legal.end_K[tags[-1]].item()
        assert (probability > 0) == (score == 0)


def test_starts_and_ends_flags_are_read_row_by_row():
    scheme = LabelScheme.from_labels(["PER"], "BIOES")
    crf = build_crf(scheme)
    emissions = torch.randn(4, 3, 5, generator=torch.Generator().manual_seed(4)).double()
    ids = scheme.ids
    rows = [["B-PER", "I-PER", "E-PER"], ["S-PER", "B-PER", "O"], ["I-PER", "E-PER", "O"], ["I-PER", "O", "O"]]
    tags, lengths = torch.tensor([[ids[tag] for tag in row] for row in rows]), torch.tensor([3, 2, 3, 1])
    starts, ends = torch.tensor([True, True, False, False]), torch.tensor([True, False, True, False])
    together = crf.log_likelihood(emissions, tags, lengths, starts, ends)
    batch = (emissions, tags, lengths, starts, ends)
    alone = [crf.log_likelihood(*(part[row : row + 1] for part in batch)) for row in range(4)]
    assert torch.isfinite(together).all()  # each row is legal only under its own flags
    assert torch.allclose(together, torch.cat(alone), atol=1e-12)
    closed = torch.ones(4, dtype=torch.bool)
    strict = crf.log_likelihood(emissions, tags, lengths, closed, closed)
    assert torch.isfinite(strict).tolist() == [True, False, False, False]


def test_the_middle_of_a_document_may_begin_inside_an_entity():
    scheme = LabelScheme.from_labels(["PER"], "BIO")
    crf = build_crf(scheme)
    tags = torch.tensor([[scheme.ids["I-PER"], scheme.ids["O"]]])
    emissions, lengths, yes, no = (
        torch.zeros(1, 2, 3).double(),
        torch.tensor([2]),
        torch.tensor([True]),
        torch.tensor([False]),
    )
    assert crf.log_likelihood(emissions, tags, lengths, yes, yes).item() == -torch.inf
    assert torch.isfinite(crf.log_likelihood(emissions, tags, lengths, no, yes)).all()


@pytest.mark.parametrize("name", SCHEMES)
def test_gradients_are_finite_and_train_to_a_likely_sequence(name):
    scheme = LabelScheme.from_labels(["LOC", "PER"], name)
    crf = LinearChainCRF(scheme)
    rows = [
        scheme.to_tag_ids([Span(0, 2, "PER"), Span(3, 4, "LOC")], 5),
        scheme.to_tag_ids([Span(0, 1, "LOC")], 2) + [0] * 3,
    ]
    tags, lengths = torch.tensor(rows), torch.tensor([5, 2])
    emissions = torch.zeros(2, 5, len(scheme.tags), requires_grad=True)
    flags = torch.tensor([True, False]), torch.tensor([True, False])
    optimizer = torch.optim.Adam([*crf.parameters(), emissions], lr=0.5)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = -crf.log_likelihood(emissions, tags, lengths, *flags).sum()
        loss.backward()
        assert all(torch.isfinite(p.grad).all() for p in [*crf.parameters(), emissions])
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.05 < losses[0]
    assert emissions.grad[1, 2:].abs().max() == 0  # padding does not matter


def test_log_likelihood_gradient_equals_numerical_differences():
    scheme = LabelScheme.from_labels(["PER"], "BIO")
    crf = build_crf(scheme)
    tags, lengths = torch.tensor([[1, 2, 0], [0, 1, 0]]), torch.tensor([3, 2])
    flags = torch.tensor([True, False]), torch.tensor([False, True])
    emissions = torch.randn(2, 3, 3, generator=torch.Generator().manual_seed(0)).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda e: crf.log_likelihood(e, tags, lengths, *flags), (emissions,))


def test_legality_is_not_saved_with_the_scores():
    state = LinearChainCRF(LabelScheme.from_labels(["PER"])).state_dict()
    assert set(state) == {"transitions", "start", "end"}
    assert all(torch.isfinite(value).all() for value in state.values())


@pytest.mark.parametrize(("starts", "ends"), itertools.product([True, False], repeat=2))
def test_expected_log_likelihood_equals_enumeration_over_sequences_of_independent_words(starts, ends):
    scheme = LabelScheme.from_labels(["PER"], "IO")  # in which everything is legal
    crf = build_crf(scheme)
    emissions, lengths = random_batch(len(scheme.tags), pad_with=7.0)
    generator = torch.Generator().manual_seed(3)
    shares = torch.rand(*emissions.shape, generator=generator).double().softmax(dim=2)
    flags = torch.full((len(LENGTHS),), starts), torch.full((len(LENGTHS),), ends)
    found = crf.expected_log_likelihood(emissions, shares, lengths, *flags)
    for row, length in enumerate(LENGTHS):
        scores = enumerate_scores(emissions[row, :length], crf.chain, starts, ends)
        log_z = sum_log(scores.values())
        expected = sum(
            torch.stack([shares[row, word, tag] for word, tag in enumerate(tags)]).prod().item() * (score - log_z)
            for tags, score in scores.items()
        )
        assert found[row].item() == pytest.approx(expected)


def test_expected_log_likelihood_is_finite_where_neighbours_would_be_illegal():
    scheme = LabelScheme.from_labels(["PER"], "BIO")
    crf = build_crf(scheme)
    emissions, lengths = random_batch(len(scheme.tags))
    emissions.requires_grad_()
    shares = torch.full_like(emissions, 1 / len(scheme.tags))
    flags = (torch.ones(len(LENGTHS), dtype=torch.bool),) * 2
    crf.expected_log_likelihood(emissions, shares, lengths, *flags).sum().backward()
    assert emissions.grad.isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in crf.parameters())
