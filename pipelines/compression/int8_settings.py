"""The settings of int8, and what has to be there for it."""

import platform
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import torch

from pipelines.compression.int8_form import QuantizationError
from pipelines.compression.int8_graph import PRESETS, import_nncf
from pipelines.evaluation.metrics import Scored
from pipelines.ner.errors import UserError, find_wrong_values
from pipelines.ner.runtimes.architectures import read_architecture
from pipelines.ner.runtimes.int8 import count_weight_bits, describe_cpu, describe_instructions
from pipelines.ner.runtimes.products import KERNELS_RULE, WEIGHT_BITS, has_int8_kernels
from pipelines.ner.stored import STORED

RUNTIMES = ("auto", "packed", "openvino")
SETTINGS = {"packed": ("weight_bits",), "openvino": ("preset", "correct_bias")}
"""Those that are for one runtime only."""
CPU = torch.device("cpu")


@dataclass(frozen=True)
class QuantizationConfig:
    """How a model becomes int8."""

    runtime: str = "auto"
    """What computes it: packed (without padding; BERT and its kin), openvino (any other architecture), or auto."""
    num_windows: int = 200
    """Windows of the calibration text that set the ranges of activations."""
    sensitivity_tokens: int = 2048
    """Sub-tokens of dev on which each layer alone is measured."""
    smooth: float | None = 0.85
    """SmoothQuant: how much of the activations' outliers moves into the weights, 0 to 1; null: nothing."""
    weight_bits: int | None = None
    """Of packed. Bits of the weights: 8, or 7, which CPUs with AVX2 but without VNNI multiply exactly, too; null: what
    this machine's CPU can have."""
    preset: str = "mixed"
    """Of openvino. mixed: activations have a range of their own on each side of zero; symmetric: the same on both."""
    correct_bias: bool = True
    """Of openvino. Biases make up for what int8 shifts in the mean."""
    left_out: tuple[str, ...] = ()
    """Layers that stay in higher precision whatever they show: all whose name contains one of these, such as
    `layer.0.feed` of packed, `layer.0.output.dense` of openvino."""
    num_epochs: int = 1
    """Epochs of quantization-aware training, where no choice of layers is good enough without it; 0: none."""
    stored: str = "fp16"
    """How the weights are stored that stay beside the int8 form, for whom it cannot be computed: fp32, fp16, or int8, a
    quarter of the bytes, which transformers does not read."""

    def find_problems(self) -> list[UserError]:
        """Every mistake in these settings."""
        checks = [
            ("runtime", "one of " + ", ".join(RUNTIMES), self.runtime in RUNTIMES),
            ("num_windows", "at least 1", self.num_windows >= 1),
            ("sensitivity_tokens", "at least 1", self.sensitivity_tokens >= 1),
            ("smooth", "0 to 1, or null", self.smooth is None or 0 <= self.smooth <= 1),
            ("weight_bits", "7, 8, or null", self.weight_bits in (None, *WEIGHT_BITS)),
            ("num_epochs", "at least 0", self.num_epochs >= 0),
            ("preset", "one of " + ", ".join(PRESETS), self.preset in PRESETS),
            ("stored", "one of " + ", ".join(STORED), self.stored in STORED),
        ]
        return find_wrong_values(QuantizationError, self, checks, "int8.")

    def find_idle(self, network: Any) -> list[str]:
        """Settings given that change nothing for a network, each with its reason."""
        if self.runtime not in RUNTIMES:
            return []
        runtime = choose_runtime(network, self.runtime)
        (other,) = SETTINGS.keys() - {runtime}
        return [
            f"`int8.{name}` has no effect: it is for `{other}`, and the model's int8 form is for `{runtime}`"
            for name in SETTINGS[other]
            if getattr(self, name) != getattr(QuantizationConfig(), name)
        ]


def find_left_out(names: Sequence[str], left_out: Sequence[str]) -> list[str]:
    """The layers that are left out whatever they show."""
    unknown = [part for part in left_out if not any(part in name for name in names)]
    fixed = [name for name in names if any(part in name for part in left_out)]
    if unknown or len(fixed) == len(names):
        raise QuantizationError(
            "no such layer" if unknown else "no layer would be int8",
            where="`int8.left_out`",
            rule="parts of names of layers, not of all",
            value=", ".join(unknown or left_out),
            remedy="there are " + ", ".join(get_close_matches((unknown or left_out)[0], names, n=4, cutoff=0)),
        )
    return fixed


def find_problems(
    windows: Sequence[Any], dev: Sequence[Scored], max_f1_loss: float, config: QuantizationConfig, network: Any
) -> list[UserError]:
    """Every reason for which there can be no int8 form, before anything is computed."""
    problems = config.find_problems()
    if not windows:
        problems.append(
            QuantizationError(
                "the calibration text is empty",
                where="step `int8`",
                rule="documents with at least one word, like those that the model will read",
                remedy="give training or other text; a few hundred sentences are enough",
            )
        )
    if not any(one.gold_strict for one in dev):
        problems.append(
            QuantizationError(
                "dev has no entities to judge by",
                where="step `int8`",
                rule="a labelled dev set",
                value=f"{len(dev)} documents",
                remedy="give one by `--corpus.dev`",
            )
        )
    if not max_f1_loss >= 0:
        rule = "points of F1, at least 0"
        problems.append(QuantizationError("a value out of range", where="`max_f1_loss`", rule=rule, value=max_f1_loss))
    try:
        check_quantizable(network, config)
    except QuantizationError as error:
        problems.append(error)
    return problems


def choose_runtime(network: Any, runtime: str) -> str:
    """What computes a network in int8, of `QuantizationConfig.runtime`."""
    can_pack = has_int8_kernels() and read_architecture(network) is not None
    if runtime == "packed" and not can_pack:
        raise QuantizationError(
            "there is no int8 by `packed`",
            where="`int8.runtime`",
            rule=f"an encoder built like BERT, RoBERTa, ELECTRA or DistilBERT, and {KERNELS_RULE}",
            value=network.config.model_type if has_int8_kernels() else platform.machine(),
            remedy="`--int8.runtime auto`, which takes `openvino` then",
        )
    return runtime if runtime != "auto" else "packed" if can_pack else "openvino"


def check_quantizable(network: Any, config: QuantizationConfig) -> None:
    """Raise QuantizationError where packages or instructions for int8 are missing."""
    if config.runtime not in RUNTIMES:  # which is told anyway
        return
    computes = choose_runtime(network, config.runtime)
    if computes == "openvino":
        import_nncf()
    bits, at_hand = choose_weight_bits(network, config), count_weight_bits(CPU)
    fewer = at_hand if computes == "packed" else 0
    if at_hand < bits:
        raise QuantizationError(
            f"this CPU has no int8 products with weights of {bits} bits, so the int8 form could not be measured",
            where="step `int8`",
            rule=describe_instructions(bits),
            value=describe_cpu(),
            remedy=f"`--int8.weight_bits {fewer}`" if fewer else "run it on such a machine, or leave the step out",
        )


def choose_weight_bits(network: Any, config: QuantizationConfig) -> int:
    """Bits of the weights of a network's int8 form, where it is made on this machine."""
    if choose_runtime(network, config.runtime) == "openvino":
        return max(WEIGHT_BITS)
    return config.weight_bits or count_weight_bits(CPU) or max(WEIGHT_BITS)
