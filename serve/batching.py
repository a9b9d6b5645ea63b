"""Many requests, few batches: windows of waiting texts are computed together, under a budget of sub-tokens.

Nothing waits for a batch to fill: whenever a thread is free it takes what is there. A batch is filled from several
lanes, each of texts of like length, an equal part of it from each that has work: a long text advances in every batch
and holds up no shorter one. All that touches the lanes runs on one event loop; threads see only the batches that they
are handed.
"""

import asyncio
import math
import time
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

from pipelines.ner.engine import NerEngine, PreparedText
from pipelines.ner.entities import Prediction
from serve.work import Answer, Done, Job, Work, compute, finish

LANES = (0.25, 1.0, 4.0, 16.0)
"""The longest texts of each lane, in batches; the last lane has those beyond."""
MIN_BATCH_TOKENS = 64
"""Work is spread over free threads in batches of at least this."""
RATE_MEMORY = 0.9
"""Of the running mean of the speed: the weight of what was before."""
FIRST_RATE = 5000.0
"""Sub-tokens per second, before any batch was measured."""
FIRST_PREPARED_RATE = 100_000.0
"""Sub-tokens per second of encoding, before any text was measured."""
CHARACTERS_PER_TOKEN = 4
"""By which a text is counted before it is encoded."""
INLINE_CHARACTERS = 2000
"""Shorter texts are encoded on the event loop: handing them to a thread would take longer."""
INLINE_CHARACTERS_A_TURN = 20_000
"""But so many in one turn of the loop at most: a request of a thousand texts would hold up everybody."""


class Overloaded(Exception):
    """The queue is full."""

    def __init__(self, retry_after_s: float) -> None:
        self.retry_after_s = retry_after_s
        super().__init__(f"the queue is full; try again in {retry_after_s:.0f} s")


