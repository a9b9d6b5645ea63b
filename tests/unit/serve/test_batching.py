"""Batches of many callers' windows: the engine's own answers, budgets kept, nobody starves, nothing is left behind."""

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipelines.ner.encoding import Window
from pipelines.ner.entities import Prediction
from serve import batching
from serve.batching import FIRST_RATE, Batcher, Overloaded
from serve.work import Answer
from tests.conftest import EXACT
from tests.unit.serve.replicas import WatchedEngine, run, wait_until

WORDS = ["Angela", "Merkel", "visited", "Utrecht", ",", "王小明", "住在", "台北", "👩‍👩‍👧", "\r\n", "e\u0301", "x" * 40]
texts = st.one_of(
    st.lists(st.sampled_from(WORDS), max_size=60).map(" ".join),
    st.text(alphabet=st.characters(exclude_categories=("Cs",)), max_size=30),
)
LONG = "Angela Merkel visited Utrecht in 2019 . " * 1250  # 50 000 characters


@asynccontextmanager
async def open_batcher(
    engine: WatchedEngine, *, max_batch_tokens: int = 128, max_queued_tokens: int = 100_000
) -> AsyncIterator[Batcher]:
    batcher = Batcher(engine, max_batch_tokens=max_batch_tokens, max_queued_tokens=max_queued_tokens)
    try:
        yield batcher
        await wait_until(lambda: batcher.is_idle, "the batcher is idle")
        assert batcher.num_queued_tokens == batcher.num_running_tokens == 0
        assert not any(batcher.lanes)
    finally:
        engine.gate.set()
        batcher.close()


def check_equal(found: Prediction, wanted: Prediction) -> None:
    """The same entities and coverage; scores to rounding, as batches differ."""
    assert found.coverage == wanted.coverage
    assert [(e.text, e.label, e.start, e.end) for e in found.entities] == [
        (e.text, e.label, e.start, e.end) for e in wanted.entities
    ]
    assert [e.score for e in found.entities] == pytest.approx([e.score for e in wanted.entities], abs=1e-4)


def count_tokens(engine: WatchedEngine, text: str) -> int:
    return sum(len(window.input_ids) for window in engine.prepare(text).document.windows)


def test_batch_has_all_cores_where_it_is_alone_and_one_where_it_is_not(engine):
    engine.forget()

    async def check() -> None:
        await wait_until(lambda: not engine.streams.wide.is_taken, "the thread that engines share is free")
        async with open_batcher(engine) as batcher:
            await batcher.predict("Ada met Alan")
            assert engine.num_threads_of_batches == [engine.num_threads]
            engine.gate.clear()
            first = asyncio.create_task(batcher.predict("Ada met Alan"))
            await wait_until(lambda: len(engine.batches) == 2, "the first is computed")
            second = asyncio.create_task(batcher.predict("Ada met Alan"))
            await wait_until(lambda: len(engine.batches) == 3, "the second is computed too")
            engine.gate.set()
            await asyncio.gather(first, second)
            assert engine.num_threads_of_batches[1:] == [engine.num_threads, 1]

    run(check())


def test_shared_thread_is_given_back_although_the_loop_of_its_batch_has_ended(engine):
    engine.forget()
    engine.gate.clear()

    async def leave() -> None:
        batcher = Batcher(engine, max_batch_tokens=128, max_queued_tokens=1000)
        asking = asyncio.create_task(batcher.predict("Ada met Alan"))
        await wait_until(lambda: engine.streams.wide.is_taken, "its batch is computed")
        asking.cancel()

    asyncio.run(leave())
    assert engine.streams.wide.is_taken
    engine.gate.set()
    run(wait_until(lambda: not engine.streams.wide.is_taken, "the thread is free"))


