"""A bundle's int8 form: calibrated on text, with the layers left out that cost too much F1.

One calibration sets the ranges of all layers. Then each layer alone is made int8, and its effect on the emissions and
decoded labels of dev text measured: its sensitivity. Then all layers are made int8; where that loses more F1 on dev
than is allowed, the most sensitive 1, 2, 4 … are left out until it does not, and no more of them than needed (by
bisection). What is judged is what is published: the same files, computed by the same runtime.
"""

import copy
import importlib.metadata
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from pipelines.compression.int8_form import Int8Form, QuantizationError
from pipelines.compression.int8_graph import GraphForm
from pipelines.compression.int8_packed import PackedForm
from pipelines.compression.int8_settings import (
    QuantizationConfig,
    choose_runtime,
    choose_weight_bits,
    find_left_out,
    find_problems,
)
from pipelines.compression.sensitivity import Reference, Sensitivity, measure_sensitivity, pick, take
from pipelines.evaluation.metrics import Scored, Tallies, count, count_documents, scores
from pipelines.ner.bundle import INT8_FORMS, Bundle, hash_weights
from pipelines.ner.encoding import Window
from pipelines.ner.engine import NerEngine
from pipelines.ner.errors import raise_all
from pipelines.ner.stored import find_unfit, round_weights

Document = str | Sequence[str]
"""A text, or a list of words."""
Accept = Callable[[Mapping[str, Tallies]], bool]
"""Whether a model with these tallies on dev, by document, is good enough."""
PACKAGES = {"openvino": ("openvino", "nncf"), "packed": ("torch",)}
"""Whose versions a form tells, by the runtime that computes it."""
"""Progress: what is done, how much of it, of how much."""


@dataclass(frozen=True)
class Attempt:
    """A choice of layers, and what it showed on dev."""

    left_out: int
    """So many of the most sensitive layers are not int8."""
    f1: float
    f1_loss: float
    """In points, against the model given."""
    accepted: bool


@dataclass(frozen=True)
class Quantized:
    """What came of it."""

    bundle: Bundle | None
    """The model with its int8 form, to be saved by `save_bundle`; None where no choice of layers is good enough."""
    layers: list[Sensitivity]
    """Every layer, the most sensitive first."""
    left_out: list[str]
    """The layers that are not int8."""
    attempts: list[Attempt]
    f1: float
    """Strict micro F1 on dev of the model given."""
    num_bytes: int
    """Of the int8 form's files; 0 where there is none."""
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """For a report, without the model."""
        names = ("left_out", "f1", "num_bytes", "seconds")
        listed = {name: [asdict(one) for one in getattr(self, name)] for name in ("layers", "attempts")}
        return {name: getattr(self, name) for name in names} | listed


def quantize_bundle(
    bundle: Bundle,
    calibration: Sequence[Document],
    dev: Sequence[Scored],
    *,
    max_f1_loss: float,
    folder: Path,
    config: QuantizationConfig | None = None,
    accept: Accept | None = None,
) -> Quantized:
    """Give a bundle an int8 form that loses no more F1 on dev than allowed.

    Args:
        calibration: texts or lists of words like those that the model will read; labels are not needed.
        dev: gold, what it is judged by; what is predicted there is not looked at.
        max_f1_loss: points of strict micro F1; of the difference found, without its interval.
        folder: where the int8 form is written.
        accept: judges in place of `max_f1_loss`.

    Raises:
        QuantizationError: nothing to calibrate or judge by, packages or instructions missing.
    """
    config = config or QuantizationConfig()
    started = time.monotonic()
    windows = take(calibration, config.num_windows, bundle.encoder)
    raise_all(find_problems(windows, dev, max_f1_loss, config, bundle.model.network))
    original, bundle = bundle, _store(bundle, config.stored)
    form = _calibrate(original, windows, config)
    names = [site.name for site in form.sites]
    fixed = find_left_out(names, config.left_out)
    reference = Reference.measure(
        original, pick([one.content for one in dev], bundle.encoder, config.sensitivity_tokens)
    )
    layers = measure_sensitivity(reference, form)
    search = _Search(original, bundle, dev, max_f1_loss, accept, folder, form)
    order = fixed + [layer.name for layer in layers if layer.name not in fixed]
    number = search.find_fewest(order, len(fixed))
    left_out = order if number is None else order[:number]
    finished = None
    if number is not None:
        facts = {
            "left_out": left_out,
            "num_layers": len(names),
            "dev_f1": search.f1,
            "dev_f1_loss": search.found[number].f1_loss,
            "settings": asdict(config),
            "weight_bits": choose_weight_bits(original.model.network, config),
            "versions": {name: importlib.metadata.version(name) for name in PACKAGES[form.runtime]},
        }
        finished = search.publish(left_out, facts)
    size = sum((folder / name).stat().st_size for name in INT8_FORMS[form.runtime]) if finished else 0
    attempts = list(search.found.values())
    return Quantized(finished, layers, left_out, attempts, search.f1, size, round(time.monotonic() - started, 1))


