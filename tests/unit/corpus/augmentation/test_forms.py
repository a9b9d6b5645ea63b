"""Other forms of the same words: typing errors, widths and scripts."""

import random

import pytest

from pipelines.corpus.augmentation.forms import (
    change_case,
    change_script,
    change_width,
    convert_text,
    list_neighbours,
    mistype,
)
from pipelines.corpus.augmentation.samples import read_sample
from tests.unit.corpus.augmentation.samples import make_row


def draw(change, text, *, times=20):
    sample = read_sample(make_row(text=text, spans=[]), "punctuation", "BIO")
    return {change(sample, random.Random(seed)).to_row()["text"] for seed in range(times)}


def test_keys_have_the_neighbours_that_they_have_on_a_keyboard():
    near = list_neighbours()
    assert set(near["g"]) == set("ftyhbv")
    assert set(near["q"]) == set("wa")
    assert set(near["m"]) >= set("njk")
    assert all(letter in near[other] for letter in near for other in near[letter])


def test_a_typing_error_is_one_of_three_kinds_and_keeps_case():
    found = {mistype("Abcd", random.Random(seed)) for seed in range(300)}
    assert {"bcd", "Abc", "bAcd", "Abdc", "Sbcd", "Avcd"} <= found
    assert "Abcd" not in found
    assert {mistype("éééé", random.Random(seed)) for seed in range(20)} == {"ééé"}


def test_case_is_one_of_those_that_the_record_is_not_in():
    assert draw(change_case, "Ada met BOB.") == {"ADA MET BOB.", "ada met bob.", "Ada Met Bob."}
    assert draw(change_case, "ada bob") == {"ADA BOB", "Ada Bob"}
    assert draw(change_case, "北京 2018") == {"北京 2018"}


def test_width_changes_in_chinese_records_alone_and_spaces_stay():
    assert draw(change_width, "北京 A1，b.") == {"北京 Ａ１，ｂ．", "北京 A1,b."}
    assert draw(change_width, "plain text, 1.") == {"plain text, 1."}


def test_script_follows_the_neighbours_of_a_character():
    pytest.importorskip("opencc")
    assert convert_text("头发发展", "s2t") == "頭髮發展"
    assert draw(change_script, "张家口的雪场。Bern") == {"張家口的雪場。Bern"}
    assert draw(change_script, "張家口的雪場") == {"张家口的雪场"}
    assert draw(change_script, "国会はカナ") == {"国会はカナ"}
    words = read_sample(make_row(words=["头", "发", "发展"], tags=["O"] * 3), "unicode", "BIO")
    assert change_script(words, random.Random(0)).words == ("頭", "髮", "發展")
    assert convert_text("国" * 20_000, "s2t") == "國" * 20_000
