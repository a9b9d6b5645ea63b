"""Texts on their way, and the batches of their windows: what a thread computes, and what it makes of failures."""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from torch import Tensor

from pipelines.ner.encoding import Window
from pipelines.ner.engine import NerEngine, PreparedText
from pipelines.ner.entities import Prediction


@dataclass(eq=False)
class Job:
    """A text on its way."""

    text: PreparedText
    future: "asyncio.Future[Answer]"
    queued_at: float
    emissions: list[Any]
    """Of each window, once it is computed."""
    started_at: float = 0.0
    num_taken: int = 0
    """Windows that went into a batch."""
    num_left: int = 0
    """Windows that are not computed yet."""
    is_queued: bool = False
    is_patient: bool = False
    begin: Callable[[], None] = lambda: None
    """Is called when its first window goes into a batch."""

    @property
    def windows(self) -> Sequence[Window]:
        """Of its document."""
        return self.text.document.windows

    def count_waiting(self) -> int:
        """Sub-tokens of the windows that no batch has taken."""
        return sum(len(window.input_ids) for window in self.windows[self.num_taken :])


@dataclass(slots=True)
class Load:
    """Sub-tokens that wait, of ordinary texts or of patient ones."""

    num_queued: int = 0
    """That no batch has taken yet."""
    num_preparing: int = 0
    """Of texts that are to be encoded: about as many as they will have."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A prediction, and where its time went."""

    prediction: Prediction
    queue_s: float
    engine_s: float


@dataclass(eq=False)
class Work:
    """The windows of one batch, each with its job and its place there."""

    jobs: list[Job] = field(default_factory=list)
    places: list[int] = field(default_factory=list)
    num_tokens: int = 0

    def add(self, job: Job) -> None:
        """Take the job's next window."""
        if not job.num_taken:
            job.begin()
        self.jobs.append(job)
        self.places.append(job.num_taken)
        self.num_tokens += len(job.windows[job.num_taken].input_ids)
        job.num_taken += 1


@dataclass(frozen=True, slots=True)
class Done:
    """What a thread made of a batch."""

    work: Work
    emissions: list[Tensor | Exception]
    """Of each window, or the error that its text causes."""
    answers: dict[Job, Prediction | Exception]
    """Of the jobs that were in this batch as a whole."""
    seconds: float

    @property
    def is_failed(self) -> bool:
        """Whether none of its windows could be computed."""
        return all(isinstance(one, Exception) for one in self.emissions)


def compute(engine: NerEngine, work: Work) -> Done:
    """Compute a batch; where that fails, each of its windows by itself, so that only the text that causes it fails."""
    started = time.monotonic()
    windows = [job.windows[place] for job, place in zip(work.jobs, work.places, strict=True)]
    emissions: list[Tensor | Exception]
    try:
        emissions = list(engine.compute(windows))
    except Exception as error:
        emissions = [_compute_one(engine, window) for window in windows] if len(windows) > 1 else [error]
    whole = []
    at = 0
    for job, group in groupby(work.jobs):
        count = len(list(group))
        parts = emissions[at : at + count]
        if count == len(job.windows) and not any(isinstance(part, Exception) for part in parts):
            job.emissions = parts
            whole.append(job)
        at += count
    return Done(work, emissions, finish(engine, whole), time.monotonic() - started)


def _compute_one(engine: NerEngine, window: Window) -> Tensor | Exception:
    try:
        return engine.compute([window])[0]
    except Exception as error:
        return error


def finish(engine: NerEngine, jobs: Sequence[Job]) -> dict[Job, Prediction | Exception]:
    """The predictions of texts that are computed; where that fails, each by itself."""
    if not jobs:
        return {}
    try:
        return dict(zip(jobs, engine.finish([job.text for job in jobs], [job.emissions for job in jobs]), strict=True))
    except Exception as error:
        if len(jobs) == 1:
            return {jobs[0]: error}
        return {job: answer for one in jobs for job, answer in finish(engine, [one]).items()}
