"""Plain text: a document a line, a paragraph, or a file."""

from collections.abc import Iterable, Iterator

from pipelines.corpus.formats.opening import UndecodableLine
from pipelines.corpus.formats.options import FormatOptions
from pipelines.corpus.ledger import LedgerEntry
from pipelines.corpus.records import Record


def read_text_lines(
    lines: Iterable[str], source: str, options: FormatOptions | None = None
) -> Iterator[Record | LedgerEntry]:
    """A record of every line that holds anything; with `document_per: file`, one of all lines with their ends.

    With `document_per: paragraph`, one of all lines up to the next blank one.
    """
    if options is not None and options.document_per == "file":
        yield _read_document(list(lines), source, 1, source)
        return
    if options is not None and options.document_per == "paragraph":
        yield from _read_paragraphs(lines, source)
        return
    for number, line in enumerate(lines, 1):
        position = f"{source}:{number}"
        if isinstance(line, UndecodableLine):
            yield line.reject(position)
            continue
        text = line.removesuffix("\n").removesuffix("\r")
        if text.strip():
            yield Record(record_id=position, doc_id=position, source=position, text=text)


def _read_paragraphs(lines: Iterable[str], source: str) -> Iterator[Record | LedgerEntry]:
    gathered: list[str] = []
    number = 0
    for number, line in enumerate(lines, 1):
        if line.strip():
            gathered.append(line)
        elif gathered:
            yield _read_document(gathered, source, number - len(gathered), f"{source}:{number - len(gathered)}")
            gathered = []
    if gathered:
        first = number - len(gathered) + 1
        yield _read_document(gathered, source, first, f"{source}:{first}")


def _read_document(lines: list[str], source: str, first: int, doc_id: str) -> Record | LedgerEntry:
    position = f"{source}:{first}"
    bad = next((line for line in lines if isinstance(line, UndecodableLine)), None)
    if bad:
        return bad.reject(position)
    return Record(record_id=position, doc_id=doc_id, source=position, text="".join(lines))
