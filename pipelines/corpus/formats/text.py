"""Plain text: a document a line, or a document a file."""

from collections.abc import Iterable, Iterator

from pipelines.corpus.formats.options import FormatOptions
from pipelines.corpus.records import Record


def read_text_lines(lines: Iterable[str], source: str, options: FormatOptions | None = None) -> Iterator[Record]:
    """A record of every line that holds anything; with `document_per: file`, one of all lines with their ends."""
    if options is not None and options.document_per == "file":
        yield Record(record_id=f"{source}:1", doc_id=source, source=f"{source}:1", text="".join(lines))
        return
    for number, line in enumerate(lines, 1):
        text = line.removesuffix("\n").removesuffix("\r")
        if text.strip():
            position = f"{source}:{number}"
            yield Record(record_id=position, doc_id=position, source=position, text=text)
