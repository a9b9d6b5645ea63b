"""Masked language modelling as a task for the loop: windows of raw text, what is hidden in them, and the perplexity.

Where the order of segments is to be told (ALBERT, Lan et al. 2020), a window that holds several sentences is cut
between two of them, about in the middle, and in every second one, drawn anew in each epoch, the parts change places.
Between them stands the separator of segments, also in the place of one of documents, which would tell the order.

Shapes: B windows, T sub-tokens, W places, V vocabulary.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional

from pipelines.ner.casing import CASE_STEP
from pipelines.ner.encoders import load_tokenizer
from pipelines.ner.encoding import plan_batches, read_special_tokens
from pipelines.ner.units import SEPARATOR, measure_units
from pipelines.training.batches import Batch, Ragged, find_words, pad_rows
from pipelines.training.config import TrainingConfig
from pipelines.training.job import Task
from pipelines.training.masked_model import IN_ORDER, IN_SWAPPED_ORDER, MaskedModel, build_masked_model
from pipelines.training.masking import (
    HELD_OUT_EPOCH,
    HELD_OUT_MASKING,
    HELD_OUT_SEED,
    Mask,
    MaskingConfig,
    Vocabulary,
    describe_masks,
    draw_mask,
)
from pipelines.training.parallel import ParallelConfig

_ORDER_STREAM = 1
"""Marks the draws of orders, so that they are not those of masks."""


@dataclass(frozen=True)
class Frame:
    """What a tokenizer puts around a window, and what hides its sub-tokens."""

    prefix: Sequence[int]
    suffix: Sequence[int]
    separator_id: int
    pad_id: int
    vocabulary: Vocabulary

    @classmethod
    def of(cls, tokenizer: Any) -> "Frame":
        """The frame of a tokenizer that has a mask token and a separator (`find_tokenizer_problems`)."""
        prefix, suffix = read_special_tokens(tokenizer)
        special = set(tokenizer.all_special_ids)
        ordinary = np.array([index for index in range(len(tokenizer)) if index not in special], dtype=np.int64)
        separator_id = tokenizer.sep_token_id if tokenizer.sep_token_id is not None else tokenizer.eos_token_id
        pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
        return cls(prefix, suffix, separator_id, pad_id, Vocabulary(tokenizer.mask_token_id, ordinary))


class MaskedWindows:
    """Windows of raw text, as flat arrays, whose masks change with the epoch.

    Args:
        table: columns `window_id`, `input_ids`, `unit_starts`, `unit_kinds`, `sentence_starts` (lists of integers), in
            any order of rows; special tokens are put around the ids here.
        tells_order: whether segments change places.
    """

    def __init__(
        self, table: pa.Table, frame: Frame, config: MaskingConfig, seed: int, *, tells_order: bool = False
    ) -> None:
        table = table.take(pa.array(np.argsort(np.array(table["window_id"].to_pylist(), dtype=object), kind="stable")))
        self._ids, self._starts = Ragged(table["input_ids"]), Ragged(table["unit_starts"])
        self._kinds, self._sentences = Ragged(table["unit_kinds"]), Ragged(table["sentence_starts"])
        self.frame, self.config, self.seed, self.tells_order = frame, config, seed, tells_order
        self.record_ids = table["window_id"]
        self.num_tokens = self._ids.lengths + len(frame.prefix) + len(frame.suffix) + int(tells_order)
        self.usable = np.flatnonzero([bool((self._kinds[index] != SEPARATOR).any()) for index in range(len(table))])
        self._drawn: dict[tuple[int, int], Mask] = {}

    def count_words(self, step: np.ndarray, epoch: int) -> int:
        """Places of the windows of a step: what is hidden, and the order where there is one to tell."""
        self._drawn = {}
        places = sum(len(self.draw(int(index), epoch).positions) for index in step)
        return places + (sum(self._find_cut(int(index)) is not None for index in step) if self.tells_order else 0)

    def draw(self, index: int, epoch: int) -> Mask:
        """What is hidden in a window in an epoch."""
        if (index, epoch) not in self._drawn:
            key = (self.seed, epoch, index)
            units = (self._starts[index], self._kinds[index])
            self._drawn[index, epoch] = draw_mask(self._ids[index], units, self.frame.vocabulary, self.config, key)
        return self._drawn[index, epoch]

    def collate(self, indices: Sequence[int], pad_id: int, epoch: int = 0) -> Batch:
        """The windows at `indices` as one padded batch, with the masks of an epoch (from 0)."""
        rows = [self._frame(index, epoch) for index in indices]
        ids, places, targets = ([row[part] for row in rows] for part in range(3))
        no_B = torch.zeros(len(rows), dtype=torch.bool)
        return Batch(
            pad_rows(ids, pad_id),
            pad_rows([np.ones(len(one)) for one in ids], 0),
            pad_rows(places, 0),
            pad_rows(targets, 0),
            torch.tensor([len(one) for one in places]),
            no_B,
            no_B,
        )

    def describe_masks(self, epochs: Sequence[int], limit: int = 2000) -> dict[str, float]:
        """The shares of what is hidden in some of the windows in these epochs."""
        some = self.usable[:: max(1, len(self.usable) // limit)]

        def draw_all() -> Iterator[tuple[Mask, np.ndarray]]:
            """Masks, and the kinds of all sub-tokens."""
            for epoch in epochs:
                for index in map(int, some):
                    self._drawn = {}
                    kinds = np.repeat(self._kinds[index], measure_units(self._starts[index], len(self._ids[index])))
                    yield self.draw(index, epoch), kinds

        return describe_masks(draw_all())

    def _frame(self, index: int, epoch: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Ids with special tokens around them, the places in them, and what stands there."""
        mask, ids, frame = self.draw(index, epoch), self._ids[index], self.frame
        places, targets = mask.positions + len(frame.prefix), ids[mask.positions].astype(np.int64)
        cut = self._find_cut(index) if self.tells_order else None
        if cut is None:
            return np.concatenate([frame.prefix, mask.ids, frame.suffix]).astype(np.int64), places, targets
        is_swapped = np.random.default_rng((self.seed, epoch, index, _ORDER_STREAM)).random() < 0.5
        before = np.searchsorted(self._starts[index], cut) - 1
        end = cut - int(self._kinds[index][before] == SEPARATOR)
        segments = [np.arange(end), np.arange(cut, len(ids))][:: -1 if is_swapped else 1]
        first, second = segments
        moved = np.empty(len(ids), dtype=np.int64)
        moved[first] = np.arange(len(first))
        moved[second] = np.arange(len(second)) + len(first) + 1  # after the separator
        places = moved[mask.positions] + len(frame.prefix)
        framed = [*frame.prefix, *mask.ids[first], frame.separator_id]
        after = np.array([*mask.ids[second], *frame.suffix], dtype=np.int64) + CASE_STEP  # the second token type
        order = np.argsort(places)
        told = IN_SWAPPED_ORDER if is_swapped else IN_ORDER
        return (
            np.concatenate([framed, after]).astype(np.int64),
            np.concatenate([[0], places[order]]),
            np.concatenate([[told], targets[order]]),
        )

    def _find_cut(self, index: int) -> int | None:
        """Where a sentence begins nearest to the middle of a window; none in a lone sentence."""
        starts = self._sentences[index]
        starts = starts[starts > 0]
        middle = len(self._ids[index]) / 2
        return int(starts[np.argmin(np.abs(starts - middle))]) if len(starts) else None


