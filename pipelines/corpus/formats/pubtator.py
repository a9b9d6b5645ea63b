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

_PASSAGE = re.compile(r"([^|\t]+)\|([ta])\|(.*)")
_TITLE = re.compile(r"[^|\t]+\|t\|")
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
    mentions: list[dict[str, Any]] = []
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
            if columns[1].strip().isdecimal():
                mentions.append(_read_mention(columns, line))
        else:
            raise RowError("bad_annotation", f"neither a passage nor columns between tabs: {line!r:.80}")
    if len(ids) > 1:
        raise RowError("bad_document", f"lines of several documents, {', '.join(sorted(ids)):.80}, without a title")
    if not passages:
        raise RowError("no_text", "the document has neither a title, `|t|`, nor an abstract, `|a|`")
    text = " ".join(passages[kind] for kind in "ta" if kind in passages)
    return annotate(text, lambda: mentions, position, ids.pop(), options or FormatOptions())


def _read_mention(columns: list[str], line: str) -> dict[str, Any]:
    if len(columns) < _LEAST or not columns[2].strip().isdecimal():
        raise RowError("bad_annotation", f"a mention has an id, start, end, its words and a label, not {line!r:.80}")
    _, start, end, words, label = columns[:_LEAST]
    return {"start": int(start), "end": int(end), "label": label, "text": words}
