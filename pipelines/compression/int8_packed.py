"""The int8 form of what is computed without padding: ranges of the products' inputs, set by windows of text.

As in SmoothQuant (Xiao et al. 2023), outliers of inputs move into the weights. The product behind the activation reads
the bytes that the one before it wrote, all of one range: there the few columns with outliers are split into several
(Zhao et al. 2019), each of which counts on where the one before is full. Attention itself and the tables of embeddings
stay in floating point.

Shapes: N rows, I inputs, O outputs.
"""

from collections.abc import Collection, Sequence
from math import ceil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipelines.compression.int8_form import Site
from pipelines.ner.bundle import INT8_FORMS
from pipelines.ner.encoding import Window, plan_batches
from pipelines.ner.model import TokenClassifier
from pipelines.ner.runtimes.architectures import read_architecture
from pipelines.ner.runtimes.packed import PackedRuntime, read_product
from pipelines.ner.runtimes.products import LARGEST_BYTE, PARTS, Int8Product, find_largest_weight, write_products

_Product = tuple[Tensor, Tensor, "Inputs"]
CPU = torch.device("cpu")
SPLIT = 0.02
"""Share of columns that may be added for outliers behind an activation."""
NO_LOBE = {"relu", "none"}
LEAST_RANGE = 3.5
"""To which columns behind GELU are split at least: nearer to zero it is not yet the line that their sum should be."""
SITES = {"attention_in": ("attention_in",), "attention_out": ("attention_out",), "feed": ("feed_in", "feed_out")}
"""A layer's parts that are int8 or not, and their products."""


class PackedForm:
    """See `Int8Form`. `PackedForm(model, …)` calibrates it on windows of text."""

    runtime = "packed"

    def __init__(
        self,
        model: TokenClassifier,
        windows: Sequence[Window],
        pad_id: int,
        *,
        smooth: float | None,
        weight_bits: int,
    ) -> None:
        self.model, self.pad_id, self.weight_bits = model, pad_id, weight_bits
        found = read_architecture(model.network)
        assert found is not None
        seen = _record(model, windows, pad_id)
        self.products: dict[str, dict[str, Int8Product]] = {}
        smooths = dict.fromkeys(PARTS, smooth) | {"feed_out": None}
        for number, layer in enumerate(found.layers):
            given = {part: (*read_product(layer, part), seen[number, part]) for part in PARTS}
            least = 0.0 if found.activation in NO_LOBE else LEAST_RANGE
            given["feed_in"], given["feed_out"] = split_outliers(given["feed_in"], given["feed_out"], least)
            for site, parts in SITES.items():
                self.products[f"layer.{number}.{site}"] = {
                    f"layer.{number}.{part}": quantize(*given[part], smooths[part], weight_bits) for part in parts
                }
        self.sites = [
            Site(name, "linear", sum(product.weight_OI.numel() for product in products.values()))
            for name, products in self.products.items()
        ]

    def open(self, chosen: Collection[str]) -> PackedRuntime:
        """See `Int8Form`."""
        return PackedRuntime(
            self.model, device=CPU, precision="fp32", pad_id=self.pad_id, products=self._select(chosen)
        )

    def write(self, chosen: Collection[str], folder: Path) -> dict[str, int]:
        """See `Int8Form`."""
        path = folder / INT8_FORMS[self.runtime][0]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)  # who reads the one before has it mapped
        products = self._select(chosen)
        write_products(path, products, self.weight_bits)
        return {"weights": len(products), "activations": len(products)}

    def _select(self, chosen: Collection[str]) -> dict[str, Int8Product]:
        return {name: product for site in chosen for name, product in self.products[site].items()}


class Inputs:
    """What was seen of a product's inputs: each one's range, zero in it."""

    def __init__(self, low_I: Tensor, high_I: Tensor) -> None:
        self.low_I, self.high_I = low_I, high_I

    def add(self, x_NI: Tensor) -> None:
        """See more rows."""
        low_I, high_I = torch.aminmax(x_NI, dim=0)
        self.low_I, self.high_I = torch.minimum(self.low_I, low_I), torch.maximum(self.high_I, high_I)


