"""Emissions of whole documents to the best legal tags, and to spans with their probabilities.

The score of a span is the probability, under the chain's distribution over all legal tag sequences, that the document
has an entity with exactly these edges and this label: the sum over all sequences that contain it, by forward-backward
(as Culotta and McCallum 2004 for extraction confidence). For a linear head the chain is the softmax of the emissions
restricted to legal sequences.

Shapes: B documents of a batch, N words of all of them, one document after the other, K tags, E entities, M words in
entities.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pipelines.ner.chunks import MAX_SLAB_WORDS
from pipelines.ner.crf import Chain
from pipelines.ner.entities import Span
from pipelines.ner.labels import OUTSIDE, LabelScheme, read_spans
from pipelines.ner.messages import (
    Messages,
    Recursions,
    find_documents,
    ignore_impossible,
    read_array,
    sum_logs,
)

MAX_BLOCK_ENTITIES = 32_768


@dataclass(frozen=True)
class Mentions:
    """Entities of a batch by their first and last words, as indices in N."""

    first_E: np.ndarray
    last_E: np.ndarray
    opens_E: np.ndarray
    """Whether the entity begins its document."""
    closes_E: np.ndarray
    """Whether the entity ends its document."""

    def split(self) -> list["Mentions"]:
        """In blocks that keep memory small."""
        begins = range(0, len(self.first_E), MAX_BLOCK_ENTITIES)
        columns = vars(self).values()
        return [Mentions(*(column[i : i + MAX_BLOCK_ENTITIES] for column in columns)) for i in begins]


class Decoder:
    """Decodes with one label scheme and one chain (learned, or only legal). Threads may share it.

    Args:
        temperatures: label → what its scores are scaled by (`scale_scores`); default 1.
    """

    def __init__(self, scheme: LabelScheme, chain: Chain, temperatures: Mapping[str, float] | None = None) -> None:
        self.scheme = scheme
        self.temperature_K = np.array([(temperatures or {}).get(label, 1.0) for _, label in scheme.parsed])
        self.chain = Chain(*(scores.detach().cpu().double() for scores in vars(chain).values()))
        self.recursions = Recursions(self.chain)
        roles = scheme.parsed
        self.continues_KK = np.array(
            [
                [now in ("I", "E") and before in ("B", "I") and label == next_label for now, next_label in roles]
                for before, label in roles
            ]
        )
        others = [({"B": "I"}.get(role, "B"), label) for role, label in roles]
        self.other_opening_K = np.array([roles.index(other) if other in roles else -1 for other in others])
        self.is_entity_K = np.array([tag != OUTSIDE for tag in scheme.tags])
        # That an entity begins at a word depends on the tag before alone.
        pairs = [[read_spans((before, tag), scheme.name)[-1:] for tag in scheme.tags] for before in scheme.tags]
        self.begins_KK = np.array([[[span.start for span in found] == [1] for found in row] for row in pairs])

    @ignore_impossible
    def decode(self, emissions: Sequence[Tensor]) -> list[list[Span]]:
        """Spans of each document, in order, from its emissions `[W, K]`; a document may have no words."""
        return [spans for batch in _group(emissions) for spans in self._decode_batch(batch)]

    @ignore_impossible
    def find_marginals(self, emissions: Sequence[Tensor]) -> list[np.ndarray]:
        """Probabilities `[W, K]` of each word's tags, over all legal sequences of its document."""
        return [part for batch in _group(emissions) for part in self._find_marginals(batch)]

    def _find_marginals(self, batch: Sequence[Tensor]) -> list[np.ndarray]:
        lengths_B = np.array([len(scores_WK) for scores_WK in batch])
        emissions_NK = read_array(torch.cat(list(batch)))
        if not len(emissions_NK):
            return [np.zeros(scores_WK.shape) for scores_WK in batch]
        words_N = np.arange(len(emissions_NK))
        messages = Messages(emissions_NK, lengths_B, self.recursions)
        logs_NK = messages.from_before(words_N) + messages.from_behind(words_N) - _read_emissions(emissions_NK, words_N)
        marginals_NK = np.exp(logs_NK - sum_logs(logs_NK, axis=1)[:, None])
        return np.split(marginals_NK, lengths_B.cumsum()[:-1])

    def _decode_batch(self, batch: Sequence[Tensor]) -> list[list[Span]]:
        found: list[list[Span]] = [[] for _ in batch]
        lengths_B = np.array([len(scores_WK) for scores_WK in batch])
        emissions_NK = read_array(torch.cat(list(batch)) if len(batch) > 1 else batch[0])
        tags_N = self.recursions.find_best_tags(emissions_NK, lengths_B)
        has_entity_B = np.zeros(len(batch), dtype=bool)
        has_entity_B[find_documents(lengths_B, self.is_entity_K[tags_N].nonzero()[0])] = True
        documents = has_entity_B.nonzero()[0].tolist()
        if len(documents) < len(batch):
            has_entity_N = has_entity_B.repeat(lengths_B)
            emissions_NK, tags_N, lengths_B = emissions_NK[has_entity_N], tags_N[has_entity_N], lengths_B[has_entity_B]
        if documents:
            for number, span in self._find_spans(emissions_NK, tags_N, lengths_B):
                found[documents[number]].append(span)
        return found

    def _find_spans(
        self, emissions_NK: np.ndarray, tags_N: np.ndarray, lengths_B: np.ndarray
    ) -> Iterator[tuple[int, Span]]:
        """The spans of the best sequences, in order, each with the number of its document."""
        mentions = self._read_mentions(tags_N, lengths_B)
        messages = Messages(emissions_NK, lengths_B, self.recursions)
        blocks = (self._score_mentions(emissions_NK, tags_N, messages, block) for block in mentions.split())
        scores_E = np.concatenate(list(blocks))
        number_E = find_documents(lengths_B, mentions.first_E)
        offset_E = (lengths_B.cumsum() - lengths_B)[number_E]
        tag_E = tags_N[mentions.last_E]
        scores_E = scale_scores(scores_E.clip(max=1.0), self.temperature_K[tag_E])
        columns = (number_E, mentions.first_E - offset_E, mentions.last_E + 1 - offset_E, tag_E, scores_E)
        for number, start, end, tag, score in zip(*(column.tolist() for column in columns), strict=True):
            yield number, Span(start, end, self.scheme.parsed[tag][1], min(score, 1.0))

    def _read_mentions(self, tags_N: np.ndarray, lengths_B: np.ndarray) -> Mentions:
        """Entities as `read_spans` reads them in each document."""
        opens_N = np.zeros(len(tags_N), dtype=bool)
        opens_N[(lengths_B.cumsum() - lengths_B)[lengths_B > 0]] = True
        is_entity_N = self.is_entity_K[tags_N]
        before_N = np.arange(-1, len(tags_N) - 1)
        begins_N = is_entity_N & (opens_N | self.begins_KK[tags_N[before_N], tags_N])
        closes_N, ends_N = np.empty_like(opens_N), np.empty_like(opens_N)
        closes_N[before_N] = opens_N
        ends_N[before_N] = begins_N | ~is_entity_N  # a document's first word is always either
        first_E, last_E = begins_N.nonzero()[0], (ends_N & is_entity_N).nonzero()[0]
        return Mentions(first_E, last_E, opens_N[first_E], closes_N[last_E])

    def _score_mentions(
        self, emissions_NK: np.ndarray, tags_N: np.ndarray, messages: Messages, mentions: Mentions
    ) -> np.ndarray:
        """Probabilities `[E]` of entities that lie on the best sequences.

        Each is the score of what stands in the entity, times the messages that enter and leave it, over the sum of the
        messages that meet behind it, all with the scales of the messages from before taken out.
        """
        chain, first_E, last_E, closes_E = self.recursions, mentions.first_E, mentions.last_E, mentions.closes_E
        before_E, behind_E = np.maximum(first_E - 1, 0), np.where(closes_E, last_E, last_E + 1)
        before_EK = messages.from_before(before_E) - messages.log_scales_N[before_E, None]
        after_EK = messages.from_behind(behind_E)
        end_EK = np.where(closes_E[:, None], chain.end_K, after_EK - _read_emissions(emissions_NK, behind_E))
        total_E = sum_logs(messages.from_before(behind_E) + end_EK, axis=1)
        total_E += _sum_words(messages.log_scales_N, first_E, behind_E)
        first_EK = _read_emissions(emissions_NK, first_E)
        second_tag_E = tags_N[np.minimum(first_E + 1, last_E)]
        single_E = first_E == last_E

        def score(opening_E: np.ndarray) -> np.ndarray:
            """Log-scores of the entities' edges when `opening_E` are their first tags."""
            closing_E = np.where(single_E, opening_E, tags_N[last_E])
            enter_EK = before_EK + chain.transitions_KK.T[opening_E]
            enter_EK[self.continues_KK.T[opening_E]] = -np.inf
            enter_E = np.where(mentions.opens_E, chain.start_K[opening_E], sum_logs(enter_EK, axis=1))
            onward_E = np.where(single_E, 0, chain.transitions_KK[opening_E, second_tag_E])
            leave_EK = after_EK + chain.transitions_KK[closing_E]
            leave_EK[self.continues_KK[closing_E]] = -np.inf
            leave_E = np.where(closes_E, chain.end_K[closing_E], sum_logs(leave_EK, axis=1))
            own_E = np.take_along_axis(first_EK, opening_E[:, None], axis=1).squeeze(1)
            scores_E: np.ndarray = enter_E + own_E + onward_E + leave_E
            return scores_E

        opening_E = tags_N[first_E]
        scores_E = score(opening_E)
        if self.scheme.name == "IOB1":  # the same entity begins with B after another of its label, else with I
            other_E = self.other_opening_K[opening_E]
            both_E = np.logaddexp(scores_E, score(np.maximum(other_E, 0)))
            scores_E = np.where(other_E >= 0, both_E, scores_E)
        probabilities_E: np.ndarray = np.exp(scores_E + self._score_rest(emissions_NK, tags_N, mentions) - total_E)
        return probabilities_E

    def _score_rest(self, emissions_NK: np.ndarray, tags_N: np.ndarray, mentions: Mentions) -> np.ndarray:
        """Log-scores `[E]` of an entity's tags from the second on, without the step to the second."""
        second_E = mentions.first_E + 1
        entity_M, words_M = _list_words(second_E, mentions.last_E + 1)
        tags_M = tags_N[words_M]
        step_M = self.recursions.transitions_KK[tags_N[words_M - 1], tags_M]
        step_M[words_M == second_E[entity_M]] = 0
        own_M = np.take_along_axis(_read_emissions(emissions_NK, words_M), tags_M[:, None], axis=1).squeeze(1)
        rest_E: np.ndarray = np.bincount(entity_M, own_M + step_M, minlength=len(second_E))
        return rest_E


