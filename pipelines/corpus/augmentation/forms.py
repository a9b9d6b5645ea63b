"""The ways of writing the same words otherwise: case, typing errors, and the forms of Chinese characters."""

import random
from collections.abc import Callable, Iterable
from functools import lru_cache
from itertools import pairwise
from typing import Any

import regex

from pipelines.corpus.augmentation.samples import Sample
from pipelines.corpus.augmentation.techniques import pick

SHORTEST_MISTYPED = 4
"""Letters; errors make shorter words into other ones too often."""
ROWS = (("qwertyuiop", 0.0), ("asdfghjkl", 0.25), ("zxcvbnm", 0.75))
"""Of a QWERTY keyboard, and how far each begins to the right of the first, in keys."""
_HAN = regex.compile(r"\p{Han}")
_HAN_RUN = regex.compile(r"\p{Han}{1,200}")
_KANA = regex.compile(r"[\p{Hiragana}\p{Katakana}]")
_FULL_WIDTH = {code: code + 0xFEE0 for code in range(0x21, 0x7F)}
"""The printable ASCII characters but the space → the block of their full-width forms, U+FF01 to U+FF5E."""
_HALF_WIDTH = {full: half for half, full in _FULL_WIDTH.items()}


def change_case(sample: Sample, rng: random.Random) -> Sample:
    """All words in one of the cases in which they are not."""
    return _choose(sample, rng, [_change_words(sample, change) for change in (str.upper, str.lower, _capitalize)])


def mistype_words(sample: Sample, rng: random.Random, strength: float) -> Sample:
    """One error in each of some words of letters."""
    words = {place: word for place, word in enumerate(sample.words) if len(word) >= SHORTEST_MISTYPED}
    places = pick([place for place, word in words.items() if word.isalpha()], rng, strength)
    return sample.replace_words({place: mistype(words[place], rng) for place in places})


def mistype(word: str, rng: random.Random) -> str:
    """A word with a letter missing, two that changed places, or the letter of a neighbouring key."""
    swaps = [at for at, (one, other) in enumerate(pairwise(word)) if one != other]
    keys = [at for at, letter in enumerate(word) if letter.lower() in list_neighbours()]
    kind = rng.choice(["drop", *(["swap"] if swaps else []), *(["key"] if keys else [])])
    if kind == "swap":
        at = rng.choice(swaps)
        return word[:at] + word[at + 1] + word[at] + word[at + 2 :]
    if kind == "drop":
        at = rng.randrange(len(word))
        return word[:at] + word[at + 1 :]
    at = rng.choice(keys)
    letter = rng.choice(list_neighbours()[word[at].lower()])
    return word[:at] + (letter.upper() if word[at].isupper() else letter) + word[at + 1 :]


@lru_cache(maxsize=1)
def list_neighbours() -> dict[str, str]:
    """Letter → the letters of the keys next to it."""
    keys = [(letter, at + shift, row) for row, (letters, shift) in enumerate(ROWS) for at, letter in enumerate(letters)]
    return {
        letter: "".join(
            other
            for other, other_x, other_row in keys
            if other != letter and abs(row - other_row) <= 1 and abs(x - other_x) <= 1
        )
        for letter, x, row in keys
    }


def change_width(sample: Sample, rng: random.Random) -> Sample:
    """All ASCII characters in full width, or the reverse; only of records with Chinese characters."""
    if not any(map(_HAN.search, sample.words)):
        return sample
    full = _change_words(sample, lambda word: word.translate(_FULL_WIDTH))
    half = _change_words(sample, lambda word: word.translate(_HALF_WIDTH))
    return _choose(sample, rng, [full, half])


def change_script(sample: Sample, rng: random.Random) -> Sample:
    """In traditional characters, or in simplified ones; only of records with Chinese characters and without kana."""
    if not any(map(_HAN.search, sample.words)) or any(map(_KANA.search, sample.words)):
        return sample
    return _choose(sample, rng, [_convert(sample, way) for way in ("s2t", "t2s")])


def _choose(sample: Sample, rng: random.Random, forms: Iterable[Sample]) -> Sample:
    """One of the forms that are not the original, or the original where there is none."""
    others = [form for form in forms if form != sample]
    return rng.choice(others) if others else sample


def _change_words(sample: Sample, change: Callable[[str], str]) -> Sample:
    return sample.replace_words({place: change(word) for place, word in enumerate(sample.words)})


def _capitalize(word: str) -> str:
    return word[:1].upper() + word[1:].lower()


def _convert(sample: Sample, way: str) -> Sample:
    """Converted as a whole, since many characters depend on their neighbours; word by word if the length changes."""
    parts = [part for pair in zip(sample.gaps, (*sample.words, ""), strict=True) for part in pair]
    if not sample.is_text:
        parts[::2] = [""] * len(sample.gaps)
    whole = convert_text("".join(parts), way)
    if len(whole) != sum(map(len, parts)):
        return _change_words(sample, lambda word: convert_text(word, way))
    words, at = [], 0
    for part in parts:
        words.append(whole[at : at + len(part)])
        at += len(part)
    return sample.replace_words(dict(enumerate(words[1:-1:2])))


def convert_text(text: str, way: str) -> str:
    """A text with its Chinese characters converted by OpenCC.

    Args:
        way: `s2t` or `t2s`, from simplified to traditional or back, without the vocabulary of any region.
    """
    converter = _load_converter(way)
    return str(_HAN_RUN.sub(lambda match: converter.convert(match.group()), text))


@lru_cache(maxsize=2)
def _load_converter(way: str) -> Any:
    from opencc import OpenCC  # an extra

    return OpenCC(way)
