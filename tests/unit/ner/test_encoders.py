"""Where encoders come from, and how it is told when one is not to be had."""

import hashlib
import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import (
    AlbertConfig,
    AutoModel,
    BertConfig,
    ByT5Tokenizer,
    CanineTokenizer,
    DebertaV2Config,
    ModernBertConfig,
    PreTrainedTokenizerFast,
    RobertaConfig,
    T5Config,
)

from pipelines.ner import encoders
from pipelines.ner.encoders import (
    EncoderError,
    build_scratch_encoder,
    explain_absence,
    find_encoder,
    is_uncased,
    load_tokenizer,
)
from tests.conftest import ROOT

TEXTS = [
    "Angela Merkel visited Utrecht.",
    "安格拉访问乌得勒支。",
    "Angela visited Merkel",
    "naïve café, naïve café",
] * 3

IN_ANOTHER_PROCESS = """
import ast, sys, time
from pathlib import Path
from pipelines.ner.encoders import build_scratch_encoder, explain_absence
begin = time.monotonic()
print(explain_absence("nobody/none"), time.monotonic() - begin, sep="|")
build_scratch_encoder(ast.literal_eval(sys.argv[1]), Path(sys.argv[2]), seed=5)
"""


@pytest.fixture(scope="module")
def other_process(tmp_path_factory):
    """What a process on a machine whose hub refuses connections says, and the folder of the encoder it built."""
    folder = tmp_path_factory.mktemp("other")
    environment = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(folder), "PATH": "", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", IN_ANOTHER_PROCESS, repr(TEXTS), str(folder / "scratch")]
    root = Path(encoders.__file__).parents[2]
    run = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=True)
    return run.stdout.strip(), folder / "scratch"


def digest(folder: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir()}


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "~/models/bert", "a/b/c"])
def test_a_folder_that_is_not_there_is_told_with_the_ways_to_provide_an_encoder(name):
    with pytest.raises(EncoderError, match="no such folder") as caught:
        find_encoder(name)
    assert_names_the_ways(caught.value, name)


def test_a_folder_without_config_is_told_with_the_ways_to_provide_an_encoder(tmp_path):
    with pytest.raises(EncoderError, match=r"no config\.json") as caught:
        find_encoder(str(tmp_path))
    assert_names_the_ways(caught.value, str(tmp_path))


@pytest.mark.parametrize("name", ["nobody/no-such-encoder", "no-such-encoder", "not a valid id!"])
def test_a_hub_id_that_cannot_be_reached_is_told_within_seconds(name):
    begin = time.monotonic()
    with pytest.raises(EncoderError) as caught:
        find_encoder(name)
    assert_names_the_ways(caught.value, name)
    assert time.monotonic() - begin < encoders.HUB_TIMEOUT_S


def test_a_hub_that_refuses_connections_is_told_without_retries(other_process):
    reason, seconds = other_process[0].split("|")
    assert "the hub gave Connect" in reason
    assert float(seconds) < encoders.HUB_TIMEOUT_S


def assert_names_the_ways(error, name):
    message = str(error)
    assert f"`{name}`" in message
    for way in ("folder", "hub id", "rayner[quickstart]", "--model.encoder scratch"):
        assert way in message


def test_a_folder_with_config_is_found_as_an_absolute_path(tiny_encoder, monkeypatch):
    assert find_encoder(tiny_encoder) == str(Path(tiny_encoder).resolve())
    monkeypatch.chdir(Path(tiny_encoder).parent)
    assert find_encoder(Path(tiny_encoder).name) == str(Path(tiny_encoder).resolve())


@pytest.fixture
def packaged():
    pytest.importorskip(encoders.PACKAGED_MODULE)


@pytest.mark.usefixtures("packaged")
@pytest.mark.parametrize("name", encoders.PACKAGED_NAMES)
def test_the_packaged_encoder_is_found_under_both_names(name):
    folder = Path(find_encoder(name))
    assert (folder / "config.json").is_file()
    assert hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest() == encoders.PACKAGED_SHA256


@pytest.mark.usefixtures("packaged")
def test_packaged_weights_with_another_hash_are_refused(monkeypatch):
    found = encoders.PACKAGED_SHA256
    monkeypatch.setattr(encoders, "PACKAGED_SHA256", "0" * 64)
    with pytest.raises(EncoderError, match="not the expected ones") as caught:
        find_encoder("all-MiniLM-L6-v2")
    assert found in caught.value.value
    assert "--force-reinstall" in caught.value.remedy


def test_a_packaged_name_without_the_package_is_told_like_any_other(monkeypatch):
    monkeypatch.setattr(encoders, "PACKAGED_MODULE", "no_such_module_anywhere")
    if explain_absence("all-MiniLM-L6-v2") is None:
        pytest.skip("it is in the hub's cache of this machine")
    with pytest.raises(EncoderError) as caught:
        find_encoder("all-MiniLM-L6-v2")
    assert_names_the_ways(caught.value, "all-MiniLM-L6-v2")


def test_scratch_is_the_same_in_another_process_for_the_same_texts_and_seed(other_process, tmp_path):
    build_scratch_encoder(TEXTS, tmp_path / "here", seed=5)
    assert digest(tmp_path / "here") == digest(other_process[1])


