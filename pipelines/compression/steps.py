"""The steps of a compression: which there are, whether a model can take them, and what each makes of it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipelines.compression.config import (
    CompressionError,
    DistillationConfig,
    EarlyExitConfig,
    PruningConfig,
    Tolerance,
    VocabularyConfig,
)
from pipelines.compression.early_exit import choose_exits, choose_threshold, train_exits
from pipelines.compression.int8_settings import QuantizationConfig, check_quantizable
from pipelines.compression.layers import check_first, choose_layers, find_stack, keep_layers
from pipelines.compression.pruning import find_parts, measure_importance, prune
from pipelines.compression.quantization import quantize_bundle
from pipelines.compression.students import build_student, check_states, check_student
from pipelines.compression.vocabulary import prune_vocabulary, read_state
from pipelines.evaluation.metrics import Scored, Tallies
from pipelines.ner.bundle import Bundle
from pipelines.ner.errors import UserError
from pipelines.ner.model import TokenClassifier
from pipelines.ner.runtimes.architectures import may_pack
from pipelines.training.batches import TrainingWindows
from pipelines.training.forward import check_passes_differ

STEPS = ("distill", "prune", "vocabulary", "int8", "early_exit")
LAST_STEPS = ("int8", "early_exit")
"""Nothing can be trained after them; only one of them at a time."""
DEFAULT_STEPS = ("distill", "prune", "vocabulary", "int8")
IMPORTANCE_WINDOWS = 512
"""Training windows by which the importance of a model's parts is measured."""
BATCH_WINDOWS = 16


