"""Decoding against enumeration and word by word: the best legal tags, the exact probability of each entity."""

import itertools
import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.ner import chunks, decoding
from pipelines.ner.crf import Chain, LinearChainCRF, build_legal_chain
from pipelines.ner.decoding import Decoder
from pipelines.ner.entities import Span
from pipelines.ner.labels import SCHEMES, LabelScheme, count_illegal_tags, read_spans
from tests.unit.ner import sequential

FEW_TAGS = [(name, ["PER"]) for name in SCHEMES] + [
    ("BIO", ["LOC", "PER"]),
    ("IOB1", ["LOC", "PER"]),
    ("IO", ["LOC", "PER"]),
]


def build_decoder(name, labels, learned, seed=0):
    scheme = LabelScheme.from_labels(labels, name)
    if not learned:
        return Decoder(scheme, build_legal_chain(scheme))
    crf = LinearChainCRF(scheme)
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in crf.parameters():
            parameter.normal_()
    return Decoder(scheme, crf.chain)


def random_emissions(num_words, num_tags, seed, scale=2.0):
    return torch.randn(num_words, num_tags, generator=torch.Generator().manual_seed(seed)) * scale


def enumerate_legal(emissions_WK, decoder):
    """{legal tags: score}, the scores straight from the raw emissions and the chain."""
    chain: Chain = decoder.chain
    rows, steps = emissions_WK.double().tolist(), chain.transitions_KK.tolist()
    starts, ends = chain.start_K.tolist(), chain.end_K.tolist()
    scores = {}
    for tags in itertools.product(range(len(decoder.scheme.tags)), repeat=len(rows)):
        score = starts[tags[0]] + ends[tags[-1]] + sum(row[tag] for row, tag in zip(rows, tags, strict=True))
        score += sum(steps[a][b] for a, b in itertools.pairwise(tags))
        if score > -math.inf:
            scores[tags] = score
    return scores


def spans_of(tags, decoder):
    return [
        (s.start, s.end, s.label) for s in read_spans([decoder.scheme.tags[tag] for tag in tags], decoder.scheme.name)
    ]


@pytest.mark.parametrize(("name", "labels"), FEW_TAGS)
@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("num_words", [1, 2, 3, 5])
def test_spans_are_those_of_the_best_legal_tags_with_their_exact_probability(name, labels, learned, num_words):
    decoder = build_decoder(name, labels, learned)
    num_tags = len(decoder.scheme.tags)
    for seed in range(3 if num_words < 5 else 1):
        emissions = random_emissions(num_words, num_tags, seed)
        scores = enumerate_legal(emissions, decoder)
        top = max(scores.values())
        weights = {tags: math.exp(score - top) for tags, score in scores.items()}
        total = sum(weights.values())
        (found,) = decoder.decode([emissions])
        assert [(s.start, s.end, s.label) for s in found] == spans_of(max(scores, key=scores.get), decoder)
        for span in found:
            having = [w for tags, w in weights.items() if (span.start, span.end, span.label) in spans_of(tags, decoder)]
            assert span.score == pytest.approx(sum(having) / total, abs=1e-9)


def test_an_iob1_entity_counts_both_of_its_spellings():
    decoder = build_decoder("IOB1", ["PER"], learned=False)
    ids = decoder.scheme.ids
    emissions = torch.zeros(2, 3)  # 7 legal sequences: of B- only `I-PER B-PER`
    emissions[1, ids["I-PER"]] = 1.0
    emissions[0, ids["O"]] = 0.5
    (found,) = decoder.decode([emissions])
    scores = enumerate_legal(emissions, decoder)
    total = sum(map(math.exp, scores.values()))
    having = [math.exp(score) for tags, score in scores.items() if (1, 2, "PER") in spans_of(tags, decoder)]
    assert len(having) == 2
    assert [(s.start, s.end) for s in found] == [(1, 2)]
    assert found[0].score == pytest.approx(sum(having) / total, abs=1e-9)


@pytest.mark.parametrize("name", SCHEMES)
@pytest.mark.parametrize("learned", [False, True])
@settings(max_examples=25)
@given(
    lengths=st.lists(st.integers(0, 30), max_size=5),
    seed=st.integers(0, 10_000),
    scale=st.sampled_from([0.1, 3.0, 1e4]),
)
def test_spans_are_in_order_disjoint_legal_and_scored_as_probabilities(name, learned, lengths, seed, scale):
    decoder = build_decoder(name, ["LOC", "ORG", "PER"], learned)
    num_tags = len(decoder.scheme.tags)
    documents = [random_emissions(length, num_tags, seed + i, scale) for i, length in enumerate(lengths)]
    decoded = decoder.decode(documents)
    assert len(decoded) == len(lengths)
    for spans, length in zip(decoded, lengths, strict=True):
        assert all(0 <= s.start < s.end <= length and 0 <= s.score <= 1 for s in spans)
        assert all(a.end <= b.start for a, b in itertools.pairwise(spans))
        tags = decoder.scheme.to_tags(spans, length)
        assert count_illegal_tags(tags, name) == 0
        assert [Span(s.start, s.end, s.label) for s in spans] == read_spans(tags, name)


