"""Emissions of whole documents to the best legal tags, and to spans with their probabilities.

The score of a span is the probability, under the chain's distribution over all legal tag sequences, that the document
has an entity with exactly these edges and this label: the sum over all sequences that contain it, by forward-backward
(as Culotta and McCallum 2004 for extraction confidence). For a linear head the chain is the softmax of the emissions
restricted to legal sequences.

Shapes: B documents of a batch, N words of all of them, one document after the other, K tags, E entities, M words in
entities.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pipelines.ner.chunks import MAX_SLAB_WORDS
from pipelines.ner.crf import Chain
from pipelines.ner.entities import Span
from pipelines.ner.labels import OUTSIDE, LabelScheme, read_spans
from pipelines.ner.messages import Messages, find_best_tags

MAX_BLOCK_ENTITIES = 32_768


@dataclass(frozen=True)
class Mentions:
    """Entities of a batch by their first and last words, as indices in N."""

    first_E: Tensor
    last_E: Tensor
    opens_E: Tensor
    """Whether the entity begins its document."""
    closes_E: Tensor
    """Whether the entity ends its document."""

    def split(self) -> list["Mentions"]:
        """In blocks that keep memory small."""
        columns = zip(*(column.split(MAX_BLOCK_ENTITIES) for column in vars(self).values()), strict=True)
        return [Mentions(*block) for block in columns]


class Decoder:
    """Decodes with one label scheme and one chain (learned, or only legal). Threads may share it."""

    def __init__(self, scheme: LabelScheme, chain: Chain) -> None:
        self.scheme = scheme
        self.chain = Chain(*(scores.detach().cpu().double() for scores in vars(chain).values()))
        roles = scheme.parsed
        self.continues_KK = torch.tensor(
            [
                [now in ("I", "E") and before in ("B", "I") and label == next_label for now, next_label in roles]
                for before, label in roles
            ]
        )
        others = [({"B": "I"}.get(role, "B"), label) for role, label in roles]
        self.other_opening_K = torch.tensor([roles.index(other) if other in roles else -1 for other in others])
        self.is_entity_K = torch.tensor([tag != OUTSIDE for tag in scheme.tags])
        # That an entity begins at a word depends on the tag before alone.
        pairs = [[read_spans((before, tag), scheme.name)[-1:] for tag in scheme.tags] for before in scheme.tags]
        self.begins_KK = torch.tensor([[[span.start for span in found] == [1] for found in row] for row in pairs])

    @torch.inference_mode()
    def decode(self, emissions: Sequence[Tensor]) -> list[list[Span]]:
        """Spans of each document, in order, from its emissions `[W, K]`; a document may have no words."""
        return [spans for batch in _group(emissions) for spans in self._decode_batch(batch)]

    def _decode_batch(self, batch: Sequence[Tensor]) -> list[list[Span]]:
        found: list[list[Span]] = [[] for _ in batch]
        lengths_B = torch.tensor([len(scores_WK) for scores_WK in batch])
        tags_N = find_best_tags(_join(batch), lengths_B, self.chain)
        document_N = torch.arange(len(batch)).repeat_interleave(lengths_B)
        has_entity_B = torch.zeros(len(batch), dtype=torch.bool)
        has_entity_B[document_N[self.is_entity_K[tags_N]]] = True
        documents = has_entity_B.nonzero().squeeze(1).tolist()
        if documents:
            tags_N, lengths_B = tags_N[has_entity_B[document_N]], lengths_B[has_entity_B]
            for number, span in self._find_spans(_join([batch[i] for i in documents]), tags_N, lengths_B):
                found[documents[number]].append(span)
        return found

    def _find_spans(self, emissions_NK: Tensor, tags_N: Tensor, lengths_B: Tensor) -> Iterator[tuple[int, Span]]:
        """The spans of the best sequences, in order, each with the number of its document."""
        mentions = self._read_mentions(tags_N, lengths_B)
        messages = Messages(emissions_NK, lengths_B, self.chain)
        blocks = (self._score_mentions(emissions_NK, tags_N, messages, block) for block in mentions.split())
        scores_E = torch.cat(list(blocks))
        ends_B = lengths_B.cumsum(0)
        number_E = torch.searchsorted(ends_B, mentions.first_E, right=True)
        offset_E = (ends_B - lengths_B)[number_E]
        tag_E = tags_N[mentions.last_E]
        columns = (number_E, mentions.first_E - offset_E, mentions.last_E + 1 - offset_E, tag_E, scores_E)
        for number, start, end, tag, score in zip(*(column.tolist() for column in columns), strict=True):
            yield number, Span(start, end, self.scheme.parsed[tag][1], min(score, 1.0))

    def _read_mentions(self, tags_N: Tensor, lengths_B: Tensor) -> Mentions:
        """Entities as `read_spans` reads them in each document."""
        opens_N = torch.zeros(len(tags_N), dtype=torch.bool)
        opens_N[lengths_B[lengths_B > 0].cumsum(0) - lengths_B[lengths_B > 0]] = True
        is_entity_N = self.is_entity_K[tags_N]
        begins_N = is_entity_N & (opens_N | self.begins_KK[tags_N.roll(1), tags_N])
        ends_N = is_entity_N & (begins_N | ~is_entity_N).roll(-1)  # a document's first word is always either
        first_E, last_E = begins_N.nonzero().squeeze(1), ends_N.nonzero().squeeze(1)
        return Mentions(first_E, last_E, opens_N[first_E], opens_N.roll(-1)[last_E])

    def _score_mentions(self, emissions_NK: Tensor, tags_N: Tensor, messages: Messages, mentions: Mentions) -> Tensor:
        """Probabilities `[E]` of entities that lie on the best sequences.

        Each is the score of what stands in the entity, times the messages that enter and leave it, over the sum of the
        messages that meet behind it, all with the scales of the messages from before taken out.
        """
        chain, first_E, last_E, closes_E = self.chain, mentions.first_E, mentions.last_E, mentions.closes_E
        before_E, behind_E = (first_E - 1).clamp(min=0), torch.where(closes_E, last_E, last_E + 1)
        before_EK = messages.from_before(before_E) - messages.log_scales_N[before_E, None]
        after_EK = messages.from_behind(behind_E)
        end_EK = torch.where(closes_E[:, None], chain.end_K, after_EK - _read_emissions(emissions_NK, behind_E))
        total_E = (messages.from_before(behind_E) + end_EK).logsumexp(dim=1)
        total_E += _sum_words(messages.log_scales_N, first_E, behind_E)
        first_EK = _read_emissions(emissions_NK, first_E)
        second_tag_E = tags_N[torch.minimum(first_E + 1, last_E)]
        single_E = first_E == last_E

        def score(opening_E: Tensor) -> Tensor:
            """Log-scores of the entities' edges when `opening_E` are their first tags."""
            closing_E = torch.where(single_E, opening_E, tags_N[last_E])
            enter_EK = before_EK + chain.transitions_KK[:, opening_E].T
            enter_EK = enter_EK.masked_fill(self.continues_KK[:, opening_E].T, -torch.inf)
            enter_E = torch.where(mentions.opens_E, chain.start_K[opening_E], enter_EK.logsumexp(dim=1))
            onward_E = chain.transitions_KK[opening_E, second_tag_E].masked_fill(single_E, 0)
            leave_EK = chain.transitions_KK[closing_E] + after_EK
            leave_EK = leave_EK.masked_fill(self.continues_KK[closing_E], -torch.inf)
            leave_E = torch.where(closes_E, chain.end_K[closing_E], leave_EK.logsumexp(dim=1))
            return enter_E + first_EK.gather(1, opening_E[:, None]).squeeze(1) + onward_E + leave_E

        opening_E = tags_N[first_E]
        scores_E = score(opening_E)
        if self.scheme.name == "IOB1":  # the same entity begins with B after another of its label, else with I
            other_E = self.other_opening_K[opening_E]
            scores_E = torch.where(other_E >= 0, torch.logaddexp(scores_E, score(other_E.clamp(min=0))), scores_E)
        return (scores_E + self._score_rest(emissions_NK, tags_N, mentions) - total_E).exp()

    def _score_rest(self, emissions_NK: Tensor, tags_N: Tensor, mentions: Mentions) -> Tensor:
        """Log-scores `[E]` of an entity's tags from the second on, without the step to the second."""
        second_E = mentions.first_E + 1
        entity_M, words_M = _list_words(second_E, mentions.last_E + 1)
        tags_M = tags_N[words_M]
        step_M = self.chain.transitions_KK[tags_N[words_M - 1], tags_M].masked_fill(words_M == second_E[entity_M], 0)
        own_M = emissions_NK[words_M, tags_M].double() - emissions_NK[words_M].amax(dim=1)
        return step_M.new_zeros(len(second_E)).index_add_(0, entity_M, own_M + step_M)


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


def _join(batch: Sequence[Tensor]) -> Tensor:
    return torch.cat(list(batch)) if len(batch) > 1 else batch[0]


def _read_emissions(emissions_NK: Tensor, words_M: Tensor) -> Tensor:
    """Emissions of words, counted from their maximum."""
    own_MK = emissions_NK[words_M].double()
    return own_MK - own_MK.amax(dim=1, keepdim=True)


def _list_words(begin_E: Tensor, end_E: Tensor) -> tuple[Tensor, Tensor]:
    """The words of half-open ranges, one after the other: the number of the range `[M]`, and the word's index `[M]`."""
    lengths_E = end_E - begin_E
    range_M = torch.arange(len(begin_E)).repeat_interleave(lengths_E)
    offset_E = begin_E - (lengths_E.cumsum(0) - lengths_E)
    return range_M, torch.arange(len(range_M)) + offset_E[range_M]


def _sum_words(values_N: Tensor, begin_E: Tensor, end_E: Tensor) -> Tensor:
    """Sums `[E]` of the values in half-open ranges."""
    range_M, words_M = _list_words(begin_E, end_E)
    return values_N.new_zeros(len(begin_E)).index_add_(0, range_M, values_N[words_M])
