"""What is drawn from, gazetteers, and settings that are refused or idle."""

import random
from collections import Counter

import pytest

from pipelines.corpus.augmentation import config as config_module
from pipelines.corpus.augmentation.config import TECHNIQUES, AugmentationConfig
from pipelines.corpus.augmentation.pools import Counts, Pool, check_gazetteer, read_gazetteer
from pipelines.corpus.augmentation.preparing import WANTS, check_mask_token, list_idle_techniques
from pipelines.corpus.augmentation.samples import Phrase, read_sample
from pipelines.corpus.config import CorpusConfig
from pipelines.corpus.records import CorpusError
from pipelines.ner.encoders import load_tokenizer
from pipelines.ner.encoding import EncodingError
from pipelines.settings import parse_settings
from pipelines.train import TrainConfig
from tests.unit.corpus.augmentation.samples import make_row


def test_draws_are_as_frequent_as_the_counts_and_never_the_item_itself():
    pool = Pool.of(Counter({"a": 1, "b": 6, "c": 3}))
    rng = random.Random(0)
    found = Counter(pool.draw_other(rng, "b") for _ in range(2000))
    assert found.keys() == {"a", "c"}
    assert found["c"] / found["a"] == pytest.approx(3, rel=0.2)
    assert {pool.draw_other(rng, item) for item in ("a", "c") for _ in range(50)} == {"a", "b", "c"}
    assert Counter(pool.draw_other(rng, "x") for _ in range(1000)).keys() == {"a", "b", "c"}
    assert Pool.of(Counter({"a": 4})).draw_other(rng, "a") is None


def test_counts_are_the_same_pools_in_whatever_order_they_are_added():
    rows = [
        make_row(words=["Ada", "Byron", "x"], tags=["B-PER", "I-PER", "O"]),
        make_row(
            text="Bern, 北京!", spans=[{"start": 0, "end": 4, "label": "LOC"}, {"start": 6, "end": 8, "label": "LOC"}]
        ),
        make_row(words=["\u3000", "x"], tags=["B-LOC", "O"]),
    ]
    one, other, both = Counts(), Counts(), Counts()
    for row in rows:
        one.add_sample(read_sample(row, "punctuation", "BIO"))
    for row in reversed(rows):
        other = Counts()
        other.add_sample(read_sample(row, "punctuation", "BIO"))
        both.merge(other)
    assert one.freeze() == both.freeze()
    mentions = {kind: list(pool.items) for kind, pool in one.freeze().mentions.items()}
    assert mentions == {
        ("PER", False): [Phrase(("Ada", "Byron"), (" ",))],
        ("LOC", False): [Phrase(("Bern",), ())],
        ("LOC", True): [Phrase(("北", "京"), ("",))],
    }
    assert one.words[("", False, False)] == {"x": 2}


def test_a_gazetteer_adds_mentions_cut_as_texts_are(tmp_path):
    path = tmp_path / "names.tsv"
    path.write_text("New York-Newark\tLOC\r\n\n Ada \tPER\nBern\tLOC\nBern\tLOC\n", encoding="utf-8")
    found = read_gazetteer([str(path)], "punctuation")
    assert found["PER"] == {Phrase(("Ada",), ())}
    assert found["LOC"] == {Phrase(("Bern",), ()), Phrase(("New", "York", "-", "Newark"), (" ", "", ""))}
    assert check_gazetteer(found, {"LOC", "ORG"}, [str(path)]) == ["PER"]
    with pytest.raises(CorpusError, match="no label of the gazetteer is one of the corpus") as caught:
        check_gazetteer(found, {"ORG"}, [str(path)])
    assert "`LOC`, `PER`" in str(caught.value)


@pytest.mark.parametrize("line", ["Bern", "Bern\t", "\tLOC", "Bern\tLOC\tx"])
def test_a_line_of_a_gazetteer_that_is_none_is_refused_with_its_place(tmp_path, line):
    path = tmp_path / "names.tsv"
    path.write_text(f"Ada\tPER\n{line}\n", encoding="utf-8")
    [problem] = CorpusConfig(
        train=["a"], augmentation=AugmentationConfig(mention_replacement=1.0, gazetteer=[str(path)])
    ).find_problems()
    assert problem.where == f"{path}:2"
    assert "a tab" in str(problem)