def quantize(weight_OI: Tensor, bias_O: Tensor, seen: Inputs, smooth: float | None, weight_bits: int) -> Int8Product:
    """A product in int8. For `smooth` and `weight_bits` see `QuantizationConfig`."""
    smooth_I = torch.ones(weight_OI.shape[1])
    if smooth is not None:
        most_I = torch.maximum(seen.high_I, -seen.low_I).clamp(min=1e-5)
        smooth_I = weight_OI.abs().amax(dim=0).clamp(min=1e-5) ** (1 - smooth) / most_I**smooth
    smoothed_OI = weight_OI / smooth_I
    scale_O = smoothed_OI.abs().amax(dim=1).clamp(min=1e-12) / find_largest_weight(weight_bits)
    bytes_OI = (smoothed_OI / scale_O[:, None]).round()
    low, high = float((seen.low_I * smooth_I).min()), max(float((seen.high_I * smooth_I).max()), 1e-12)
    zero_point = min(ceil(-low / (high - low) * LARGEST_BYTE), LARGEST_BYTE - 1)
    input_scale = max(high / (LARGEST_BYTE - zero_point), -low / max(zero_point, 1))  # the highest is the last byte
    return Int8Product(bytes_OI.to(torch.int8), scale_O, bias_O, smooth_I, input_scale, zero_point)


def split_outliers(before: _Product, behind: _Product, least: float) -> tuple[_Product, _Product]:
    """The products before and behind an activation, with columns between them split so that all have a small range.

    A column `a(x)` with values up to m times the range r becomes `a(x) + a(x - r) + … + a(x - (m - 1) r)`, each of
    which ends at r, as bytes do: for activations that are 0 far below zero and x far above it, as GELU and ReLU.

    Args:
        least: the smallest range; at minus that the activation should be 0.
    """
    seen_M = behind[2]
    high_M = seen_M.high_I.clamp(min=1e-5)
    limit = _find_limit(high_M, int(SPLIT * len(high_M))).clamp(min=least)
    numbers_M = _count_parts(high_M, limit)
    columns = torch.repeat_interleave(numbers_M)
    turns = torch.arange(len(columns)) - (numbers_M.cumsum(0) - numbers_M)[columns]
    seen = Inputs(seen_M.low_I[columns], high_M.clamp(max=float(limit))[columns])
    split = (before[0][columns], before[1][columns] - limit * turns, before[2])
    return split, (behind[0][:, columns], behind[1], seen)


def _find_limit(high_M: Tensor, most: int) -> Tensor:
    """The smallest range to which columns can be split with so many more of them."""
    highest = high_M.sort(descending=True).values[: most + 1]  # a column more would have to be split below the last
    limits = (highest[:, None] / torch.arange(1, most + 2)).flatten().sort().values
    sums = (int(_count_parts(high_M, one).sum()) for one in limits)
    return limits[next(index for index, number in enumerate(sums) if number <= len(high_M) + most)]


def _count_parts(high_M: Tensor, limit: Tensor) -> Tensor:
    """How many columns each becomes so that none goes beyond a limit."""
    return (high_M / limit - 1e-4).ceil().long().clamp(min=1)


class _Recorder:
    """A product in fp32 that notes what it reads."""

    def __init__(self, product: Any, seen: Inputs) -> None:
        self.product, self.seen = product, seen

    def __call__(self, x_NI: Tensor) -> Tensor:
        self.seen.add(x_NI)
        y_NO: Tensor = self.product(x_NI)
        return y_NO

    def add(self, x_NI: Tensor, residual_NO: Tensor) -> Tensor:
        self.seen.add(x_NI)
        y_NO: Tensor = self.product.add(x_NI, residual_NO)
        return y_NO


def _record(model: TokenClassifier, windows: Sequence[Window], pad_id: int) -> dict[tuple[int, str], Inputs]:
    """What each product of each layer reads while a model computes these windows."""
    found = read_architecture(model.network)
    assert found is not None
    runtime = PackedRuntime(model, device=CPU, precision="fp32", pad_id=pad_id)
    runtime.exits = None  # through which windows would leave before the later layers
    seen: dict[tuple[int, str], Inputs] = {}
    for number, (layer, source) in enumerate(zip(runtime.layers, found.layers, strict=True)):
        for part in PARTS:
            seen[number, part] = Inputs(*torch.zeros(2, read_product(source, part)[0].shape[1]))
            setattr(layer, part, _Recorder(getattr(layer, part), seen[number, part]))
    for batch in plan_batches([len(window.input_ids) for window in windows], runtime.batch_tokens):
        runtime.compute([windows[index] for index in batch])
    return seen