@pytest.mark.parametrize(("name", "learned"), [("BIO", False), ("BIOES", True), ("IOB1", True)])
def test_what_else_is_in_the_batch_does_not_change_an_answer(name, learned):
    decoder = build_decoder(name, ["LOC", "PER"], learned)
    documents = [random_emissions(n, len(decoder.scheme.tags), n) for n in (40, 1, 7, 0, 23, 7, 90)]
    together = decoder.decode(documents)
    alone = [decoder.decode([document])[0] for document in documents]
    backwards = decoder.decode(documents[::-1])[::-1]
    for spans, single, reverse in zip(together, alone, backwards, strict=True):
        for other in (single, reverse):
            assert [(s.start, s.end, s.label) for s in spans] == [(s.start, s.end, s.label) for s in other]
            assert [s.score for s in spans] == pytest.approx([s.score for s in other], abs=1e-9)


def test_documents_without_words_have_no_spans():
    decoder = build_decoder("BIO", ["PER"], learned=True)
    assert decoder.decode([]) == []
    assert decoder.decode([torch.empty(0, 3), torch.empty(0, 3)]) == [[], []]
    between = decoder.decode([torch.empty(0, 3), torch.tensor([[0.0, 9.0, 0.0]]), torch.empty(0, 3)])
    assert [len(spans) for spans in between] == [0, 1, 0]


def test_certain_emissions_give_a_score_near_one_and_even_ones_the_share_of_sequences():
    decoder = build_decoder("BIO", ["PER"], learned=False)
    certain = torch.tensor([[0.0, 50.0, 0.0], [0.0, 0.0, 50.0], [50.0, 0.0, 0.0]])
    assert decoder.decode([certain])[0] == [Span(0, 2, "PER", pytest.approx(1.0))]
    slight = torch.tensor([[0.0, 1e-6, 0.0]])
    assert decoder.decode([slight])[0] == [Span(0, 1, "PER", pytest.approx(0.5, abs=1e-5))]


def test_a_document_of_20_000_words_is_decoded_whole():
    decoder = build_decoder("BIO", ["LOC", "PER"], learned=True)
    emissions = random_emissions(20_000, 5, 0)
    emissions[19_998:] = torch.tensor([[0.0, 0, 0, 0, 30.0], [30.0, 0, 0, 0, 0]])
    ids = decoder.scheme.ids
    emissions[19_997] = 0
    emissions[19_997, ids["B-PER"]] = 30.0
    (spans,) = decoder.decode([emissions])
    assert (spans[-1].start, spans[-1].end, spans[-1].label) == (19_997, 19_999, "PER")
    assert spans[-1].score == pytest.approx(1.0, abs=1e-6)
    (head,) = decoder.decode([emissions[:200]])
    early = [s for s in head if s.end < 150]  # far from where the short copy ends, both agree
    assert [(s.start, s.end, s.label) for s in early] == [(s.start, s.end, s.label) for s in spans[: len(early)]]
    assert [s.score for s in early] == pytest.approx([s.score for s in spans[: len(early)]], abs=1e-9)


def test_low_precision_emissions_are_decoded_in_double():
    decoder = build_decoder("BIO", ["PER"], learned=True)
    emissions = random_emissions(12, 3, 5).bfloat16()
    exact = decoder.decode([emissions.double()])
    assert decoder.decode([emissions]) == exact
    assert decoder.chain.transitions_KK.dtype == torch.double


def assert_equal_spans(found, expected, tolerance=1e-9):
    assert [(s.start, s.end, s.label) for s in found] == [(s.start, s.end, s.label) for s in expected]
    assert [s.score for s in found] == pytest.approx([s.score for s in expected], abs=tolerance)


@pytest.mark.parametrize("name", SCHEMES)
@pytest.mark.parametrize("learned", [False, True])
@settings(max_examples=10, deadline=None)
@given(data=st.data())
def test_documents_of_any_length_equal_the_oracle(name, learned, data):
    lengths = data.draw(st.lists(st.integers(0, 40), max_size=5) | st.just([400]))
    seed = data.draw(st.integers(0, 1000))
    decoder = build_decoder(name, ["LOC", "PER"], learned, seed)
    scale = data.draw(st.sampled_from([0.1 if learned else 0.0, 3.0, 1e4]))
    documents = [random_emissions(n, len(decoder.scheme.tags), seed + i, scale) for i, n in enumerate(lengths)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunks, "CHUNK_WORDS", data.draw(st.sampled_from([1, 3, 8, 64])))
        patch.setattr(chunks, "MAX_SLAB_WORDS", data.draw(st.sampled_from([10, 65_536])))
        patch.setattr(decoding, "MAX_SLAB_WORDS", data.draw(st.sampled_from([25, 65_536])))
        patch.setattr(decoding, "MAX_BLOCK_ENTITIES", data.draw(st.sampled_from([1, 7, 32_768])))
        decoded = decoder.decode(documents)
    tolerance = 1e-9 if scale < 1e4 else 1e-7  # the oracle's scores add up over the document, and so does rounding
    for found, document in zip(decoded, documents, strict=True):
        assert_equal_spans(found, sequential.decode(document, decoder.scheme, decoder.chain), tolerance)


