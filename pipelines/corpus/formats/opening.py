"""Files to lines of text: plain or gzip, UTF-8, and a clear refusal of everything else."""

import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, cast

from pipelines.corpus.records import CorpusError

_GZIP_MAGIC = b"\x1f\x8b"
_BOM = b"\xef\xbb\xbf"
_UTF16_BOMS = (b"\xff\xfe", b"\xfe\xff")


def read_lines(path: str, *, keep_ends: bool = False) -> Iterator[str]:
    """Lines of a UTF-8 file, split at LF and CRLF only. Raises CorpusError where the file is not text."""
    offset = 0
    with explain_damage(path), _open(path) as handle:
        for number, raw in enumerate(handle, 1):
            line = raw.removeprefix(_BOM) if number == 1 else raw
            text = _decode(line, path, number, offset + len(raw) - len(line))
            yield text if keep_ends else text.removesuffix("\n").removesuffix("\r")
            offset += len(raw)
    if not offset:
        raise CorpusError(
            "the file is empty", where=path, rule="a corpus file holds at least one record", remedy="remove or fill it"
        )


def read_text(path: str) -> str:
    """A whole UTF-8 file, line ends as they are, without its byte-order mark."""
    return "".join(read_lines(path, keep_ends=True))


def read_head(path: str, num_bytes: int = 65_536) -> bytes:
    """The first bytes of a file, uncompressed."""
    with explain_damage(path), _open(path) as handle:
        return handle.read(num_bytes)


def read_head_lines(path: str, num_bytes: int = 65_536) -> list[str]:
    """The first complete lines of a file; undecodable bytes are replaced, for they are reported when it is read."""
    head = read_head(path, num_bytes)
    lines = head.removeprefix(_BOM).decode("utf-8", errors="replace").split("\n")
    if len(head) == num_bytes and len(lines) > 1:
        lines.pop()
    return [line.removesuffix("\r") for line in lines]


@contextmanager
def explain_damage(path: str) -> Iterator[None]:
    """Turn what the operating system and gzip say about a file into a CorpusError."""
    try:
        yield
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise CorpusError(
            "the gzip file is damaged",
            where=path,
            rule="a `.gz` file is one or more complete gzip members",
            value=error,
            remedy="fetch or compress the file again; `gzip -t` checks it",
        ) from error
    except PermissionError as error:
        raise CorpusError(
            "the file cannot be read",
            where=path,
            rule="the user who runs this may read the file",
            value=error.strerror,
            remedy=f"grant access, for instance `chmod a+r {path}`",
        ) from error
    except OSError as error:
        raise CorpusError(
            "the file cannot be read",
            where=path,
            value=error.strerror or error,
            remedy="check that the path names a readable file",
        ) from error


def _open(path: str) -> IO[bytes]:
    if path.endswith(".gz"):
        return cast(IO[bytes], gzip.open(path, "rb"))
    handle = open(path, "rb")  # noqa: SIM115 - the caller closes it
    if handle.peek(2)[:2] == _GZIP_MAGIC:
        handle.close()
        return cast(IO[bytes], gzip.open(path, "rb"))
    return handle


def _decode(line: bytes, path: str, number: int, offset: int) -> str:
    if number == 1 and line.startswith(_UTF16_BOMS):
        raise _not_text(path, number, offset, "a UTF-16 byte-order mark", "convert it: `iconv -f UTF-16 -t UTF-8`")
    if b"\0" in line:
        at = offset + line.index(b"\0")
        raise _not_text(path, number, at, "a NUL byte", "give a text file; archives other than gzip are to be unpacked")
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        found = f"the byte 0x{line[error.start]:02x}"
        at = offset + error.start
        raise _not_text(path, number, at, found, "convert it, for instance `iconv -f WINDOWS-1252 -t UTF-8`") from error


def _not_text(path: str, number: int, offset: int, found: str, remedy: str) -> CorpusError:
    what = "the file is not UTF-8 text" if found.startswith(("the byte", "a UTF")) else "the file is binary"
    return CorpusError(
        what,
        where=f"{path}:{number}",
        rule="corpus files are text in UTF-8, plain or gzip",
        value=f"{found} at byte offset {offset} (line {number})",
        remedy=remedy,
    )
