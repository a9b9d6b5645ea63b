"""The ways of changing a record that move, exchange or hide words; mentions keep their labels and their order."""

import random
from collections.abc import Sequence
from typing import TypeVar

from pipelines.corpus.augmentation.pools import Pools, list_tags, name_kind
from pipelines.corpus.augmentation.samples import Phrase, Sample, find_gap, is_word

Place = TypeVar("Place")


def pick(places: Sequence[Place], rng: random.Random, strength: float) -> list[Place]:
    """Each place with this probability, but at least one if there are any."""
    picked = [place for place in places if rng.random() < strength]
    return picked or ([rng.choice(places)] if places else [])


def replace_mentions(sample: Sample, rng: random.Random, strength: float, pools: Pools) -> Sample:
    """Other mentions of the same labels, in scripts of the same kind, in the places of some."""
    changes = {}
    for span in pick(sample.spans, rng, strength):
        mention = sample.cut(span.start, span.end)
        pool = pools.mentions.get(name_kind(span.label, mention))
        other = pool.draw_other(rng, mention) if pool else None
        if other is not None:
            changes[span.start, span.end] = other
    return sample.replace_ranges(changes)


def replace_words(sample: Sample, rng: random.Random, strength: float, pools: Pools) -> Sample:
    """Other words that have the same tag in train in the places of some; punctuation stays."""
    tags = list_tags(sample)
    changes = {}
    for place in pick([place for place, word in enumerate(sample.words) if is_word(word)], rng, strength):
        pool = pools.words.get(tags[place])
        other = pool.draw_other(rng, sample.words[place]) if pool else None
        if other is not None:
            changes[place] = other
    return sample.replace_words(changes)


def shuffle_segments(sample: Sample, rng: random.Random, strength: float) -> Sample:
    """The words of some segments in another order; none leaves its segment, and punctuation stays where it is."""
    segments = [[at for at in range(start, end) if is_word(sample.words[at])] for start, end in sample.segments]
    changes: dict[int, str] = {}
    for places in pick([places for places in segments if len(places) > 1], rng, strength):
        words = [sample.words[place] for place in places]
        rng.shuffle(words)
        changes.update(zip(places, words, strict=True))
    return sample.replace_words(changes)


def mask_words(sample: Sample, rng: random.Random, strength: float, mask_token: str) -> Sample:
    """The mask token in the places of some words, inside and outside of mentions."""
    return sample.replace_words(dict.fromkeys(pick(range(len(sample.words)), rng, strength), mask_token))


def swap_words(sample: Sample, rng: random.Random, strength: float) -> Sample:
    """Some neighbours outside mentions in the other order; punctuation stays where it is."""
    free = {place for place in sample.outside if is_word(sample.words[place])}
    pairs = [place for place in sorted(free) if place + 1 in free]
    changes: dict[int, str] = {}
    for place in pick(pairs, rng, strength):
        if place not in changes:  # else it has just come here
            changes |= {place: sample.words[place + 1], place + 1: sample.words[place]}
    return sample.replace_words(changes)


def duplicate_words(sample: Sample, rng: random.Random, strength: float) -> Sample:
    """Some words outside mentions twice; punctuation is not."""
    places = pick([place for place in sample.outside if is_word(sample.words[place])], rng, strength)
    words = {place: sample.words[place] for place in places}
    return sample.replace_ranges(
        {(place, place + 1): Phrase((word, word), (find_gap(word, word),)) for place, word in words.items()}
    )
