"""The plan of batches: every window once an epoch, the same steps whatever the number of workers, little padding."""

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.training.batches import POOL_BATCHES, BatchPlan, TrainingWindows, deal

PLANS = st.fixed_dictionaries(
    {
        "lengths": st.lists(st.integers(1, 60), max_size=80),
        "skipped": st.sets(st.integers(0, 79)),
        "batch_tokens": st.integers(1, 300),
        "device_batch_tokens": st.integers(1, 200),
        "seed": st.integers(0, 2**32 - 1),
    }
)


def make_plan(lengths, skipped, **settings):
    num_tokens = np.array(lengths, dtype=np.int64)
    usable = np.array([index for index in range(len(lengths)) if index not in skipped], dtype=np.int64)
    return BatchPlan(num_tokens, usable, **settings)


def plan_random(num_windows=2000, *, seed=5, batch_tokens=1024, device_batch_tokens=4096):
    num_tokens = np.random.default_rng(0).integers(5, 200, num_windows)
    usable = np.arange(num_windows)
    return BatchPlan(num_tokens, usable, batch_tokens=batch_tokens, device_batch_tokens=device_batch_tokens, seed=seed)


def to_lists(steps):
    return [step.tolist() for step in steps]


@given(PLANS, st.integers(0, 5))
@settings(max_examples=60, deadline=None)
def test_plan_epoch_has_each_usable_window_exactly_once(choices, epoch):
    plan = make_plan(**choices)
    planned = [index for step in to_lists(plan.plan_epoch(epoch)) for index in step]
    assert sorted(planned) == plan.usable.tolist()


@given(PLANS, st.integers(0, 5))
@settings(max_examples=60, deadline=None)
def test_plan_epoch_keeps_the_budget_except_for_a_window_that_is_longer(choices, epoch):
    plan = make_plan(**choices)
    for step in plan.plan_epoch(epoch):
        assert plan.num_tokens[step].sum() <= plan.batch_tokens or len(step) == 1


@given(PLANS, st.integers(1, 7))
@settings(max_examples=60, deadline=None)
def test_shares_of_all_ranks_partition_each_step_for_any_number_of_workers(choices, world_size):
    plan = make_plan(**choices)
    for step in plan.plan_epoch(0):
        shares = [plan.share(step, rank, world_size) for rank in range(world_size)]
        assert sorted(index for share in shares for micro in share for index in micro) == sorted(step.tolist())
        assert len({len(share) for share in shares}) == 1
        for micro in (micro for share in shares for micro in share):
            padded = len(micro) * max(plan.num_tokens[micro], default=0)
            assert padded <= plan.device_batch_tokens or len(micro) <= 1


def test_shares_are_of_neighbours_in_length():
    plan = plan_random(batch_tokens=6000, device_batch_tokens=1500)
    for step in plan.plan_epoch(0):
        order = {window: place for place, window in enumerate(step.tolist())}
        for micro in (micro for rank in range(3) for micro in plan.share(step, rank, 3)):
            places = [order[window] for window in micro]
            assert places == list(range(places[0], places[0] + len(places)))


def test_share_leaves_ranks_empty_when_a_step_has_fewer_windows_than_workers():
    plan = make_plan([30, 10], set(), batch_tokens=30, device_batch_tokens=100, seed=0)
    assert sorted(plan.share(np.array([1]), rank, 3) for rank in range(3)) == [[[]], [[]], [[1]]]


def test_plan_is_the_same_for_the_same_seed_and_epoch():
    assert to_lists(plan_random().plan_epoch(3)) == to_lists(plan_random().plan_epoch(3))


def test_plan_differs_for_another_epoch_and_another_seed():
    steps = to_lists(plan_random().plan_epoch(0))
    assert steps != to_lists(plan_random().plan_epoch(1))
    assert steps != to_lists(plan_random(seed=6).plan_epoch(0))
    assert {tuple(sorted(step)) for step in steps} != {tuple(sorted(step)) for step in plan_random().plan_epoch(1)}


def test_lengths_within_a_batch_are_similar_so_that_little_is_padding():
    plan = plan_random()
    steps = plan.plan_epoch(0)
    padded = sum(len(step) * int(plan.num_tokens[step].max()) for step in steps)
    assert padded / plan.num_tokens.sum() < 1.15
    shuffled = np.random.default_rng(0).permutation(plan.usable)
    batches = np.array_split(shuffled, len(steps))
    unsorted = sum(len(batch) * int(plan.num_tokens[batch].max()) for batch in batches)
    assert padded < unsorted * 0.75


def test_plan_epoch_does_not_go_from_short_to_long():
    plan = plan_random()
    means = np.array([plan.num_tokens[step].mean() for step in plan.plan_epoch(0)])
    assert len(means) > 3 * POOL_BATCHES
    assert abs(np.corrcoef(means, np.arange(len(means)))[0, 1]) < 0.3


