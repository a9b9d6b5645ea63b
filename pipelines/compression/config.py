"""The settings of compression, and their rules."""

from dataclasses import dataclass, field

from pipelines.ner.errors import UserError


class CompressionError(UserError):
    """A model that cannot be made smaller in the way asked for."""


@dataclass(frozen=True)
class DistillationConfig:
    """How a smaller model learns of the model it is made from. All steps that train do so."""

    layers: int | None = None
    """Layers of the student, evenly picked from the teacher's; default: half of them."""
    teacher_share: float = 0.8
    """How much of what is learned of a word is the teacher's view of its tags; the rest is the gold tag."""
    temperature: float = 1.0
    """Above 1 the teacher's view is softer, below 1 sharper."""

    def find_problems(self) -> list[UserError]:
        """Every mistake in these settings."""
        return _check(
            "distillation.",
            [
                ("layers", self.layers, "at least 1", self.layers is None or self.layers >= 1),
                ("teacher_share", self.teacher_share, "0 to 1", 0 <= self.teacher_share <= 1),
                ("temperature", self.temperature, "above 0, up to 100", 0 < self.temperature <= 100),
            ],
        )


@dataclass(frozen=True)
class PruningConfig:
    """What of each layer goes, the least important first (by the first-order effect on the loss)."""

    heads: float = 0.25
    """Share of all attention heads; each layer keeps at least one."""
    feed_forward: float = 0.5
    """Share of each layer's feed-forward columns."""

    def find_problems(self) -> list[UserError]:
        """Every mistake in these settings."""
        problems = _check(
            "pruning.",
            [
                (name, value, "0 ≤ share < 1", 0 <= value < 1)
                for name, value in (("heads", self.heads), ("feed_forward", self.feed_forward))
            ],
        )
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
        return _check("vocabulary.", [("least", self.least, "at least 0", self.least >= 0)])


@dataclass(frozen=True)
class EarlyExitConfig:
    """Where windows may leave the network, and how sure it must be of all their words."""

    layers: list[int] = field(default_factory=list)
    """After how many layers there is an exit; default: after a third and two thirds of them."""
    max_f1_loss: float = 0.2
    """Points of strict F1 on dev that leaving early may cost: the threshold is the lowest that keeps to it."""

    def find_problems(self) -> list[UserError]:
        """Every mistake in these settings."""
        return _check(
            "early_exit.",
            [
                ("layers", self.layers, "layers from 1, in order", self.layers == sorted({*self.layers} - {0})),
                ("max_f1_loss", self.max_f1_loss, "0 to 100 points", 0 <= self.max_f1_loss <= 100),
            ],
        )


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
        return _check("", [(name, value, "0 to 100 points", 0 <= value <= 100) for name, value in bounds])


def _check(room: str, checks: list[tuple[str, object, str, bool]]) -> list[UserError]:
    return [
        CompressionError("a value out of range", where=f"`{room}{name}`", rule=rule, value=value)
        for name, value, rule, holds in checks
        if not holds
    ]
