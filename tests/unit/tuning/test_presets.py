"""The presets of `rayner tune` that are shipped, and the jobs that a search makes of a recipe."""

import pytest

from pipelines.corpus.augmentation.config import AugmentationConfig
from pipelines.corpus.config import CorpusConfig
from pipelines.ner.encoding import EncodingConfig
from pipelines.ner.errors import UserError
from pipelines.ner.model import ModelConfig
from pipelines.settings import parse_settings
from pipelines.train import TrainConfig
from pipelines.training.config import TrainingConfig
from pipelines.trial_jobs import Recipe, list_encodings, read_base_values
from pipelines.tune import TuneConfig, _check
from pipelines.tuning.config import SearchConfig
from pipelines.tuning.domains import Domain
from pipelines.tuning.space import check_ends, parse_space, resolve_space

RATE = "training.optimizer.learning_rate"


@pytest.mark.parametrize("preset", ["quick", "thorough"])
def test_shipped_preset_is_a_space_around_any_recipe(preset, tiny_encoder):
    config = parse_settings("tune", TuneConfig, ["--config", "quickstart", preset], "")
    recipe = Recipe(config.corpus, config.model, config.encoding, config.training, config.parallel)
    space = parse_space(config.space, config)
    resolved = resolve_space(space, read_base_values(recipe, space, tiny_encoder))
    check_ends(resolved, recipe, Recipe.find_problems)
    assert resolved[RATE].low < 1e-3 < resolved[RATE].high  # what a small encoder has by default
    assert len(list_encodings(recipe, space)) == 1
    assert config.search.num_trials > SearchConfig().num_leaders
    assert config.output_dir == "out/tuning"


def test_default_rates_are_those_of_the_encoder(tiny_encoder):
    space = {RATE: Domain("times", 0.5, 2), "training.optimizer.head_learning_rate": Domain("times", 0.5, 2)}
    values = read_base_values(Recipe(), space, tiny_encoder)
    assert values == {RATE: 1e-3, "training.optimizer.head_learning_rate": 2e-3}
    given = Recipe(training=TrainingConfig(optimizer=type(TrainingConfig().optimizer)(learning_rate=1e-4)))
    assert read_base_values(given, space, tiny_encoder)[RATE] == 1e-4


def test_default_rate_is_unknown_where_encoders_differ():
    space = {RATE: Domain("times", 0.5, 2), "model.encoder": Domain("choice", choices=("a", "b"))}
    with pytest.raises(UserError, match="nothing to multiply"):
        resolve_space(space, read_base_values(Recipe(), space, "a"))


def test_corpus_is_encoded_once_for_all_that_can_share_it():
    recipe = Recipe(model=ModelConfig(encoder="a"), encoding=EncodingConfig(window=64))
    same = {RATE: Domain("uniform", 0.1, 0.2), "model.head": Domain("choice", choices=("linear", "crf"))}
    assert list_encodings(recipe, same) == [recipe]
    windows = {
        "encoding.window": Domain("choice", choices=(64, 128)),
        "model.scheme": Domain("choice", choices=("BIO", "BIOES")),
    }
    found = list_encodings(recipe, same | windows)
    assert found[0] == recipe
    assert {(one.encoding.window, one.model.scheme) for one in found} == {
        (64, "BIO"),
        (64, "BIOES"),
        (128, "BIO"),
        (128, "BIOES"),
    }


def test_encodings_without_end_are_refused():
    with pytest.raises(UserError, match="values to choose from"):
        list_encodings(Recipe(), {"encoding.window": Domain("randint", 64, 256)})
    many = {"encoding.window": Domain("choice", choices=tuple(range(32, 52)))}
    with pytest.raises(UserError, match="too many encodings"):
        list_encodings(Recipe(), many)


def test_every_way_of_augmenting_needs_its_own_shards_and_none_is_as_before():
    space = {"corpus.augmentation.masking": Domain("choice", choices=(0.0, 0.5))}
    recipe = Recipe(corpus=CorpusConfig(train=["a"]))
    plain, masked = list_encodings(recipe, space)
    assert plain == recipe
    assert masked.corpus.augmentation.masking == 0.5
    other = Recipe(corpus=CorpusConfig(train=["a"], augmentation=AugmentationConfig(seed=9)))
    assert other.identify_encoding() == plain.identify_encoding() != masked.identify_encoding()
    with pytest.raises(UserError, match="values to choose from"):
        list_encodings(recipe, {"corpus.augmentation.masking": Domain("uniform", 0.0, 1.0)})
    with pytest.raises(UserError, match="the corpus is prepared already"):
        list_encodings(Recipe(corpus=CorpusConfig(shards="s")), space)


def test_a_space_may_hold_augmentation_and_no_other_setting_of_the_corpus():
    config = parse_settings("tune", TuneConfig, ["--corpus.train", "a"], "")
    recipe = Recipe(config.corpus)
    space = parse_space({"corpus.augmentation.masking": ["0", "0.5"]}, config)
    check_ends(space, recipe, Recipe.find_problems)
    with pytest.raises(UserError, match="what no recipe may have"):
        check_ends(parse_space({"corpus.augmentation.masking": ["0", "-1"]}, config), recipe, Recipe.find_problems)
    with pytest.raises(UserError, match=r"did you mean `--space\.corpus\.augmentation\.masking`"):
        parse_space({"corpus.augmentation.maskin": ["0", "0.5"]}, config)
    with pytest.raises(UserError, match="the same for all trials"):
        parse_space({"corpus.dev_fraction": ["0.1", "0.2"]}, config)


def test_a_mistake_in_augmentation_is_told_once():
    flags = ["--corpus.train", "a", "--corpus.augmentation.masking", "-1", "--space.model.dropout", "0", "0.1"]
    config = parse_settings("tune", TuneConfig, flags, "")
    with pytest.raises(UserError, match="a value out of range") as refused:
        _check(config, Recipe(config.corpus))
    assert str(refused.value).count("`corpus.augmentation.masking`") == 1


def test_the_accurate_preset_is_a_crf_over_bioes_for_any_training():
    config = parse_settings("train", TrainConfig, ["--config", "quickstart", "accurate"], "")
    assert (config.model.head, config.model.scheme) == ("crf", "BIOES")
    assert config.corpus.train == ["sample:en-train.jsonl"]
    assert config.model.find_problems() == config.training.find_problems() == []
