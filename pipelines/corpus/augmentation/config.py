"""What a user says of augmentation, and its rules."""

import importlib.util
from dataclasses import dataclass, field, fields

from pipelines.corpus.augmentation.pools import read_gazetteer
from pipelines.corpus.records import CorpusError
from pipelines.ner.errors import UserError

TECHNIQUES = (
    "mention_replacement",
    "word_replacement",
    "segment_shuffling",
    "masking",
    "word_swap",
    "word_duplication",
    "case_noise",
    "typo_noise",
    "width_forms",
    "script_forms",
)
"""Each has a rate of its name in `AugmentationConfig`."""
MAX_RATE = 100


@dataclass(frozen=True)
class AugmentationConfig:
    """Siblings of training records: changed copies that are trained on and counted apart; by default there are none.

    A rate is the number of siblings a technique makes of a training record on average: 0.3 makes one of three in ten
    records, 2.5 makes two of each and a third of every other one. A record without a place to change gets none, and a
    sibling like its original or like another sibling is left out. Dev and test are never changed.
    """

    mention_replacement: float = 0.0
    """Rate of siblings with mentions replaced by others of the same label (Dai & Adel 2020)."""
    word_replacement: float = 0.0
    """Rate of siblings with words replaced by ones that have the same tag in train, as often as there (label-wise token
    replacement, Dai & Adel 2020)."""
    segment_shuffling: float = 0.0
    """Rate of siblings with the words within a mention, or between two, shuffled (Dai & Adel 2020)."""
    masking: float = 0.0
    """Rate of siblings with words replaced by the tokenizer's mask token."""
    word_swap: float = 0.0
    """Rate of siblings with neighbouring words outside mentions swapped (EDA, Wei & Zou 2019)."""
    word_duplication: float = 0.0
    """Rate of siblings with words outside mentions said twice."""
    case_noise: float = 0.0
    """Rate of siblings that are all in capitals, all in small letters, or with a capital on every word."""
    typo_noise: float = 0.0
    """Rate of siblings with a typing error in words of four letters and more: a neighbouring key, two letters the wrong
    way round, or one missing."""
    width_forms: float = 0.0
    """Rate of siblings with full-width for half-width forms or the reverse, of records with Chinese characters."""
    script_forms: float = 0.0
    """Rate of siblings of Chinese records in traditional for simplified characters or the reverse (extra `chinese`)."""
    strength: float = 0.3
    """Share of the places in a record that a technique changes, at least one; case, width and script change all."""
    gazetteer: list[str] = field(default_factory=list)
    """Files of lines `mention<TAB>label`: further mentions to replace others by, each as if it stood in train once."""
    seed: int = 1
    """Decides which records get siblings, and which ones; the seed of training does not."""

    @property
    def rates(self) -> dict[str, float]:
        """Technique → rate, of those that are used."""
        return {name: getattr(self, name) for name in TECHNIQUES if getattr(self, name) > 0}

    def find_problems(self) -> list[UserError]:
        """Every mistake in these settings, except in the files they name."""
        checks = [(name, f"0 ≤ rate ≤ {MAX_RATE}", 0 <= getattr(self, name) <= MAX_RATE) for name in TECHNIQUES]
        checks += [
            ("strength", "0 < share ≤ 1", 0 < self.strength <= 1),
            ("seed", "0 ≤ seed < 2³²", 0 <= self.seed < 2**32),
        ]
        problems: list[UserError] = [
            CorpusError(
                "a value out of range", where=f"`corpus.augmentation.{name}`", rule=rule, value=getattr(self, name)
            )
            for name, rule, holds in checks
            if not holds
        ]
        if self.script_forms > 0 and importlib.util.find_spec("opencc") is None:
            problems.append(
                CorpusError(
                    "nothing here converts Chinese characters",
                    where="`corpus.augmentation.script_forms`",
                    rule="the package `opencc`",
                    remedy="pip install 'rayner[chinese]'",
                )
            )
        return problems

    def find_gazetteer_problems(self) -> list[UserError]:
        """Every gazetteer that cannot be read."""
        problems: list[UserError] = []
        for name in self.gazetteer:
            try:
                read_gazetteer([name], "unicode")
            except UserError as error:
                problems.append(error)
        return problems

    def find_idle(self) -> list[str]:
        """Settings given that change nothing, each with its reason."""
        plain = AugmentationConfig()
        reasons = {}
        if not self.mention_replacement > 0:
            reasons["gazetteer"] = "`corpus.augmentation.mention_replacement` is 0"
        if not self.rates:
            reasons |= dict.fromkeys(("strength", "seed", "gazetteer"), "every rate is 0")
        given = [one.name for one in fields(self) if getattr(self, one.name) != getattr(plain, one.name)]
        return [f"`corpus.augmentation.{name}` has no effect: {reasons[name]}" for name in given if name in reasons]