class HeldOut:
    """A worker's share of the held-out windows, with masks that never change."""

    def __init__(self, windows: MaskedWindows, share: slice, device: torch.device, batch_tokens: int) -> None:
        self.windows, self.device = windows, device
        indices = windows.usable[share]
        groups = plan_batches(windows.num_tokens[indices].tolist(), batch_tokens)
        self.batches = [indices[group].tolist() for group in groups]
        self.facts: dict[str, float] = {}

    def score(self, model: MaskedModel) -> float:
        """One over the perplexity of the hidden sub-tokens of all workers, in fp32: more is better, and at most 1."""
        model.to(self.device).eval()
        sums = torch.zeros(4, dtype=torch.float64)
        with torch.no_grad():
            for indices in self.batches:
                batch = self.windows.collate(indices, self.windows.frame.pad_id, HELD_OUT_EPOCH).to(self.device)
                scores_BWV = model(batch.input_ids_BT, batch.attention_mask_BT, batch.word_starts_BW).float()
                sums += _count_hits(scores_BWV, batch, self.windows.tells_order)
        if dist.is_initialized() and dist.get_world_size() > 1:
            shared = sums.to(self.device)
            dist.all_reduce(shared)
            sums = shared.cpu()
        loss, num_masked, num_right, num_orders = sums.tolist()
        mean = loss / max(1.0, num_masked)
        self.facts = {"held_out_loss": mean}
        if num_orders:
            self.facts["held_out_order_accuracy"] = num_right / num_orders
        return math.exp(-mean)

    def describe(self, metrics: Mapping[str, Any]) -> dict[str, Any]:
        """What the loop tells of an epoch, in terms of perplexity."""
        rest = {name: value for name, value in metrics.items() if name not in ("dev_f1", "best_dev_f1")}
        perplexities = {
            "held_out_perplexity": to_perplexity(metrics["dev_f1"]),
            "best_held_out_perplexity": to_perplexity(metrics["best_dev_f1"]),
        }
        return rest | perplexities | self.facts