class Batcher:
    """Predicts texts one by one for many callers at once. To be used from one event loop.

    Args:
        max_batch_tokens: sub-tokens of a batch.
        max_queued_tokens: sub-tokens that may wait; a text that finds room is taken whatever its length.
        max_wait_s: longest expected waiting, by the speed of the last batches, with which texts are still taken.
        observe: is told of every batch: its sub-tokens, the budget, and its seconds.
    """

    def __init__(
        self,
        engine: NerEngine,
        *,
        max_batch_tokens: int,
        max_queued_tokens: int,
        max_wait_s: float = math.inf,
        observe: Callable[[int, int, float], None] = lambda *_: None,
    ) -> None:
        self.engine, self.observe = engine, observe
        self.max_batch_tokens, self.max_queued_tokens = max_batch_tokens, max_queued_tokens
        self.max_wait_s = max_wait_s
        self.lanes: list[deque[Job]] = [deque() for _ in range(len(LANES) + 1)]
        self.first_lane = 0
        """Each comes first in turn, for only the first one may take a window that is larger than its part."""
        self.patient: deque[Job] = deque()
        """That wait for room in the queue."""
        self.num_inline_characters = 0
        """Encoded in this turn of the loop."""
        self.num_queued_tokens = 0
        """That no batch has taken yet."""
        self.num_preparing_tokens = 0
        """Of texts that are to be encoded: about as many as they will have."""
        self.prepared_per_s = FIRST_PREPARED_RATE
        self.num_running_tokens = 0
        self.num_running = 0
        self.tokens_per_s = FIRST_RATE
        self.num_streams = engine.streams.num_streams
        self.preparing = ThreadPoolExecutor(1, "preparing")

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing to do."""
        return not (self.num_waiting_tokens or self.num_running)

    @property
    def num_waiting_tokens(self) -> int:
        """Sub-tokens of texts that no batch has taken yet, or that are not even encoded."""
        return self.num_queued_tokens + self.num_preparing_tokens

    @property
    def has_room(self) -> bool:
        """Whether texts are still taken."""
        return self.num_waiting_tokens < self.max_queued_tokens and self._expect_wait() <= self.max_wait_s

    def check_room(self) -> None:
        """Raise Overloaded where the queue is full."""
        if not self.has_room:
            raise Overloaded(self._expect_wait())

    async def predict(self, text: str, *, is_patient: bool = False, timeout_s: float | None = None) -> Answer:
        """The entities of a text. Raises what the text itself causes, and TimeoutError.

        Args:
            is_patient: wait until there is room; else it is taken whether there is some or not (`check_room`).
            timeout_s: for computing it: waiting does not count.
        """
        queued_at = time.monotonic()
        prepared = await self._prepare(text)
        windows = prepared.document.windows
        if not windows:
            return Answer(self.engine.finish([prepared], [[]])[0], time.monotonic() - queued_at, 0.0)
        loop = asyncio.get_running_loop()
        job = Job(prepared, loop.create_future(), queued_at, [None] * len(windows), num_left=len(windows))
        async with asyncio.timeout(None) as deadline:
            if timeout_s is not None:
                job.begin = lambda: deadline.reschedule(loop.time() + timeout_s)
            if is_patient:
                self.patient.append(job)
                self._let_in()
            else:
                self._queue(job)
            try:
                return await job.future
            finally:
                self._drop(job)

    def close(self) -> None:
        """Take nothing more. Jobs under way are cancelled."""
        for job in [*self.patient, *(job for lane in self.lanes for job in lane)]:
            job.future.cancel()
        self.preparing.shutdown(wait=False)

    async def _prepare(self, text: str) -> PreparedText:
        loop = asyncio.get_running_loop()
        num_characters = self.num_inline_characters + len(text)
        if len(text) > INLINE_CHARACTERS or num_characters > INLINE_CHARACTERS_A_TURN:
            return await self._prepare_elsewhere(text)
        if not self.num_inline_characters:
            loop.call_soon(self._begin_turn)
        self.num_inline_characters = num_characters
        return self.engine.prepare(text)

    async def _prepare_elsewhere(self, text: str) -> PreparedText:
        """In a thread, one text after the other: where the device is fast, this is what requests wait for."""
        num_tokens = max(1, len(text) // CHARACTERS_PER_TOKEN)
        self.num_preparing_tokens += num_tokens
        try:
            running = asyncio.get_running_loop().run_in_executor(self.preparing, _time_prepare, self.engine, text)
            prepared, seconds = await running
        finally:
            self.num_preparing_tokens -= num_tokens
            self._let_in()
        rate = num_tokens / max(seconds, 1e-6)
        self.prepared_per_s = RATE_MEMORY * self.prepared_per_s + (1 - RATE_MEMORY) * rate
        return prepared

    def _begin_turn(self) -> None:
        self.num_inline_characters = 0

    def _expect_wait(self) -> float:
        return self.num_queued_tokens / self.tokens_per_s + self.num_preparing_tokens / self.prepared_per_s

    def _queue(self, job: Job) -> None:
        waiting = job.count_waiting()
        self.lanes[bisect_left(LANES, waiting / self.max_batch_tokens)].append(job)
        self.num_queued_tokens += waiting
        job.is_queued = True
        if self.num_running < self.num_streams:
            asyncio.get_running_loop().call_soon(self._start_batches)  # with what arrives in this turn of the loop

    def _let_in(self) -> None:
        """Queue those that wait for room, in the order of their coming, as far as there is some."""
        while self.patient and (self.has_room or self.patient[0].future.done()):
            job = self.patient.popleft()
            if not job.future.done():
                self._queue(job)

    def _drop(self, job: Job) -> None:
        """Take no more windows of a job: it failed or was cancelled, or has none left."""
        waiting = job.count_waiting()
        job.num_taken = len(job.windows)
        if job.is_queued and waiting:
            self._count_out(waiting)

    def _count_out(self, num_tokens: int) -> None:
        self.num_queued_tokens -= num_tokens
        self._let_in()

    def _start_batches(self) -> None:
        budget = int(min(self.max_batch_tokens, self.engine.streams.fitting_tokens))
        started = []
        while self.num_running < self.num_streams:
            share = -(-self.num_queued_tokens // (self.num_streams - self.num_running))
            work = self._take(min(budget, max(MIN_BATCH_TOKENS, share)))
            if not work.jobs:
                break
            self.num_running += 1
            self.num_running_tokens += work.num_tokens
            started.append(work)
        streams = self.engine.streams
        is_wide = bool(started) and self.num_running == 1 and not streams.wide.is_taken
        pool = streams.wide.pool if is_wide else streams.pool
        streams.wide.is_taken |= is_wide
        for work in started:
            computing = pool.submit(compute, self.engine, work)
            if is_wide:
                computing.add_done_callback(
                    self._give_back
                )  # by its thread: engines share it, also when this loop ends
            asyncio.wrap_future(computing).add_done_callback(self._take_back)

    def _take(self, budget: int) -> Work:
        """The next batch: an equal part of it from each lane that has work, then what is left from any."""
        work = Work()
        self.first_lane += 1
        start = self.first_lane % len(self.lanes)
        lanes = [lane for lane in self.lanes[start:] + self.lanes[:start] if lane]
        limits = [budget * number // len(lanes) for number in range(1, len(lanes) + 1)]
        for lane, limit in [*zip(lanes, limits, strict=True), *((lane, budget) for lane in lanes)]:
            for job in self._iterate(lane):
                if work.jobs and work.num_tokens + len(job.windows[job.num_taken].input_ids) > limit:
                    break
                work.add(job)
        self._count_out(work.num_tokens)
        return work

    def _iterate(self, lane: deque[Job]) -> Iterator[Job]:
        """The first job of a lane that has windows to take, again and again."""
        while lane:
            job = lane[0]
            if job.future.done():  # cancelled, or failed in another batch
                self._drop(job)
            if job.num_taken == len(job.windows):
                lane.popleft()
            else:
                yield job

    def _give_back(self, _: object) -> None:
        self.engine.streams.wide.is_taken = False

    def _take_back(self, computed: "asyncio.Future[Done]") -> None:
        done = computed.result()
        self.num_running -= 1
        self.num_running_tokens -= done.work.num_tokens
        rate = self.num_streams * done.work.num_tokens / max(done.seconds, 1e-6)
        self.tokens_per_s = RATE_MEMORY * self.tokens_per_s + (1 - RATE_MEMORY) * rate
        self.observe(done.work.num_tokens, self.max_batch_tokens, done.seconds)
        self._start_batches()  # before the answers are written: the thread is free now
        finished = []
        for job, place, emissions in zip(done.work.jobs, done.work.places, done.emissions, strict=True):
            job.started_at = job.started_at or time.monotonic() - done.seconds
            job.num_left -= 1
            if isinstance(emissions, Exception):
                _answer(job, emissions)
            elif job not in done.answers:
                job.emissions[place] = emissions
                if not job.num_left and not job.future.done():
                    finished.append(job)
        for job, prediction in done.answers.items():
            _answer(job, prediction)
        if finished:
            deciding = asyncio.get_running_loop().run_in_executor(
                self.engine.streams.pool, finish, self.engine, finished
            )
            deciding.add_done_callback(_give_answers)


def _time_prepare(engine: NerEngine, text: str) -> tuple[PreparedText, float]:
    began = time.monotonic()
    return engine.prepare(text), time.monotonic() - began


def _give_answers(finished: "asyncio.Future[dict[Job, Prediction | Exception]]") -> None:
    for job, prediction in finished.result().items():
        _answer(job, prediction)


def _answer(job: Job, prediction: Prediction | Exception) -> None:
    if job.future.done():  # cancelled, or failed in another batch
        return
    if isinstance(prediction, Exception):
        job.future.set_exception(prediction)
    else:
        now = time.monotonic()
        job.future.set_result(Answer(prediction, job.started_at - job.queued_at, now - job.started_at))
