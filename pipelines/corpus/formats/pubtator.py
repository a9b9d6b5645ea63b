"""PubTator, as NCBI-disease and BC5CDR come: `id|t|title`, `id|a|abstract`, and a line for each mention."""

import re
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

from pipelines.corpus.formats.opening import UndecodableLine
from pipelines.corpus.formats.options import FormatOptions
from pipelines.corpus.formats.rows import Found, annotate, read_checked
from pipelines.corpus.formats.spans import RowError
from pipelines.corpus.ledger import LedgerEntry
from pipelines.corpus.records import Record

PUBTATOR_EXTENSION = ".pubtator"

_PASSAGE = re.compile(r"([^|\s]+)\|([ta])\|(.*)")
_TITLE = re.compile(r"[^|\s]+\|t\|")
_OFFSET = re.compile(r"\d{1,9}")
_LEAST = 5
"""Columns of a mention: the document's id, start, end, the words, the label."""


def looks_like_pubtator(line: str) -> bool:
    """Whether a file's first line is the title of a document."""
    return bool(_TITLE.match(line))


def read_pubtator(
    lines: Iterable[str], source: str, options: FormatOptions | None = None
) -> Iterator[Record | LedgerEntry]:
    """A record of every document: its title, a space, its abstract; offsets count from the title's first character.

    `doc_id` is the document's. Relations between concepts are passed over.
    """
    for first, held in _split_documents(lines):
        position = f"{source}:{first}"
        bad = next((line for line in held if isinstance(line, UndecodableLine)), None)
        if bad:
            yield bad.reject(position)
        else:
            yield from read_checked(partial(_read, held, position, options), position)


def _split_documents(lines: Iterable[str]) -> Iterator[tuple[int, list[str]]]:
    """(number of its first line, lines) of each document: a blank line or another title ends it."""
    held: list[str] = []
    first = 0
    for number, line in enumerate(lines, 1):
        if held and (not line.strip() or _TITLE.match(line)):
            yield first, held
            held = []
        if line.strip():
            first = first if held else number
            held.append(line)
    if held:
        yield first, held


def _read(lines: list[str], position: str, options: FormatOptions | None) -> Found:
    passages: dict[str, str] = {}
    rows: list[list[str]] = []
    ids = set()
    for line in lines:
        passage = _PASSAGE.fullmatch(line)
        columns = line.split("\t")
        if passage:
            ids.add(passage[1])
            if passage[2] in passages:
                raise RowError("bad_document", f"a second `|{passage[2]}|` within one document: {line!r:.80}")
            passages[passage[2]] = passage[3]
        elif len(columns) > 1:
            ids.add(columns[0])
            rows.append(columns)
        else:
            raise RowError("bad_annotation", f"neither a passage nor columns between tabs: {line!r:.80}")
    if len(ids) > 1:
        raise RowError("bad_document", f"lines of several documents, {', '.join(sorted(ids)):.80}, without a title")
    if not passages:
        raise RowError("no_text", "the document has neither a title, `|t|`, nor an abstract, `|a|`")
    text = " ".join(passages[kind] for kind in "ta" if kind in passages)
    return annotate(text, lambda: _read_mentions(rows), position, ids.pop(), options or FormatOptions())


def _read_mentions(rows: list[list[str]]) -> list[dict[str, Any]]:
    """Those of the rows that are mentions; the others tell of a relation, whose name is the second column."""
    found = []
    for columns in rows:
        if columns[1][:1].isalpha():
            continue
        if len(columns) < _LEAST or not all(_OFFSET.fullmatch(one.strip()) for one in columns[1:3]):
            detail = f"a mention has an id, start, end, its words and a label, not {columns!r:.100}"
            raise RowError("bad_annotation", detail)
        _, start, end, words, label = columns[:_LEAST]
        found.append({"start": int(start), "end": int(end), "label": label, "text": words})
    return found
