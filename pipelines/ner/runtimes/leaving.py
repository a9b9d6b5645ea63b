"""Which windows of a packed batch are still computed, and what those that have left were told.

Shapes: B windows, N rows (sub-tokens), W words of all windows, H hidden size, K tags.
"""

from collections.abc import Sequence
from itertools import groupby

import numpy as np
import torch
from torch import Tensor

from pipelines.ner.encoding import Window
from pipelines.ner.exits import Exits

MIN_SHARE = 0.05
"""Of the rows that must leave before the others are moved together."""


class Leaving:
    """A batch on its way through the layers.

    Args:
        order_B: the windows as they come in the rows.
        offsets_B: the first row of each window.
    """

    def __init__(
        self, windows: Sequence[Window], order_B: np.ndarray, offsets_B: np.ndarray, exits: Exits, device: torch.device
    ) -> None:
        self.exits, self.device = exits, device
        self.order, self.offsets_B = order_B, offsets_B.copy()
        self.lengths_B = np.array([len(window.input_ids) for window in windows])
        counts_B = [len(window.word_starts) for window in windows]
        self.windows_W = np.repeat(np.arange(len(windows)), counts_B)
        self.starts_W = np.array([start for window in windows for start in window.word_starts], dtype=np.int64)
        self.stays_B = np.ones(len(windows), dtype=bool)
        self.emissions_WK: Tensor = torch.empty(len(self.windows_W), exits.num_tags)

    def find_places(self) -> np.ndarray:
        """The rows of the words that stay, in their order."""
        stays_W = self.stays_B[self.windows_W]
        places: np.ndarray = self.offsets_B[self.windows_W[stays_W]] + self.starts_W[stays_W]
        return places

    def tell(self, emissions_VK: Tensor) -> None:
        """Note the emissions of the words that stay."""
        self.emissions_WK[torch.from_numpy(self.stays_B[self.windows_W])] = emissions_VK.cpu()

    def leave(self, number: int, x_NH: Tensor) -> tuple[Tensor, list[tuple[int, int]]] | None:
        """Let windows go at an exit.

        Returns:
            If rows are to be moved together: which rows `[N]` stay, and their windows' (count, length) groups.
        """
        stays_W = self.stays_B[self.windows_W]
        emissions_VK = self.exits.classify(number, x_NH[torch.from_numpy(self.find_places()).to(self.device)])
        windows_V = torch.from_numpy(self.windows_W[stays_W]).to(self.device)
        leaves_B = self.exits.find_leaving(emissions_VK, windows_V, len(self.stays_B)).cpu().numpy() & self.stays_B
        if not leaves_B.any():
            return None
        self.tell(emissions_VK)  # those that stay are told again
        self.stays_B &= ~leaves_B
        left = self.order[self.stays_B[self.order]]
        lengths = self.lengths_B[left]
        if not len(left) or lengths.sum() > (1 - MIN_SHARE) * self.lengths_B[self.order].sum():
            return None
        rows = [np.arange(self.offsets_B[one], self.offsets_B[one] + self.lengths_B[one]) for one in left]
        self.order = left
        self.offsets_B[self.order] = np.cumsum(lengths) - lengths
        groups = [(len(list(same)), length) for length, same in groupby(lengths.tolist())]
        return torch.from_numpy(np.concatenate(rows)), groups
