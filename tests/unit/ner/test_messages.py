"""Best tags and messages of a chain against enumeration of all sequences, and against the word-by-word oracle."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.ner import chunks
from pipelines.ner.crf import Chain, build_legal_chain
from pipelines.ner.labels import SCHEMES, LabelScheme
from pipelines.ner.messages import Messages, Recursions, find_best_tags
from tests.unit.ner import sequential

FEW_TAGS = [(name, ["PER"]) for name in SCHEMES] + [("BIO", ["LOC", "PER"]), ("IO", ["LOC", "PER"])]


def build_chain(scheme, draw=None):
    """The legal chain in double, with scores added that `draw` gives for a shape."""
    legal = [scores.double() for scores in vars(build_legal_chain(scheme)).values()]
    return Chain(*(scores + draw(scores.shape) if draw else scores for scores in legal))


def build_random_chain(scheme, seed=0, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return build_chain(scheme, lambda shape: torch.randn(shape, generator=generator).double() * scale)


def random_emissions(num_words, num_tags, seed=1, scale=2.0):
    return torch.randn(num_words, num_tags, generator=torch.Generator().manual_seed(seed)) * scale


def list_marginals(emissions_NK, lengths, chain):
    """`[N, K]` probabilities of each tag, and the log-partition of each document, from the messages."""
    messages = Messages(emissions_NK.numpy(), np.array(lengths), Recursions(chain))
    words_N = np.arange(len(emissions_NK))
    top_N1 = emissions_NK.double().amax(dim=1, keepdim=True)
    forward_NK, backward_NK = (
        torch.from_numpy(found_NK) for found_NK in (messages.from_before(words_N), messages.from_behind(words_N))
    )
    marginals_NK = (forward_NK + backward_NK - (emissions_NK.double() - top_N1)).softmax(dim=1)
    scales = (torch.from_numpy(messages.log_scales_N) + top_N1.squeeze(1)).split(lengths)
    ends = [end - 1 for end in itertools.accumulate(lengths)]
    closing = [(forward_NK[end].log_softmax(dim=0) + chain.end_K).logsumexp(dim=0).item() for end in ends]
    return marginals_NK, [part.sum().item() + last for part, last in zip(scales, closing, strict=True)]


def assert_equal_to_oracle(emissions_NK, lengths, chain, same_path=True):
    best = find_best_tags(emissions_NK, torch.tensor(lengths), chain).split(lengths)
    marginals, partitions = list_marginals(emissions_NK, lengths, chain)
    documents = emissions_NK.double().split(lengths)
    for own_WK, tags, marginals_WK, partition in zip(
        documents, best, marginals.split(lengths), partitions, strict=True
    ):
        expected = sequential.find_best_tags(own_WK, chain)
        if same_path:
            assert tags.tolist() == expected
        score = sequential.score_tags(tags.tolist(), own_WK, chain)
        assert score == pytest.approx(sequential.score_tags(expected, own_WK, chain), rel=1e-12, abs=1e-9)
        alpha_WK, beta_WK, log_z = sequential.run_forward_backward(own_WK, chain)
        rounding = 1e-14 * abs(log_z.item())  # of the oracle, whose scores add up over the document
        assert torch.allclose(marginals_WK, (alpha_WK + beta_WK - log_z).exp(), rtol=0, atol=1e-9 + rounding)
        assert partition == pytest.approx(log_z.item(), rel=1e-12, abs=1e-9)


@pytest.mark.parametrize(("name", "labels"), FEW_TAGS)
@pytest.mark.parametrize("learned", [True, False])
def test_best_tags_partition_and_marginals_equal_enumeration(name, labels, learned):
    scheme = LabelScheme.from_labels(labels, name)
    chain = build_random_chain(scheme) if learned else build_chain(scheme)
    lengths = [5, 1, 3, 2, 4]
    emissions_NK = random_emissions(sum(lengths), len(scheme.tags)).double()
    best = find_best_tags(emissions_NK, torch.tensor(lengths), chain).split(lengths)
    marginals, partitions = list_marginals(emissions_NK, lengths, chain)
    for row, (own_WK, marginals_WK) in enumerate(
        zip(emissions_NK.split(lengths), marginals.split(lengths), strict=True)
    ):
        sequences = list(itertools.product(range(len(scheme.tags)), repeat=len(own_WK)))
        scores = dict(zip(sequences, (sequential.score_tags(tags, own_WK, chain) for tags in sequences), strict=True))
        assert tuple(best[row].tolist()) == max(scores, key=scores.get)
        top = max(scores.values())
        weights = {tags: math.exp(score - top) for tags, score in scores.items()}
        total = sum(weights.values())
        assert partitions[row] == pytest.approx(math.log(total) + top, abs=1e-9)
        for word, tag in itertools.product(range(len(own_WK)), range(len(scheme.tags))):
            having = sum(weight for tags, weight in weights.items() if tags[word] == tag)
            assert marginals_WK[word, tag].item() == pytest.approx(having / total, abs=1e-9)


def test_ties_go_to_the_lower_tag_index():
    chain = build_chain(LabelScheme.from_labels(["PER"], "IO"))
    assert find_best_tags(torch.zeros(4, 2), torch.tensor([4]), chain).tolist() == [0, 0, 0, 0]


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_any_documents_in_any_chunks_equal_the_oracle(data):
    scheme = LabelScheme.from_labels(["LOC", "PER"], data.draw(st.sampled_from(sorted(SCHEMES))))
    lengths = data.draw(st.lists(st.integers(1, 60), min_size=1, max_size=4) | st.just([400]))
    seed = data.draw(st.integers(0, 1000))
    chain = build_random_chain(scheme, seed, data.draw(st.sampled_from([0.0, 1.0, 10.0, 300.0])))
    scale = data.draw(st.sampled_from([0.01, 2.0, 30.0, 1e4]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunks, "CHUNK_WORDS", data.draw(st.sampled_from([1, 2, 5, 16, 64])))
        patch.setattr(chunks, "MAX_SLAB_WORDS", data.draw(st.sampled_from([7, 50, 1000])))
        patch.setattr(chunks, "MAX_ROUNDS", data.draw(st.sampled_from([0, 2, 16])))
        assert_equal_to_oracle(random_emissions(sum(lengths), len(scheme.tags), seed, scale), lengths, chain)


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_ties_are_broken_as_word_by_word(data):
    """Small whole and half numbers add without rounding, so that equal scores are equal."""
    scheme = LabelScheme.from_labels(["LOC", "PER"], data.draw(st.sampled_from(sorted(SCHEMES))))
    lengths = data.draw(st.lists(st.integers(1, 60), min_size=1, max_size=4))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 1000)))
    levels = data.draw(st.sampled_from([1, 2, 3]))

    def draw(shape):
        return torch.randint(levels, shape, generator=generator).double() / 2

    chain = build_chain(scheme, draw if data.draw(st.booleans()) else None)
    emissions_NK = draw((sum(lengths), len(scheme.tags)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunks, "CHUNK_WORDS", data.draw(st.sampled_from([1, 2, 5, 16, 64])))
        patch.setattr(chunks, "MAX_SLAB_WORDS", data.draw(st.sampled_from([7, 1000])))
        best = find_best_tags(emissions_NK, torch.tensor(lengths), chain).split(lengths)
    for own_WK, tags in zip(emissions_NK.split(lengths), best, strict=True):
        assert tags.tolist() == sequential.find_best_tags(own_WK, chain)


@pytest.mark.parametrize("name", SCHEMES)
@pytest.mark.parametrize("broken", [(), (1,), (0, 3), (0, 1, 2, 3, 4)])
def test_documents_whose_best_tags_break_a_rule_are_mended_among_others_that_are_kept(name, broken):
    """All words prefer the first tag, which is legal everywhere, but for the last word of a broken document."""
    scheme = LabelScheme.from_labels(["LOC", "PER"], name)
    chain = build_chain(scheme)
    chain.end_K[-1] = -torch.inf
    lengths = [5, 1, 0, 70, 8]
    emissions_NK = random_emissions(sum(lengths), len(scheme.tags), scale=0.1)
    emissions_NK[:, 0] += 2.0
    for document in broken:
        if lengths[document]:
            emissions_NK[sum(lengths[: document + 1]) - 1, -1] += 4.0
    best = find_best_tags(emissions_NK, torch.tensor(lengths), chain).split(lengths)
    for document, (own_WK, tags) in enumerate(zip(emissions_NK.split(lengths), best, strict=True)):
        if lengths[document]:
            assert tags.tolist() == sequential.find_best_tags(own_WK.double(), chain)
            assert (tags.tolist() == own_WK.argmax(dim=1).tolist()) == (document not in broken)


@pytest.mark.parametrize("reluctance", [20.0, 39.0, 1000.0])
@pytest.mark.parametrize("learns_at", ["first", "last"])
def test_what_one_word_says_reaches_the_other_end_of_a_chain_that_does_not_forget(reluctance, learns_at):
    scheme = LabelScheme.from_labels(["LOC", "PER"], "IO")
    chain = build_chain(scheme, lambda shape: (torch.eye(3).double() - 1) * reluctance if len(shape) == 2 else 0)
    emissions_NK = torch.zeros(1_500, 3)
    emissions_NK[0 if learns_at == "first" else -1, 2] = 3.0
    assert find_best_tags(emissions_NK, torch.tensor([1_500]), chain).tolist() == [2] * 1_500
    assert_equal_to_oracle(emissions_NK, [1_500], chain)


@pytest.mark.parametrize("name", SCHEMES)
@pytest.mark.parametrize("gap", [50.0, 59.0, 61.0, 1000.0])
def test_very_unlikely_tags_do_not_underflow(name, gap):
    """Each word insists on a tag that may not follow the last, so that only what all words reject remains."""
    scheme = LabelScheme.from_labels(["LOC", "PER"], name)
    generator = torch.Generator().manual_seed(0)
    emissions_NK = random_emissions(300, len(scheme.tags), scale=0.5)
    emissions_NK[torch.arange(300), torch.randint(len(scheme.tags), (300,), generator=generator)] += gap
    assert_equal_to_oracle(emissions_NK.clamp(max=gap), [200, 100], build_chain(scheme))
    assert_equal_to_oracle(emissions_NK.clamp(max=gap), [200, 100], build_random_chain(scheme, scale=8.0), False)


def test_tags_that_lead_nowhere_take_no_probability():
    scheme = LabelScheme("BIOES", ("O", "B-PER", "I-PER"))  # an entity can begin and go on, but not end
    emissions_NK = torch.tensor([[0.0, 50.0, 50.0]]).repeat(200, 1)
    assert_equal_to_oracle(emissions_NK, [200], build_chain(scheme))
    marginals, _ = list_marginals(emissions_NK, [200], build_chain(scheme))
    assert torch.equal(marginals, torch.tensor([[1.0, 0.0, 0.0]]).double().repeat(200, 1))


@pytest.mark.parametrize("shift", [-800.0, 30.0, 800.0])
def test_what_is_added_to_all_transitions_changes_no_probability(shift):
    scheme = LabelScheme.from_labels(["PER"])
    chain, emissions_NK = build_random_chain(scheme), random_emissions(200, 3)
    shifted = Chain(chain.transitions_KK + shift, chain.start_K, chain.end_K)
    assert_equal_to_oracle(emissions_NK, [150, 50], shifted)
    found, expected = (list_marginals(emissions_NK, [150, 50], either)[0] for either in (shifted, chain))
    assert torch.allclose(found, expected, rtol=0, atol=1e-9)


def test_an_impossible_emission_takes_no_probability():
    scheme = LabelScheme.from_labels(["PER"])
    emissions_NK = random_emissions(150, 3)
    emissions_NK[70:80, 0] = -torch.inf
    best = find_best_tags(emissions_NK, torch.tensor([150]), build_chain(scheme))
    assert best.tolist() == sequential.find_best_tags(emissions_NK.double(), build_chain(scheme))
    assert (best[70:80] > 0).all()


def test_a_word_that_is_not_a_number_is_read_to_the_end():
    emissions_NK = random_emissions(300, 3)
    emissions_NK[100] = torch.nan
    best = find_best_tags(emissions_NK, torch.tensor([300]), build_chain(LabelScheme.from_labels(["PER"])))
    assert ((best >= 0) & (best < 3)).all()
