"""What makes two jobs the same: the model, and the files of the input as they are now."""

import hashlib
import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from pipelines.corpus.formats.names import is_uri
from pipelines.corpus.formats.stores import open_store
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
    """File → its place in the input, its size, and when it was changed, where its file system tells."""
    with ThreadPoolExecutor(STORE_REQUESTS if any(map(is_uri, paths)) else 1) as pool:
        found = list(pool.map(_identify_file, paths))
    return {path: f"file {number}, {one}" for number, (path, one) in enumerate(zip(paths, found, strict=True), 1)}


def fingerprint(content: Any) -> str:
    """A hash of anything that JSON can say."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:32]


def _identify_file(path: str) -> str:
    if is_uri(path):
        store, place = open_store(path)
        info = store.get_file_info(place)
        return f"{info.size} bytes, changed at {info.mtime_ns}"
    if not os.path.exists(path):  # a dataset by its name
        return "of unknown size"
    status = os.stat(path)
    return f"{status.st_size} bytes, changed at {status.st_mtime_ns}"
