"""Early exits for a trained model: classifiers on earlier layers, and from what confidence on windows may leave there.

The network stays as it is here; it may have been trained to tell tags in earlier layers before. An exit learns what the
words are to be (the targets of the model's training) from the hidden states of its layer, and the threshold is chosen
on dev.

Shapes: W words, H hidden size, K tags.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from pipelines.compression.config import CompressionError
from pipelines.evaluation.metrics import Scored, Tallies, count, count_documents, scores
from pipelines.ner.bundle import Bundle
from pipelines.ner.casing import has_cases, split_cases
from pipelines.ner.decoding import Decoder
from pipelines.ner.encoding import Window
from pipelines.ner.entities import Span
from pipelines.ner.exits import NEVER, Exits, compute_everywhere
from pipelines.ner.runtimes.runtime import pad_windows
from pipelines.ner.words import split_words
from pipelines.training.batches import TrainingWindows

MAX_WORDS = 100_000
"""Whose hidden states are held in memory."""
NUM_EPOCHS = 12
BATCH_WORDS = 2048
LEARNING_RATE = 3e-3
BATCH_TOKENS = 2048
THRESHOLDS = (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.93, 0.95, 0.97, 0.98, 0.99, 0.995, 0.998, 0.999)


@dataclass(frozen=True)
class Point:
    """What a threshold gives on dev."""

    threshold: float
    f1: float
    layers: float
    """That a sub-token takes on average."""
    accepted: bool
    """Whether it is good enough against the model that all variants are compared with."""


def choose_exits(num_layers: int, wanted: Sequence[int]) -> list[int]:
    """After which layers exits lie. Raises CompressionError."""
    chosen = list(wanted) or list(range(max(1, num_layers // 3), num_layers))
    if not chosen or chosen[-1] >= num_layers:
        raise CompressionError(
            "exits that are not before the end",
            where="`early_exit.layers`",
            rule=f"1 to {num_layers - 1}, for the model has {num_layers} layers",
            value=", ".join(map(str, chosen)),
            remedy="leave `early_exit` out of `--steps`, or give lower layers",
        )
    return chosen


def train_exits(bundle: Bundle, windows: TrainingWindows, layers: Sequence[int], seed: int) -> Bundle:
    """A copy of the bundle with an exit after each of these layers, and a threshold that lets nothing leave."""
    model = copy.deepcopy(bundle.model)
    model.exits = None
    features, targets_WK = _collect_features(bundle, windows, layers, seed)
    exits = Exits(layers, features[0].shape[1], targets_WK.shape[1], NEVER)
    generator = torch.Generator().manual_seed(seed)
    for head, x_WH in zip(exits.heads, features, strict=True):
        optimizer = torch.optim.Adam(head.parameters(), LEARNING_RATE)
        for _ in range(NUM_EPOCHS):
            for words in torch.randperm(len(x_WH), generator=generator).split(BATCH_WORDS):
                optimizer.zero_grad()
                functional.cross_entropy(head(x_WH[words]), targets_WK[words]).backward()
                optimizer.step()
    model.exits = exits.requires_grad_(False)
    return replace(bundle, model=model)


def choose_threshold(
    bundle: Bundle, dev: Sequence[Scored], max_f1_loss: float, accept: Callable[[Mapping[str, Tallies]], bool]
) -> tuple[Bundle, list[Point]]:
    """The bundle with the lowest threshold at which F1 on dev is at most `max_f1_loss` points below that without exits.

    Args:
        accept: whether a model with these tallies on dev, by document, is good enough. Thresholds that are go before
            others; where none is, the choice is by F1 alone.

    Returns:
        Also what each threshold gave; the first one, above 1, is without exits.
    """
    answers = Answers(bundle, [record.content for record in dev])

    def measure(threshold: float) -> Point:
        """F1 and layers with a threshold."""
        found, layers = answers.label(threshold)
        scored = [replace(record, predicted=spans) for record, spans in zip(dev, found, strict=True)]
        f1 = float(scores(count(scored))["strict"]["micro"]["f1"])
        return Point(threshold, f1, layers, accept(count_documents(scored)))

    points = [measure(threshold) for threshold in (NEVER, *reversed(THRESHOLDS))]
    near = [point for point in points if 100 * (points[0].f1 - point.f1) <= max_f1_loss]
    good = [point for point in near if point.accepted] or near
    return _set_threshold(bundle, min(point.threshold for point in good)), points


class Answers:
    """What each exit and the whole network say of documents: computed once, whatever thresholds are tried.

    Shapes: N words of all windows, B all windows.
    """

    def __init__(self, bundle: Bundle, documents: Sequence[str | Sequence[str]]) -> None:
        self.bundle, self.exits = bundle, copy.deepcopy(bundle.model.exits)
        encoder = bundle.encoder
        self.ranges = [split_words(one, encoder.splitter) if isinstance(one, str) else None for one in documents]
        encoded = [
            encoder.encode_words(one)
            if not isinstance(one, str)
            else encoder.encode_pieces([one[start:end] for start, end in ranges or []])
            for one, ranges in zip(documents, self.ranges, strict=True)
        ]
        windows = [window for document in encoded for window in document.windows]
        self.num_words = [sum(len(window.word_starts) for window in document.windows) for document in encoded]
        self.windows_N = torch.from_numpy(
            np.repeat(np.arange(len(windows)), [len(window.word_starts) for window in windows])
        )
        self.lengths_B = torch.tensor([len(window.input_ids) for window in windows], dtype=torch.float64)
        self.emissions = self._compute(windows)
        self.decoder = Decoder(bundle.model.scheme, bundle.model.chain)

    def label(self, threshold: float) -> tuple[list[list[Span]], float]:
        """The spans of each document, and how many layers a sub-token takes on average."""
        assert self.exits is not None
        self.exits.threshold = threshold
        picked_NK, exit_B = self.exits.pick(self.emissions, self.windows_N, len(self.lengths_B))
        spans = self.decoder.decode(picked_NK.split(self.num_words))
        found = [
            own
            if ranges is None
            else [replace(span, start=ranges[span.start][0], end=ranges[span.end - 1][1]) for span in own]
            for own, ranges in zip(spans, self.ranges, strict=True)
        ]
        layers = torch.tensor([*self.exits.layers, self.bundle.model.network.config.num_hidden_layers])
        return found, float((layers[exit_B] * self.lengths_B).sum() / self.lengths_B.sum())

    def _compute(self, windows: Sequence[Window]) -> list[Tensor]:
        """Emissions `[N, K]` of each exit and the end; windows of one length together, so that nothing is padded."""
        assert self.exits is not None
        network, parts = self.bundle.model.network.eval(), dict[int, list[Tensor]]()
        order = sorted(range(len(windows)), key=lambda index: len(windows[index].input_ids))
        for length, equal in groupby(order, key=lambda index: len(windows[index].input_ids)):
            group, most = list(equal), max(1, BATCH_TOKENS // length)
            for indices in (group[at : at + most] for at in range(0, len(group), most)):
                some = [windows[index] for index in indices]
                with torch.inference_mode():
                    everywhere = compute_everywhere(network, self.exits, *pad_windows(some, self.bundle.encoder.pad_id))
                counts = [len(window.word_starts) for window in some]
                split = zip(*(emissions_WK.split(counts) for emissions_WK in everywhere), strict=True)
                parts |= zip(indices, map(list, split), strict=True)
        return [torch.cat(column) for column in zip(*(parts[index] for index in range(len(windows))), strict=True)]


def _set_threshold(bundle: Bundle, threshold: float) -> Bundle:
    model = copy.copy(bundle.model)
    model._modules = dict(bundle.model._modules)
    model.exits = copy.deepcopy(bundle.model.exits)
    if model.exits is not None:
        model.exits.threshold = threshold
    return replace(bundle, model=model)


def _collect_features(
    bundle: Bundle, windows: TrainingWindows, layers: Sequence[int], seed: int
) -> tuple[list[Tensor], Tensor]:
    """Hidden states `[W, H]` of words after each of the layers, and what is to be learned of them `[W, K]`."""
    network = bundle.model.network.eval()
    order = np.random.default_rng(seed).permutation(windows.usable)
    chosen = order[: np.searchsorted(np.cumsum(windows.num_words[order]), MAX_WORDS) + 1]
    chosen = chosen[np.argsort(windows.num_tokens[chosen], kind="stable")]
    features: list[list[Tensor]] = [[] for _ in layers]
    targets: list[Tensor] = []
    for at in range(0, len(chosen), 32):
        batch = windows.collate(chosen[at : at + 32].tolist(), bundle.encoder.pad_id)
        more = {}
        ids_BT = batch.input_ids_BT
        if has_cases(network):
            ids_BT, more["token_type_ids"] = split_cases(ids_BT)
        with torch.no_grad():
            states = network.base_model(ids_BT, batch.attention_mask_BT, output_hidden_states=True, **more)
        words = torch.arange(batch.word_starts_BW.shape[1])
        is_word_BW = words < batch.lengths_B[:, None]
        rows_B1 = torch.arange(len(ids_BT))[:, None]
        for found, layer in zip(features, layers, strict=True):
            found.append(states.hidden_states[layer][rows_B1, batch.word_starts_BW][is_word_BW])
        if batch.targets_BWK is None:
            tags = functional.one_hot(batch.tag_ids_BW[is_word_BW], len(bundle.model.scheme.tags))
            targets.append(tags.float())
        else:
            targets.append(batch.targets_BWK[is_word_BW])
    return [torch.cat(found) for found in features], torch.cat(targets)
