"""Kinds of units that a window of raw text is made of; a unit is hidden whole where whole words are."""

import numpy as np

WORD, RARE, ENTITY, SEPARATOR = range(4)
"""An ordinary word; a rare one; a mention, of however many words; what stands between two documents."""

Units = tuple[np.ndarray, np.ndarray]
"""Where each unit begins (the first at 0, the last ends with the window), and its kind."""


def measure_units(starts: np.ndarray, num_tokens: int) -> np.ndarray:
    """Sub-tokens of each unit."""
    return np.diff(starts, append=num_tokens)
