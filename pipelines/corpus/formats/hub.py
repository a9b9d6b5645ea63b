"""Hugging Face datasets: folders of `save_to_disk` and `hf:name[:config][:split]`."""

import os
import re
from collections.abc import Iterator
from typing import Any

from pipelines.corpus.formats.options import FormatOptions
from pipelines.corpus.formats.tables import read_table
from pipelines.corpus.ledger import LedgerEntry
from pipelines.corpus.records import CorpusError, Record

PREFIX = "hf:"
FOLDER_MARKS = ("dataset_dict.json", "state.json")
_SPLIT = re.compile(r"(train|validation|valid|dev|test|all)(\[.*\])?")


def is_dataset(path: str) -> bool:
    """Whether a path is an `hf:` id or a folder written by `save_to_disk`."""
    return path.startswith(PREFIX) or any(os.path.isfile(os.path.join(path, mark)) for mark in FOLDER_MARKS)


def read_dataset(path: str, options: FormatOptions | None = None) -> Iterator[Record | LedgerEntry]:
    """Records of a dataset; `path:N` is the N-th row. Raises CorpusError if it has several splits and none is named."""
    import datasets  # a slow import, needed only here

    try:
        found: Any = _load_by_id(path) if path.startswith(PREFIX) else datasets.load_from_disk(path)
    except Exception as error:
        raise CorpusError(
            "the dataset cannot be loaded",
            where=path,
            rule="a folder written by `save_to_disk`, or `hf:name[:config][:split]`",
            value=f"{type(error).__name__}: {error}",
            remedy="check the name, the split and, for `hf:`, the network",
        ) from error
    if isinstance(found, dict):
        found = _choose_split(path, found)
    yield from read_table(found, path, options)


def split_id(path: str) -> tuple[str, str | None, str | None]:
    """(name, config, split) of an `hf:` id; a lone second part is a split if it is named like one."""
    name, *rest = re.split(r":(?![^\[]*\])", path.removeprefix(PREFIX), maxsplit=2)
    if len(rest) == 1:
        return (name, None, rest[0]) if _SPLIT.fullmatch(rest[0]) else (name, rest[0], None)
    config, split = rest if rest else (None, None)
    return name, config or None, split or None


def _load_by_id(path: str) -> Any:
    import datasets

    name, config, split = split_id(path)
    return datasets.load_dataset(name, config, split=split)


def _choose_split(path: str, splits: dict[str, Any]) -> Any:
    if len(splits) == 1:
        return next(iter(splits.values()))
    example = f"{path}:{next(iter(splits))}" if path.startswith(PREFIX) else os.path.join(path, next(iter(splits)))
    raise CorpusError(
        "the dataset has several splits",
        where=path,
        rule="one split is read at a time",
        value=", ".join(splits),
        remedy=f"name one, for instance `{example}`",
    )