def test_batches_are_smaller_once_memory_has_not_sufficed(engine, monkeypatch):
    engine.forget()
    monkeypatch.setattr(engine.streams, "fitting_tokens", 32)

    async def check() -> None:
        async with open_batcher(engine) as batcher:
            await asyncio.gather(*(batcher.predict("Angela Merkel visited Utrecht") for _ in range(20)))
        assert all(sum(batch) <= 32 for batch in engine.batches)

    run(check())


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(texts, min_size=1, max_size=30), st.integers(16, 300))
def test_answers_are_the_engines_own_and_batches_keep_to_the_budget_but_for_a_lone_window(engine, asked, budget):
    engine.forget()

    async def check() -> None:
        async with open_batcher(engine, max_batch_tokens=budget) as batcher:
            answers = await asyncio.gather(*(batcher.predict(text) for text in asked))
        batches = list(engine.batches)
        for answer, wanted in zip(answers, engine.predict(asked), strict=True):
            check_equal(answer.prediction, wanted)
        assert all(sum(batch) <= budget or len(batch) == 1 for batch in batches)
        assert sum(map(sum, batches)) == sum(count_tokens(engine, text) for text in asked)

    run(check())


def test_answers_of_a_crf_are_the_engines_own(tiny_bundle):
    engine = WatchedEngine.load(tiny_bundle, **EXACT, num_threads=2)
    asked = [" ".join(WORDS[at:] * 5) for at in range(8)]

    async def check() -> None:
        async with open_batcher(engine) as batcher:
            answers = await asyncio.gather(*map(batcher.predict, asked))
        for answer, wanted in zip(answers, engine.predict(asked), strict=True):
            check_equal(answer.prediction, wanted)
        assert any(answer.prediction.entities for answer in answers)

    run(check())
    engine.close()


@pytest.mark.parametrize("budget", [16, 32, 48, 512])
def test_short_texts_are_answered_before_a_long_one_that_came_first_and_hold_it_not_up(engine, budget):
    """Also where a window of the long text is all a batch may have."""
    ended: list[str] = []

    async def ask(batcher: Batcher, name: str, text: str) -> None:
        await batcher.predict(text)
        ended.append(name)

    async def check() -> None:
        async with open_batcher(engine, max_batch_tokens=budget) as batcher:
            long = asyncio.create_task(ask(batcher, "long", LONG))
            await wait_until(lambda: batcher.num_running > 0, "the long text is being computed")
            [job] = [job for lane in batcher.lanes for job in lane]
            taken = job.num_taken
            num_short = 0

            async def keep_asking(at: int) -> None:
                nonlocal num_short
                while num_short < 200:
                    num_short += 1
                    await ask(batcher, f"short {at}", "Ada met Grace.")

            await asyncio.gather(*map(keep_asking, range(20)))
            assert "long" not in ended
            assert len(ended) >= 200
            assert job.num_taken > taken + 5
            long.cancel()

    run(check())


def test_text_of_some_pages_waits_for_none_of_a_thousand(engine):
    async def check() -> None:
        async with open_batcher(engine, max_batch_tokens=64) as batcher:
            long = asyncio.create_task(batcher.predict(LONG))
            await wait_until(lambda: batcher.num_running > 0, "the long text is being computed")
            num_batches = len(engine.batches)
            await batcher.predict(LONG[:1500])
            assert not long.done()
            assert len(engine.batches) - num_batches < 50
            long.cancel()

    run(check())


def test_long_text_ends_although_short_ones_never_end(engine):
    async def check() -> None:
        async with open_batcher(engine, max_batch_tokens=32) as batcher:
            has_ended = False

            async def keep_asking() -> None:
                while not has_ended:
                    await batcher.predict("Ada met Grace.")

            asking = [asyncio.create_task(keep_asking()) for _ in range(8)]
            answer = await batcher.predict(LONG[:4000])
            has_ended = True
            await asyncio.gather(*asking)
            check_equal(answer.prediction, engine.predict([LONG[:4000]])[0])
            assert answer.prediction.coverage.num_windows > 2

    run(check())


def test_text_without_words_is_answered_at_once_even_where_nothing_is_computed(engine):
    async def check() -> None:
        async with open_batcher(engine) as batcher:
            engine.gate.clear()
            busy = asyncio.create_task(batcher.predict(LONG))
            answer = await batcher.predict(" \n")
            assert answer.prediction.entities == []
            assert answer.prediction.coverage.fraction == 1.0
            busy.cancel()
            engine.gate.set()

    run(check())


