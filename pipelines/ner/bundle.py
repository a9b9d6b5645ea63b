"""The saved model: a Hugging Face folder plus `bundle.json`, read and written as safetensors only.

A bundle with a linear head loads in `AutoModelForTokenClassification.from_pretrained`, unless its weights are bytes.
"""

import hashlib
import json
import logging
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download, snapshot_download
from huggingface_hub.errors import EntryNotFoundError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForTokenClassification

from pipelines.ner.casing import has_cases
from pipelines.ner.encoders import explain_absence, load_tokenizer
from pipelines.ner.encoding import Encoder
from pipelines.ner.errors import UserError, tell_first_line
from pipelines.ner.exits import Exits
from pipelines.ner.files import write_text
from pipelines.ner.labels import LabelScheme, SchemeError
from pipelines.ner.model import TokenClassifier, get_max_window
from pipelines.ner.shapes import load_network
from pipelines.ner.stored import save_weights

BUNDLE_FILE = "bundle.json"
CRF_FILE = "crf.safetensors"
EXITS_FILE = "exits.safetensors"
SEEN_FILE = "seen_mentions.safetensors"
FILE_SUFFIXES = (".json", ".safetensors", ".txt", ".model")
"""Of the files that make a bundle what it is: those its fingerprint covers."""
CARRIED_SUFFIXES = (*FILE_SUFFIXES, ".codes")
"""Of all its files: some tokenizers have merges in a file that fingerprints have never covered."""
INT8_FORMS = {"openvino": ("int8/openvino.xml", "int8/openvino.bin"), "packed": ("int8/packed.safetensors",)}
"""The files of a bundle's int8 form, if it has one, by the runtime that computes it."""
INT8_FILES = tuple(name for names in INT8_FORMS.values() for name in names)
FORMAT_VERSION = 3
"""The newest that is read. Written is the oldest that can say all: 1, or 2 with an int8 form or early exits, 3 with an
int8 form of the runtime `packed` or weights that are bytes."""
DEFAULT_WINDOW = 256

logger = logging.getLogger(__name__)


class BundleError(UserError):
    """A folder that is no bundle, or a damaged one."""


@dataclass(frozen=True)
class BundleInfo:
    """What `bundle.json` says beyond the Hugging Face files."""

    scheme: str
    head: str
    splitter: str
    window: int
    stride: int
    precision: str = "fp32"
    """Precision in which the model was trained."""
    temperatures: dict[str, float] = field(default_factory=dict)
    """Label → what its scores are scaled by, so that they are the shares of entities that are right."""
    exits: dict[str, Any] = field(default_factory=dict)
    """`layers` after which windows may leave, and the `threshold`; empty without early exits."""
    training: dict[str, Any] = field(default_factory=dict)
    """The run that made it: encoder, corpus, seed, versions, scores."""
    fingerprint: str = ""
    format_version: int = 1
    stored: str = "fp32"
    """How the weights lie in the folder (see `stored.py`): fp32, or fp16 or int8 beside an int8 form."""
    int8: dict[str, Any] = field(default_factory=dict)
    """How its int8 form was made: of which weights, which layers are left out, its scores; empty if it has none."""


@dataclass(frozen=True)
class Bundle:
    """A loaded model with all that is needed to use it."""

    model: TokenClassifier
    encoder: Encoder
    info: BundleInfo
    seen_mentions: frozenset[int] = frozenset()
    """Hashes (`hash_mention`) of the mentions in its training data."""
    int8: Path | None = None
    """The first file of its int8 form."""


def save_bundle(folder: Path, bundle: Bundle) -> str:
    """Write a bundle, whole or not at all, replacing one that is there; returns its fingerprint."""
    staging = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    save_weights(bundle.model.network, staging, bundle.info.stored)
    bundle.encoder.tokenizer.save_pretrained(staging)
    if bundle.model.crf is not None:
        scores = {name: value.contiguous() for name, value in bundle.model.crf.state_dict().items()}
        save_file(scores, staging / CRF_FILE)
    if bundle.model.exits is not None:
        save_file(bundle.model.exits.state_dict(), staging / EXITS_FILE)
    if bundle.seen_mentions:
        save_file({"hashes": torch.tensor(sorted(bundle.seen_mentions), dtype=torch.int64)}, staging / SEEN_FILE)
    info = asdict(bundle.info) | {"int8": _save_int8(bundle, staging), "exits": _describe_exits(bundle.model)}
    info["format_version"] = _find_version(info)
    _write_info(staging, info)
    retired = folder.with_name(f".{folder.name}.retired")
    shutil.rmtree(retired, ignore_errors=True)
    if folder.exists():
        folder.rename(retired)
    staging.rename(folder)
    shutil.rmtree(retired, ignore_errors=True)
    return str(info["fingerprint"])


