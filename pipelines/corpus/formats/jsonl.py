"""JSON: an object a line, or one list of objects."""

import json
from collections.abc import Iterable, Iterator

from pipelines.corpus.formats.opening import UndecodableLine
from pipelines.corpus.formats.options import FormatOptions
from pipelines.corpus.formats.rows import read_row
from pipelines.corpus.ledger import LedgerEntry
from pipelines.corpus.records import CorpusError, Record


def read_jsonl(
    lines: Iterable[str], source: str, options: FormatOptions | None = None
) -> Iterator[Record | LedgerEntry]:
    """A record of every line that holds a JSON object; broken lines are rejected, blank ones are not lines."""
    options = options or FormatOptions()
    for number, line in enumerate(lines, 1):
        position = f"{source}:{number}"
        if isinstance(line, UndecodableLine):
            yield line.reject(position)
            continue
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            detail = f"{error} in `{line.strip()[:80]}`"
            yield LedgerEntry(position, position, "rejected", "broken_json", detail)
        else:
            yield from read_row(row, position, options)


def read_json(text: str, source: str, options: FormatOptions | None = None) -> Iterator[Record | LedgerEntry]:
    """A record of every item of a JSON list; `path:N` is the N-th item. Raises CorpusError if it is not JSON."""
    try:
        rows = json.loads(text)
    except (ValueError, RecursionError) as error:
        line = getattr(error, "lineno", 1)
        raise CorpusError(
            "the file is not valid JSON",
            where=f"{source}:{line}",
            rule="a `.json` file is one list of objects, or an object a line",
            value=error,
            remedy="mend the JSON at that place",
        ) from error
    for number, row in enumerate(rows if isinstance(rows, list) else [rows], 1):
        yield from read_row(row, f"{source}:{number}", options or FormatOptions())


def detect_json(lines: Iterable[str]) -> str:
    """`json` for one list or one object over several lines, else `jsonl`; judged by the first line that is filled."""
    first = next((line.strip() for line in lines if line.strip()), "")
    try:
        value = json.loads(first)
    except (ValueError, RecursionError):
        return "json" if first == "{" or (first.startswith("[") and not first.startswith('["')) else "jsonl"
    is_rows = isinstance(value, list) and not (value and isinstance(value[0], str))
    return "json" if is_rows else "jsonl"
