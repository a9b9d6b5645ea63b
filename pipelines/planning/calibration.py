"""Rates measured on this machine in seconds, kept in the user's cache; and what past runs correct in predictions."""

from pathlib import Path

from pipelines.planning.rates import Rates


def load_rates(precision: str, folder: Path | None = None) -> Rates | None:
    """What a calibration of this machine has kept; None if there is none, or of another torch."""
    raise NotImplementedError