async def cancel(task: "asyncio.Task[Answer]") -> None:
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def test_text_cancelled_before_it_is_queued_leaves_nothing(engine):
    async def check() -> None:
        async with open_batcher(engine) as batcher:
            for text in ("Ada met Grace.", LONG):  # the long one is cancelled while it is encoded
                task = asyncio.create_task(batcher.predict(text))
                await asyncio.sleep(0)
                await cancel(task)
            await wait_until(lambda: batcher.is_idle, "nothing is left")
            assert batcher.num_queued_tokens == batcher.num_running_tokens == 0
            check_equal((await batcher.predict("Ada met Grace.")).prediction, engine.predict(["Ada met Grace."])[0])

    run(check())


def test_cancelled_texts_are_counted_out_at_once_though_a_long_text_is_before_them(engine):
    async def check() -> None:
        async with open_batcher(engine, max_queued_tokens=50_000) as batcher:
            engine.gate.clear()
            first = asyncio.create_task(batcher.predict(LONG))
            await wait_until(lambda: batcher.num_running == 2, "every thread has a batch")
            alone = batcher.num_queued_tokens
            others = [asyncio.create_task(batcher.predict(text)) for text in [LONG[:3000], "Ada met Grace."] * 5]
            await wait_until(lambda: sum(map(len, batcher.lanes)) == 11, "all are queued")
            assert batcher.num_queued_tokens > alone
            for task in others:
                await cancel(task)
            assert batcher.num_queued_tokens == alone
            await cancel(first)
            assert batcher.num_queued_tokens == 0
            engine.gate.set()

    run(check())


def test_text_cancelled_while_it_is_computed_is_computed_no_further(engine):
    async def check() -> None:
        async with open_batcher(engine) as batcher:
            engine.gate.clear()
            task = asyncio.create_task(batcher.predict(LONG))
            await wait_until(lambda: len(engine.batches) == 2, "it is being computed")
            await cancel(task)
            engine.gate.set()
            await wait_until(lambda: batcher.is_idle, "the batches have ended")
            assert len(engine.batches) == 2

    run(check())


def test_text_cancelled_after_its_last_window_was_taken_leaves_nothing(engine):
    async def check() -> None:
        async with open_batcher(engine) as batcher:
            engine.gate.clear()
            task = asyncio.create_task(batcher.predict("Ada met Grace."))
            await wait_until(lambda: len(engine.batches) == 1, "it is being computed")
            assert batcher.num_queued_tokens == 0
            await cancel(task)
            engine.gate.set()

    run(check())


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(texts, st.integers(0, 4)), min_size=1, max_size=20))
def test_whatever_is_cancelled_when_the_others_are_answered_and_the_counts_return_to_zero(engine, asked):
    engine.forget()

    async def ask(batcher: Batcher, text: str, turns: int) -> Answer | None:
        task = asyncio.create_task(batcher.predict(text))
        if not turns:
            return await task
        for _ in range(turns - 1):
            await asyncio.sleep(0.001)
        task.cancel()
        await asyncio.wait([task])
        return None

    async def check() -> None:
        async with open_batcher(engine, max_batch_tokens=64) as batcher:
            answers = await asyncio.gather(*(ask(batcher, *one) for one in asked))
            await wait_until(lambda: batcher.is_idle, "nothing is left")
            assert batcher.num_queued_tokens == batcher.num_running_tokens == 0
        for answer, (text, turns) in zip(answers, asked, strict=True):
            if not turns:
                check_equal(answer.prediction, engine.predict([text])[0])

    run(check())


def test_full_queue_has_no_room_until_it_is_shorter(engine):
    async def check() -> None:
        async with open_batcher(engine, max_queued_tokens=200) as batcher:
            batcher.check_room()
            engine.gate.clear()
            long = asyncio.create_task(batcher.predict(LONG))  # of any length, as there was room
            await wait_until(lambda: batcher.num_queued_tokens > 200, "the long text waits")
            with pytest.raises(Overloaded) as refused:
                batcher.check_room()
            assert refused.value.retry_after_s > 0
            await cancel(long)
            batcher.check_room()
            engine.gate.set()
            await batcher.predict("Ada met Grace.")

    run(check())


