"""The threads of an actor: who may work at the same time, and what is accounted once."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

from pipelines.corpus.turns import Meter, Turns


def test_several_work_at_once():
    turns, barrier = Turns(), threading.Barrier(3, timeout=20)

    def work():
        with turns.take(alone=False):
            return barrier.wait()

    with ThreadPoolExecutor(3) as pool:
        assert sorted(one.result() for one in [pool.submit(work) for _ in range(3)]) == [0, 1, 2]


def test_one_that_is_alone_meets_nobody_and_does_not_wait_for_ever():
    turns = Turns()
    inside: set[tuple[int, bool]] = set()
    met: list[set[tuple[int, bool]]] = []

    def work(number, alone):
        for _ in range(100):
            with turns.take(alone=alone):
                inside.add((number, alone))
                met.append(set(inside))
                time.sleep(0)
                inside.discard((number, alone))

    with ThreadPoolExecutor(4) as pool:
        for one in [pool.submit(work, number, number < 2) for number in range(4)]:
            one.result()
    assert len(met) == 400
    assert all(len(some) == 1 for some in met if any(alone for _, alone in some))


def test_turn_is_given_back_after_an_error():
    turns = Turns()
    for alone in (True, False, True):
        try:
            with turns.take(alone=alone):
                raise ValueError
        except ValueError:
            pass
    assert (turns.num_working, turns.num_waiting, turns.is_alone) == (0, 0, False)


def test_work_that_overlaps_is_accounted_once():
    begin = time.perf_counter()
    meter = Meter()
    first = time.perf_counter()
    second = time.perf_counter()
    busy = [meter.read(first), meter.read(second), meter.read(second)]
    passed = time.perf_counter() - begin
    assert 0 < sum(seconds for seconds, _ in busy) <= passed
    assert busy[0][0] <= passed
    assert all(seconds >= 0 and cpu >= 0 for seconds, cpu in busy)


def test_time_in_which_nothing_was_in_work_is_not_busy():
    meter = Meter()
    sum(range(200_000))
    before = time.perf_counter()
    busy, cpu = meter.read(before)
    assert busy <= time.perf_counter() - before
    assert cpu > 0
