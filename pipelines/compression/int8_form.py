"""What int8 forms have in common: layers that can be int8 or not, and what a choice of them computes."""

from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from pipelines.ner.errors import UserError
from pipelines.ner.runtimes.runtime import Runtime


class QuantizationError(UserError):
    """A model or a text with which there is no int8."""


@dataclass
class Site:
    """A layer that can be int8 or not: a product with weights, a table, or the products of attention."""

    name: str
    kind: str
    """linear, embedding or activation (what a product of two activations reads)."""
    num_weights: int = 0
    inputs: list[tuple[Any, Any]] = field(default_factory=list)
    """Of a graph: inputs of nodes, and the FakeQuantize that each reads."""


class Int8Form(Protocol):
    """A calibrated model, of which any choice of layers can be int8."""

    runtime: str
    """What computes it."""
    sites: list[Site]
    """Its layers, in their order."""

    def open(self, chosen: Collection[str]) -> Runtime:
        """The model with the chosen layers in int8 and all else in fp32: so no other rounding hides what they do."""

    def write(self, chosen: Collection[str], folder: Path) -> dict[str, int]:
        """Write the files of the form in a bundle's folder; gives how many tables of bytes and quantized activations
        there are."""
