"""The settings of compression, and their rules."""

import math
from dataclasses import dataclass, field

from pipelines.ner.encoders import SCRATCH
from pipelines.ner.errors import UserError, find_wrong_values

HEAD_SIZE = 32
"""Of the attention heads of `scratch` students."""


class CompressionError(UserError):
    """A model that cannot be made smaller in the way asked for."""


@dataclass(frozen=True)
class DistillationConfig:
    """How a smaller model learns of the model it is made from. All steps that train do so."""

    encoder: str | None = None
    """What the student is: an encoder's folder or hub id; `scratch`, a new network with the teacher's tokenizer; or, if
    none is given, some of the teacher's own layers."""
    layers: int | None = None
    """Layers of the student, evenly picked from the teacher's, or those of a `scratch` one; default: half of the
    teacher's."""
    hidden_size: int | None = None
    """Of a `scratch` student, a multiple of 32; default: half of the teacher's."""
    embedding_size: int | None = None
    """Of a `scratch` student: its sub-tokens have so many numbers, projected to the hidden size (Lan et al. 2020);
    default: as many as the hidden size."""
    share_layers: bool = False
    """Of a `scratch` student: all its layers have the same weights (ALBERT, Lan et al. 2020). Small, but no faster."""
    teacher_share: float = 0.8
    """How much of what is learned of a word is the teacher's view of its tags; the rest is the gold tag."""
    temperature: float = 1.0
    """Above 1 the teacher's view is softer, below 1 sharper."""
    states: float = 0.0
    """Above 0 the student's last hidden states of words follow the teacher's: the weight of their mean squared
    difference beside the loss of a word. For students as wide as the teacher."""
    relations: float = 0.0
    """Above 0 the words of a window are to attend to each other, by their last hidden states, as the teacher's do: the
    weight of that divergence. For students of any width."""
    unlabelled: list[str] = field(default_factory=list)
    """Files of raw text, as `rayner pretrain --corpus.train` takes them, which the teacher labels for the student. They
    are read as `corpus.reader` says, and `corpus.max_bad_fraction` of their records may be rejected."""

    @property
    def follows_states(self) -> bool:
        """Whether the teacher's hidden states are needed."""
        return self.states > 0 or self.relations > 0

    @property
    def is_scratch(self) -> bool:
        """Whether the student is a new network."""
        return self.encoder == SCRATCH

    def find_problems(self) -> list[UserError]:
        """Every mistake in these settings."""
        hidden, embedded = self.hidden_size, self.embedding_size
        checks = [
            ("layers", "at least 1", self.layers is None or self.layers >= 1),
            ("hidden_size", f"a multiple of {HEAD_SIZE}", hidden is None or (hidden > 0 and hidden % HEAD_SIZE == 0)),
            ("embedding_size", "1 to the hidden size", embedded is None or 1 <= embedded <= (hidden or math.inf)),
            ("teacher_share", "0 to 1", 0 <= self.teacher_share <= 1),
            ("temperature", "above 0, up to 100", 0 < self.temperature <= 100),
            ("states", "0 to 1000", 0 <= self.states <= 1000),
            ("relations", "0 to 1000", 0 <= self.relations <= 1000),
        ]
        return find_wrong_values(CompressionError, self, checks, "distillation.")


@dataclass(frozen=True)
class PruningConfig:
    """What of each layer goes, the least important first (by the first-order effect on the loss)."""

    heads: float = 0.25
    """Share of all attention heads; each layer keeps at least one."""
    feed_forward: float = 0.5
    """Share of each layer's feed-forward columns."""

    def find_problems(self) -> list[UserError]:
        """Every mistake in these settings."""
        checks = [(name, "0 ≤ share < 1", 0 <= getattr(self, name) < 1) for name in ("heads", "feed_forward")]
        problems = find_wrong_values(CompressionError, self, checks, "pruning.")
        if not problems and not self.heads and not self.feed_forward:
            problems.append(
                CompressionError(
                    "nothing to prune", where="`pruning`", rule="`heads` or `feed_forward` above 0", value="both 0"
                )
            )
        return problems


@dataclass(frozen=True)
class VocabularyConfig:
    """Which sub-tokens stay."""

    least: int = 12_000
    """So many at least: those that the corpus uses, then the tokenizer's first ones, which are the frequent ones. A
    small corpus lacks most words that a model will meet."""

    def find_problems(self) -> list[UserError]:
        """Every mistake in these settings."""
        return find_wrong_values(CompressionError, self, [("least", "at least 0", self.least >= 0)], "vocabulary.")


@dataclass(frozen=True)
class EarlyExitConfig:
    """Where windows may leave the network, and how sure it must be of all their words."""

    layers: list[int] = field(default_factory=list)
    """After how many layers there is an exit; default: after each from a third of them on."""
    max_f1_loss: float = 0.2
    """Points of strict F1 on dev that leaving early may cost: the threshold is the lowest that keeps to it, and to the
    gate's bound if any does."""
    joint: bool = False
    """Whether the network is trained with its exits first, so that its layers before them tell tags too. That takes a
    training, and may cost F1 at the end what it gains before; without it the network stays as it is."""

    def find_problems(self) -> list[UserError]:
        """Every mistake in these settings."""
        in_order = self.layers == sorted({*self.layers}) and all(one >= 1 for one in self.layers)
        checks = [
            ("layers", "layers from 1, in order", in_order),
            ("max_f1_loss", "0 to 100 points", 0 <= self.max_f1_loss <= 100),
        ]
        return find_wrong_values(CompressionError, self, checks, "early_exit.")


@dataclass(frozen=True)
class Tolerance:
    """Points of strict F1 that a smaller model may lose on dev against the model given."""

    f1: float
    """Overall: the lower end of the difference's 95 % interval must lie above that."""
    label: float
    """Of each label: the upper end of its difference's interval must."""

    def find_problems(self) -> list[UserError]:
        """Every mistake in these settings."""
        bounds = (("max_f1_loss", self.f1), ("max_label_loss", self.label))
        return [
            CompressionError("a value out of range", where=f"`{name}`", rule="0 to 100 points", value=value)
            for name, value in bounds
            if not 0 <= value <= 100
        ]
