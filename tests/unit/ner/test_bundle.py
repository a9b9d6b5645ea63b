"""Bundles: what is saved is what is loaded, a damaged or foreign folder is told, and nothing is half-written."""

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForTokenClassification, BertForSequenceClassification

from pipelines.ner.bundle import (
    BUNDLE_FILE,
    FORMAT_VERSION,
    Bundle,
    BundleError,
    annotate_bundle,
    compute_fingerprint,
    hash_mention,
    knows_scheme,
    load_bundle,
    save_bundle,
)
from pipelines.ner.encoding import pad
from pipelines.ner.engine import NerEngine
from pipelines.ner.labels import SchemeError
from tests.conftest import EXACT, make_bundle

TEXTS = ["Angela Merkel visited Utrecht.", "默克尔访问了乌得勒支。", "word " * 60]


def emissions_of(bundle: Bundle) -> list[torch.Tensor]:
    engine = NerEngine(bundle, **EXACT)
    return engine.compute_emissions([bundle.encoder.encode_words(text.split()) for text in TEXTS])


def copy(source: Path, target: Path) -> Path:
    return Path(shutil.copytree(source, target))


def test_save_and_load_give_identical_emissions_and_settings(tiny_bundle, tmp_path):
    first = load_bundle(tiny_bundle)
    fingerprint = save_bundle(tmp_path / "again", first)
    second = load_bundle(tmp_path / "again")
    assert all(torch.equal(a, b) for a, b in zip(emissions_of(first), emissions_of(second), strict=True))
    for scores in ("transitions_KK", "start_K", "end_K"):
        assert torch.equal(getattr(first.model.chain, scores), getattr(second.model.chain, scores))
    assert second.info.fingerprint == fingerprint == compute_fingerprint(tmp_path / "again", vars(second.info))
    for name in ("scheme", "head", "splitter", "window", "stride", "precision"):
        assert getattr(first.info, name) == getattr(second.info, name)
    assert second.model.scheme == first.model.scheme
    assert not second.model.training


def test_a_linear_bundle_is_an_ordinary_token_classifier(tiny_encoder, tmp_path):
    folder = make_bundle(tiny_encoder, tmp_path / "bundle", head="linear")
    ours = load_bundle(folder)
    theirs = AutoModelForTokenClassification.from_pretrained(folder).eval()
    (window,) = ours.encoder.encode_words(["Angela", "Merkel", "visited", "Utrecht"]).windows
    ids = pad([window.input_ids], 0)
    with torch.no_grad():
        logits = theirs(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
        emissions = ours.model(ids, torch.ones_like(ids), pad([window.word_starts], 0))
    assert torch.equal(emissions[0], logits[0, window.word_starts])
    assert [theirs.config.id2label[i] for i in range(len(ours.model.scheme.tags))] == list(ours.model.scheme.tags)


def test_a_bundle_holds_only_safetensors_and_text(tiny_bundle):
    files = sorted(file.name for file in tiny_bundle.iterdir())
    assert {Path(file).suffix for file in files} <= {".json", ".safetensors", ".txt"}
    assert "model.safetensors" in files
    assert ("crf.safetensors" in files) == (load_bundle(tiny_bundle).info.head == "crf")


def test_any_changed_missing_or_added_file_is_noticed(tiny_bundle, tmp_path):
    names = [file.name for file in tiny_bundle.iterdir() if file.name != BUNDLE_FILE]
    assert len(names) >= 4
    for number, name in enumerate(names):
        changed, missing = (copy(tiny_bundle, tmp_path / f"{number}{kind}") for kind in ("changed", "missing"))
        content = bytearray((changed / name).read_bytes())
        content[len(content) // 2] ^= 1
        (changed / name).write_bytes(content)
        (missing / name).unlink()
        for folder in (changed, missing):
            with pytest.raises(BundleError, match="not those it was saved with") as caught:
                load_bundle(folder)
            assert caught.value.where == str(folder)
    added = copy(tiny_bundle, tmp_path / "added")
    (added / "added_tokens.json").write_text("{}")
    with pytest.raises(BundleError, match="not those it was saved with"):
        load_bundle(added)


def test_a_changed_setting_is_noticed(tiny_bundle, tmp_path):
    folder = copy(tiny_bundle, tmp_path / "bundle")
    raw = json.loads((folder / BUNDLE_FILE).read_text())
    (folder / BUNDLE_FILE).write_text(json.dumps(raw | {"window": raw["window"] + 1}))
    with pytest.raises(BundleError, match="not those it was saved with"):
        load_bundle(folder)


def test_a_truncated_copy_is_noticed(tiny_bundle, tmp_path):
    folder = copy(tiny_bundle, tmp_path / "bundle")
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(BundleError):
        load_bundle(folder)


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "3", "{}", '{"format_version": 1, "scheme": "BIO"}', '{"format_version": "x"}']
)
def test_a_bundle_json_that_says_too_little_is_told(tiny_bundle, tmp_path, content):
    folder = copy(tiny_bundle, tmp_path / "bundle")
    (folder / BUNDLE_FILE).write_text(content)
    with pytest.raises(BundleError, match=r"bundle\.json cannot be read"):
        load_bundle(folder)


