"""Which of the encoder's layers train, and from which epoch on."""

from dataclasses import dataclass
from typing import Any

from torch import nn

from pipelines.ner.errors import UserError
from pipelines.ner.model import TokenClassifier
from pipelines.training.depths import find_depths, has_own_layers


class FreezingError(UserError):
    """Layers that cannot be frozen."""


@dataclass(frozen=True)
class FreezingConfig:
    """Layers that keep their weights; nothing is computed backward below the lowest that trains.

    An uncased encoder's embeddings of case, which are new, always train: `model.casing` false spares their time, too.
    """

    layers: int | None = None
    """So many of the encoder's lowest layers do not train, nor do its embeddings; 0: the embeddings alone; default: all
    train."""
    unfreeze_per_epoch: int = 0
    """So many of them train in addition with each further epoch, the highest first, the embeddings last (gradual
    unfreezing, Howard and Ruder 2018)."""


class Freezing:
    """The layers of one model that do not train."""

    def __init__(self, model: TokenClassifier, config: FreezingConfig) -> None:
        self.config = config
        self.depths = find_layers_to_freeze(model.network, config) if config.layers is not None else {}

    def begin_epoch(self, epoch: int) -> bool:
        """Freeze what does not train in an epoch (from 0); returns whether another set trains than before."""
        if self.config.layers is None:
            return False
        num_frozen = self.config.layers - epoch * self.config.unfreeze_per_epoch
        changed = [one for one, depth in self.depths.items() if one.requires_grad == (depth <= num_frozen)]
        for parameter in changed:
            parameter.requires_grad_(not parameter.requires_grad)
        return bool(changed)


def find_layers_to_freeze(network: Any, config: FreezingConfig) -> dict[nn.Parameter, int]:
    """The depths of all that may be frozen. Raises FreezingError for an encoder without the layers that are to be."""
    depths, num_layers = find_depths(network), network.config.num_hidden_layers
    if not has_own_layers(network, depths):
        raise FreezingError(
            f"the layers of `{network.config.model_type}` cannot be told apart",
            where="`training.freezing.layers`",
            rule="an encoder whose layers have weights of their own",
            remedy="leave it out",
        )
    if config.layers is not None and config.layers > num_layers:
        raise FreezingError(
            "more layers to freeze than the encoder has",
            where="`training.freezing.layers`",
            rule=f"0 to {num_layers}",
            value=config.layers,
        )
    return depths
