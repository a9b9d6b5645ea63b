"""Linear-chain conditional random field: log-likelihood, Viterbi, forward-backward, entity probabilities.

Lafferty, McCallum and Pereira (2001). A linear head is the same chain with transition scores of zero for legal pairs of
tags and -inf for the others, so both heads are decoded by the code below.

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
        open_K = torch.zeros_like(chain.start_K)
        start_BK = torch.where(starts_B[:, None], chain.start_K, open_K)
        end_BK = torch.where(ends_B[:, None], chain.end_K, open_K)
        gold_B = _score_sequence(emissions_BWK, tags_BW, lengths_B, chain.transitions_KK, start_BK, end_BK)
        log_z_B = _log_partition(emissions_BWK, lengths_B, chain.transitions_KK, start_BK, end_BK)
        return gold_B - log_z_B


def find_best_tags(emissions_BWK: Tensor, lengths_B: Tensor, chain: Chain) -> list[list[int]]:
    """The best legal tag sequence of each row (Viterbi 1967); ties go to the lower tag index."""
    num_rows, num_words, _ = emissions_BWK.shape
    score_BK = chain.start_K + emissions_BWK[:, 0]
    pointers_WBK = []
    for word in range(1, num_words):
        best_BK, pointer_BK = (score_BK[:, :, None] + chain.transitions_KK).max(dim=1)
        active_B1 = (word < lengths_B)[:, None]
        score_BK = torch.where(active_B1, best_BK + emissions_BWK[:, word], score_BK)
        keep_BK = torch.arange(score_BK.shape[1], device=score_BK.device).expand_as(pointer_BK)
        pointers_WBK.append(torch.where(active_B1, pointer_BK, keep_BK))
    tag_B = (score_BK + chain.end_K).argmax(dim=1)
    path = [tag_B]
    rows = torch.arange(num_rows, device=tag_B.device)
    for pointer_BK in reversed(pointers_WBK):
        tag_B = pointer_BK[rows, tag_B]
        path.append(tag_B)
    tags_BW = torch.stack(path[::-1], dim=1).tolist()
    return [tags[:length] for tags, length in zip(tags_BW, lengths_B.tolist(), strict=True)]


def run_forward_backward(emissions_BWK: Tensor, lengths_B: Tensor, chain: Chain) -> tuple[Tensor, Tensor, Tensor]:
    """Forward scores `[B, W, K]` (emission included), backward scores `[B, W, K]` (excluded), log-partition `[B]`."""
    num_words = emissions_BWK.shape[1]
    alpha = [chain.start_K + emissions_BWK[:, 0]]
    for word in range(1, num_words):
        alpha.append((alpha[-1][:, :, None] + chain.transitions_KK).logsumexp(dim=1) + emissions_BWK[:, word])
    alpha_BWK = torch.stack(alpha, dim=1)
    beta_BK = chain.end_K.expand(emissions_BWK.shape[0], -1)
    beta = [beta_BK]
    for word in range(num_words - 1, 0, -1):
        inner_BK = (chain.transitions_KK + (emissions_BWK[:, word] + beta[-1])[:, None, :]).logsumexp(dim=2)
        beta.append(torch.where((word < lengths_B)[:, None], inner_BK, beta_BK))
    beta_BWK = torch.stack(beta[::-1], dim=1)
    rows = torch.arange(len(lengths_B), device=lengths_B.device)
    log_z_B = (alpha_BWK[rows, lengths_B - 1] + chain.end_K).logsumexp(dim=1)
    return alpha_BWK, beta_BWK, log_z_B


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