def test_plan_epoch_is_empty_when_no_window_is_usable():
    assert make_plan([4, 5], {0, 1}, batch_tokens=8, device_batch_tokens=8, seed=0).plan_epoch(0) == []


def make_windows(rows):
    return TrainingWindows(pa.Table.from_pylist(rows))


ROWS = [
    {
        "record_id": "b:1",
        "input_ids": [2, 11, 12, 13, 3],
        "word_starts": [1, 3],
        "tag_ids": [1, 2],
        "starts_document": True,
        "ends_document": False,
    },
    {
        "record_id": "b:1",
        "input_ids": [2, 14, 3],
        "word_starts": [],
        "tag_ids": [],
        "starts_document": False,
        "ends_document": False,
    },
    {
        "record_id": "a:1",
        "input_ids": [2, 15, 3],
        "word_starts": [1],
        "tag_ids": [4],
        "starts_document": False,
        "ends_document": True,
    },
]


def test_collate_pads_every_field_on_the_right():
    windows = make_windows(ROWS)
    batch = windows.collate([1, 0], pad_id=9)
    assert batch.input_ids_BT.tolist() == [[2, 11, 12, 13, 3], [2, 15, 3, 9, 9]]
    assert batch.attention_mask_BT.tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]
    assert batch.word_starts_BW.tolist() == [[1, 3], [1, 0]]
    assert batch.tag_ids_BW.tolist() == [[1, 2], [4, 0]]
    assert batch.lengths_B.tolist() == [2, 1]
    assert batch.starts_B.tolist() == [True, False]
    assert batch.ends_B.tolist() == [False, True]
    integers = (batch.input_ids_BT, batch.attention_mask_BT, batch.word_starts_BW, batch.tag_ids_BW, batch.lengths_B)
    assert {tensor.dtype for tensor in integers} == {torch.int64}


def test_windows_without_words_are_not_usable():
    windows = make_windows(ROWS)
    assert [windows.record_ids[int(index)].as_py() for index in windows.usable] == ["a:1", "b:1"]
    assert windows.num_words[windows.usable].min() > 0


def test_windows_do_not_depend_on_the_order_of_the_records():
    windows, moved = make_windows(ROWS), make_windows([ROWS[2], ROWS[0], ROWS[1]])
    assert windows.num_tokens.tolist() == moved.num_tokens.tolist() == [3, 5, 3]
    batch, other = (one.collate([0, 1], pad_id=0) for one in (windows, moved))
    pairs = list(zip(vars(batch).values(), vars(other).values(), strict=True))
    assert all(torch.equal(a, b) for a, b in pairs if a is not None or b is not None)


@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_shares_are_balanced_by_sub_tokens_over_an_epoch_and_in_most_steps(world_size):
    plan = plan_random(batch_tokens=6000)
    num_tokens = plan.num_tokens
    tokens = np.array(
        [
            [sum(num_tokens[micro].sum() for micro in plan.share(step, rank, world_size)) for rank in range(world_size)]
            for step in plan.plan_epoch(0)
        ]
    )
    assert tokens.sum(axis=0).max() < 1.03 * tokens.sum(axis=0).mean()
    assert np.median(tokens.max(axis=1) / tokens.mean(axis=1)) < 1.1


def test_windows_sorted_by_length_are_dealt_to_and_fro():
    assert [deal(np.arange(7), 3, hand) for hand in range(3)] == [[0, 5, 6], [1, 4], [2, 3]]
    assert deal(np.arange(4), 1, 0) == [0, 1, 2, 3]


def test_targets_are_padded_word_by_word_and_follow_every_move():
    rows = {
        "record_id": ["b", "a"],
        "input_ids": [[1, 2], [1, 2, 3]],
        "word_starts": [[0], [0, 1]],
        "tag_ids": [[1], [0, 2]],
    }
    targets = pa.array([[0.0, 1.0, 0.0], [0.5, 0.25, 0.25, 0.0, 0.0, 1.0]], pa.list_(pa.float32()))
    table = pa.table({**rows, "targets": targets, "starts_document": [True, True], "ends_document": [True, True]})
    windows = TrainingWindows(table)
    batch = windows.collate([0, 1], pad_id=0)
    expected = torch.tensor([[[0.5, 0.25, 0.25], [0.0, 0.0, 1.0]], [[0.0, 1.0, 0.0], [0.0, 0.0, 0.0]]])
    assert torch.equal(batch.targets_BWK, expected)
    assert torch.equal(batch.repeat(2).targets_BWK, torch.cat([expected, expected]))
    assert torch.equal(batch.to(torch.device("cpu")).targets_BWK, expected)
    plain = TrainingWindows(table.drop_columns("targets"))
    assert plain.collate([0], pad_id=0).repeat(3).targets_BWK is None
