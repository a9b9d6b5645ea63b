"""Linear-chain conditional random field: the scores of a chain, and the log-likelihood that trains them.

Lafferty, McCallum and Pereira (2001). A linear head is the same chain with transition scores of zero for legal pairs of
tags and -inf for the others, so both heads are decoded by the same code (`messages`, `decoding`).

Shapes: B sequences, W words, K tags. `lengths_B` counts the words of each sequence, all at least 1.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pipelines.ner.labels import LabelScheme


@dataclass(frozen=True)
class Chain:
    """Scores of a chain: `transitions_KK[i, j]` for tag j after tag i, and scores for the first and last tag.

    Illegal choices have -inf.
    """

    transitions_KK: Tensor
    start_K: Tensor
    end_K: Tensor

    def to(self, dtype: torch.dtype) -> "Chain":
        """The chain in another precision."""
        return Chain(self.transitions_KK.to(dtype), self.start_K.to(dtype), self.end_K.to(dtype))


def build_legal_chain(scheme: LabelScheme) -> Chain:
    """Zero for what the scheme allows, -inf for what it forbids."""

    def score(allowed: object) -> Tensor:
        """Zero where true, -inf where false."""
        return torch.zeros(torch.tensor(allowed).shape).masked_fill(~torch.tensor(allowed), -torch.inf)

    return Chain(score(scheme.legal_transitions()), score(scheme.legal_starts()), score(scheme.legal_ends()))


class LinearChainCRF(nn.Module):
    """Learned transition scores; what the scheme forbids stays impossible in training and in decoding."""

    transitions: Tensor
    start: Tensor
    end: Tensor

    def __init__(self, scheme: LabelScheme) -> None:
        super().__init__()
        num_tags = len(scheme.tags)
        self.transitions = nn.Parameter(torch.zeros(num_tags, num_tags))
        self.start = nn.Parameter(torch.zeros(num_tags))
        self.end = nn.Parameter(torch.zeros(num_tags))
        legal = build_legal_chain(scheme)
        self.register_buffer("legal_transitions", legal.transitions_KK, persistent=False)
        self.register_buffer("legal_start", legal.start_K, persistent=False)
        self.register_buffer("legal_end", legal.end_K, persistent=False)

    @property
    def chain(self) -> Chain:
        """Learned scores, with -inf for what is illegal."""
        return Chain(
            self.transitions + self.get_buffer("legal_transitions"),
            self.start + self.get_buffer("legal_start"),
            self.end + self.get_buffer("legal_end"),
        )

    def log_likelihood(
        self, emissions_BWK: Tensor, tags_BW: Tensor, lengths_B: Tensor, starts_B: Tensor, ends_B: Tensor
    ) -> Tensor:
        """`[B]` log-probabilities of tag sequences, in nats.

        `starts_B` and `ends_B` tell which sequences begin and end their document: in the middle of a document, the
        first word may continue an entity, so the start scores do not apply there (nor the end scores).
        """
        chain = self.chain
        start_BK, end_BK = _find_edges(chain, starts_B, ends_B)
        gold_B = _score_sequence(emissions_BWK, tags_BW, lengths_B, chain.transitions_KK, start_BK, end_BK)
        log_z_B = _log_partition(emissions_BWK, lengths_B, chain.transitions_KK, start_BK, end_BK)
        return gold_B - log_z_B

    def expected_log_likelihood(
        self, emissions_BWK: Tensor, tags_BWK: Tensor, lengths_B: Tensor, starts_B: Tensor, ends_B: Tensor
    ) -> Tensor:
        """`[B]` expected log-probabilities, in nats, of tag sequences whose words have these probabilities of tags.

        Neighbouring words are taken for independent, and what the scheme forbids for impossible: such pairs of tags
        have no share in the expectation. Edges as in `log_likelihood`.
        """
        chain = self.chain
        start_BK, end_BK = _find_edges(chain, starts_B, ends_B)
        steps_KK, first_BK, last_BK = (
            scores.masked_fill(scores == -torch.inf, 0) for scores in (chain.transitions_KK, start_BK, end_BK)
        )
        is_word_BW = torch.arange(tags_BWK.shape[1], device=tags_BWK.device) < lengths_B[:, None]
        tags_BWK = tags_BWK.to(emissions_BWK) * is_word_BW[:, :, None]
        last_B1K = (lengths_B - 1)[:, None, None].expand(-1, 1, tags_BWK.shape[2])
        expected_B = (
            (tags_BWK * emissions_BWK).sum((1, 2))
            + ((tags_BWK[:, :-1] @ steps_KK) * tags_BWK[:, 1:]).sum((1, 2))
            + (tags_BWK[:, 0] * first_BK).sum(1)
            + (tags_BWK.gather(1, last_B1K).squeeze(1) * last_BK).sum(1)
        )
        return expected_B - _log_partition(emissions_BWK, lengths_B, chain.transitions_KK, start_BK, end_BK)


def _find_edges(chain: Chain, starts_B: Tensor, ends_B: Tensor) -> tuple[Tensor, Tensor]:
    """Scores `[B, K]` of first and last tags: none where a sequence does not begin or end its document."""
    open_K = torch.zeros_like(chain.start_K)
    return (
        torch.where(starts_B[:, None], chain.start_K, open_K),
        torch.where(ends_B[:, None], chain.end_K, open_K),
    )


def _score_sequence(
    emissions_BWK: Tensor, tags_BW: Tensor, lengths_B: Tensor, transitions_KK: Tensor, start_BK: Tensor, end_BK: Tensor
) -> Tensor:
    mask_BW = torch.arange(tags_BW.shape[1], device=tags_BW.device) < lengths_B[:, None]
    emitted_BW = emissions_BWK.gather(2, tags_BW[:, :, None]).squeeze(2)
    moved_BW = transitions_KK[tags_BW[:, :-1], tags_BW[:, 1:]]
    score_B = emitted_BW.masked_fill(~mask_BW, 0).sum(dim=1) + moved_BW.masked_fill(~mask_BW[:, 1:], 0).sum(dim=1)
    last_B1 = tags_BW.gather(1, (lengths_B - 1)[:, None])
    return score_B + start_BK.gather(1, tags_BW[:, :1]).squeeze(1) + end_BK.gather(1, last_B1).squeeze(1)


def _log_partition(
    emissions_BWK: Tensor, lengths_B: Tensor, transitions_KK: Tensor, start_BK: Tensor, end_BK: Tensor
) -> Tensor:
    alpha_BK = start_BK + emissions_BWK[:, 0]
    for word in range(1, emissions_BWK.shape[1]):
        moved_BK = (alpha_BK[:, :, None] + transitions_KK).logsumexp(dim=1) + emissions_BWK[:, word]
        alpha_BK = torch.where((word < lengths_B)[:, None], moved_BK, alpha_BK)
    return (alpha_BK + end_BK).logsumexp(dim=1)
