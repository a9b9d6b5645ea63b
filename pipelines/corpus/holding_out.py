"""Which documents of raw text are held out: by a hash of what they hold.

A document is the records with one `doc_id`, in whatever files, and is on one side whole. Where it falls is the sum of
the hashes of its distinct texts: no name, order or folder matters, and copies of a document fall on the same side.
"""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray.data

CHOSEN_BY = ("doc_id", "text", "words", "split")
"""The columns that tell the side of a record."""


def choose_splits(
    rows: Sequence[Mapping[str, Any]], held_out_fraction: float, documents: str | Path | None = None
) -> list[str]:
    """train or held_out, for each record.

    Args:
        rows: with the columns `CHOSEN_BY`.
        documents: the file of `write_documents`; None where each text is a document.
    """
    places = _hash_all([_to_content(row) for row in rows])
    if documents is not None:
        known, sums = np.load(documents, mmap_mode="r")
        names = _hash_all([row["doc_id"] for row in rows])
        at = np.minimum(np.searchsorted(known, names), len(known) - 1)
        places = np.where(known[at] == names, sums[at], places)
    is_held_out = [place / 2**64 < held_out_fraction for place in places.tolist()]
    return [
        "held_out" if row["split"] != "train" or chosen else "train"
        for row, chosen in zip(rows, is_held_out, strict=True)
    ]


def write_documents(records: ray.data.Dataset, path: Path) -> Path | None:
    """Write where documents of several texts fall; returns the file, or None where no document has several."""
    hashed = records.map_batches(hash_block, batch_size=None, batch_format="pyarrow")
    blocks = list(hashed.iter_batches(batch_size=None, batch_format="pyarrow"))
    found = add_up(pa.concat_tables(blocks)) if blocks else np.empty((2, 0))
    if not found.size:
        return None
    np.save(path, found)
    return path


def hash_block(table: pa.Table) -> pa.Table:
    """Hashes of the `doc_id` and of the text of each record for training that the file gives a document."""
    is_told = pc.and_(pc.equal(table["split"], "train"), pc.not_equal(table["doc_id"], table["record_id"]))
    rows = table.filter(is_told).select(list(CHOSEN_BY)).to_pylist()
    names, contents = [row["doc_id"] for row in rows], [_to_content(row) for row in rows]
    return pa.table({"name": _hash_all(names), "content": _hash_all(contents)})


def add_up(hashed: pa.Table) -> np.ndarray:
    """Of documents with several texts the hash of each one's name, in order, and the sum of those of its texts."""
    names, contents = (hashed[column].to_numpy() for column in ("name", "content"))
    order = np.lexsort((contents, names))
    names, contents = names[order], contents[order]
    is_new = np.append(True, (np.diff(names) != 0) | (np.diff(contents) != 0))[: len(names)]
    names, contents = names[is_new], contents[is_new]
    known, starts, counts = np.unique(names, return_index=True, return_counts=True)
    sums = np.add.reduceat(contents, starts) if len(starts) else contents
    return np.stack([known, sums])[:, counts > 1]


def _to_content(row: Mapping[str, Any]) -> str:
    """The text of a record; white space makes no difference."""
    return " ".join(row["text"].split() if row["text"] is not None else row["words"])


def _hash_all(texts: Sequence[str]) -> np.ndarray:
    digests = [hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=8).digest() for text in texts]
    return np.frombuffer(b"".join(digests), dtype=">u8").astype(np.uint64)