@pytest.mark.parametrize("name", SCHEMES)
@settings(max_examples=50)
@given(data=st.data())
def test_tags_of_a_batch_are_read_as_read_spans_reads_each_document(name, data):
    decoder = build_decoder(name, ["LOC", "PER"], learned=False)
    tags = decoder.scheme.tags
    documents = data.draw(st.lists(st.lists(st.integers(0, len(tags) - 1), max_size=12), min_size=1, max_size=5))
    joined = [tag for document in documents for tag in document]
    if not joined:
        return
    lengths = [len(document) for document in documents]
    mentions = decoder._read_mentions(np.array(joined), np.array(lengths))
    found = zip(mentions.first_E.tolist(), mentions.last_E.tolist(), strict=True)
    expected, begin = [], 0
    for document in documents:
        spans = read_spans([tags[tag] for tag in document], name)
        expected += [(begin + span.start, begin + span.end - 1, span.label) for span in spans]
        begin += len(document)
    assert [(first, last, decoder.scheme.parsed[joined[last]][1]) for first, last in found] == expected
    begins = [sum(lengths[:i]) for i, length in enumerate(lengths) if length]
    assert mentions.opens_E.tolist() == [first in begins for first in mentions.first_E.tolist()]
    assert mentions.closes_E.tolist() == [last + 1 in [*begins, len(joined)] for last in mentions.last_E.tolist()]


def test_a_document_of_several_slabs_has_the_scores_of_the_oracle():
    decoder = build_decoder("BIOES", ["LOC", "PER"], learned=True)
    emissions = random_emissions(3_000, 9, 4, scale=3.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunks, "MAX_SLAB_WORDS", 512)
        patch.setattr(decoding, "MAX_BLOCK_ENTITIES", 100)
        (found,) = decoder.decode([emissions])
    assert len(found) > 200
    assert_equal_spans(found, sequential.decode(emissions, decoder.scheme, decoder.chain))


def test_threads_share_a_decoder():
    decoder = build_decoder("BIO", ["LOC", "PER"], learned=True)
    batches = [[random_emissions(n, 5, n + i) for n in (30, 200, 5)] for i in range(24)]
    alone = [decoder.decode(batch) for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(decoder.decode, batches)) == alone


def test_emissions_that_are_still_part_of_a_graph_are_decoded():
    decoder = build_decoder("BIO", ["PER"], learned=True)
    emissions = random_emissions(20, 3, 1)
    assert decoder.decode([emissions.clone().requires_grad_() * 1.0]) == decoder.decode([emissions])


@pytest.mark.parametrize(("name", "learned"), itertools.product(["BIO", "BIOES", "IOB1"], [True, False]))
def test_marginals_are_the_shares_of_the_legal_sequences(name, learned):
    decoder = build_decoder(name, ["PER"], learned)
    documents = [random_emissions(length, len(decoder.scheme.tags), seed) for seed, length in enumerate([4, 1, 0, 3])]
    found = decoder.find_marginals(documents)
    assert [one.shape for one in decoder.find_marginals(documents[2:3] * 2)] == [(0, len(decoder.scheme.tags))] * 2
    for emissions_WK, marginals_WK in zip(documents, found, strict=True):
        assert marginals_WK.shape == tuple(emissions_WK.shape)
        scores = enumerate_legal(emissions_WK, decoder) if len(emissions_WK) else {}
        total = sum(map(math.exp, scores.values()))
        for word, tag in itertools.product(*map(range, marginals_WK.shape)):
            share = sum(math.exp(score) for tags, score in scores.items() if tags[word] == tag) / total
            assert marginals_WK[word, tag] == pytest.approx(share, abs=1e-9)


def test_temperatures_scale_the_scores_of_their_label_alone():
    decoder = build_decoder("BIO", ["LOC", "PER"], True)
    scaled = Decoder(decoder.scheme, decoder.chain, {"PER": 2.0})
    documents = [random_emissions(9, len(decoder.scheme.tags), seed) for seed in range(6)]
    before_and_after = (itertools.chain(*one.decode(documents)) for one in (decoder, scaled))
    pairs = list(zip(*before_and_after, strict=True))
    assert {before.label for before, _ in pairs} == {"LOC", "PER"}
    for before, after in pairs:
        assert (before.start, before.end, before.label) == (after.start, after.end, after.label)
        expected = 1 / (1 + math.sqrt((1 - before.score) / before.score)) if before.label == "PER" else before.score
        assert after.score == pytest.approx(expected)
