"""The lengths of a corpus, and how it falls into steps."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

HISTOGRAM_STEP = 16
"""Sub-tokens to a bar in the histograms of `rayner prepare`."""
POOL_BATCHES = 16
"""Batches in whose pool the training loop sorts windows by length (`pipelines.training.batches`)."""
SPECIAL_TOKENS = 2
"""Of a window, as most tokenizers put them around one."""
MOST_WINDOWS = 20_000
"""Windows drawn to see how batches fall; a larger corpus is sampled."""


@dataclass(frozen=True)
class Lengths:
    """Lengths of the windows of a corpus in sub-tokens, special ones included, as a histogram."""

    counts: tuple[tuple[int, int], ...]
    """(Length, number of windows), shortest first."""
    words_per_token: float = 0.75
    """Words by sub-tokens, special ones included."""

    @classmethod
    def from_counts(cls, counts: Mapping[int, int], words_per_token: float = 0.75) -> "Lengths":
        """Of a mapping of length → windows."""
        return cls(tuple(sorted((length, count) for length, count in counts.items() if count)), words_per_token)

    @classmethod
    def from_records(
        cls,
        histogram: Mapping[str, int],
        *,
        window: int,
        stride: int,
        words_per_token: float = 0.75,
        step: int = HISTOGRAM_STEP,
    ) -> "Lengths":
        """Of a `token_histogram` as `ShardsInfo` has it (lower edge of 16 sub-tokens → records), cut into windows.

        Records are counted without special tokens, which each window has. A bar counts as its middle. Of a longer
        record each window but the last is full, and begins `stride` sub-tokens before the end of the one before.

        Args:
            step: sub-tokens of a bar; 1 for lengths that are known exactly.
        """
        counts: dict[int, int] = {}
        for edge, number in histogram.items():
            left = max(1, int(edge) + step // 2) + SPECIAL_TOKENS
            while left > window:
                counts[window] = counts.get(window, 0) + number
                left -= max(1, window - SPECIAL_TOKENS - stride)
            counts[left] = counts.get(left, 0) + number
        return cls.from_counts(counts, words_per_token)

    @property
    def num_windows(self) -> int:
        """All of them."""
        return sum(count for _, count in self.counts)

    @property
    def num_tokens(self) -> int:
        """Sub-tokens of all windows."""
        return sum(length * count for length, count in self.counts)

    @property
    def sum_of_squares(self) -> int:
        """Of all windows' lengths: what attention grows with."""
        return sum(length * length * count for length, count in self.counts)

    @property
    def longest(self) -> int:
        """Sub-tokens of the longest window."""
        return self.counts[-1][0]


def divide_batch(lengths: Lengths, batch_tokens: int, device_batch_tokens: int, num_shares: int) -> tuple[int, int]:
    """(`batch_tokens` of a pass, `accumulation`) of a `TrainingSetup` for the settings of `--training`.

    Args:
        batch_tokens: sub-tokens of an optimizer step over all workers.
        device_batch_tokens: padded sub-tokens of a pass on one worker.
        num_shares: workers that read different parts of the batch.
    """
    per_pass = max(1, device_batch_tokens // lengths.longest)
    windows = max(1, batch_tokens // lengths.longest)  # the longest step, whose passes need most memory
    rounds = -(-windows // (per_pass * num_shares))
    return max(1, batch_tokens // (rounds * num_shares)), rounds


class Steps:
    """Optimizer steps as the training loop would cut them from a corpus, drawn once.

    Args:
        step_tokens: sub-tokens of a step over all workers.
    """

    def __init__(self, lengths: Lengths, step_tokens: int) -> None:
        generator = np.random.default_rng(0)
        drawn = np.repeat(*np.array(lengths.counts, dtype=np.int64).T)
        self.share = min(1.0, MOST_WINDOWS / len(drawn))
        drawn = generator.permutation(drawn)[:MOST_WINDOWS]
        pools = np.cumsum(drawn) // (step_tokens * POOL_BATCHES)
        order = np.lexsort((np.where(pools % 2, -drawn, drawn), pools))
        self.steps: list[np.ndarray] = list(_cut(drawn[order], step_tokens))

    @property
    def num_steps(self) -> int:
        """In an epoch."""
        return max(1, round(len(self.steps) / self.share))

    def deal(self, num_hands: int) -> Iterator[np.ndarray]:
        """Of each step the lengths that one of several hands gets, each in its turn."""
        for number, step in enumerate(self.steps):
            yield divide_step(step, num_hands)[number % num_hands]

    @cached_property
    def heaviest(self) -> np.ndarray:
        """The step with most attention to compute, which has the longest windows."""
        return max(self.steps, key=lambda step: (int((step**2).sum()), int(step.sum())))


def divide_step(step: np.ndarray, num_hands: int) -> list[np.ndarray]:
    """Lengths for each of several hands: neighbours, about as many sub-tokens for each, as the training loop does.

    A hand that would have none computes one window, to no effect.
    """
    ends = np.cumsum(step)
    owners = (ends - step / 2) * num_hands // ends[-1]
    hands = np.split(step, np.searchsorted(owners, np.arange(1, num_hands)))
    return [hand if len(hand) else step[:1] for hand in hands]


@lru_cache(maxsize=256)
def draw_steps(lengths: Lengths, step_tokens: int) -> Steps:
    """Steps of a corpus, kept for the next question."""
    return Steps(lengths, step_tokens)


def _cut(ordered: np.ndarray, budget: int) -> Iterator[np.ndarray]:
    """Consecutive slices whose sum is at most the budget; at least one window each."""
    ends, at = np.cumsum(ordered), 0
    while at < len(ordered):
        before = ends[at - 1] if at else 0
        until = max(at + 1, int(np.searchsorted(ends, before + budget, side="right")))
        yield ordered[at:until]
        at = until
