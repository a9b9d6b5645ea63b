"""What is predicted: spans of words, entities of characters, and how much of a text was read."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, order=True)
class Span:
    """A labelled range of words, half-open; `score` is the probability of exactly this span and label."""

    start: int
    end: int
    label: str
    score: float = 1.0


@dataclass(frozen=True, slots=True)
class Entity:
    """A labelled range of characters (Unicode code points, half-open) of a text, with `text == document[start:end]`."""

    text: str
    label: str
    start: int
    end: int
    score: float


@dataclass(frozen=True, slots=True)
class Coverage:
    """How much of a document the encoder read: all of it, or the difference is visible here.

    `fraction` is the share of sub-tokens that at least one window held; 1.0 for an empty document.
    """

    num_characters: int
    num_words: int
    num_tokens: int
    num_windows: int
    fraction: float


@dataclass(frozen=True, slots=True)
class Prediction:
    """The answer for one text."""

    entities: list[Entity]
    coverage: Coverage