@dataclass(frozen=True)
class Recipe:
    """What is done to a model, in which order, and how good it must stay."""

    steps: Sequence[str]
    tolerance: Tolerance
    distillation: DistillationConfig = field(default_factory=DistillationConfig)
    pruning: PruningConfig = field(default_factory=PruningConfig)
    vocabulary: VocabularyConfig = field(default_factory=VocabularyConfig)
    int8: QuantizationConfig = field(default_factory=QuantizationConfig)
    early_exit: EarlyExitConfig = field(default_factory=EarlyExitConfig)
    seed: int = 1

    def find_problems(self) -> list[UserError]:
        """Every mistake in these settings, whatever the model."""
        problems: list[UserError] = []
        steps, where = ", ".join(self.steps) or "none", "`steps`"
        if not self.steps or not set(self.steps) <= set(STEPS):
            rule = "some of " + ", ".join(STEPS)
            problems.append(CompressionError("no such steps", where=where, rule=rule, value=steps))
        elif set(self.steps[:-1]) & set(LAST_STEPS):
            rule = "one of " + ", ".join(LAST_STEPS) + " at most, as the last step"
            problems.append(
                CompressionError("a step after which there can be no other", where=where, rule=rule, value=steps)
            )
        rooms = (self.tolerance, self.distillation, self.pruning, self.vocabulary, self.early_exit, self.int8)
        return problems + [problem for room in rooms for problem in room.find_problems()]

    def find_idle(self) -> list[str]:
        """Settings given that change nothing, each with its reason."""
        plain = Recipe(self.steps, self.tolerance)
        rooms = {"prune": "pruning", "vocabulary": "vocabulary", "int8": "int8", "early_exit": "early_exit"}
        given = [(step, room) for step, room in rooms.items() if getattr(self, room) != getattr(plain, room)]
        taught, scratch = self.distillation, ("hidden_size", "embedding_size", "share_layers")
        given += [
            ("distill", f"distillation.{name}")
            for name in ("encoder", "layers", *scratch)
            if getattr(taught, name) != getattr(plain.distillation, name)
        ]
        idle = [
            f"`{setting}` has no effect: `{step}` is not among `--steps`"
            for step, setting in given
            if step not in self.steps
        ]
        if "distill" in self.steps and not taught.is_scratch:
            others = scratch if taught.encoder is None else ("layers", *scratch)
            idle += [
                f"`distillation.{name}` has no effect: it is for students from `scratch`"
                for name in others
                if getattr(taught, name) != getattr(plain.distillation, name)
            ]
        return idle

    def check(self, bundle: Bundle) -> None:
        """Raise CompressionError for a step that a model cannot take."""
        network, tokenizer = bundle.model.network, bundle.encoder.tokenizer
        num_layers = network.config.num_hidden_layers
        if self.distillation.follows_states:
            check_states(network)
        for step in self.steps:
            if step == "distill" and self.distillation.encoder is not None:
                network, tokenizer = check_student(bundle, self.distillation)
                num_layers = network.config.num_hidden_layers
            elif step == "distill":
                chosen = self._choose_layers(bundle)
                num_layers = len(chosen)
                find_stack(network)
                check_first(network, chosen)
            elif step == "prune":
                find_parts(network)
            elif step == "vocabulary":
                read_state(tokenizer)
            elif step == "int8":
                check_quantizable(network, self.int8)
        if "early_exit" in self.steps:
            choose_exits(num_layers, self.early_exit.layers)
            if bundle.info.head != "linear":
                rule, value = "a model with a linear head", bundle.info.head
                raise CompressionError("early exits that cannot be made", where="`steps`", rule=rule, value=value)

    def check_runtime(self, bundle: Bundle, runtime: str) -> None:
        """Raise CompressionError where the runtime that all variants are measured by cannot compute one."""
        if "early_exit" in self.steps and runtime not in ("auto", "packed", "torch"):
            raise CompressionError(
                "a variant that the runtime cannot compute",
                where="`inference.runtime`",
                rule="auto, packed or torch, for windows that leave early",
                value=runtime,
                remedy="leave it `auto`, or leave `early_exit` out of `--steps`",
            )
        if runtime != "packed":
            return
        network = bundle.model.network
        if "distill" in self.steps and self.distillation.encoder is not None and may_pack(network.config):
            network, _ = check_student(bundle, self.distillation)
        if not may_pack(network.config):
            raise CompressionError(
                "a variant that the runtime cannot compute",
                where="`inference.runtime`",
                rule="`packed` is for encoders built like BERT, RoBERTa, ELECTRA or DistilBERT",
                value=network.config.model_type,
                remedy="leave it `auto`, which takes the fastest that can",
            )

    def check_r_drop(self, bundle: Bundle) -> None:
        """Raise ForwardError for R-Drop with a variant that is trained without dropout: that takes time for nothing."""
        network = bundle.model.network
        trains = dict.fromkeys(self.steps, True) | {
            "int8": self.int8.num_epochs > 0,
            "early_exit": self.early_exit.joint,
        }
        for step in self.steps:
            if step == "distill" and self.distillation.encoder is not None:
                network, _ = check_student(bundle, self.distillation)
            if trains[step]:
                check_passes_differ(network, remedy="leave it out")

    def take(
        self,
        step: str,
        bundle: Bundle,
        table: pa.Table | None,
        train: Sequence[Scored],
        dev: Sequence[Scored],
        *,
        accept: Callable[[Mapping[str, Tallies]], bool],
        folder: Path,
    ) -> tuple[Bundle, dict[str, Any] | None]:
        """A bundle after a step, to be trained unless the step is one of `LAST_STEPS`.

        Args:
            table: the training windows in this bundle's sub-tokens, with what is to be learned of them; `distill` and
                `int8` need none.
            accept: whether a model with these tallies on dev, by document, is good enough.
            folder: where files may be made.

        Returns:
            Also what the step found on its way, as plain values: F1 and time by the exits' threshold, or how sensitive
            to int8 each layer is and what computes the int8 form; None of other steps.

        Raises:
            CompressionError: the step gives nothing that is good enough.
        """
        # exits were of other layers, temperatures of other scores, an int8 form of other weights or without exits
        bundle = replace(bundle, info=replace(bundle.info, exits={}, temperatures={}, int8={}), int8=None)
        bundle.model.exits = None
        if step == "distill" and self.distillation.encoder is not None:
            return build_student(bundle, self.distillation, self.seed), None
        if step == "distill":
            return replace(bundle, model=keep_layers(bundle.model, self._choose_layers(bundle))), None
        if step == "int8":
            return self._quantize(bundle, train, dev, accept, folder)
        assert table is not None
        if step == "prune":
            return replace(bundle, model=_prune(bundle, table, self.pruning)), None
        if step == "vocabulary":
            used = set(table["input_ids"].combine_chunks().flatten().to_numpy().tolist())
            return prune_vocabulary(bundle, used, self.vocabulary.least), None
        with_exits = train_exits(bundle, TrainingWindows(table), self.choose_exits(bundle), self.seed)
        chosen, points = choose_threshold(with_exits, dev, self.early_exit.max_f1_loss, accept)
        return chosen, {"exits": [asdict(point) for point in points]}

    def choose_exits(self, bundle: Bundle) -> list[int]:
        """After how many of a bundle's layers windows may leave."""
        return choose_exits(bundle.model.network.config.num_hidden_layers, self.early_exit.layers)

    def _quantize(
        self,
        bundle: Bundle,
        train: Sequence[Scored],
        dev: Sequence[Scored],
        accept: Callable[[Mapping[str, Tallies]], bool],
        folder: Path,
    ) -> tuple[Bundle, dict[str, Any]]:
        texts = [record.content for record in train]
        found = quantize_bundle(
            bundle, texts, dev, max_f1_loss=self.tolerance.f1, folder=folder, config=self.int8, accept=accept
        )
        if found.bundle is None:
            last = found.attempts[-1]
            raise CompressionError(
                "no choice of int8 layers is good enough",
                where="step `int8`",
                rule=f"a loss of {self.tolerance.f1:g} points of strict F1 on dev is excluded",
                value=f"{last.f1_loss:g} points lost with {last.left_out} layers left out",
                remedy="allow more by `--max_f1_loss`, or leave `int8` out of `--steps`",
            )
        return found.bundle, found.to_dict() | {"runtime": found.bundle.info.int8["runtime"]}

    def _choose_layers(self, bundle: Bundle) -> list[int]:
        num_layers = bundle.model.network.config.num_hidden_layers
        return choose_layers(num_layers, self.distillation.layers or max(1, num_layers // 2))


def _prune(bundle: Bundle, table: pa.Table, config: PruningConfig) -> TokenClassifier:
    windows = TrainingWindows(table)
    chosen = windows.usable[:: max(1, len(windows.usable) // IMPORTANCE_WINDOWS)].tolist()
    chosen.sort(key=lambda index: int(windows.num_tokens[index]))
    groups = (chosen[at : at + BATCH_WINDOWS] for at in range(0, len(chosen), BATCH_WINDOWS))
    batches = (windows.collate(group, bundle.encoder.pad_id) for group in groups)
    return prune(bundle.model, measure_importance(bundle.model, batches), config)
