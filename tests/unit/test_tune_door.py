"""What `rayner tune` tells of settings without effect, and how it leaves presets."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from pipelines import tune, tuned_presets
from pipelines.corpus.augmentation.config import AugmentationConfig
from pipelines.corpus.config import CorpusConfig
from pipelines.corpus.formats.files import find_files
from pipelines.corpus.inference import InferenceConfig
from pipelines.corpus.shards import SHARDS_FILE, find_shards_encoder
from pipelines.folders import write_json
from pipelines.ner.encoders import load_tokenizer, locate_encoder
from pipelines.ner.encoding import EncodingConfig, fingerprint_tokenizer
from pipelines.ner.errors import UserError
from pipelines.ner.model import ModelConfig
from pipelines.runs import get_shards
from pipelines.training.resources import ResourcesConfig
from pipelines.trial_jobs import Prepared, Recipe, TrialJobs
from pipelines.tune import TuneConfig
from pipelines.tuning.config import SearchConfig
from pipelines.tuning.leaders import Run
from tests.unit.shards import make_info
from tests.unit.tuning.trials import make_trial


@pytest.mark.parametrize(
    ("search", "resources", "name"),
    [
        ({"cpus_per_trial": 2}, {"cpus_per_worker": 4}, "cpus_per_worker"),
        ({"gpus_per_trial": 0.0}, {"use_gpu": True}, "use_gpu"),
        ({"gpus_per_trial": 0.5}, {"use_gpu": False}, "use_gpu"),
        ({}, {"num_workers": "1..2"}, "num_workers"),
    ],
)
def test_resources_that_the_search_overrides_are_told(search, resources, name):
    config = TuneConfig(search=SearchConfig(**search), resources=ResourcesConfig(**resources))
    [told] = tune._find_idle(config)
    assert f"`resources.{name}`" in told
    assert "has no effect" in told


@pytest.mark.parametrize(
    ("search", "resources"),
    [
        ({}, {}),
        ({}, {"cpus_per_worker": 4, "use_gpu": True}),
        ({"cpus_per_trial": 4, "gpus_per_trial": 1.0}, {"cpus_per_worker": 4, "use_gpu": True}),
    ],
)
def test_resources_that_hold_are_not_told(search, resources):
    assert tune._find_idle(TuneConfig(search=SearchConfig(**search), resources=ResourcesConfig(**resources))) == []


def test_scheme_of_the_bundle_that_the_search_makes_is_told_to_have_no_effect():
    [told] = tune._find_idle(TuneConfig(inference=InferenceConfig(scheme="IOB1")))
    assert told.startswith("`inference.scheme` has no effect")


def test_planner_has_what_the_search_says_of_gpus(monkeypatch):
    asked = []
    monkeypatch.setattr(tune, "plan_search", lambda settings, *args, **more: asked.append(settings.resources))
    monkeypatch.setattr(tune, "_count_parameters", lambda prepared: 0)
    config = TuneConfig(search=SearchConfig(gpus_per_trial=0.0), resources=ResourcesConfig(use_gpu=True))
    prepared = SimpleNamespace(encoder="e", info=SimpleNamespace(window=1))
    assert tune._follow_plan(config, [prepared], None, None) is None
    assert [resources.use_gpu for resources in asked] == [False]


def test_front_that_cannot_be_written_leaves_the_one_that_was_there(tmp_path, monkeypatch):
    monkeypatch.setattr(tuned_presets, "render_run", lambda jobs, slots, number, settings, run: f"trial {number}")
    tuned_presets.write_front(tmp_path, [make_trial(1, [0.5]), make_trial(2, [0.6])], None, None)
    tuned_presets.write_front(tmp_path, [make_trial(2, [0.6]), make_trial(3, [0.7])], None, None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["trial-0002.yaml", "trial-0003.yaml"]
    monkeypatch.setattr(tuned_presets, "render_run", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        tuned_presets.write_front(tmp_path, [make_trial(4, [0.8])], None, None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["trial-0002.yaml", "trial-0003.yaml"]


def render_best(corpus, encoder, info, shards="s"):
    recipe = Recipe(CorpusConfig(**corpus), ModelConfig(encoder=encoder))
    jobs = TrialJobs(recipe, {recipe.identify_encoding(): Prepared(Path(shards), info, encoder)})
    slots = SimpleNamespace(num_workers=1, cpus=1, gpus=0.0)
    return yaml.safe_load(tuned_presets.render_run(jobs, slots, 0, {}, Run(1, 0.5, Path(), is_whole=True)))


def test_preset_of_the_winner_finds_corpus_and_encoder_from_elsewhere(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    for name in ("a.conll", "b.conll", "names.tsv"):
        (tmp_path / "data" / name).touch()
    (tmp_path / "models" / "enc").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    addresses = ["s3://bucket/part-*.jsonl", "hf:name:train", "sample:en-dev.jsonl"]
    augmentation = AugmentationConfig(masking=0.1, gazetteer=["data/names.tsv"])
    corpus = {"train": ["data/*.conll"], "dev": ["data/a.conll"], "test": addresses, "augmentation": augmentation}
    preset = render_best(corpus, "models/enc", make_info(encoder="models/enc"))
    monkeypatch.chdir("/")
    assert find_files(preset["corpus"]["train"]) == [str(tmp_path / "data" / name) for name in ("a.conll", "b.conll")]
    assert preset["corpus"]["dev"] == [str(tmp_path / "data" / "a.conll")]
    assert preset["corpus"]["test"] == addresses
    assert preset["corpus"]["augmentation"]["gazetteer"] == [str(tmp_path / "data" / "names.tsv")]
    assert preset["model"]["encoder"] == str(tmp_path / "models" / "enc")


@pytest.mark.parametrize("encoder", ["someone/hub-id", "scratch", ModelConfig().encoder])
def test_preset_of_the_winner_keeps_names_of_encoders(encoder, tmp_path, monkeypatch):
    (tmp_path / "scratch").mkdir()
    monkeypatch.chdir(tmp_path)
    preset = render_best({"train": ["sample:"]}, encoder, make_info(encoder=encoder))
    assert preset.get("model", {}) == ({} if encoder == ModelConfig().encoder else {"encoder": encoder})


@pytest.mark.parametrize("given", ["enc", ModelConfig().encoder])
def test_preset_of_the_winner_on_shards_finds_their_encoder_from_elsewhere(given, tmp_path, monkeypatch, tiny_encoder):
    shutil.copytree(tiny_encoder, tmp_path / "enc")
    (tmp_path / "s").mkdir()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    facts = {"encoder": "enc", "encoder_folder": locate_encoder("enc")}
    info = make_info(tokenizer_fingerprint=fingerprint_tokenizer(load_tokenizer("enc")), **facts)
    write_json(tmp_path / "s" / SHARDS_FILE, info.to_dict())
    preset = render_best({"shards": "s"}, given, info, str(tmp_path / "s"))
    monkeypatch.chdir(tmp_path / "elsewhere")
    corpus, model = CorpusConfig(**preset["corpus"]), ModelConfig(**preset["model"])
    shards, found, _ = get_shards(corpus, EncodingConfig(), model, 1, tmp_path / "none", None)
    assert find_shards_encoder(shards, found) == str(tmp_path / "enc")
    shards, found, _ = get_shards(corpus, EncodingConfig(), ModelConfig(), 1, tmp_path / "none", None)
    assert find_shards_encoder(shards, found) == str(tmp_path / "enc")
    with pytest.raises(UserError, match=r"another `model\.encoder`"):
        get_shards(corpus, EncodingConfig(), ModelConfig(encoder="enc2"), 1, tmp_path / "none", None)