@ignore_impossible
def scale_scores(scores_E: np.ndarray, temperature_E: np.ndarray | float) -> np.ndarray:
    """Probabilities with their log-odds divided by temperatures; by 1, they stay as they are."""
    if np.all(np.equal(temperature_E, 1.0)):
        return scores_E
    odds_E: np.ndarray = ((1 - scores_E) / scores_E) ** (1 / np.asarray(temperature_E))
    return 1 / (1 + odds_E)


def _group(emissions: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Consecutive documents that fit in one slab together; a longer document alone, so that it need not be copied."""
    batch: list[Tensor] = []
    num_words = 0
    for scores_WK in emissions:
        if batch and num_words + len(scores_WK) > MAX_SLAB_WORDS:
            yield batch
            batch, num_words = [], 0
        batch.append(scores_WK)
        num_words += len(scores_WK)
    if batch:
        yield batch


def _read_emissions(emissions_NK: np.ndarray, words_M: np.ndarray) -> np.ndarray:
    """Emissions of words, counted from their maximum."""
    own_MK: np.ndarray = emissions_NK[words_M].astype(np.double)
    own_MK -= own_MK.max(axis=1, keepdims=True)
    return own_MK


def _list_words(begin_E: np.ndarray, end_E: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The words of half-open ranges, one after the other: the number of the range `[M]`, and the word's index `[M]`."""
    lengths_E = end_E - begin_E
    range_M = np.arange(len(begin_E)).repeat(lengths_E)
    offset_E = begin_E - (lengths_E.cumsum() - lengths_E)
    return range_M, np.arange(len(range_M)) + offset_E[range_M]


def _sum_words(values_N: np.ndarray, begin_E: np.ndarray, end_E: np.ndarray) -> np.ndarray:
    """Sums `[E]` of the values in half-open ranges."""
    range_M, words_M = _list_words(begin_E, end_E)
    sums_E: np.ndarray = np.bincount(range_M, values_N[words_M], minlength=len(begin_E))
    return sums_E
