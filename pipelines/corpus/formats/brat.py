"""BRAT's standoff: a text, `a.txt`, and beside it its annotations, `a.ann`. https://brat.nlplab.org/standoff.html."""

import re
from itertools import pairwise
from typing import Any

from pipelines.corpus.formats.names import is_uri
from pipelines.corpus.formats.opening import read_lines, read_text
from pipelines.corpus.formats.options import FormatOptions
from pipelines.corpus.formats.rows import Found, annotate
from pipelines.corpus.formats.spans import RowError
from pipelines.corpus.records import CorpusError, EmptyFile

BRAT_EXTENSION = ".ann"

_NAME = re.compile(r"\.ann(?=(\.(gz|zstd?))?$)", re.IGNORECASE)
_PIECE = r"\d{1,9} \d{1,9}"
_MENTION = re.compile(rf"T\S*\t(\S+) ({_PIECE}(?:;{_PIECE})*)(?:\t(.*))?")
_OTHER = re.compile(r"[REAMN]\S*\t|\*\t|#")
"""How relations, events, attributes, normalizations, equivalences and notes begin."""


def find_text(path: str) -> str:
    """The text that a file of annotations belongs to."""
    name, mark, query = path.partition("?") if is_uri(path) else (path, "", "")
    return _NAME.sub(lambda found: ".TXT" if found[0].isupper() else ".txt", name) + mark + query


def read_brat(path: str, options: FormatOptions) -> Found:
    """The text beside a file of annotations with the mentions in it; relations, attributes and notes are passed over.

    Raises RowError for a mention in several pieces with text between them, and for lines that are no annotations;
    CorpusError where the text is missing.
    """
    if find_text(path) == path:
        raise CorpusError(
            "the file cannot be BRAT's",
            where=path,
            rule="annotations are in a file that ends in `.ann`, beside the `.txt` that they are of",
            remedy="name those, or leave `reader.format` out",
        )
    text = _read_text_of(path)
    return annotate(text, lambda: _read_mentions(path, text), f"{path}:1", path, options)


def _read_text_of(path: str) -> str:
    try:
        return read_text(find_text(path))
    except EmptyFile as error:
        raise RowError("no_text", f"`{find_text(path)}` is empty") from error
    except CorpusError as error:
        if not isinstance(error.__cause__, FileNotFoundError):
            raise
        raise CorpusError(
            "there is no text beside the annotations",
            where=path,
            rule="`.ann` files are BRAT's, and annotate the `.txt` of the same name in the same folder",
            value=f"no `{find_text(path)}`",
            remedy="put the text there, or set `reader.format` if the file is of another kind",
        ) from error


def _read_mentions(path: str, text: str) -> list[dict[str, Any]]:
    try:
        lines = list(read_lines(path))
    except EmptyFile:  # as BRAT makes it for a text that nobody has marked anything in
        return []
    found = []
    for number, line in enumerate(lines, 1):
        if not line.strip() or _OTHER.match(line):
            continue
        mention = _MENTION.fullmatch(line)
        if not mention:
            raise RowError("bad_annotation", f"line {number} is no annotation of BRAT's: {line!r:.80}")
        label, places, told = mention.groups()
        start, end = _join(places, text, number)
        found.append({"start": start, "end": end, "label": label, "text": told})
    return found


def _join(places: str, text: str, number: int) -> tuple[int, int]:
    """From the first piece to the last; BRAT cuts mentions where lines end."""
    pieces = [tuple(map(int, piece.split())) for piece in places.split(";")]
    for (_, end), (start, _) in pairwise(pieces):
        if text[end:start].strip() or start < end:
            detail = f"the mention of line {number} is in pieces, {places}, with `{text[end:start]:.40}` between them"
            raise RowError("discontinuous_span", detail)
    return pieces[0][0], pieces[-1][1]
