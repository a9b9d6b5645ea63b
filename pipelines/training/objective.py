"""The loss: negative log-likelihood of gold tags, summed over words.

Where a batch has probabilities of tags instead (a teacher's, Hinton et al. 2015), it is the cross-entropy to those.

Sums, not means: the caller divides by the words of the whole global batch, so that neither padding nor the number of
workers nor accumulation changes a word's weight.

Shapes: B windows, W words, K tags; S samples of the classifier's dropout; X windows of all samples together.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipelines.ner.model import TokenClassifier
from pipelines.training.batches import Batch
from pipelines.training.forward import Forward


class Objective(nn.Module):
    """From a batch to its loss in one module, which is what parallel training wraps.

    With R-Drop (Liang et al. 2021) each window is computed twice, with different dropout: the loss is the mean of both,
    plus `r_drop` times the divergence of their tag distributions.
    """

    def __init__(self, forward: Forward, label_smoothing: float = 0.0, r_drop: float = 0.0) -> None:
        super().__init__()
        self.compute_emissions, self.label_smoothing, self.r_drop = forward, label_smoothing, r_drop

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
    is_word_BW = find_words(batch)
    wanted = batch.tag_ids_BW if batch.targets_BWK is None else batch.targets_BWK
    emissions_VK = emissions_BWK[is_word_BW]
    return functional.cross_entropy(emissions_VK, wanted[is_word_BW], reduction="sum", label_smoothing=label_smoothing)


def sum_divergence(one_SBWK: Tensor, other_SBWK: Tensor, is_word_BW: Tensor) -> Tensor:
    """Of two tag distributions of each word, the mean of the KL divergences both ways, summed over words, in nats."""
    log_p, log_q = (emissions[:, is_word_BW].float().log_softmax(dim=2) for emissions in (one_SBWK, other_SBWK))
    return ((log_p.exp() - log_q.exp()) * (log_p - log_q)).sum() / 2


def find_words(batch: Batch) -> Tensor:
    """Which places of a batch are words, `[B, W]`."""
    return torch.arange(batch.tag_ids_BW.shape[1], device=batch.lengths_B.device) < batch.lengths_B[:, None]
