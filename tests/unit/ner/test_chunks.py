"""Cutting documents in chunks, and passes over them: every word once, few steps, the same as word by word."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.ner import chunks
from pipelines.ner.chunks import Pass, Recursion, cut_documents

SIZES = {
    "lengths": st.lists(st.integers(0, 40), min_size=1, max_size=8),
    "chunk_words": st.integers(1, 7),
    "slab_words": st.integers(1, 50),
}


@pytest.fixture
def set_sizes(monkeypatch):
    def set_all(chunk_words, slab_words, rounds=16):
        monkeypatch.setattr(chunks, "CHUNK_WORDS", chunk_words)
        monkeypatch.setattr(chunks, "MAX_SLAB_WORDS", slab_words)
        monkeypatch.setattr(chunks, "MAX_ROUNDS", rounds)

    return set_all


def build_decay(factor, steps=None):
    """A state that is its own input plus a share of the state before: forgets at once, slowly or never."""

    def combine(heard_KC, inputs_KC):
        if steps is not None:
            steps.append(heard_KC.shape[1])
        return heard_KC + inputs_KC

    return Recursion(combine, lambda state_KC: state_KC * factor, neutral=0.0, rtol=1e-13, atol=1e-13)


def run_word_by_word(values_N, lengths, factor, edge, backward):
    expected = []
    for document in np.split(values_N, np.cumsum(lengths)[:-1]):
        heard, states = edge, []
        for value in document[::-1] if backward else document:
            states.append(heard + value.item())
            heard = states[-1] * factor
        expected += states[::-1] if backward else states
    return np.array(expected, dtype=float)


def run_in_chunks(values_N, lengths, recursion, edge, backward):
    """States from the run and from the recall, each `[N]`."""

    def load(part):
        return values_N[part.index()[0].clip(max=len(values_N) - 1)][:, None, :]

    slabs = cut_documents(np.array(lengths))
    run = Pass(recursion, slabs, load, np.array([edge]), backward)
    found = [(part, states.copy()) for part, states in run.run()]
    states_N, recalled_N = np.full_like(values_N, np.nan), np.full_like(values_N, np.nan)
    for part, states in found:
        words, reached = part.index()
        states_N[words[reached]] = states[:, 0][reached]
        recalled_N[words[reached]] = run.recall(part)[:, 0][reached]
    return states_N, recalled_N


@settings(max_examples=60, deadline=None)
@given(**SIZES)
def test_chunks_hold_every_word_once_and_know_their_neighbours(lengths, chunk_words, slab_words):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunks, "CHUNK_WORDS", chunk_words)
        patch.setattr(chunks, "MAX_SLAB_WORDS", slab_words)
        slabs = cut_documents(np.array(lengths))
    starts = [sum(lengths[:i]) for i in range(len(lengths))]
    seen = []
    for slab in slabs:
        words, reached = slab.index()
        seen += sorted(words[reached].tolist())
        assert slab.lengths_C.tolist() == sorted(slab.lengths_C.tolist(), reverse=True)
        assert 1 <= slab.lengths_C.min() <= slab.lengths_C.max() <= chunk_words
        position, column = slab.locate(words[reached])
        assert np.array_equal(words[position, column], words[reached])
        assert np.array_equal(slab.contains(np.arange(-1, sum(lengths) + 1)).nonzero()[0] - 1, np.sort(words[reached]))
        for i, first in enumerate(slab.first_C.tolist()):
            length, document = int(slab.lengths_C[i]), int(slab.document_C[i])
            assert bool(slab.opens_C[i]) == (first == starts[document])
            assert bool(slab.closes_C[i]) == (first + length == starts[document] + lengths[document])
            before, after = int(slab.before_C[i]), int(slab.after_C[i])
            if before >= 0:
                assert int(slab.first_C[before] + slab.lengths_C[before]) == first
            if after >= 0:
                assert int(slab.first_C[after]) == first + length
            assert before >= 0 or slab.opens_C[i] or first == words.min()
            assert after >= 0 or slab.closes_C[i] or first + length - 1 == words[reached].max()
    assert seen == list(range(sum(lengths)))


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("factor", [0.0, 0.1, 0.9, 1.0])
@pytest.mark.parametrize("rounds", [0, 2, 16])
@settings(max_examples=15, deadline=None)
@given(**SIZES)
def test_a_pass_in_chunks_equals_the_pass_word_by_word(backward, factor, rounds, lengths, chunk_words, slab_words):
    values_N = np.random.default_rng(sum(lengths)).standard_normal(sum(lengths))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunks, "CHUNK_WORDS", chunk_words)
        patch.setattr(chunks, "MAX_SLAB_WORDS", slab_words)
        patch.setattr(chunks, "MAX_ROUNDS", rounds)
        states_N, recalled_N = run_in_chunks(values_N, lengths, build_decay(factor), 5.0, backward)
    expected_N = run_word_by_word(values_N, lengths, factor, 5.0, backward)
    assert np.allclose(states_N, expected_N, rtol=0, atol=1e-11)
    assert np.allclose(recalled_N, expected_N, rtol=0, atol=1e-11)


@pytest.mark.parametrize("backward", [False, True])
def test_a_long_document_takes_no_more_steps_than_a_chunk_and_its_guess(backward):
    steps = []
    run_in_chunks(np.ones(50_000), [50_000], build_decay(0.1, steps), 1.0, backward)
    assert len(steps) == chunks.CHUNK_WORDS * 3 // 2
    assert sum(steps) < 50_000 * 1.6


@pytest.mark.parametrize("backward", [False, True])
def test_a_chain_that_never_forgets_is_not_run_again_and_again(backward, set_sizes):
    set_sizes(chunk_words=4, slab_words=100_000, rounds=3)
    steps = []
    states_N, _ = run_in_chunks(np.ones(4_000), [4_000], build_decay(1.0, steps), 0.0, backward)
    expected_N = np.arange(1, 4_001, dtype=float)
    assert np.array_equal(states_N, expected_N[::-1] if backward else expected_N)
    assert sum(steps) <= 4_000 * 6  # the guess, the first run, three rounds, and chunk by chunk


def test_what_is_not_a_number_does_not_keep_a_pass_from_its_end(set_sizes):
    set_sizes(chunk_words=3, slab_words=100)
    values_N = np.ones(200)
    values_N[50] = np.nan
    states_N, _ = run_in_chunks(values_N, [200], build_decay(0.5), 0.0, backward=False)
    assert np.isfinite(states_N[:50]).all()
    assert np.isnan(states_N[50:]).all()
