"""Texts that wait for a batch, in lanes, and what the next batch takes of each.

A batch is filled from several lanes, each of texts of like length, an equal part of it from each that has work: a long
text advances in every batch and holds up no shorter one. Patient texts have lanes of their own.
"""

from bisect import bisect_left
from collections import deque
from collections.abc import Iterator, Mapping

from serve.work import Job, Load, Work

LENGTHS = (0.25, 1.0, 4.0, 16.0)
"""The longest texts of each lane, in batches; the last lane has those beyond."""


class Lanes:
    """Jobs that have windows which no batch has taken yet.

    Args:
        loads: where their sub-tokens are counted, of ordinary texts (False) and of patient ones (True).
    """

    def __init__(self, loads: Mapping[bool, Load]) -> None:
        self.loads = loads
        self.lanes: list[deque[Job]] = [deque() for _ in range(2 * (len(LENGTHS) + 1))]
        """Those of ordinary texts, then those of patient ones."""
        self.first = 0
        """Each comes first in turn, for only the first one may take a window that is larger than its part."""

    def __iter__(self) -> Iterator[deque[Job]]:
        """The lanes, of which some may be empty."""
        return iter(self.lanes)

    def add(self, job: Job, batch_tokens: int) -> None:
        """Let a job wait, with those that are about as long.

        Args:
            batch_tokens: sub-tokens of a batch, in which lengths are measured.
        """
        waiting = job.count_waiting()
        lane = bisect_left(LENGTHS, waiting / batch_tokens) + job.is_patient * (len(LENGTHS) + 1)
        self.lanes[lane].append(job)
        self.loads[job.is_patient].num_queued += waiting
        job.is_queued = True

    def drop(self, job: Job) -> int:
        """Let no more windows of a job be taken: it failed or was cancelled, or has none left. Returns how many
        sub-tokens wait no longer."""
        waiting = job.count_waiting() if job.is_queued else 0
        job.num_taken = len(job.windows)
        self.loads[job.is_patient].num_queued -= waiting
        return waiting

    def take(self, budget: int) -> Work:
        """The next batch: an equal part of it from each lane that has work, then what is left from any."""
        work = Work()
        self.first += 1
        start = self.first % len(self.lanes)
        lanes = [lane for lane in self.lanes[start:] + self.lanes[:start] if lane]
        limits = [budget * number // len(lanes) for number in range(1, len(lanes) + 1)]
        for lane, limit in [*zip(lanes, limits, strict=True), *((lane, budget) for lane in lanes)]:
            for job in self._iterate(lane):
                num_tokens = len(job.windows[job.num_taken].input_ids)
                if work.jobs and work.num_tokens + num_tokens > limit:
                    break
                work.add(job)
                self.loads[job.is_patient].num_queued -= num_tokens
        return work

    def _iterate(self, lane: deque[Job]) -> Iterator[Job]:
        """The first job of a lane that has windows to take, again and again."""
        while lane:
            job = lane[0]
            if job.future.done():  # cancelled, or failed in another batch
                self.drop(job)
            if job.num_taken == len(job.windows):
                lane.popleft()
            else:
                yield job
