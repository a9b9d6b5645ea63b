"""The loss: negative log-likelihood of gold tags, summed over words.

Sums, not means: the caller divides by the words of the whole global batch, so that neither padding nor the number of
workers nor accumulation changes a word's weight.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipelines.ner.model import TokenClassifier
from pipelines.training.batches import Batch
from pipelines.training.forward import Forward


class Objective(nn.Module):
    """From a batch to its loss in one module, which is what parallel training wraps."""

    def __init__(self, forward: Forward, label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.compute_emissions, self.label_smoothing = forward, label_smoothing

    def forward(self, batch: Batch) -> Tensor:
        """The summed loss of a batch, in nats."""
        emissions_BWK = self.compute_emissions(batch)
        return sum_loss(self.compute_emissions.model, emissions_BWK, batch, self.label_smoothing)


def sum_loss(model: TokenClassifier, emissions_BWK: Tensor, batch: Batch, label_smoothing: float = 0.0) -> Tensor:
    """The summed negative log-likelihood of a batch in nats, in float32; a CRF's is that of whole tag sequences.

    With label smoothing (Szegedy et al. 2016) that share of a word's weight is spread over all tags; a CRF has none.
    """
    emissions_BWK = emissions_BWK.float()
    if model.crf is not None:
        log_likelihood_B = model.crf.log_likelihood(
            emissions_BWK, batch.tag_ids_BW, batch.lengths_B, batch.starts_B, batch.ends_B
        )
        return -log_likelihood_B.sum()
    words = torch.arange(batch.tag_ids_BW.shape[1], device=batch.lengths_B.device)
    is_word_BW = words < batch.lengths_B[:, None]
    emissions_VK, tag_ids_V = emissions_BWK[is_word_BW], batch.tag_ids_BW[is_word_BW]
    return functional.cross_entropy(emissions_VK, tag_ids_V, reduction="sum", label_smoothing=label_smoothing)