def to_perplexity(score: float) -> float:
    """Of what `HeldOut.score` gives."""
    return 1 / max(score, 1e-300)


def _count_hits(scores_BWV: Tensor, batch: Batch, tells_order: bool) -> Tensor:
    """The summed loss of the hidden sub-tokens and their number; orders told rightly and their number."""
    is_place_BW = find_words(batch)
    is_order_BW = is_place_BW & (batch.word_starts_BW == 0) & tells_order
    is_masked_BW = is_place_BW & ~is_order_BW
    targets = batch.tag_ids_BW
    loss = functional.cross_entropy(scores_BWV[is_masked_BW], targets[is_masked_BW], reduction="sum")
    right = scores_BWV[is_order_BW].argmax(dim=1) == targets[is_order_BW]
    return torch.tensor(
        [float(loss), float(is_masked_BW.sum()), float(right.sum()), float(is_order_BW.sum())], dtype=torch.float64
    )


@dataclass(frozen=True)
class PretrainingJob:
    """Everything that a worker needs; it travels to other machines."""

    encoder: str
    dropout: float | None
    masking: MaskingConfig
    tells_order: bool
    training: TrainingConfig
    parallel: ParallelConfig
    load_windows: Callable[[str], pa.Table]
    """Reads the windows of a split, `train` or `held_out` (columns as `MaskedWindows` has them)."""

    def build_model(self) -> MaskedModel:
        """The encoder with the head that it brings, or a new one."""
        return build_masked_model(self.encoder, dropout=self.dropout, tells_order=self.tells_order)

    def open_windows(self, split: str) -> MaskedWindows:
        """The windows of a split, with the masks that belong to it."""
        held_out = split == "held_out"
        return MaskedWindows(
            self.load_windows(split),
            Frame.of(load_tokenizer(self.encoder)),
            HELD_OUT_MASKING if held_out else self.masking,
            HELD_OUT_SEED if held_out else self.training.seed,
            tells_order=self.tells_order,
        )

    def open_task(self, rank: int, size: int, device: torch.device) -> Task:
        """See `Job`."""
        model, windows = self.build_model(), self.open_windows("train")
        batch_tokens = self.training.device_batch_tokens
        held_out = HeldOut(self.open_windows("held_out"), slice(rank, None, size), device, batch_tokens)
        return Task(model, windows, windows.frame.pad_id, held_out.score, held_out.describe, scores_start=True)
