"""What `rayner pretrain` refuses, all at once and before it starts anything."""

import json
import shutil
from pathlib import Path

import pytest
from transformers import BertConfig, BertModel, GPT2Config

from pipelines import pretrain
from pipelines.corpus.mentions import MentionSources
from pipelines.ner.encoders import load_tokenizer
from tests.conftest import make_bundle

SOME = "Ada Lovelace wrote notes.\nGrace Hopper wrote a compiler.\n"


@pytest.fixture
def refuse(capfd: pytest.CaptureFixture[str], tmp_path: Path, tiny_encoder: str):
    texts = tmp_path / "some.txt"
    texts.write_text(SOME)

    def run(*arguments: object, text: object = texts, encoder: object = tiny_encoder) -> str:
        before = set(tmp_path.rglob("*"))
        given = ["--corpus.train", str(text), "--model.encoder", str(encoder), *map(str, arguments)]
        assert pretrain.main([*given, "--output_dir", str(tmp_path / "out")]) == 2
        assert set(tmp_path.rglob("*")) == before
        return capfd.readouterr().err

    return run


def test_all_mistakes_are_told_at_once(refuse, tmp_path):
    told = refuse(
        *("--masking.rate", 1.5, "--encoding.window", 4096, "--masking.gazetteer", tmp_path / "names.txt"),
        *("--masking.bundle", tmp_path / "bundle", "--objective", "next", "--training.r_drop", 1),
        *("--corpus.held_out_fraction", 0, "--parallel.strategy", "pipeline"),
        text=tmp_path / "nothing.txt",
    )
    assert told.startswith("rayner pretrain: 9 mistakes:")
    for fact in (
        *("`masking.rate`", "8 to 512 sub-tokens", "names.txt", "`masking.bundle`", "one of masks, masks_and_order"),
        *("`training.r_drop`", "`corpus.held_out_fraction`", "the head's weights are the embeddings", "nothing.txt"),
    ):
        assert fact in told, fact


def test_no_text_is_told(capfd, tmp_path):
    assert pretrain.main(["--model.encoder", "scratch", "--output_dir", str(tmp_path / "out")]) == 2
    assert "no text is given" in capfd.readouterr().err
    assert not (tmp_path / "out").exists()


def test_empty_files_are_told(refuse, tmp_path):
    (tmp_path / "texts").mkdir()
    for name in ("a.txt", "b.jsonl"):
        (tmp_path / "texts" / name).touch()
    told = refuse(text=tmp_path / "texts")
    assert "2 mistakes" in told
    assert told.count("the file is empty") == 2


def test_gazetteer_without_a_name_is_refused(refuse, tmp_path):
    names = tmp_path / "names.txt"
    names.write_text("\n \n")
    assert "the gazetteer holds no name" in refuse("--masking.gazetteer", names)


def test_encoder_does_not_pass_for_a_bundle_that_finds_mentions(refuse, tiny_encoder):
    told = refuse("--masking.bundle", tiny_encoder)
    assert "no bundle to find mentions with" in told
    assert "not a token classifier" in told


def test_bundle_whose_files_were_changed_finds_no_mentions(refuse, tmp_path, tiny_encoder):
    bundle = make_bundle(tiny_encoder, tmp_path / "bundle")
    config = bundle / "config.json"
    config.write_text(config.read_text().replace("B-PER", "B-CAT"))
    told = refuse("--masking.bundle", bundle)
    assert "no bundle to find mentions with" in told
    assert "fingerprint" in told


def test_bundles_and_checkpoints_may_find_mentions(tmp_path, tiny_encoder):
    bundle = make_bundle(tiny_encoder, tmp_path / "bundle")
    assert not MentionSources(bundle=str(bundle)).find_problems()
    (bundle / "bundle.json").unlink()
    assert not MentionSources(bundle=str(bundle)).find_problems()


def test_encoder_without_a_masked_language_model_is_refused(refuse, tmp_path, tiny_encoder):
    folder = tmp_path / "gpt"
    GPT2Config(n_layer=1).save_pretrained(folder)
    load_tokenizer(tiny_encoder).save_pretrained(folder)
    assert "no masked language model" in refuse(encoder=folder)


def test_encoder_whose_heads_were_cut_out_is_refused(refuse, tmp_path, tiny_encoder):
    folder = tmp_path / "pruned"
    shutil.copytree(tiny_encoder, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"attention_widths": [96, 128]}))
    assert "attention heads were cut out" in refuse(encoder=folder)


def test_encoder_without_weights_is_refused(refuse, tmp_path, tiny_encoder):
    folder = tmp_path / "weightless"
    shutil.copytree(tiny_encoder, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    told = refuse(encoder=folder)
    assert "the encoder has no weights" in told
    assert "model.safetensors" in told


def test_encoder_without_a_vocabulary_is_refused(refuse, tmp_path, tiny_encoder):
    folder = tmp_path / "wordless"
    shutil.copytree(tiny_encoder, folder, ignore=shutil.ignore_patterns("*token*", "vocab*"))
    assert "the encoder has no vocabulary" in refuse(encoder=folder)


def test_tokenizer_without_a_mask_token_is_refused(refuse, tmp_path, tiny_encoder):
    folder = tmp_path / "unmasked"
    BertModel(BertConfig(vocab_size=50, hidden_size=8, num_hidden_layers=1, num_attention_heads=1)).save_pretrained(
        folder
    )
    tokenizer = load_tokenizer(tiny_encoder)
    tokenizer.mask_token = None
    tokenizer.save_pretrained(folder)
    assert "the tokenizer has no mask token" in refuse(encoder=folder)


def test_encoder_that_is_not_there_is_refused(refuse):
    assert "no encoder `./missing`" in refuse(encoder="./missing")


def test_layers_that_the_encoder_does_not_have_cannot_be_frozen(refuse):
    assert "more layers to freeze than the encoder has" in refuse("--training.freezing.layers", 9)