@pytest.mark.parametrize("new_fields", [{}, {"exits": [3, 6]}])
def test_a_bundle_of_a_newer_rayner_is_told_as_such(tiny_bundle, tmp_path, new_fields):
    folder = copy(tiny_bundle, tmp_path / "bundle")
    raw = json.loads((folder / BUNDLE_FILE).read_text())
    (folder / BUNDLE_FILE).write_text(json.dumps(raw | {"format_version": FORMAT_VERSION + 1} | new_fields))
    with pytest.raises(BundleError, match=f"format version {FORMAT_VERSION + 1}"):
        load_bundle(folder)


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/bundle", "out/run/bundle"])
def test_a_missing_folder_is_told(name):
    with pytest.raises(BundleError, match="no such folder") as caught:
        load_bundle(name)
    assert f"`{name}`" in str(caught.value)


def test_a_short_path_that_is_neither_folder_nor_hub_id_is_told():
    with pytest.raises(BundleError, match="neither a folder nor in the hub's cache"):
        load_bundle("out/bundle")


def test_a_folder_without_config_is_told(tmp_path):
    with pytest.raises(BundleError, match=r"no config\.json"):
        load_bundle(tmp_path)


def test_an_encoder_is_not_a_token_classifier(tiny_encoder):
    with pytest.raises(BundleError, match="not a token classifier"):
        load_bundle(tiny_encoder)


def test_a_sequence_classifier_is_not_a_token_classifier(tiny_encoder, tmp_path):
    config = AutoConfig.from_pretrained(tiny_encoder, num_labels=2)
    BertForSequenceClassification(config).save_pretrained(tmp_path)
    with pytest.raises(BundleError, match="BertForSequenceClassification"):
        load_bundle(tmp_path)


@pytest.fixture
def checkpoint(tiny_encoder, tmp_path):
    """Write a plain Hugging Face checkpoint with these tags; returns the folder."""

    def write(tags, name="checkpoint"):
        linear = load_bundle(make_bundle(tiny_encoder, tmp_path / f"{name}-bundle"))
        config = linear.model.network.config
        config.id2label, config.label2id = dict(enumerate(tags)), {tag: i for i, tag in enumerate(tags)}
        folder = tmp_path / name
        type(linear.model.network)(config).save_pretrained(folder)
        linear.encoder.tokenizer.save_pretrained(folder)
        return folder

    return write


def test_a_checkpoint_that_names_no_tags_is_told(checkpoint):
    with pytest.raises(BundleError, match="names no tags"):
        load_bundle(checkpoint([f"LABEL_{index}" for index in range(5)]))


def test_a_checkpoint_with_mixed_schemes_is_told(checkpoint):
    with pytest.raises(SchemeError, match="mix label schemes"):
        load_bundle(checkpoint(["O", "S-PER", "U-PER"]))


def test_a_checkpoint_with_misspelt_prefixes_is_told_and_read_as_bare_labels_where_that_is_asked_for(checkpoint):
    folder = checkpoint(["O", "B_PER", "I_PER"])
    with pytest.raises(SchemeError, match="prefixes of the tags are not understood") as caught:
        load_bundle(folder)
    assert "set the scheme `IO`" in caught.value.remedy
    assert load_bundle(folder, scheme="IO").model.scheme.labels == ("B_PER", "I_PER")


def test_a_checkpoint_without_safetensors_is_told_and_no_pickle_is_opened(checkpoint):
    folder = checkpoint(["O", "B-PER", "I-PER"])
    (folder / "model.safetensors").unlink()
    marker = folder / "opened"

    class Bomb:
        def __reduce__(self):
            return open, (str(marker), "w")

    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(BundleError):
        load_bundle(folder)
    assert not marker.exists()