def test_scratch_differs_by_seed_only_in_its_weights_and_leaves_torch_as_it_was(tmp_path):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    build_scratch_encoder(TEXTS, tmp_path / "a", seed=1)
    build_scratch_encoder(TEXTS, tmp_path / "b", seed=2)
    assert torch.equal(before, torch.get_rng_state())
    a, b = digest(tmp_path / "a"), digest(tmp_path / "b")
    assert {name for name in a if a[name] != b[name]} == {"model.safetensors"}


def test_scratch_reads_every_character_it_has_seen(tmp_path):
    characters = [chr(code) for code in range(0x4E00, 0x4E00 + 1500)]
    texts = ["".join(characters[at : at + 10]) for at in range(0, 1500, 10)] + ["Angela \ud800 Merkel"] * 3
    tokenizer = load_tokenizer(build_scratch_encoder(iter(texts), tmp_path / "e", seed=0))
    assert tokenizer.unk_token_id not in tokenizer("".join(characters), add_special_tokens=False)["input_ids"]
    assert tokenizer.tokenize("Angela") == ["Angela"]


def test_scratch_tokenizer_knows_only_its_five_special_tokens(tmp_path):
    folder = build_scratch_encoder(TEXTS, tmp_path / "e", seed=0)
    tokenizer = load_tokenizer(folder)
    assert set(tokenizer.get_added_vocab()) == set(encoders.SPECIAL_TOKENS)
    assert tokenizer.convert_ids_to_tokens(list(range(5))) == encoders.SPECIAL_TOKENS
    rows = load_file(Path(folder) / "model.safetensors")["embeddings.word_embeddings.weight"].shape[0]
    assert rows == len(tokenizer) == AutoModel.from_pretrained(folder).config.vocab_size


def test_scratch_keeps_case_and_accents(tmp_path):
    tokenizer = load_tokenizer(build_scratch_encoder(TEXTS, tmp_path / "e", seed=0))
    assert "".join(tokenizer.tokenize("naïve")).replace("##", "") == "naïve"
    assert tokenizer.tokenize("Angela") != tokenizer.tokenize("angela")


def test_uncased_tokenizers_are_known(tiny_encoder):
    tokenizer = load_tokenizer(tiny_encoder)
    assert not is_uncased(tokenizer)
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    state["normalizer"]["lowercase"] = True
    tokenizer._tokenizer = Tokenizer.from_str(json.dumps(state))
    assert is_uncased(tokenizer)
    state["normalizer"] = None
    tokenizer._tokenizer = Tokenizer.from_str(json.dumps(state))
    assert not is_uncased(tokenizer)


@pytest.mark.parametrize("kind", [BertConfig, RobertaConfig, AlbertConfig, DebertaV2Config, T5Config, ModernBertConfig])
def test_an_encoder_without_the_files_of_its_tokenizer_is_refused(tmp_path, kind):
    kind().save_pretrained(tmp_path)
    with pytest.raises(EncoderError, match="the encoder has no vocabulary") as caught:
        load_tokenizer(str(tmp_path))
    assert caught.value.where == str(tmp_path)
    assert "save_pretrained" in caught.value.remedy


@pytest.mark.parametrize("tokenizer", [CanineTokenizer, ByT5Tokenizer])
def test_tokenizers_of_characters_and_bytes_need_no_files(tmp_path, tokenizer):
    tokenizer().save_pretrained(tmp_path)
    assert load_tokenizer(str(tmp_path)).tokenize("ab") == ["a", "b"]


CODE = """
from transformers import PretrainedConfig
open({path!r}, "w").close()
class Config(PretrainedConfig):
    model_type = "own"
"""


def test_code_that_comes_with_a_model_is_never_run(tmp_path, monkeypatch):
    folder, mark = tmp_path / "model", tmp_path / "it-ran"
    folder.mkdir()
    (folder / "configuration.py").write_text(CODE.format(path=str(mark)), encoding="utf-8")
    config = {"model_type": "own", "auto_map": {"AutoConfig": "configuration.Config"}}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    with pytest.raises(EncoderError, match="never run"):
        find_encoder(str(folder))
    assert not mark.exists()


def test_every_model_is_loaded_without_code_of_its_own():
    """Left out, transformers asks whoever sits at the keyboard."""
    calls = re.compile(r"Auto\w+\.from_(?:pretrained|config)\(((?:[^()]|\([^()]*\))*)\)")
    paths = [path for room in ("pipelines", "serve") for path in (ROOT / room).rglob("*.py")]
    found = [(path.name, call) for path in paths for call in calls.findall(path.read_text(encoding="utf-8"))]
    assert len(found) > 20
    assert [one for one in found if "trust_remote_code=False" not in one[1]] == []


@pytest.mark.parametrize("word", ["Anglo-French", "2024", "1,000.50", "O'Brien"])
def test_byte_level_tokenizer_that_splits_first_puts_one_space_before_a_word(tmp_path, word):
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    given = Tokenizer(models.BPE(vocab={one: at for at, one in enumerate(sorted(alphabet))}, merges=[]))
    parts = Regex(r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+|\s+")
    given.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(parts, "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    PreTrainedTokenizerFast(tokenizer_object=given, unk_token="!", pad_token="!").save_pretrained(tmp_path / "one")
    in_text = given.encode(f"a {word}").tokens[1:]
    load_tokenizer(str(tmp_path / "one")).save_pretrained(tmp_path / "two")
    for folder in ("one", "two"):
        backend = load_tokenizer(str(tmp_path / folder)).backend_tokenizer
        assert backend.encode([word], is_pretokenized=True, add_special_tokens=False).tokens == in_text