def test_queue_that_would_take_too_long_has_no_room(engine):
    async def check() -> None:
        async with open_batcher(engine) as batcher:
            engine.gate.clear()
            long = asyncio.create_task(batcher.predict(LONG))
            await wait_until(lambda: batcher.num_queued_tokens > 0, "the long text waits")
            batcher.check_room()
            batcher.max_wait_s = batcher.num_queued_tokens / batcher.tokens_per_s / 2
            with pytest.raises(Overloaded):
                batcher.check_room()
            await cancel(long)
            batcher.check_room()
            engine.gate.set()

    run(check())


def test_lone_sentences_do_not_make_a_queue_seem_slow(engine):
    """A batch of theirs takes as long as a full one: after a quiet hour the first requests of a rush were sent away."""
    engine.pause_s = 0.03

    async def check() -> None:
        async with open_batcher(engine) as batcher:
            await batcher.predict(LONG[:4000])  # in batches of up to 128 sub-tokens
            speed = batcher.tokens_per_s
            for _ in range(30):
                await batcher.predict("Ada met Grace.")
            assert batcher.tokens_per_s == speed
            engine.gate.clear()
            long = asyncio.create_task(batcher.predict(LONG[:6000]))
            await wait_until(lambda: batcher.num_queued_tokens > 1000, "the long text waits")
            batcher.max_wait_s = 2 * batcher.num_queued_tokens / speed
            batcher.check_room()
            await cancel(long)
            engine.gate.set()

    run(check())


def test_first_guess_of_the_speed_stands_until_a_batch_as_large_as_a_queues(engine):
    """A cold sentence is slow: it made the first rush after a start look hopeless."""
    engine.pause_s = 0.2

    async def check() -> None:
        async with open_batcher(engine) as batcher:
            await batcher.predict("Ada met Grace.")
            assert batcher.tokens_per_s == FIRST_RATE
            await batcher.predict(LONG[:4000])
            assert batcher.tokens_per_s < FIRST_RATE

    run(check())


def test_patient_callers_wait_for_room_and_are_all_answered(engine):
    asked = ["Ada met Grace in Paris.", LONG[:2500], "王小明住在台北。"] * 10

    async def check() -> None:
        async with open_batcher(engine, max_queued_tokens=60) as batcher:
            answers = await asyncio.gather(*(batcher.predict(text, is_patient=True) for text in asked))
            for answer, wanted in zip(answers, engine.predict(asked), strict=True):
                check_equal(answer.prediction, wanted)
            assert not batcher.patient

    run(check())


def test_patient_texts_send_nobody_away_and_are_not_encoded_before_there_is_room(engine, monkeypatch):
    prepared: list[str] = []
    prepare = engine.prepare
    monkeypatch.setattr(engine, "prepare", lambda text: prepared.append(text) or prepare(text))

    async def check() -> None:
        async with open_batcher(engine, max_queued_tokens=400) as batcher:
            engine.gate.clear()
            patient = [
                asyncio.create_task(batcher.predict(text, is_patient=True))
                for text in ["Ada met Grace in Paris. " * 4] * 60 + [LONG[:2500]] * 2
            ]
            await wait_until(lambda: batcher.num_running == 2, "every thread has a batch")
            await wait_until(lambda: not batcher.num_preparing_tokens, "nothing is being encoded")
            assert 0 < batcher.num_queued_tokens < 1000  # before a text is encoded, they are estimated
            assert len(prepared) < 20
            batcher.check_room()
            ordinary = [asyncio.create_task(batcher.predict("Ada met Grace.")) for _ in range(20)]
            engine.gate.set()
            await asyncio.gather(*ordinary)
            assert not all(task.done() for task in patient)
            await asyncio.gather(*patient)

    run(check())


def test_patient_texts_that_are_cancelled_in_any_turn_leave_nothing(engine):
    async def check() -> None:
        async with open_batcher(engine, max_queued_tokens=100) as batcher:
            for turns in range(12):
                tasks = [asyncio.create_task(batcher.predict(LONG[:2500], is_patient=True)) for _ in range(6)]
                for _ in range(turns):
                    await asyncio.sleep(0)
                for task in tasks:
                    task.cancel()
                await asyncio.wait(tasks)
                await wait_until(lambda: batcher.is_idle, "nothing is left")
            await batcher.predict("Ada met Grace.", is_patient=True)
            assert not batcher.patient

    run(check())