@pytest.mark.parametrize(("text", "told"), [("", "the file is empty"), ("\n  \n", "the gazetteer holds no mention")])
def test_a_gazetteer_without_a_mention_is_refused(tmp_path, text, told):
    path = tmp_path / "names.tsv"
    path.write_text(text, encoding="utf-8")
    [problem] = AugmentationConfig(mention_replacement=1.0, gazetteer=[str(path)]).find_gazetteer_problems()
    assert problem.what == told
    assert problem.where == str(path)


def test_settings_out_of_range_and_missing_gazetteers_are_told_at_once(tmp_path):
    (tmp_path / "places.tsv").write_text("Bern\tLOC\n", encoding="utf-8")
    settings = {"masking": -0.1, "word_swap": float("nan"), "typo_noise": 1e9, "strength": 0.0, "seed": -1}
    given = AugmentationConfig(**settings, gazetteer=[str(tmp_path / "place.tsv")])
    problems = CorpusConfig(train=["a"], augmentation=given).find_problems()
    assert [problem.where for problem in problems[:-1]] == [
        f"`corpus.augmentation.{name}`" for name in ("masking", "word_swap", "typo_noise", "strength", "seed")
    ]
    assert "there is no such file" in str(problems[-1])
    assert "did you mean" in str(problems[-1])
    assert CorpusConfig(train=["a"]).find_problems() == []


def test_chinese_characters_without_their_extra_are_refused(monkeypatch):
    monkeypatch.setattr(config_module.importlib.util, "find_spec", lambda name: None)
    [problem] = AugmentationConfig(script_forms=0.5).find_problems()
    assert "pip install 'rayner[chinese]'" in str(problem)
    assert AugmentationConfig(width_forms=0.5).find_problems() == []


def test_idle_settings_are_told_with_their_reason():
    idle = AugmentationConfig(strength=0.5, gazetteer=["x"]).find_idle()
    assert idle == [
        f"`corpus.augmentation.{name}` has no effect: every rate is 0" for name in ("strength", "gazetteer")
    ]
    [told] = AugmentationConfig(masking=1.0, gazetteer=["x"], strength=0.5).find_idle()
    assert told == "`corpus.augmentation.gazetteer` has no effect: `corpus.augmentation.mention_replacement` is 0"
    prepared = CorpusConfig(shards="s", augmentation=AugmentationConfig(masking=1.0)).find_idle()
    assert prepared == ["`corpus.augmentation` has no effect: the shards are prepared"]
    assert CorpusConfig(train=["a"]).find_idle() == []


def test_a_technique_without_a_sibling_is_told_with_what_it_wants():
    assert WANTS.keys() == set(TECHNIQUES)
    [told] = list_idle_techniques(AugmentationConfig(script_forms=1.0, masking=0.5), {"masking": 3, "script_forms": 0})
    assert told == (
        "`corpus.augmentation.script_forms` has made no sibling: it takes a record with Chinese characters that have "
        "another form"
    )


def test_masking_without_a_mask_token_is_refused(tiny_encoder):
    tokenizer = load_tokenizer(tiny_encoder)
    check_mask_token(AugmentationConfig(masking=1.0), tokenizer)
    tokenizer.mask_token = None
    check_mask_token(AugmentationConfig(word_swap=1.0), tokenizer)
    with pytest.raises(EncodingError, match="no mask token"):
        check_mask_token(AugmentationConfig(masking=1.0), tokenizer)


def test_every_setting_is_a_flag():
    flags = [f"--corpus.augmentation.{name}=0.3" for name in (*TECHNIQUES, "strength")]
    flags += ["--corpus.augmentation.gazetteer", "a.tsv", "b.tsv", "--corpus.augmentation.seed", "7"]
    config = parse_settings("train", TrainConfig, flags, "").corpus.augmentation
    assert config.rates == dict.fromkeys(TECHNIQUES, 0.3)
    assert (config.gazetteer, config.seed) == (["a.tsv", "b.tsv"], 7)