@pytest.mark.parametrize("damage", ["truncated", "not json"])
def test_a_damaged_checkpoint_is_told(checkpoint, damage):
    folder = checkpoint(["O", "B-PER", "I-PER"])
    if damage == "truncated":
        weights = (folder / "model.safetensors").read_bytes()
        (folder / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    else:
        (folder / "config.json").write_text("{")
    with pytest.raises(BundleError):
        load_bundle(folder)


def test_a_checkpoint_whose_head_has_no_weights_is_told(checkpoint, tiny_encoder):
    folder = checkpoint(["O", "B-PER", "I-PER"])
    config = json.loads((folder / "config.json").read_text())
    AutoModel.from_pretrained(tiny_encoder).save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(BundleError, match=r"classifier\.weight"):
        load_bundle(folder)


def test_a_checkpoint_gets_the_splitter_of_its_tokenizer_and_a_window_that_fits(checkpoint):
    bundle = load_bundle(checkpoint(["O", "B-PER", "I-PER"]))
    assert (bundle.info.splitter, bundle.info.window, bundle.info.stride) == ("bert", 512, 128)
    assert (bundle.info.scheme, bundle.info.head) == ("BIO", "linear")


def test_a_given_scheme_overrides_the_one_read_off_the_tags(checkpoint):
    folder = checkpoint(["O", "B-PER", "I-PER"])
    assert load_bundle(folder, scheme="IOB1").model.scheme.name == "IOB1"
    assert load_bundle(folder).model.scheme.name == "BIO"


def test_only_a_bundle_knows_its_scheme(checkpoint, tiny_encoder, tmp_path):
    assert knows_scheme(make_bundle(tiny_encoder, tmp_path / "bundle"))
    assert not knows_scheme(checkpoint(["O", "B-PER", "I-PER"]))
    assert not knows_scheme(tmp_path / "none")


def test_saving_over_a_bundle_replaces_it_whole_and_clears_what_a_crash_left(tiny_encoder, tmp_path):
    folder = make_bundle(tiny_encoder, tmp_path / "bundle", head="crf")
    (folder / "stray.txt").write_text("old")
    for left in (".bundle.partial", ".bundle.retired"):
        (tmp_path / left).mkdir()
        (tmp_path / left / "half.safetensors").write_bytes(b"half")
    make_bundle(tiny_encoder, tmp_path / "bundle", head="linear")
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
    assert not {"stray.txt", "half.safetensors", "crf.safetensors"} & {file.name for file in folder.iterdir()}
    assert load_bundle(folder).info.head == "linear"


def test_a_failed_save_leaves_the_bundle_that_was_there(tiny_encoder, tmp_path):
    folder = make_bundle(tiny_encoder, tmp_path / "bundle")
    before = load_bundle(folder)
    broken = Bundle(before.model, before.encoder, before.info, frozenset({2**70}))  # does not fit its file
    with pytest.raises((ValueError, RuntimeError, OverflowError)):
        save_bundle(folder, broken)
    assert load_bundle(folder).info == before.info


def test_seen_mentions_and_training_facts_come_back(tiny_encoder, tmp_path):
    folder = make_bundle(tiny_encoder, tmp_path / "bundle")
    bundle = load_bundle(folder)
    seen = frozenset({hash_mention("Angela Merkel", "PER"), hash_mention("Ütrecht", "LOC")})
    save_bundle(folder, Bundle(bundle.model, bundle.encoder, bundle.info, seen))
    first = load_bundle(folder)
    assert first.seen_mentions == seen
    fingerprint = annotate_bundle(folder, {"f1": 0.9, "by_length": {10: 1, 2: 3}, "note": "naïve ✓"})
    second = load_bundle(folder)
    assert second.info.fingerprint == fingerprint != first.info.fingerprint
    assert second.info.training == {"f1": 0.9, "by_length": {"10": 1, "2": 3}, "note": "naïve ✓"}
    assert second.seen_mentions == seen


def test_hash_mention_tells_label_and_surface_apart_and_takes_any_text():
    hashes = {hash_mention(m, t) for m, t in [("a", "PER"), ("a", "LOC"), ("A", "PER"), ("", "PER"), ("\ud800", "PER")]}
    assert len(hashes) == 5
    assert all(0 <= value < 2**63 for value in hashes)
