"""What makes two jobs the same: the model, the files of the input and of the corpus as they are now."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from pipelines.corpus.config import CorpusConfig
from pipelines.corpus.formats.brat import find_text
from pipelines.corpus.formats.files import find_files
from pipelines.corpus.formats.hub import PREFIX
from pipelines.corpus.formats.names import is_uri
from pipelines.corpus.formats.stores import open_store
from pipelines.corpus.records import CorpusError
from pipelines.corpus.shards import SHARDS_FILE
from pipelines.corpus.text_config import TextConfig
from pipelines.ner.bundle import load_bundle
from pipelines.ner.encoding import fingerprint_tokenizer

STORE_REQUESTS = 32
"""Files of an object store that are asked for at once."""


def identify_model(model: str, scheme: str | None = None) -> str:
    """The fingerprint of a bundle, or a hash of what a foreign checkpoint holds. Raises BundleError.

    Args:
        scheme: of a foreign checkpoint's tags, if it is given.
    """
    bundle = load_bundle(model, scheme=scheme)
    if bundle.info.fingerprint:
        return bundle.info.fingerprint
    digest = hashlib.sha256(repr((bundle.model.scheme, bundle.info)).encode())
    digest.update(fingerprint_tokenizer(bundle.encoder.tokenizer).encode())
    for name, tensor in sorted(bundle.model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.contiguous().numpy())
    return digest.hexdigest()[:32]


def identify_input(paths: Sequence[str]) -> dict[str, str]:
    """File → its place in the input, its size, and when it was changed, where its file system tells.

    Where it annotates a text, the same of that.
    """
    with ThreadPoolExecutor(STORE_REQUESTS if any(map(is_uri, paths)) else 1) as pool:
        found = list(pool.map(_identify_file, paths))
    return {path: f"file {number}, {one}" for number, (path, one) in enumerate(zip(paths, found, strict=True), 1)}


def check_unchanged(before: Mapping[str, str]) -> None:
    """Raise CorpusError for files that are no longer as `identify_input` found them."""
    now = identify_input(list(before))
    changed = [path for path in before if now[path] != before[path]]
    if changed:
        raise CorpusError(
            f"{len(changed)} of {len(before)} files were changed while the job ran",
            where=changed[0],
            rule="the input stays as it is until the job is done",
            value=f"{before[changed[0]]} then; {now[changed[0]]} now",
            remedy="start over with `--fresh`",
        )


def identify_corpus(corpus: CorpusConfig | TextConfig, more: Sequence[str] = ()) -> str | None:
    """A hash of what the corpus's files on this machine hold, or of its shards' sidecar; None where there are none.

    Not of their times and places: a submitted job finds copies.

    Args:
        more: other files that are learned from: a gazetteer, or unlabelled text.
    """
    patterns = [(split, one) for split, names in corpus.list_patterns().items() for one in names]
    patterns += [("more", one) for one in more]
    found: list[tuple[str, str]] = []
    try:
        if isinstance(corpus, CorpusConfig) and corpus.shards:
            sidecar = _hash_file(Path(corpus.shards).expanduser() / SHARDS_FILE)
            if not more:
                return sidecar
            found = [("shards", sidecar)]
        here = [(split, one) for split, one in patterns if not is_uri(one) and not one.startswith(PREFIX)]
        files = [(split, path) for split, one in here for path in find_files([one], corpus.reader.format)]
        whole = [(split, Path(part)) for split, path in files for part in sorted({path, find_text(path)})]
        found += [(split, _hash_file(path)) for split, path in whole if path.is_file()]
    except (OSError, CorpusError):  # which reading tells of
        return None
    return fingerprint(found) if found else None


def fingerprint(content: Any) -> str:
    """A hash of anything that JSON can say."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:32]


def _identify_file(path: str) -> str:
    return ", ".join(map(_describe_file, dict.fromkeys((path, find_text(path)))))


def _describe_file(path: str) -> str:
    if is_uri(path):
        store, place = open_store(path)
        info = store.get_file_info(place)
        return f"{info.size} bytes, changed at {info.mtime_ns}"
    if not os.path.exists(path):  # a dataset by its name
        return "of unknown size"
    status = os.stat(path)
    return f"{status.st_size} bytes, changed at {status.st_mtime_ns}"


def _hash_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
