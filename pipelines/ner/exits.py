"""Early exits: classifiers on earlier layers, at which windows leave whose words are all told with confidence.

A window leaves by its own words alone, so what else is in a batch changes no answer (as DeeBERT, Xin et al. 2020, for
whole sentences; here every word has to be sure enough).

Shapes: B windows, T sub-tokens, W words of all windows, H hidden size, K tags.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pipelines.ner.casing import has_cases, split_cases

NEVER = 2.0
"""A threshold at which nothing leaves."""


class Exits(nn.Module):
    """A linear classifier after each of some layers.

    Args:
        layers: after how many layers each exit lies, in order.
        threshold: the least probability that the likeliest tag of every word must have.
    """

    def __init__(self, layers: Sequence[int], hidden_size: int, num_tags: int, threshold: float) -> None:
        super().__init__()
        self.layers, self.threshold, self.num_tags = tuple(layers), threshold, num_tags
        self.heads = nn.ModuleList(nn.Linear(hidden_size, num_tags) for _ in layers)

    def classify(self, exit_number: int, x_WH: Tensor) -> Tensor:
        """Emissions `[W, K]` in float32."""
        emissions_WK: Tensor = self.heads[exit_number](x_WH.float())
        return emissions_WK

    def find_leaving(self, emissions_WK: Tensor, windows_W: Tensor, num_windows: int) -> Tensor:
        """Which windows `[B]` leave, given the window of each word; one without words does."""
        sure_W = emissions_WK.softmax(dim=1).amax(dim=1)
        least_B = torch.ones(num_windows, device=sure_W.device).scatter_reduce(0, windows_W, sure_W, "amin")
        return least_B >= self.threshold

    def pick(self, emissions: Sequence[Tensor], windows_W: Tensor, num_windows: int) -> tuple[Tensor, Tensor]:
        """Of the emissions of each exit and of the whole network, each `[W, K]`, those of where windows leave.

        Returns:
            Also where each window does, `[B]`: the number of its exit, or one more for the end.
        """
        picked_WK, exit_B = emissions[-1], torch.full((num_windows,), len(self.layers), device=windows_W.device)
        for number in reversed(range(len(self.layers))):  # the first one that lets a window go has the last word
            leaves_B = self.find_leaving(emissions[number], windows_W, num_windows)
            picked_WK = torch.where(leaves_B[windows_W][:, None], emissions[number], picked_WK)
            exit_B[leaves_B] = number
        return picked_WK, exit_B


def compute_with_exits(
    network: Any, exits: Exits, ids_BT: Tensor, mask_BT: Tensor, places_W: Tensor, windows_W: Tensor
) -> Tensor:
    """Emissions `[W, K]` as the exits decide, of a network that computes all layers anyway: what others are held to.

    Args:
        places_W: the words' places in the flattened `[B * T]`.
        windows_W: the words' windows.
    """
    return exits.pick(compute_everywhere(network, exits, ids_BT, mask_BT, places_W), windows_W, len(ids_BT))[0]


def compute_everywhere(network: Any, exits: Exits, ids_BT: Tensor, mask_BT: Tensor, places_W: Tensor) -> list[Tensor]:
    """Emissions `[W, K]` of each exit and, last, of the whole network."""
    more = {}
    if has_cases(network):
        ids_BT, more["token_type_ids"] = split_cases(ids_BT)
    found = network(input_ids=ids_BT, attention_mask=mask_BT, output_hidden_states=True, **more)
    states = [found.hidden_states[layer].flatten(0, 1)[places_W] for layer in exits.layers]
    return [
        *(exits.classify(number, x_WH) for number, x_WH in enumerate(states)),
        found.logits.flatten(0, 1)[places_W].float(),
    ]
