"""Emissions of whole documents to the best legal tags, and to spans with their probabilities.

The score of a span is the probability, under the chain's distribution over all legal tag sequences, that the document
has an entity with exactly these edges and this label: the sum over all sequences that contain it, by forward-backward
(as Culotta and McCallum 2004 for extraction confidence). For a linear head the chain is the softmax of the emissions
restricted to legal sequences.

Shapes: B documents, W words, K tags, E entities.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from pipelines.ner.crf import Chain, find_best_tags, run_forward_backward
from pipelines.ner.encoding import pad, plan_batches
from pipelines.ner.entities import Span
from pipelines.ner.labels import LabelScheme, read_spans

MAX_BATCH_WORDS = 65_536


class Decoder:
    """Decodes with one label scheme and one chain (learned, or only legal)."""

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

    def decode(self, emissions: Sequence[Tensor]) -> list[list[Span]]:
        """Spans of each document, in order, from its emissions `[W, K]`; a document may have no words."""
        spans: list[list[Span]] = [[] for _ in emissions]
        filled = [index for index, scores_WK in enumerate(emissions) if len(scores_WK)]
        lengths = [len(emissions[index]) for index in filled]
        for batch in plan_batches(lengths, MAX_BATCH_WORDS):
            indices = [filled[i] for i in batch]
            for index, found in zip(indices, self._decode_batch([emissions[i] for i in indices]), strict=True):
                spans[index] = found
        return spans

    def _decode_batch(self, emissions: Sequence[Tensor]) -> list[list[Span]]:
        padded_BWK = torch.nn.utils.rnn.pad_sequence([scores.double() for scores in emissions], batch_first=True)
        # The softmax changes no probability of a sequence, but keeps the numbers small over long documents.
        emissions_BWK = padded_BWK.log_softmax(dim=2)
        lengths_B = torch.tensor([len(scores) for scores in emissions])
        best = find_best_tags(emissions_BWK, lengths_B, self.chain)
        spans = [read_spans([self.scheme.tags[tag] for tag in tags], self.scheme.name) for tags in best]
        flat = [(row, span) for row, found in enumerate(spans) for span in found]
        if not flat:
            return spans
        scores = self._score_spans(emissions_BWK, lengths_B, best, flat).tolist()
        scored: list[list[Span]] = [[] for _ in spans]
        for (row, span), score in zip(flat, scores, strict=True):
            scored[row].append(Span(span.start, span.end, span.label, min(score, 1.0)))
        return scored

    def _score_spans(
        self, emissions_BWK: Tensor, lengths_B: Tensor, best: Sequence[Sequence[int]], flat: Sequence[tuple[int, Span]]
    ) -> Tensor:
        """Probabilities `[E]` of spans that lie on the best sequences."""
        chain = self.chain
        alpha_BWK, beta_BWK, log_z_B = run_forward_backward(emissions_BWK, lengths_B, chain)
        row_E = torch.tensor([row for row, _ in flat])
        first_E = torch.tensor([span.start for _, span in flat])
        last_E = torch.tensor([span.end - 1 for _, span in flat])
        tags_BW = pad(best, 0)
        step_BW = emissions_BWK.gather(2, tags_BW[:, :, None]).squeeze(2)
        step_BW[:, 1:] += chain.transitions_KK[tags_BW[:, :-1], tags_BW[:, 1:]]
        beyond_BW = torch.arange(tags_BW.shape[1]) >= lengths_B[:, None]
        walked_BW = step_BW.masked_fill(beyond_BW, 0).cumsum(dim=1)
        second_E = torch.minimum(first_E + 1, last_E)
        second_tag_E = tags_BW[row_E, second_E]
        rest_E = walked_BW[row_E, last_E] - walked_BW[row_E, second_E] + emissions_BWK[row_E, second_E, second_tag_E]
        is_last_E = last_E == lengths_B[row_E] - 1
        next_E = torch.where(is_last_E, last_E, last_E + 1)
        before_EK = alpha_BWK[row_E, (first_E - 1).clamp(min=0)]
        after_EK = emissions_BWK[row_E, next_E] + beta_BWK[row_E, next_E]

        def score(opening_E: Tensor) -> Tensor:
            """Log-scores of the entities when `opening_E` are their first tags."""
            closing_E = torch.where(first_E == last_E, opening_E, tags_BW[row_E, last_E])
            enter_EK = before_EK + chain.transitions_KK[:, opening_E].T
            enter_EK = enter_EK.masked_fill(self.continues_KK[:, opening_E].T, -torch.inf)
            enter_E = torch.where(first_E == 0, chain.start_K[opening_E], enter_EK.logsumexp(dim=1))
            onward_E = chain.transitions_KK[opening_E, second_tag_E] + rest_E
            inside_E = emissions_BWK[row_E, first_E, opening_E] + onward_E.masked_fill(first_E == last_E, 0)
            leave_EK = chain.transitions_KK[closing_E] + after_EK
            leave_EK = leave_EK.masked_fill(self.continues_KK[closing_E], -torch.inf)
            leave_E = torch.where(is_last_E, chain.end_K[closing_E], leave_EK.logsumexp(dim=1))
            return enter_E + inside_E + leave_E

        opening_E = tags_BW[row_E, first_E]
        scores_E = score(opening_E)
        if self.scheme.name == "IOB1":  # the same entity begins with B after another of its label, else with I
            other_E = self.other_opening_K[opening_E]
            scores_E = torch.where(other_E >= 0, torch.logaddexp(scores_E, score(other_E.clamp(min=0))), scores_E)
        return (scores_E - log_z_B[row_E]).exp()
