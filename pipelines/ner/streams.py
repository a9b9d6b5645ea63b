"""Windows to emissions in batches, on threads that have a share of the CPUs each."""

import logging
import math
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from threading import Barrier, Lock

import torch
from torch import Tensor

from pipelines.ner.encoding import Window, plan_batches
from pipelines.ner.errors import UserError
from pipelines.ner.runtimes.runtime import Runtime

MAX_STREAMS = 32
GPU_STREAMS = 2
"""While one batch is computed, the next is prepared."""
_NO_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")

logger = logging.getLogger(__name__)


class EmissionsError(UserError):
    """A model whose emissions are infinite, or no numbers."""


@dataclass(frozen=True)
class PendingEmissions:
    """Batches under way."""

    windows: Sequence[Window]
    batches: list[tuple[list[int], Future[Tensor]]]
    """Indices of windows, and the emissions of their words, window after window."""

    def wait(self) -> list[Tensor]:
        """Emissions `[W, K]` of each window's owned words, in order of the windows. Raises what a batch raised."""
        rows: list[Tensor] = [torch.empty(0)] * len(self.windows)
        for batch, future in self.batches:
            num_words = [len(self.windows[index].word_starts) for index in batch]
            for index, scores_WK in zip(batch, future.result().split(num_words), strict=True):
                rows[index] = scores_WK
        return rows


class Streams:
    """Computes batches at once on several threads: on a CPU each has its share of the cores. Threads may share it.

    Args:
        max_batch_tokens: padded sub-tokens of a batch; halved where memory ends.
    """

    def __init__(self, runtime: Runtime, device: torch.device, num_threads: int, max_batch_tokens: int) -> None:
        self.runtime, self.device, self.max_batch_tokens = runtime, device, max_batch_tokens
        self.num_threads = num_threads
        self.num_streams = min(MAX_STREAMS, num_threads if device.type == "cpu" else GPU_STREAMS)
        self.pool = start_threads("emissions", self.num_streams, num_threads)
        self.wide = start_wide_thread(num_threads) if device.type == "cpu" else WideThread(self.pool)
        """A thread that has all cores, for a batch that no other is computed beside."""
        self.fitting_tokens: float = math.inf
        """So many of a batch fit in memory, as far as is known."""
        self.lock = Lock()
        self.num_waiting = 0

    @property
    def is_idle(self) -> bool:
        """Whether no batch waits for a thread."""
        return self.num_waiting == 0

    def submit(self, windows: Sequence[Window]) -> PendingEmissions:
        """Cut windows into batches of like lengths, and begin with them."""
        batches = plan_batches([len(window.input_ids) for window in windows], self.max_batch_tokens)
        with self.lock:
            self.num_waiting += len(batches)
        futures = [(batch, self.pool.submit(self._run, [windows[index] for index in batch])) for batch in batches]
        return PendingEmissions(windows, futures)

    def compute(self, windows: Sequence[Window]) -> list[Tensor]:
        """Emissions `[W, K]` of each window's owned words, in one batch on the calling thread, one of these."""
        if not windows:
            return []
        return list(self._compute(windows).split([len(window.word_starts) for window in windows]))

    def close(self) -> None:
        """End its threads, once what they compute is done."""
        self.pool.shutdown(wait=False)

    def _run(self, windows: Sequence[Window]) -> Tensor:
        with self.lock:
            self.num_waiting -= 1
        return self._compute(windows)

    def _compute(self, windows: Sequence[Window]) -> Tensor:
        """Emissions of a batch; where memory does not suffice, of its halves, and later batches are smaller too."""
        try:
            return check_finite(self.runtime.compute(windows), self.runtime.precision)
        except (MemoryError, RuntimeError) as error:
            if len(windows) == 1 or not _is_out_of_memory(error):
                raise
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        longest = max(len(window.input_ids) for window in windows)
        budget = max(1, longest * len(windows) // 2)
        if budget < self.fitting_tokens:
            self.fitting_tokens = budget
            self.max_batch_tokens = min(self.max_batch_tokens, budget)
            logger.warning("out of memory: batches have at most %d sub-tokens from now on", budget)
        middle = len(windows) // 2
        return torch.cat([self._compute(windows[:middle]), self._compute(windows[middle:])])


@dataclass
class WideThread:
    """A thread with all cores, which engines share."""

    pool: ThreadPoolExecutor
    is_taken: bool = False
    """By one of them, for a batch; kept by those who take it."""


@cache
def start_wide_thread(num_threads: int) -> WideThread:
    """The one thread of this process that has so many cores.

    It should be the only one with several that lives: if those of OpenMP are more than there are cores, each operation
    puts them to sleep and wakes them up again, and a lone sentence takes nearly twice as long.
    """
    return WideThread(start_threads("alone", 1, num_threads))


def check_finite(emissions_WK: Tensor, precision: str) -> Tensor:
    """The emissions, unless some are no numbers: then EmissionsError, for decoding would find nothing in them."""
    if not bool(torch.isfinite(emissions_WK).all()):
        what, remedy = "the model computes no numbers", "its weights may be damaged: train, convert or fetch it again"
        if precision in ("fp16", "int8"):
            what, remedy = (
                f"the model overflows in {precision}",
                "set `precision` to `bf16` or `fp32`",
            )
        raise EmissionsError(what, rule="emissions are finite", value=f"infinite or NaN in {precision}", remedy=remedy)
    return emissions_WK


def start_threads(name: str, num_streams: int, num_threads: int) -> ThreadPoolExecutor:
    """Threads that each have their share of the CPU threads: one core each, up to `MAX_STREAMS` of them."""
    num_streams = min(num_streams, MAX_STREAMS)
    share = max(1, num_threads // num_streams)
    before = torch.get_num_threads()
    pool = ThreadPoolExecutor(num_streams, name, initializer=_limit_threads, initargs=(share,))
    barrier = Barrier(num_streams + 1)
    for _ in range(num_streams):
        pool.submit(barrier.wait)
    barrier.wait()
    torch.set_num_threads(before)  # what the threads set for themselves is also the default of later threads
    return pool


def _limit_threads(num_threads: int) -> None:
    """Of the calling thread. A thread takes the default at its first look at it, whatever was set before."""
    torch.get_num_threads()
    torch.set_num_threads(num_threads)


def _is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, MemoryError) or any(sign in str(error).lower() for sign in _NO_MEMORY)