def test_deadline_counts_from_the_first_window_that_is_computed(engine):
    async def check() -> None:
        async with open_batcher(engine) as batcher:
            engine.gate.clear()
            begun = asyncio.create_task(batcher.predict("Ada met Grace", timeout_s=0.5))
            await wait_until(lambda: bool(engine.batches), "the first is computed")
            other = asyncio.create_task(batcher.predict("王小明住在台北。"))
            await wait_until(lambda: batcher.num_running == 2, "every thread has a batch")
            waiting = [
                asyncio.create_task(batcher.predict("Ada met Alan", is_patient=is_patient, timeout_s=0.01))
                for is_patient in (False, True)
            ]
            with pytest.raises(TimeoutError):
                await begun
            assert not any(task.done() for task in waiting)
            for task in waiting:
                await cancel(task)
            engine.gate.set()
            await other

    run(check())


def test_patient_caller_that_is_cancelled_holds_nobody_up(engine):
    async def check() -> None:
        async with open_batcher(engine, max_queued_tokens=60) as batcher:
            engine.gate.clear()
            first = asyncio.create_task(batcher.predict(LONG[:3000]))
            await wait_until(lambda: batcher.num_running == 2, "every thread has a batch")
            gone, staying = (asyncio.create_task(batcher.predict(LONG[:2500], is_patient=True)) for _ in range(2))
            await wait_until(lambda: len(batcher.patient) == 2, "two wait for room")
            await cancel(gone)
            engine.gate.set()
            check_equal((await staying).prediction, engine.predict([LONG[:2500]])[0])
            await first
            assert not batcher.patient

    run(check())


@pytest.mark.parametrize("stage", ["compute", "finish"])
def test_poisonous_text_fails_alone(engine, stage):
    engine.poison("Utrecht", stage)
    asked = [
        "Ada met Grace.",
        "Angela visited Utrecht.",
        "Paris",
        "王小明住在台北。",
        "Ada " * 60,
        "Ada " * 40 + "Utrecht",
    ]

    async def check() -> None:
        async with open_batcher(engine, max_batch_tokens=256) as batcher:
            engine.gate.clear()
            busy = [asyncio.create_task(batcher.predict("Ada")) for _ in range(2)]
            await wait_until(lambda: batcher.num_running > 0, "a thread has a batch")
            asking = [asyncio.create_task(batcher.predict(text)) for text in asked]
            await asyncio.sleep(0)
            engine.gate.set()
            answers = await asyncio.gather(*asking, return_exceptions=True)
            await asyncio.gather(*busy)
        assert any(len(batch) > 3 for batch in engine.batches)  # they were in one batch
        engine.forget()
        for answer, text in zip(answers, asked, strict=True):
            if "Utrecht" in text:
                assert isinstance(answer, RuntimeError)
                assert "poisonous" in str(answer)
            else:
                check_equal(answer.prediction, engine.predict([text])[0])

    run(check())


def test_poisonous_text_alone_in_a_batch_leaves_the_thread_to_others(engine):
    engine.poison("Utrecht", "compute")

    async def check() -> None:
        async with open_batcher(engine) as batcher:
            for _ in range(5):
                with pytest.raises(RuntimeError):
                    await batcher.predict("Utrecht")
            await batcher.predict("Ada met Grace.")

    run(check())


def test_thousand_texts_at_once_are_not_all_encoded_in_one_turn_of_the_loop(engine):
    """A long turn holds up everybody: health checks, and texts of others."""
    asked = ["Ada met Grace in Paris. " * 80] * 300
    inline: list[str] = []

    class Noting(WatchedEngine):
        def prepare(self, text: str):  # type: ignore[no-untyped-def]
            if threading.current_thread() is threading.main_thread():
                inline.append(text)
            return super().prepare(text)

    async def check() -> None:
        noting = Noting.__new__(Noting)
        noting.__dict__.update(engine.__dict__)
        async with open_batcher(noting, max_batch_tokens=2048, max_queued_tokens=10**6) as batcher:
            tasks = [asyncio.create_task(batcher.predict(text)) for text in asked]
            await asyncio.sleep(0)
            assert 0 < sum(map(len, inline)) <= batching.INLINE_CHARACTERS_A_TURN
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    run(check())


