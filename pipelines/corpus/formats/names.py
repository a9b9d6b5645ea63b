"""What the names of files tell: whether one is a URI, its extension, its compression."""

import os
import re
from collections.abc import Sequence

CONLL_EXTENSIONS = (".conll", ".bio", ".iob", ".iob2")
JSON_EXTENSIONS = (".json", ".jsonl", ".ndjson")
EXTENSIONS = (*CONLL_EXTENSIONS, *JSON_EXTENSIONS, ".tsv", ".csv", ".parquet", ".ann", ".pubtator", ".txt")
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd", ".zstd": "zstd"}

_NOT_CORPORA = ("readme", "license", "licence", "notice", "changelog")
_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


def is_uri(path: str) -> bool:
    """Whether a path names a file system, as `s3://bucket/key` does."""
    return bool(_URI.match(path))


def get_extension(path: str) -> str:
    """The extension in lower case, with its dot, below that of a compression: `.jsonl` of `a.jsonl.zst`."""
    stem, extension = os.path.splitext(_drop_query(path).lower())
    return os.path.splitext(stem)[1] if extension in COMPRESSIONS else extension


def get_compression(path: str) -> str:
    """`gzip`, `zstd`, or nothing, by the extension."""
    return COMPRESSIONS.get(os.path.splitext(_drop_query(path).lower())[1], "")


def is_corpus_name(name: str) -> bool:
    """Whether a file found in a folder is taken for a corpus: a known extension, not hidden, no README."""
    stem = name.split(".")[0].lower()
    return not is_hidden(name) and get_extension(name) in EXTENSIONS and stem not in _NOT_CORPORA


def is_hidden(name: str) -> bool:
    """Whether searches pass a file or folder over, as they do `.git` and `_SUCCESS`."""
    return name.startswith((".", "_"))


def describe_names(names: Sequence[str]) -> str:
    """How many entries a folder has, and the first of them."""
    shown = ", ".join(f"`{name}`" for name in sorted(names)[:5]) + (" …" if len(names) > 5 else "")
    return f"{len(names)} entries: {shown}" if names else "it is empty"


def _drop_query(path: str) -> str:
    return path.partition("?")[0] if is_uri(path) else path
