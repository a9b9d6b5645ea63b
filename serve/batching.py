"""Many requests, few batches: windows of waiting texts are computed together, under a budget of sub-tokens.

Nothing waits for a batch to fill: whenever a thread is free it takes what is there, of several lanes (`serve.lanes`).
All that touches the lanes runs on one event loop; threads see only the batches that they are handed.

Patient texts, as those of streams, have lanes of their own, take a part of the queue alone, and are not even encoded
before there is room for them: however many they are, they send no other text away.
"""

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from pipelines.ner.engine import NerEngine, PreparedText
from pipelines.ner.entities import Prediction
from serve.lanes import Lanes
from serve.work import Answer, Done, Job, Load, Work, compute, finish

PATIENT_SHARE = 0.5
"""Of the queue, and of the longest waiting: patient texts come in where less than this waits."""
MIN_BATCH_TOKENS = 64
"""Work is spread over free threads in batches of at least this."""
RATE_MEMORY = 0.9
"""Of the running means of speeds: the weight of what was before."""
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


HANG_FACTOR = 10
"""A batch that takes so many times what its sub-tokens took so far may have stopped for good."""
SUSPECT_BATCHES = 3
"""So many failed one after the other: the engine may be broken."""


class Hung(Exception):
    """A batch does not end."""


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
        self.patient: deque[tuple[asyncio.Future[None], int]] = deque()
        """Texts that wait for room in the queue: what tells them that there is some, and about how many sub-tokens they
        have."""
        self.num_inline_characters = 0
        """Encoded in this turn of the loop."""
        self.loads = {is_patient: Load() for is_patient in (False, True)}
        """Of ordinary texts, and of patient ones that have come in."""
        self.lanes = Lanes(self.loads)
        self.prepared_per_s = FIRST_PREPARED_RATE
        self.running: dict[Work, float] = {}
        """Batches under way, and when they began."""
        self.num_computed_tokens = 0
        self.computing_s = 0.0
        """That these took on their threads."""
        self.num_failed = 0
        """The last batches, none of whose windows could be computed."""
        self.tokens_per_s = FIRST_RATE
        self.num_measured_tokens = float(MIN_BATCH_TOKENS)
        """Of the batches that this is the speed of, the first guess for one of them; earlier ones count for less."""
        self.num_streams = engine.streams.num_streams
        self.preparing = ThreadPoolExecutor(1, "preparing")

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing to do."""
        return not (self.num_waiting_tokens or self.num_running)

    @property
    def num_running(self) -> int:
        """Batches under way."""
        return len(self.running)

    @property
    def num_running_tokens(self) -> int:
        """Sub-tokens of these."""
        return sum(work.num_tokens for work in self.running)

    @property
    def is_suspect(self) -> bool:
        """Whether the engine may be broken: it has failed for whole batches, or only texts that break it came."""
        return self.num_failed >= SUSPECT_BATCHES

    @property
    def num_queued_tokens(self) -> int:
        """Sub-tokens that no batch has taken yet."""
        return sum(load.num_queued for load in self.loads.values())

    @property
    def num_preparing_tokens(self) -> int:
        """Of texts that are to be encoded: about as many as they will have."""
        return sum(load.num_preparing for load in self.loads.values())

    @property
    def num_waiting_tokens(self) -> int:
        """Sub-tokens of texts that no batch has taken yet, or that are not even encoded."""
        return self.num_queued_tokens + self.num_preparing_tokens

    @property
    def has_room(self) -> bool:
        """Whether texts are still taken. Patient ones send nobody away."""
        ordinary = self.loads[False]
        return self._fits(ordinary.num_queued, ordinary.num_preparing, 1.0)

    def check_room(self) -> None:
        """Raise Overloaded where the queue is full."""
        if not self.has_room:
            raise Overloaded(self._expect_wait(self.loads[False].num_queued, self.loads[False].num_preparing))

    def check_running(self, least_s: float) -> None:
        """Raise Hung where a batch has been computed for longer than this, and far longer than others of its size."""
        token_s = self.computing_s / self.num_computed_tokens if self.num_computed_tokens else 0.0
        now = time.monotonic()
        for work, began in self.running.items():
            if now - began > max(least_s, HANG_FACTOR * token_s * work.num_tokens):
                raise Hung(f"a batch of {work.num_tokens} sub-tokens has not ended for {now - began:.0f} s")

    async def predict(self, text: str, *, is_patient: bool = False, timeout_s: float | None = None) -> Answer:
        """The entities of a text. Raises what the text itself causes, and TimeoutError.

        Args:
            is_patient: wait until there is room for such; else it is taken whether there is some or not (`check_room`).
            timeout_s: for computing it: waiting does not count.
        """
        queued_at = time.monotonic()
        prepared = await self._prepare(text, is_patient=is_patient)
        windows = prepared.document.windows
        if not windows:
            return Answer(self.engine.finish([prepared], [[]])[0], time.monotonic() - queued_at, 0.0)
        loop = asyncio.get_running_loop()
        job = Job(prepared, loop.create_future(), queued_at, [None] * len(windows), num_left=len(windows))
        job.is_patient = is_patient
        async with asyncio.timeout(None) as deadline:
            if timeout_s is not None:
                job.begin = lambda: deadline.reschedule(loop.time() + timeout_s)
            self._queue(job)
            try:
                return await job.future
            finally:
                if self.lanes.drop(job):
                    self._let_in()

    def close(self) -> None:
        """Take nothing more. Jobs under way are cancelled."""
        for future in [turn for turn, _ in self.patient] + [job.future for lane in self.lanes for job in lane]:
            future.cancel()
        self.preparing.shutdown(wait=False)

    async def _prepare(self, text: str, *, is_patient: bool) -> PreparedText:
        load = self.loads[is_patient]
        num_tokens = max(1, len(text) // CHARACTERS_PER_TOKEN)
        if is_patient:
            await self._wait_for_room(num_tokens)
        else:
            load.num_preparing += num_tokens
        try:
            num_characters = self.num_inline_characters + len(text)
            if len(text) > INLINE_CHARACTERS or num_characters > INLINE_CHARACTERS_A_TURN:
                return await self._prepare_elsewhere(text, num_tokens)
            if not self.num_inline_characters:
                asyncio.get_running_loop().call_soon(self._begin_turn)
            self.num_inline_characters = num_characters
            return self.engine.prepare(text)
        finally:
            self._end_preparing(load, num_tokens)

    async def _wait_for_room(self, num_tokens: int) -> None:
        """Until a patient text is let in; from then on it counts as one that is being encoded."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.patient.append((turn, num_tokens))
        self._let_in()
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():  # it had been let in
                self._end_preparing(self.loads[True], num_tokens)
            raise

    def _end_preparing(self, load: Load, num_tokens: int) -> None:
        load.num_preparing -= num_tokens
        if self.patient:
            asyncio.get_running_loop().call_soon(self._let_in)  # once the text itself is queued

    async def _prepare_elsewhere(self, text: str, num_tokens: int) -> PreparedText:
        """In a thread, one text after the other: where the device is fast, this is what requests wait for."""
        running = asyncio.get_running_loop().run_in_executor(self.preparing, _time_prepare, self.engine, text)
        prepared, seconds = await running
        rate = num_tokens / max(seconds, 1e-6)
        self.prepared_per_s = RATE_MEMORY * self.prepared_per_s + (1 - RATE_MEMORY) * rate
        return prepared

    def _begin_turn(self) -> None:
        self.num_inline_characters = 0

    def _fits(self, num_queued: int, num_preparing: int, share: float) -> bool:
        """Whether so much leaves room for more in this share of the queue and of the waiting."""
        return (
            num_queued + num_preparing < share * self.max_queued_tokens
            and self._expect_wait(num_queued, num_preparing) <= share * self.max_wait_s
        )

    def _expect_wait(self, num_queued: int, num_preparing: int) -> float:
        return num_queued / self.tokens_per_s + num_preparing / self.prepared_per_s

    def _queue(self, job: Job) -> None:
        self.lanes.add(job, self.max_batch_tokens)
        if self.num_running < self.num_streams:
            asyncio.get_running_loop().call_soon(self._start_batches)  # with what arrives in this turn of the loop

    def _let_in(self) -> None:
        """Let in those that wait for room, in the order of their coming, as far as there is some."""
        while self.patient:
            turn, num_tokens = self.patient[0]
            if not turn.done():
                if not self._fits(self.num_queued_tokens, self.num_preparing_tokens, PATIENT_SHARE):
                    return
                self.loads[True].num_preparing += num_tokens
                turn.set_result(None)
            self.patient.popleft()

    def _start_batches(self) -> None:
        budget = int(min(self.max_batch_tokens, self.engine.streams.fitting_tokens))
        started = []
        while self.num_running < self.num_streams:
            share = -(-self.num_queued_tokens // (self.num_streams - self.num_running))
            work = self.lanes.take(min(budget, max(MIN_BATCH_TOKENS, share)))
            self._let_in()
            if not work.jobs:
                break
            self.running[work] = time.monotonic()
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

    def _give_back(self, _: object) -> None:
        self.engine.streams.wide.is_taken = False

    def _take_back(self, computed: "asyncio.Future[Done]") -> None:
        done = computed.result()
        del self.running[done.work]
        self.num_failed = self.num_failed + 1 if done.is_failed else 0
        self.num_computed_tokens += done.work.num_tokens
        self.computing_s += done.seconds
        self._measure(done.work.num_tokens, done.seconds)
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

    def _measure(self, num_tokens: int, seconds: float) -> None:
        """Count a batch in the speed at which a queue goes down, by its sub-tokens.

        Batches smaller than those of a queue are left out: a lone sentence takes as long as some together, and after a
        quiet hour of them the first requests of a rush would be sent away.
        """
        if num_tokens < MIN_BATCH_TOKENS:
            return
        self.num_measured_tokens = RATE_MEMORY * self.num_measured_tokens + num_tokens
        rate = self.num_streams * num_tokens / max(seconds, 1e-6)
        self.tokens_per_s += (rate - self.tokens_per_s) * num_tokens / self.num_measured_tokens


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
