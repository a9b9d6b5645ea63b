"""Against torch's own counter of operations, and the loop's own batches."""

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForTokenClassification

from pipelines.ner.encoders import load_tokenizer
from pipelines.ner.encoding import Encoder
from pipelines.planning import cost, lengths
from pipelines.planning.architecture import convert_config, read_architecture
from pipelines.planning.cost import Load, TrainingSetup, count_operations
from pipelines.planning.lengths import Lengths, divide_batch, draw_steps
from pipelines.training import batches, forward
from pipelines.training.batches import BatchPlan

histograms = st.dictionaries(st.integers(3, 256), st.integers(1, 40), min_size=1, max_size=30)


def count_flops(architecture, lengths, num_tags=9):
    """Of all windows, each once, without padding, all sub-tokens up to the classifier."""
    load = Load(lengths.num_tokens, lengths.num_windows, lengths.sum_of_squares, 1, lengths.longest, lengths.num_tokens)
    return count_operations(architecture, load, num_tags).total


def test_flops_are_those_that_torch_counts(config):
    """With eager attention: of the fused kernels of a CPU torch counts none."""
    network = AutoModelForTokenClassification.from_config(config, attn_implementation="eager").eval()
    ids = torch.randint(5, 100, (3, 17))
    with FlopCounterMode(display=False) as counter:
        network(ids, attention_mask=torch.ones_like(ids))
    assert count_flops(convert_config(config), Lengths.from_counts({17: 3}), 5) == counter.get_total_flops()


def test_flops_grow_with_squares_where_windows_are_long():
    architecture = read_architecture("scratch")
    short, long = (count_flops(architecture, Lengths.from_counts({n: 512 // n})) for n in (32, 512))
    assert long - short == pytest.approx(2 * 4 * 128 * (512**2 - 16 * 32**2))


@given(histograms, st.integers(64, 4096))
def test_steps_are_cut_as_the_loop_cuts_them(counts, batch_tokens):
    lengths = Lengths.from_counts(counts)
    each = np.repeat(*np.array(lengths.counts).T)
    plan = BatchPlan(each, np.arange(len(each)), batch_tokens=batch_tokens, device_batch_tokens=4096, seed=3)
    ours, theirs = draw_steps(lengths, batch_tokens), plan.plan_epoch(0)
    assert sum(len(step) for step in ours.steps) == len(each)
    assert all(step.sum() <= batch_tokens or len(step) == 1 for step in ours.steps)
    assert abs(ours.num_steps - len(theirs)) <= max(2, 0.1 * len(theirs))


def test_of_a_large_corpus_a_sample_tells_the_number_of_steps():
    lengths = Lengths.from_counts({20: 500_000, 40: 500_000})
    assert draw_steps(lengths, 1024).num_steps == pytest.approx(lengths.num_tokens / 1024, rel=0.03)


@given(histograms, st.integers(256, 8192), st.integers(256, 4096), st.sampled_from([1, 2, 4, 7]))
def test_division_of_a_batch_keeps_its_size_and_fits_the_device(counts, batch_tokens, device_tokens, shares):
    lengths = Lengths.from_counts(counts)
    tokens, accumulation = divide_batch(lengths, batch_tokens, device_tokens, shares)
    assert tokens * accumulation * shares <= batch_tokens or tokens == 1
    assert tokens * accumulation * shares > batch_tokens - accumulation * shares
    assert tokens <= device_tokens + 2 * lengths.longest


def test_division_of_a_batch_is_that_of_the_loop():
    each = np.full(64, 128)
    plan = BatchPlan(each, np.arange(64), batch_tokens=4096, device_batch_tokens=1024, seed=1)
    passes = plan.share(plan.plan_epoch(0)[0], 0, 2)
    tokens, accumulation = divide_batch(Lengths.from_counts({128: 64}), 4096, 1024, 2)
    assert (accumulation, tokens) == (len(passes), 128 * len(passes[0]))


def test_constants_are_those_of_the_training_loop():
    assert lengths.POOL_BATCHES == batches.POOL_BATCHES
    assert (cost.SHORT_WINDOW, cost.LENGTH_STEP) == (forward.SHORT_WINDOW, forward.LENGTH_STEP)


def test_records_longer_than_a_window_become_several():
    exact = Lengths.from_records({"17": 300, "0": 1}, window=256, stride=64, step=1)
    assert dict(exact.counts) == {19: 300, 3: 1}
    lengths = Lengths.from_records({"16": 3, "496": 1}, window=256, stride=64)
    assert lengths.counts == ((26, 3), (126, 1), (256, 2))
    assert lengths.num_windows == 6
    assert lengths.num_tokens == 3 * 26 + 2 * 256 + 126
    assert lengths.sum_of_squares == 3 * 26**2 + 2 * 256**2 + 126**2
    assert lengths.longest == 256


@pytest.mark.parametrize("num_words", [1, 12, 29, 30, 31, 60, 200])
def test_windows_are_those_that_the_encoder_makes(tiny_encoder, num_words):
    encoder = Encoder(load_tokenizer(tiny_encoder), window=32, stride=8, splitter="whitespace")
    encoded = encoder.encode_words(["a"] * num_words)
    expected = Lengths.from_counts(Counter(len(window.input_ids) for window in encoded.windows))
    found = Lengths.from_records({str(encoded.num_tokens): 1}, window=32, stride=8, step=1)
    assert (found.num_windows, found.longest) == (expected.num_windows, expected.longest)
    assert found.num_tokens <= expected.num_tokens  # the last window reaches back
    if found.num_windows == 1:
        assert found == expected


def test_padding_counts_where_there_is_any():
    windows = np.array([10, 20, 30])
    padded, packed = (Load.of(windows, 0.5, is_packed) for is_packed in (False, True))
    assert (padded.num_tokens, padded.sum_of_squares) == (90, 3 * 900)
    assert (packed.num_tokens, packed.sum_of_squares) == (60, 1400)


@pytest.mark.parametrize(
    ("setup", "shares", "slices"),
    [
        (TrainingSetup(), 1, 1),
        (TrainingSetup(num_workers=4), 4, 1),
        (TrainingSetup(num_workers=4, strategy="fsdp"), 4, 4),
        (TrainingSetup(num_workers=4, strategy="tensor"), 1, 4),
        (TrainingSetup(num_workers=4, strategy="pipeline"), 1, 4),
        (TrainingSetup(num_workers=4, strategy="hybrid"), 4, 2),
        (TrainingSetup(num_workers=4, strategy="hybrid", inside="tensor"), 2, 2),
        (TrainingSetup(num_workers=4, strategy="local_sgd"), 4, 1),
    ],
    ids=lambda value: f"{value.strategy}-{value.num_workers}" if isinstance(value, TrainingSetup) else str(value),
)
def test_strategies_divide_batch_and_model(setup, shares, slices):
    assert (setup.num_shares, setup.num_slices) == (shares, slices)
    assert setup.step_tokens == setup.batch_tokens * shares
