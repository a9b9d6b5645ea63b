"""The loss: negative log-likelihood of gold tags, summed over words.

Where a batch has probabilities of tags instead (a teacher's, Hinton et al. 2015), it is the cross-entropy to those; and
where it has a teacher's hidden states, those may be followed too. Early exits learn the same tags from their layers'
states.

Sums, not means: the caller divides by the words of the whole global batch, so that neither padding nor the number of
workers nor accumulation changes a word's weight.

Shapes: B windows, W words, V words of all windows, K tags, H hidden size, A heads of relations, d their size; S samples
of the classifier's dropout; X windows of all samples together.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipelines.ner.exits import Exits
from pipelines.ner.model import TokenClassifier
from pipelines.training.batches import Batch, find_words
from pipelines.training.forward import Forward

RELATION_HEADS = 12


@dataclass(frozen=True)
class Imitation:
    """How much it weighs that a student's last hidden states of words are not those of its teacher."""

    states: float = 0.0
    """Of the squared difference, in the mean over units (Jiao et al. 2020, TinyBERT); for equal widths."""
    relations: float = 0.0
    """Of the divergence of how the words of a window attend to each other by their states (as Wang et al. 2021,
    MiniLMv2, do with queries, keys and values); for any widths."""


class Objective(nn.Module):
    """From a batch to its loss in one module, which is what parallel training wraps.

    With R-Drop (Liang et al. 2021) each window is computed twice, with different dropout: the loss is the mean of both,
    plus `r_drop` times the divergence of their tag distributions.
    """

    def __init__(
        self,
        forward: Forward,
        label_smoothing: float = 0.0,
        r_drop: float = 0.0,
        imitation: Imitation | None = None,
    ) -> None:
        super().__init__()
        self.compute_emissions, self.label_smoothing, self.r_drop = forward, label_smoothing, r_drop
        self.imitation = imitation
        forward.keeps_states = imitation is not None
        exits = getattr(forward.model, "exits", None)  # a masked language model has none
        if exits is not None:
            forward.keep_exits(exits.layers)

    def forward(self, batch: Batch) -> Tensor:
        """The summed loss of a batch, in nats; where dropout is drawn several times, the mean of those losses."""
        passes = 2 if self.r_drop else 1
        emissions_XWK = self.compute_emissions(batch.repeat(passes))
        repeats = len(emissions_XWK) // len(batch.lengths_B)
        loss = sum_loss(self.compute_emissions.model, emissions_XWK, batch.repeat(repeats), self.label_smoothing)
        loss = loss / repeats
        if self.r_drop:
            one_SBWK, other_SBWK = emissions_XWK.unflatten(0, (-1, 2, len(batch.lengths_B))).unbind(1)
            divergence = sum_divergence(one_SBWK, other_SBWK, find_words(batch))
            loss = loss + self.r_drop * divergence / len(one_SBWK)
        if self.imitation is not None:
            states_VH = self.compute_emissions.states_VH
            loss = loss + sum_imitation(states_VH, batch.repeat(passes), self.imitation) / passes
        if self.compute_emissions.exit_layers:
            exits = self.compute_emissions.model.exits
            states, wanted = self.compute_emissions.exit_states, batch.repeat(passes)
            assert exits is not None
            loss = loss + sum_exit_loss(exits, states, wanted, self.label_smoothing) / passes
        return loss


def sum_loss(model: TokenClassifier, emissions_BWK: Tensor, batch: Batch, label_smoothing: float = 0.0) -> Tensor:
    """The summed negative log-likelihood of a batch in nats, in float32; a CRF's is that of whole tag sequences.

    With label smoothing (Szegedy et al. 2016) that share of a word's weight is spread over all tags; a CRF has none.
    """
    emissions_BWK = emissions_BWK.float()
    if model.crf is not None and batch.targets_BWK is not None:
        return -model.crf.expected_log_likelihood(
            emissions_BWK, batch.targets_BWK, batch.lengths_B, batch.starts_B, batch.ends_B
        ).sum()
    if model.crf is not None:
        log_likelihood_B = model.crf.log_likelihood(
            emissions_BWK, batch.tag_ids_BW, batch.lengths_B, batch.starts_B, batch.ends_B
        )
        return -log_likelihood_B.sum()
    return _sum_cross_entropy(emissions_BWK[find_words(batch)], batch, label_smoothing)


def sum_exit_loss(exits: Exits, states: Sequence[Tensor], batch: Batch, label_smoothing: float = 0.0) -> Tensor:
    """The loss of a batch at early exits, in the mean over them, from the states `[V, H]` that each reads.

    Beside the loss at the end it makes earlier layers tell tags too (deep supervision, Lee et al. 2015).
    """
    found = [exits.classify(number, states_VH) for number, states_VH in enumerate(states)]
    return torch.stack([_sum_cross_entropy(one_VK, batch, label_smoothing) for one_VK in found]).mean()


def _sum_cross_entropy(emissions_VK: Tensor, batch: Batch, label_smoothing: float) -> Tensor:
    wanted = batch.tag_ids_BW if batch.targets_BWK is None else batch.targets_BWK
    wanted = wanted[find_words(batch)]
    return functional.cross_entropy(emissions_VK, wanted, reduction="sum", label_smoothing=label_smoothing)


def sum_divergence(one_SBWK: Tensor, other_SBWK: Tensor, is_word_BW: Tensor) -> Tensor:
    """Of two tag distributions of each word, the mean of the KL divergences both ways, summed over words, in nats."""
    log_p, log_q = (emissions[:, is_word_BW].float().log_softmax(dim=2) for emissions in (one_SBWK, other_SBWK))
    return ((log_p.exp() - log_q.exp()) * (log_p - log_q)).sum() / 2


def sum_imitation(states_VH: Tensor, batch: Batch, imitation: Imitation) -> Tensor:
    """How far a student's states are from those of the batch, summed over words."""
    assert batch.states_BWH is not None
    is_word_BW, loss = find_words(batch), states_VH.new_zeros(())
    if imitation.states:
        loss = loss + imitation.states * (states_VH - batch.states_BWH[is_word_BW]).square().mean(dim=1).sum()
    if imitation.relations:
        own_BWH = states_VH.new_zeros(*is_word_BW.shape, states_VH.shape[1]).index_put((is_word_BW,), states_VH)
        loss = loss + imitation.relations * sum_relation_divergence(own_BWH, batch.states_BWH, is_word_BW)
    return loss


def sum_relation_divergence(own_BWH: Tensor, wanted_BWH: Tensor, is_word_BW: Tensor) -> Tensor:
    """KL divergence of the relations of states from those wanted, in nats: the mean over heads, summed over words."""
    num_heads = math.gcd(own_BWH.shape[2], wanted_BWH.shape[2], RELATION_HEADS)

    def relate(states_BWH: Tensor) -> Tensor:
        """Logarithms of the shares `[B, A, W, W]` in which each word attends to each."""
        x_BAWd = states_BWH.unflatten(2, (num_heads, -1)).transpose(1, 2)
        scores_BAWW = x_BAWd @ x_BAWd.mT * x_BAWd.shape[3] ** -0.5
        least = torch.finfo(scores_BAWW.dtype).min
        shares_BAWW: Tensor = scores_BAWW.masked_fill(~is_word_BW[:, None, None], least).log_softmax(3)
        return shares_BAWW

    own_BAWW, wanted_BAWW = relate(own_BWH), relate(wanted_BWH)
    divergence_BAW = (wanted_BAWW.exp() * (wanted_BAWW - own_BAWW)).sum(dim=3)
    return divergence_BAW.mean(dim=1)[is_word_BW].sum()