def annotate_bundle(folder: Path, training: dict[str, Any], **facts: Any) -> str:
    """Add facts about its training, e.g. test scores, and other fields of `BundleInfo`; returns the new fingerprint."""
    info = json.loads((folder / BUNDLE_FILE).read_text(encoding="utf-8"))
    info["training"] |= training
    info |= facts
    _write_info(folder, info)
    return str(info["fingerprint"])


def load_bundle(model: str | Path, *, scheme: str | None = None) -> Bundle:
    """Load a bundle folder, any Hugging Face token-classification checkpoint folder, or a hub id of one.

    Args:
        scheme: for a checkpoint whose tags follow another scheme than their prefixes suggest, e.g. `IOB1`.

    Raises:
        BundleError: no such folder, not a token classifier, damaged, or made by a newer rayner.
    """
    own = _find_own(model)
    return _load_foreign(str(model), scheme) if own is None else _load_own(own)


def knows_scheme(model: str | Path) -> bool:
    """Whether a model is a bundle, which records its tag scheme. False for one that cannot be found."""
    try:
        return _find_own(model) is not None
    except BundleError:
        return False


def compute_fingerprint(folder: Path, info: dict[str, Any]) -> str:
    """A hash of every file of the bundle and of what `bundle.json` says, the fingerprint itself left out."""
    read_back = json.loads(json.dumps(_drop_new(info) | {"fingerprint": ""}))  # a number as a key becomes a string
    digest = hashlib.sha256(json.dumps(read_back, sort_keys=True).encode())
    for file in sorted(folder.iterdir()):
        if file.suffix in FILE_SUFFIXES and file.name != BUNDLE_FILE:
            digest.update(file.name.encode())
            digest.update(hashlib.sha256(file.read_bytes()).digest())
    for name in list_int8_files(info.get("int8") or {}):
        digest.update(name.encode())
        if (folder / name).is_file():
            digest.update(hashlib.sha256((folder / name).read_bytes()).digest())
    return digest.hexdigest()[:32]


