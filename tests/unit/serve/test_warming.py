"""A model's first batches."""

from itertools import pairwise

import torch

from serve import warming
from serve.warming import warm_up
from tests.unit.serve.replicas import WatchedEngine


def test_batches_of_all_sizes_are_computed_on_every_thread(tiny_bundle):
    engine = WatchedEngine.load(tiny_bundle, device="cpu", runtime="torch", precision="fp32", num_threads=2)
    warm_up(engine, max_tokens=100)
    threads = engine.num_threads_of_batches
    sizes = [sum(batch) for batch in engine.batches]
    assert sizes == sorted(sizes)
    assert max(sizes) >= 100
    assert min(sizes) <= 4
    assert all(after <= 1.1 * before + 2 for before, after in pairwise(sizes))
    assert threads.count(2) * 2 == threads.count(1), "each size once on all cores, and once on each core"
    assert torch.get_num_threads() == 1


def test_word_may_have_several_sub_tokens(tiny_bundle, monkeypatch):
    """As `a` has in a byte-level vocabulary that was learned from Chinese."""
    engine = WatchedEngine.load(tiny_bundle, device="cpu", runtime="torch", precision="fp32", num_threads=2)
    monkeypatch.setattr(warming, "WORD", "Xqzjk")
    assert engine.count_tokens("Xqzjk") > 1
    warm_up(engine, max_tokens=100)
    assert max(sum(batch) for batch in engine.batches) >= 100
