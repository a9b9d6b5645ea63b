"""Masks: their shares, units and preferences, and that the same key gives the same mask."""

import numpy as np
import pytest

from pipelines.ner.units import ENTITY, RARE, SEPARATOR, WORD, measure_units
from pipelines.training.masking import (
    KEPT,
    MASKED,
    RANDOM,
    MaskingConfig,
    Vocabulary,
    describe_masks,
    draw_mask,
)

MASK_ID, FIRST, LAST = 4, 10, 1010
VOCABULARY = Vocabulary(MASK_ID, np.arange(FIRST, LAST))


def make_window(seed=0, num_units=80, kinds=(WORD,)):
    """Words of one to three sub-tokens, with a separator in the middle."""
    generator = np.random.default_rng(seed)
    lengths = generator.integers(1, 4, num_units)
    lengths[num_units // 2] = 1
    found = generator.choice(kinds, num_units)
    found[num_units // 2] = SEPARATOR
    ids = generator.integers(FIRST, LAST, lengths.sum())
    return ids, (np.cumsum(lengths) - lengths, found)


def draw_many(config, count=1500, kinds=(WORD,)):
    for index in range(count):
        ids, units = make_window(index % 7, kinds=kinds)
        yield draw_mask(ids, units, VOCABULARY, config, (1, 0, index)), ids, units


def list_kinds(ids, units):
    return np.repeat(units[1], measure_units(units[0], len(ids)))


@pytest.mark.parametrize("unit", ["word", "sub-token"])
def test_shares_are_15_percent_and_80_10_10_within_four_standard_errors(unit):
    config = MaskingConfig(unit=unit)
    drawn = list(draw_many(config))
    shares = describe_masks((mask, list_kinds(ids, units)) for mask, ids, units in drawn)
    num_units = sum(len(mask.positions) for mask, _, _ in drawn) / (1 if unit == "sub-token" else 2)
    for name, expected in (("masked", 0.8), ("random", 0.1), ("kept", 0.1)):
        # words differ in length: the error of a share of sub-tokens is a little above that of a share of words
        error = 1.2 * (expected * (1 - expected) / num_units) ** 0.5
        assert abs(shares[name] - expected) < 4 * error, name
    assert abs(shares["chosen"] - 0.15) < 0.001  # drawn without repetition, the number is nearly fixed


@pytest.mark.parametrize(("mask_share", "random_share"), [(1.0, 0.0), (0.0, 1.0), (0.0, 0.0)])
def test_chosen_sub_tokens_become_what_the_shares_say(mask_share, random_share):
    config = MaskingConfig(mask_share=mask_share, random_share=random_share)
    for mask, ids, _ in draw_many(config, 50):
        action = MASKED if mask_share else RANDOM if random_share else KEPT
        assert set(mask.actions) == {action}
        seen = mask.ids[mask.positions]
        if action == MASKED:
            assert (seen == MASK_ID).all()
        elif action == RANDOM:
            assert ((seen >= FIRST) & (seen < LAST)).all()
        else:
            assert (mask.ids == ids).all()
        others = np.setdiff1d(np.arange(len(ids)), mask.positions)
        assert (mask.ids[others] == ids[others]).all()


def test_words_are_hidden_whole_and_treated_alike_and_separators_never():
    for mask, ids, (starts, kinds) in draw_many(MaskingConfig(), 200):
        lengths = measure_units(starts, len(ids))
        action_of = dict(zip(mask.positions.tolist(), mask.actions.tolist(), strict=True))
        for start, length, kind in zip(starts.tolist(), lengths.tolist(), kinds.tolist(), strict=True):
            actions = [action_of.get(position) for position in range(start, start + length)]
            assert len(set(actions)) == 1
            assert kind != SEPARATOR or actions == [None]


def test_sub_tokens_are_hidden_one_by_one():
    num_parted = 0
    for mask, ids, (starts, _) in draw_many(MaskingConfig(unit="sub-token"), 50):
        chosen = np.isin(np.arange(len(ids)), mask.positions)
        parts = np.split(chosen, starts[1:])
        num_parted += sum(part.any() and not part.all() for part in parts)
    assert num_parted > 100


def test_entities_and_rare_words_are_hidden_more_often_by_their_weights():
    config = MaskingConfig(entity_weight=4.0, rare_weight=2.0)
    drawn = [
        (mask, list_kinds(ids, units)) for mask, ids, units in draw_many(config, 800, (WORD,) * 8 + (ENTITY, RARE))
    ]
    shares = describe_masks(drawn)
    words = sum((mask.kinds == WORD).sum() for mask, _ in drawn) / sum((kinds == WORD).sum() for _, kinds in drawn)
    assert shares["chosen"] == pytest.approx(0.15, abs=0.002)
    assert 2.8 < shares["entity_chosen"] / words < 4  # without repetition the odds are weighted, not the shares
    assert 1.6 < shares["rare_chosen"] / words < 2.1


def test_same_key_gives_the_same_mask_and_another_epoch_another_one():
    ids, units = make_window()
    first, again, other = (draw_mask(ids, units, VOCABULARY, MaskingConfig(), (1, epoch, 5)) for epoch in (0, 0, 1))
    assert (first.ids == again.ids).all()
    assert (first.positions == again.positions).all()
    assert first.positions.tolist() != other.positions.tolist()


def test_a_window_of_one_long_word_still_has_something_to_tell():
    ids = np.arange(FIRST, FIRST + 9)
    mask = draw_mask(ids, (np.array([0]), np.array([WORD])), VOCABULARY, MaskingConfig(), (1, 0, 0))
    assert mask.positions.tolist() == list(range(9))


def test_every_setting_out_of_range_is_told():
    wrong = MaskingConfig(rate=1.0, mask_share=0.9, random_share=0.2, unit="letter", entity_weight=0.0, rare_count=0)
    told = [problem.where for problem in wrong.find_problems()]
    assert told == [f"`masking.{name}`" for name in ("rate", "random_share", "unit", "entity_weight", "rare_count")]
    assert MaskingConfig().find_problems() == []