class _Search:
    """How few of the most sensitive layers have to be left out."""

    def __init__(
        self,
        original: Bundle,
        bundle: Bundle,
        dev: Sequence[Scored],
        max_f1_loss: float,
        accept: Accept | None,
        folder: Path,
        form: Int8Form,
    ) -> None:
        self.bundle, self.dev, self.max_f1_loss, self.accept, self.folder = bundle, dev, max_f1_loss, accept, folder
        self.form, self.names = form, [site.name for site in form.sites]
        self.f1 = _score(NerEngine(original, device="cpu", runtime=form.runtime, precision="fp32"), dev)[0]
        self.found: dict[int, Attempt] = {}

    def find_fewest(self, order: Sequence[str], least: int) -> int | None:
        """How many of the layers in this order; None if all but one are too few."""
        low, high, step = least, least, 1
        while not self._try(order, high):
            if high >= len(order) - 1:
                return None
            low, high, step = high + 1, min(least + step, len(order) - 1), step * 2
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if self._try(order, middle) else (middle + 1, high)
        return high

    def publish(self, left_out: Sequence[str], facts: dict[str, Any]) -> Bundle:
        """The model with the form that leaves these layers out."""
        made = self._write(left_out)
        return replace(made, info=replace(made.info, int8=made.info.int8 | facts))

    def _try(self, order: Sequence[str], number: int) -> bool:
        if number not in self.found:
            made = self._write(order[:number])
            f1, documents = _score(NerEngine(made, device="cpu", runtime=self.form.runtime, precision="int8"), self.dev)
            loss = round(100 * (self.f1 - f1), 4)
            good = loss <= self.max_f1_loss if self.accept is None else self.accept(documents)
            self.found[number] = Attempt(number, f1, loss, good)
        return self.found[number].accepted

    def _write(self, left_out: Sequence[str]) -> Bundle:
        chosen = [name for name in self.names if name not in left_out]
        facts = {
            "runtime": self.form.runtime,
            "weights": hash_weights(self.bundle.model.network),
            "num_int8": self.form.write(chosen, self.folder),
        }
        path = self.folder / INT8_FORMS[self.form.runtime][0]
        return replace(self.bundle, int8=path, info=replace(self.bundle.info, int8=facts))


def _calibrate(bundle: Bundle, windows: Sequence[Window], config: QuantizationConfig) -> Int8Form:
    model, pad_id = bundle.model, bundle.encoder.pad_id
    if choose_runtime(model.network, config.runtime) == "packed":
        return PackedForm(
            model, windows, pad_id, smooth=config.smooth, weight_bits=choose_weight_bits(model.network, config)
        )
    return GraphForm(
        model, windows, pad_id, preset=config.preset, smooth=config.smooth, correct_bias=config.correct_bias
    )


def _score(engine: NerEngine, dev: Sequence[Scored]) -> tuple[float, dict[str, Tallies]]:
    """Strict micro F1 on dev, and the tallies of each document."""
    try:
        predicted = engine.predict_documents([one.content for one in dev])
    finally:
        engine.close()
    scored = [replace(one, predicted=spans) for one, spans in zip(dev, predicted, strict=True)]
    return float(scores(count(scored))["strict"]["micro"]["f1"]), count_documents(scored)


def _store(bundle: Bundle, stored: str) -> Bundle:
    """The bundle with its weights rounded as they will be stored: what is not int8 is computed of those."""
    info = replace(bundle.info, stored=stored)
    if stored == "fp32":
        return replace(bundle, info=info)
    weights = dict(bundle.model.network.named_parameters())
    unfit = find_unfit(weights, stored)
    if unfit is not None:
        raise QuantizationError(
            f"the model's weights do not fit {stored}",
            where="`int8.stored`",
            rule=f"at most {torch.finfo(torch.float16).max:g}",
            value=f"{float(weights[unfit].abs().max()):g} in `{unfit}`",
            remedy="`--int8.stored fp32`",
        )
    model = copy.deepcopy(bundle.model)
    round_weights(model.network, stored)
    return replace(bundle, model=model, info=info)
