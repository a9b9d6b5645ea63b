"""Which sub-tokens of a window are hidden, and behind what: drawn anew in every epoch (RoBERTa, Liu et al. 2019).

A mask depends on (seed, epoch, window) alone, never on the number of workers or on what was drawn before: a run that
resumes repeats the masks of an undisturbed one. Of what is chosen 80 % becomes the mask token, 10 % any sub-token, and
10 % stays (BERT, Devlin et al. 2019), by default.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from pipelines.ner.errors import UserError
from pipelines.ner.units import ENTITY, RARE, SEPARATOR, Units, measure_units

UNITS = ("word", "sub-token")
MASKED, RANDOM, KEPT = range(3)
"""What becomes of a chosen sub-token."""
HELD_OUT_SEED, HELD_OUT_EPOCH = 0, 2**32 - 1
"""Held-out text has the same masks in every epoch of every run."""


class MaskingError(UserError):
    """Masks that cannot be drawn."""


@dataclass(frozen=True)
class MaskingConfig:
    """What is hidden from the model, which it then has to tell."""

    rate: float = 0.15
    """Share of the sub-tokens that are chosen."""
    mask_share: float = 0.8
    """Of those: share that the mask token hides."""
    random_share: float = 0.1
    """Of those: share that any other sub-token takes the place of; the rest stays as it is."""
    unit: str = "word"
    """What is chosen, and treated, as one: word (Cui et al. 2021; a mention counts as one word) or sub-token."""
    gazetteer: list[str] = field(default_factory=list)
    """Files of names, one a line, whose mentions (by the same words, in the same case) are hidden more often."""
    bundle: str | None = None
    """A bundle whose predictions are hidden more often; with a gazetteer, both."""
    entity_weight: float = 3.0
    """How many times as likely as an ordinary word a mention is to be chosen, where a gazetteer or a bundle tells which
    they are."""
    rare_weight: float = 1.0
    """The same for rare words; 1: they are words like others."""
    rare_count: int = 3
    """Words that the text has so many times, or fewer, are rare."""

    def find_problems(self) -> list[UserError]:
        """Every mistake in these settings."""
        checks = [
            ("rate", self.rate, "0 < rate < 1", 0 < self.rate < 1),
            ("mask_share", self.mask_share, "0 to 1", 0 <= self.mask_share <= 1),
            (
                "random_share",
                self.random_share,
                "0 to 1, with `mask_share` at most 1",
                self.random_share >= 0 and self.mask_share + self.random_share <= 1 + 1e-9,
            ),
            ("unit", self.unit, "one of " + ", ".join(UNITS), self.unit in UNITS),
            ("entity_weight", self.entity_weight, "0 < weight < ∞", 0 < self.entity_weight < math.inf),
            ("rare_weight", self.rare_weight, "0 < weight < ∞", 0 < self.rare_weight < math.inf),
            ("rare_count", self.rare_count, "at least 1", self.rare_count >= 1),
        ]
        return [
            MaskingError("a value out of range", where=f"`masking.{name}`", rule=rule, value=value)
            for name, value, rule, holds in checks
            if not holds
        ]


HELD_OUT_MASKING = MaskingConfig(entity_weight=1.0, rare_weight=1.0)
"""How held-out text is masked, whatever a run trains with: more hidden sub-tokens would be harder to tell each, so that
perplexities could not be compared."""


@dataclass(frozen=True)
class Vocabulary:
    """What takes the place of a chosen sub-token."""

    mask_id: int
    ordinary_ids: np.ndarray
    """Sub-tokens that are none of the special ones."""


@dataclass(frozen=True)
class Mask:
    """What is hidden in one window."""

    positions: np.ndarray
    """Of the chosen sub-tokens, ascending."""
    actions: np.ndarray
    """What becomes of each: `MASKED`, `RANDOM` or `KEPT`."""
    kinds: np.ndarray
    """Of the unit that each is part of."""
    ids: np.ndarray
    """The window as the model sees it."""


def draw_mask(
    ids: np.ndarray, units: Units, vocabulary: Vocabulary, config: MaskingConfig, key: tuple[int, int, int]
) -> Mask:
    """The mask of a window, the same for the same key (seed, epoch, window); at least one unit is chosen.

    Units are drawn one after another, by weight and without repetition (Efraimidis and Spirakis 2006), until the rate
    is met; the one that would exceed it is taken as often as makes the rate right in the mean.
    """
    generator = np.random.default_rng(key)
    starts, kinds = units
    lengths = measure_units(starts, len(ids))
    kind_of = np.repeat(kinds, lengths)
    if config.unit == "sub-token":
        starts, kinds, lengths = np.arange(len(ids)), kind_of, np.ones(len(ids), dtype=np.int64)
    candidates = np.flatnonzero(kinds != SEPARATOR)
    weights = np.ones(4)
    weights[ENTITY], weights[RARE] = config.entity_weight, config.rare_weight
    order = candidates[np.argsort(-(generator.random(len(candidates)) ** (1 / weights[kinds[candidates]])))]
    budget = math.floor(config.rate * lengths[candidates].sum() + generator.random())
    ends = np.cumsum(lengths[order])
    num_chosen = int(np.searchsorted(ends, budget, side="right"))
    left = budget - (int(ends[num_chosen - 1]) if num_chosen else 0)
    if num_chosen < len(order) and generator.random() * lengths[order[num_chosen]] < left:
        num_chosen += 1
    chosen = np.sort(order[: max(1, num_chosen)])
    draws = generator.random(len(chosen))
    action = np.where(draws < config.mask_share, MASKED, KEPT)
    action[(draws >= config.mask_share) & (draws < config.mask_share + config.random_share)] = RANDOM
    positions = np.concatenate([np.arange(starts[one], starts[one] + lengths[one]) for one in chosen])
    actions = np.repeat(action, lengths[chosen])
    seen = ids.copy()
    seen[positions[actions == MASKED]] = vocabulary.mask_id
    replaced = positions[actions == RANDOM]
    seen[replaced] = vocabulary.ordinary_ids[generator.integers(len(vocabulary.ordinary_ids), size=len(replaced))]
    return Mask(positions, actions, kind_of[positions], seen)


def describe_masks(masks: Iterable[tuple[Mask, np.ndarray]]) -> dict[str, float]:
    """The shares of what was chosen, of masks with the kinds of all sub-tokens of their windows."""
    actions, kinds, chosen = np.zeros(3, dtype=np.int64), np.zeros(4, dtype=np.int64), np.zeros(4, dtype=np.int64)
    for mask, all_kinds in masks:
        actions += np.bincount(mask.actions, minlength=3)
        chosen += np.bincount(mask.kinds, minlength=4)
        kinds += np.bincount(all_kinds, minlength=4)
    total = max(1, int(actions.sum()))
    shares = {
        "chosen": total / max(1, int(kinds[:SEPARATOR].sum())),
        "masked": actions[MASKED] / total,
        "random": actions[RANDOM] / total,
        "kept": actions[KEPT] / total,
    }
    for kind, name in ((ENTITY, "entity_chosen"), (RARE, "rare_chosen")):
        if kinds[kind]:
            shares[name] = chosen[kind] / kinds[kind]
    return {name: round(float(share), 5) for name, share in shares.items()}