def test_times_of_an_answer_are_those_of_waiting_and_computing(engine):
    async def check() -> None:
        async with open_batcher(engine) as batcher:
            engine.gate.clear()
            tasks = [asyncio.create_task(batcher.predict(text)) for text in ["Ada met Grace."] * 2 + [LONG[:2000]]]
            await wait_until(lambda: batcher.num_running == 2, "every thread has a batch")
            await asyncio.sleep(0.05)
            engine.gate.set()
            answers = await asyncio.gather(*tasks)
            assert all(answer.queue_s >= 0 for answer in answers)
            assert max(answer.engine_s for answer in answers) >= 0.05

    run(check())


def test_every_batch_is_observed_with_its_sub_tokens(engine):
    seen: list[tuple[int, int]] = []

    async def check() -> None:
        batcher = Batcher(
            engine, max_batch_tokens=64, max_queued_tokens=1000, observe=lambda *told: seen.append(told[:2])
        )
        await batcher.predict(LONG[:1500])
        await wait_until(lambda: batcher.is_idle, "the batcher is idle")
        batcher.close()

    run(check())
    assert sorted(count for count, _ in seen) == sorted(map(sum, engine.batches))
    assert {budget for _, budget in seen} == {64}


def test_nothing_is_left_running_after_close(bundle):
    before = set(threading.enumerate())

    async def check() -> None:
        engine = WatchedEngine.load(bundle, **EXACT, num_threads=2)
        batcher = Batcher(engine, max_batch_tokens=64, max_queued_tokens=1000)
        await batcher.predict(LONG[:3000])
        engine.gate.clear()
        left = [asyncio.create_task(batcher.predict(LONG[:3000])) for _ in range(2)]
        left.append(asyncio.create_task(batcher.predict(LONG[:3000], is_patient=True)))
        await wait_until(lambda: batcher.num_running == 2 and bool(batcher.patient), "texts are under way")
        await wait_until(lambda: not batcher.num_preparing_tokens, "the others are encoded")
        batcher.close()
        engine.gate.set()
        engine.close()
        done, pending = await asyncio.wait(left, timeout=10)
        assert not pending
        assert all(task.cancelled() or task.exception() for task in done)
        await wait_until(lambda: batcher.num_running == 0, "the batches have ended")

    run(check())
    left = [thread for thread in set(threading.enumerate()) - before if thread.is_alive()]
    for thread in left:
        thread.join(5)
    assert not [thread.name for thread in left if thread.is_alive()]


def test_window_is_what_the_engine_says(engine):
    """The fixture's window is short, so that the long text has a thousand of them."""
    windows = engine.prepare(LONG).document.windows
    assert len(windows) > 300
    assert all(isinstance(window, Window) and len(window.input_ids) <= 32 for window in windows)


def test_texts_that_wait_to_be_encoded_are_load_and_fill_the_queue(engine, monkeypatch):
    """Where a device is faster than what encodes for it, they are nearly all that waits."""
    gate, prepare = threading.Event(), engine.prepare
    monkeypatch.setattr(engine, "prepare", lambda text: gate.wait(60) and prepare(text))

    async def check() -> None:
        async with open_batcher(engine, max_queued_tokens=30_000) as batcher:
            asked = [asyncio.create_task(batcher.predict(LONG)) for _ in range(3)]
            await asyncio.sleep(0)
            assert batcher.num_queued_tokens == 0
            assert batcher.num_waiting_tokens == 3 * (len(LONG) // 4)
            assert not batcher.is_idle
            with pytest.raises(Overloaded):
                batcher.check_room()
            asked.pop().cancel()
            await asyncio.sleep(0)
            await wait_until(lambda: batcher.has_room, "one that was cancelled makes room")
            gate.set()
            await asyncio.gather(*asked)
            assert batcher.prepared_per_s != batching.FIRST_PREPARED_RATE

    run(check())
