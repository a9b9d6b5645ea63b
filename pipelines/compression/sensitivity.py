"""What each layer of a model does to its answers when it alone is int8."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pipelines.compression.int8_form import Int8Form, Site
from pipelines.ner.bundle import Bundle
from pipelines.ner.decoding import Decoder
from pipelines.ner.encoding import Encoder, Window, plan_batches
from pipelines.ner.entities import Span
from pipelines.ner.runtimes.padded import TorchRuntime
from pipelines.ner.runtimes.runtime import Runtime
from pipelines.ner.words import split_words

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Sensitivity:
    """What one layer alone in int8 does."""

    name: str
    kind: str
    """linear, embedding or activation (what attention's products read)."""
    num_weights: int
    error: float
    """Root-mean-square difference of emissions from fp32, as a share of their deviation."""
    changed: float
    """Share of words whose decoded label changes."""


@dataclass(frozen=True)
class Reference:
    """A model's own emissions and decoded labels of some windows."""

    bundle: Bundle
    windows: list[Window]
    emissions: list[Tensor]
    labels: list[str]

    @classmethod
    def measure(cls, bundle: Bundle, windows: list[Window]) -> "Reference":
        """As PyTorch computes them in fp32."""
        runtime = TorchRuntime(bundle.model, device=CPU, precision="fp32", pad_id=bundle.encoder.pad_id)
        emissions = _compute(runtime, windows)
        return cls(bundle, windows, emissions, _decode(bundle, emissions))

    def compare(self, site: Site, runtime: Runtime) -> Sensitivity:
        """How the model with one layer in int8 differs from it."""
        emissions = _compute(runtime, self.windows)
        found_WK, expected_WK = torch.cat(emissions), torch.cat(self.emissions)
        distance = (found_WK - expected_WK).square().mean().sqrt() / expected_WK.std().clamp(min=1e-9)
        labels = _decode(self.bundle, emissions)
        changed = sum(ours != theirs for ours, theirs in zip(labels, self.labels, strict=True)) / max(1, len(labels))
        return Sensitivity(site.name, site.kind, site.num_weights, round(float(distance), 6), round(changed, 6))


def measure_sensitivity(reference: Reference, form: Int8Form) -> list[Sensitivity]:
    """Each layer alone, the most sensitive first: by its effect on emissions, which tells more than the few labels."""
    found = [reference.compare(site, form.open({site.name})) for site in form.sites]
    return sorted(found, key=lambda one: (-one.error, -one.changed))


def encode(document: str | Sequence[str], encoder: Encoder) -> list[Window]:
    """The windows of a text or a list of words that have any word."""
    if isinstance(document, str):
        ranges = split_words(document, encoder.splitter)
        encoded = encoder.encode_pieces([document[start:end] for start, end in ranges])
    else:
        encoded = encoder.encode_words(document)
    return [window for window in encoded.windows if window.word_starts]


def take(documents: Sequence[str | Sequence[str]], number: int, encoder: Encoder) -> list[Window]:
    """So many windows, evenly from all documents."""
    return _thin([window for document in _thin(documents, number) for window in encode(document, encoder)], number)


def pick(documents: Sequence[str | Sequence[str]], encoder: Encoder, num_tokens: int) -> list[Window]:
    """Windows of about so many sub-tokens, evenly from all documents; at least one where there is any."""
    windows = [window for document in _thin(documents, num_tokens) for window in encode(document, encoder)]
    total = sum(len(window.input_ids) for window in windows)
    return _thin(windows, max(1, len(windows) * num_tokens // max(total, 1)))


def _thin(items: Sequence[Any], number: int) -> list[Any]:
    return [items[index * len(items) // number] for index in range(number)] if number < len(items) else list(items)


def _compute(runtime: Runtime, windows: Sequence[Window]) -> list[Tensor]:
    """Emissions `[W, K]` of each window."""
    found: list[Tensor] = [torch.empty(0)] * len(windows)
    for batch in plan_batches([len(window.input_ids) for window in windows], runtime.batch_tokens):
        emissions_WK = runtime.compute([windows[index] for index in batch])
        parts = emissions_WK.split([len(windows[index].word_starts) for index in batch])
        for index, part in zip(batch, parts, strict=True):
            found[index] = part
    return found


def _decode(bundle: Bundle, emissions: Sequence[Tensor]) -> list[str]:
    """The label of each word, with where its entity begins: so entities that are joined or cut differ too."""
    spans: list[list[Span]] = Decoder(bundle.model.scheme, bundle.model.chain).decode(emissions)
    labels: list[str] = []
    for found, emissions_WK in zip(spans, emissions, strict=True):
        ofs = ["O"] * len(emissions_WK)
        for span in found:
            ofs[span.start : span.end] = [f"B-{span.label}", *[f"I-{span.label}"] * (span.end - span.start - 1)]
        labels += ofs
    return labels
