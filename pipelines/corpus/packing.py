"""Documents of raw text to windows of units: packed full, or each document by itself.

Packed, documents stand one after another with the tokenizer's separator between them, and a window goes on where the
one before ended; attention sees across documents, as in RoBERTa's pretraining (FULL-SENTENCES, Liu et al. 2019). Apart,
a window never holds more than one document.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from pipelines.ner.units import ENTITY, RARE, SEPARATOR, WORD

PACKINGS = ("joined", "apart")
SENTENCE_ENDS = frozenset(".!?…。！？।؟۔")
"""What the last word of a sentence ends with."""


@dataclass(slots=True)
class Unit:
    """Sub-tokens that are hidden together."""

    ids: Sequence[int]
    kind: int = WORD
    begins_sentence: bool = False


@dataclass(slots=True)
class RawWindow:
    """Sub-tokens without special tokens around them, and where units and sentences begin."""

    input_ids: list[int] = field(default_factory=list)
    unit_starts: list[int] = field(default_factory=list)
    unit_kinds: list[int] = field(default_factory=list)
    sentence_starts: list[int] = field(default_factory=list)

    def add(self, unit: Unit) -> None:
        """Add a unit at the end."""
        if unit.begins_sentence:
            self.sentence_starts.append(len(self.input_ids))
        self.unit_starts.append(len(self.input_ids))
        self.unit_kinds.append(unit.kind)
        self.input_ids.extend(unit.ids)


def build_units(
    words: Sequence[str],
    ids: Sequence[Sequence[int]],
    mentions: Sequence[tuple[int, int]],
    rare: Iterable[bool],
    newlines: frozenset[int] = frozenset(),
) -> list[Unit]:
    """The units of a document: its words, of which those of a mention are one.

    Args:
        ids: the sub-tokens of each word.
        newlines: words before which a line ends.
    """
    ends = dict(mentions)
    units: list[Unit] = []
    rare, at, begins = list(rare), 0, True
    while at < len(words):
        end = ends.get(at, at + 1)
        kind = ENTITY if at in ends else RARE if rare[at] else WORD
        joined = [token for word in ids[at:end] for token in word]
        units.append(Unit(joined, kind, begins or at in newlines))
        begins = words[end - 1][-1:] in SENTENCE_ENDS
        at = end
    return units


def pack_documents(
    documents: Iterable[Sequence[Unit]], capacity: int, separator_id: int, packing: str
) -> list[RawWindow]:
    """Windows of at most `capacity` sub-tokens that hold every unit once, in order; longer units are cut."""
    windows: list[RawWindow] = []
    window = RawWindow()

    def close() -> None:
        """Go on with a new window, unless this one has nothing to tell."""
        nonlocal window
        while window.unit_kinds and window.unit_kinds[-1] == SEPARATOR:
            start = window.unit_starts.pop()
            window.unit_kinds.pop()
            del window.input_ids[start:]
        if window.input_ids:
            windows.append(window)
        window = RawWindow()

    for units in documents:
        if packing == "apart":
            close()
        elif window.input_ids and len(window.input_ids) + 1 < capacity:
            window.add(Unit([separator_id], SEPARATOR))
        elif window.input_ids:
            close()
        for unit in _cut(units, capacity):
            if len(window.input_ids) + len(unit.ids) > capacity:
                close()
            window.add(unit)
    close()
    return windows


def _cut(units: Sequence[Unit], capacity: int) -> Iterable[Unit]:
    for unit in units:
        if len(unit.ids) <= capacity:
            yield unit
            continue
        for at in range(0, len(unit.ids), capacity):
            yield Unit(unit.ids[at : at + capacity], unit.kind, unit.begins_sentence and at == 0)