def hash_mention(mention: str, label: str) -> int:
    """A 63-bit hash of a mention and its label: tells seen from unseen mentions without keeping the training text."""
    digest = hashlib.blake2b(f"{label}\0{mention}".encode("utf-8", "replace"), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def hash_weights(network: Any) -> str:
    """A hash of a network's weights alone."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:32]


def list_int8_files(facts: dict[str, Any]) -> tuple[str, ...]:
    """The files of an int8 form, of what `bundle.json` says of it."""
    return INT8_FORMS.get(facts.get("runtime", "openvino"), ()) if facts else ()


def _find_own(model: str | Path) -> Path | None:
    """The folder of a bundle, fetched if it is on the hub; None for a checkpoint of others. Raises BundleError."""
    path = Path(model)
    if (path / BUNDLE_FILE).is_file():
        return path
    if path.exists():
        absence = None if (path / "config.json").is_file() else "it has no config.json"
    elif str(model).startswith((".", "/", "~")) or str(model).count("/") > 1:
        absence = "no such folder"
    else:
        absence = explain_absence(str(model))
    if absence is not None:
        raise _not_a_bundle(model, absence)
    return None if path.exists() else _fetch_own(str(model))


def _find_version(info: dict[str, Any]) -> int:
    """The oldest format that can say all."""
    if info["int8"].get("runtime") == "packed" or info["stored"] == "int8":
        return 3
    return 2 if info["int8"] or info["exits"] or info["stored"] != "fp32" else 1


def _save_int8(bundle: Bundle, folder: Path) -> dict[str, Any]:
    """Copy the int8 form; gives what bundle.json is to say of it. One that was made of other weights is left out."""
    if bundle.int8 is None:
        return {}
    if bundle.info.int8.get("weights") != hash_weights(bundle.model.network):
        logger.warning("%s gets no int8 form: the one at hand is of other weights; `rayner compress` makes one", folder)
        return {}
    for name in list_int8_files(bundle.info.int8):
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(bundle.int8.with_suffix(Path(name).suffix), folder / name)
    return bundle.info.int8


def _drop_new(info: dict[str, Any]) -> dict[str, Any]:
    """Without the fields that format version 1 does not know, where they say nothing: so an older rayner reads it."""
    nothing = {"stored": "fp32", "int8": {}}
    return {name: value for name, value in info.items() if name not in nothing or value != nothing[name]}


def _describe_exits(model: TokenClassifier) -> dict[str, Any]:
    exits = model.exits
    return {} if exits is None else {"layers": exits.layers, "threshold": exits.threshold}


def _write_info(folder: Path, info: dict[str, Any]) -> None:
    info["fingerprint"] = compute_fingerprint(folder, info)
    write_text(folder / BUNDLE_FILE, json.dumps(_drop_new(info), indent=2, ensure_ascii=False) + "\n")


def _load_own(path: Path) -> Bundle:
    try:
        raw = json.loads((path / BUNDLE_FILE).read_text(encoding="utf-8"))
        version = raw.get("format_version", 0)
        if version > FORMAT_VERSION:  # before its fields, which may be new
            raise _not_a_bundle(path, f"format version {version}, this rayner reads up to {FORMAT_VERSION}")
        info = BundleInfo(**raw)
    except BundleError:
        raise
    except (ValueError, TypeError, AttributeError) as error:
        raise _not_a_bundle(path, f"bundle.json cannot be read: {error}") from error
    found = compute_fingerprint(path, raw)
    if found != info.fingerprint:
        raise BundleError(
            "the bundle's files are not those it was saved with",
            where=str(path),
            rule=f"fingerprint {info.fingerprint} in bundle.json",
            value=f"fingerprint {found}",
            remedy="copy the whole folder again, or train again; do not edit a bundle's files",
        )
    network = load_network(path)
    tags = [network.config.id2label[index] for index in range(network.config.num_labels)]
    model = TokenClassifier(network, LabelScheme(info.scheme, tuple(tags)), info.head)
    if model.crf is not None:
        model.crf.load_state_dict(load_file(path / CRF_FILE))
    if info.exits:
        model.exits = Exits(info.exits["layers"], network.config.hidden_size, len(tags), info.exits["threshold"])
        model.exits.load_state_dict(load_file(path / EXITS_FILE))
    encoder = Encoder(
        load_tokenizer(str(path)),
        window=info.window,
        stride=info.stride,
        splitter=info.splitter,
        casing=has_cases(network),
    )
    seen = load_file(path / SEEN_FILE)["hashes"].tolist() if (path / SEEN_FILE).is_file() else []
    form = next((path / name for name in list_int8_files(info.int8)), None)
    return Bundle(model.eval(), encoder, info, frozenset(seen), form)


def _fetch_own(name: str) -> Path | None:
    """A copy in the hub's cache of a bundle on the hub; None for a checkpoint of others."""
    try:
        hf_hub_download(name, BUNDLE_FILE)
    except EntryNotFoundError:  # also offline, where it is not in the cache
        return None
    return Path(snapshot_download(name, allow_patterns=[*(f"*{suffix}" for suffix in CARRIED_SUFFIXES), *INT8_FILES]))


def _load_foreign(name: str, scheme: str | None) -> Bundle:
    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
        if not any("TokenClassification" in kind for kind in config.architectures or []):
            raise _not_a_bundle(name, f"its architecture is {config.architectures}, not a token classifier")
        tags = [config.id2label[index] for index in range(config.num_labels)]
        if all(tag == f"LABEL_{index}" for index, tag in enumerate(tags)):
            raise _not_a_bundle(name, "its config.json names no tags (id2label is LABEL_0, LABEL_1, …)")
        network, loading = AutoModelForTokenClassification.from_pretrained(
            name, dtype=torch.float32, use_safetensors=True, output_loading_info=True, trust_remote_code=False
        )
        if loading["missing_keys"]:  # transformers would make them up
            raise _not_a_bundle(name, "its weights lack " + ", ".join(sorted(loading["missing_keys"])))
        tokenizer = load_tokenizer(name)
        label_scheme = _read_scheme(name, tags, scheme)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        if isinstance(error, BundleError | SchemeError):
            raise
        raise _not_a_bundle(name, tell_first_line(error)) from error
    window = min(DEFAULT_WINDOW * 2, get_max_window(config, tokenizer))
    backend = getattr(tokenizer, "backend_tokenizer", None)
    splitter = "bert" if backend is not None and type(backend.model).__name__ == "WordPiece" else "unicode"
    encoder = Encoder(tokenizer, window=window, stride=window // 4, splitter=splitter)
    info = BundleInfo(label_scheme.name, "linear", splitter, window, window // 4, training={"checkpoint": name})
    return Bundle(TokenClassifier(network, label_scheme).eval(), encoder, info)


def _read_scheme(name: str, tags: Sequence[str], scheme: str | None) -> LabelScheme:
    try:
        return LabelScheme.from_tags(tags, scheme)
    except SchemeError as error:
        error.where = error.where or f"`id2label` in the config.json of `{name}`"
        error.remedy = (
            "rename its tags there: `B-PER` for a word that begins an entity, `I-PER` for one inside, else `O`; "
            "if they are bare labels, set the scheme `IO`"
        )
        raise


def _not_a_bundle(path: str | Path, reason: str) -> BundleError:
    return BundleError(
        f"`{path}` is not a model",
        rule="a bundle folder written by `rayner train`, a Hugging Face token-classification checkpoint folder, "
        "or a hub id",
        value=reason,
        remedy="give the path of a bundle, e.g. `--model out/run/bundle`",
    )
