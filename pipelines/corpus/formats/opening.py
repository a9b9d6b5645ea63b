"""Files to lines of text: UTF-8, plain or compressed, and a clear refusal of everything else."""

import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

from pipelines.corpus.formats.names import is_uri
from pipelines.corpus.formats.options import BadEncoding
from pipelines.corpus.formats.stores import STORE_ERRORS, explain_store
from pipelines.corpus.formats.streams import ZstdDamage, open_bytes
from pipelines.corpus.ledger import LedgerEntry
from pipelines.corpus.records import CorpusError, EmptyFile

_BOM = b"\xef\xbb\xbf"
_UTF16_BOMS = (b"\xff\xfe", b"\xfe\xff")
_DAMAGE = (gzip.BadGzipFile, EOFError, zlib.error, ZstdDamage)


class UndecodableLine(str):
    """A line that is not UTF-8, with U+FFFD where it could not be decoded, and the error that tells where."""

    error: CorpusError

    def __new__(cls, text: str, error: CorpusError) -> "UndecodableLine":
        """The text as far as it could be decoded, and the error."""
        line = super().__new__(cls, text)
        line.error = error
        return line

    def reject(self, position: str) -> LedgerEntry:
        """The entry of a record that holds this line."""
        return LedgerEntry(position, position, "rejected", "invalid_utf8", str(self.error.value))


def read_lines(path: str, *, keep_ends: bool = False, bad_encoding: BadEncoding = "refuse_file") -> Iterator[str]:
    """Lines of a UTF-8 file, split at LF and CRLF only. Raises CorpusError where the file is not text or is damaged.

    With `reject_record`, lines of a text file that cannot be decoded come as `UndecodableLine`.
    """
    number = offset = 0
    try:
        with open_bytes(path) as handle:
            for number, raw in enumerate(handle, 1):
                start = len(_BOM) if number == 1 and raw.startswith(_BOM) else 0
                line = raw if keep_ends else raw.removesuffix(b"\n").removesuffix(b"\r")
                yield _decode(line[start:], path, number, offset + start, bad_encoding)
                offset += len(raw)
    except (*_DAMAGE, *STORE_ERRORS) as error:
        is_inside = bool(number) or isinstance(error, _DAMAGE)
        raise _explain(error, path, f"{path}:{number + 1}" if is_inside else path) from error
    if not offset:
        raise EmptyFile(
            "the file is empty", where=path, rule="a corpus file holds at least one record", remedy="remove or fill it"
        )


def read_text(path: str) -> str:
    """A whole UTF-8 file, line ends as they are, without its byte-order mark."""
    return "".join(read_lines(path, keep_ends=True))


def read_head(path: str, num_bytes: int = 65_536) -> bytes:
    """The first bytes of a file, uncompressed; of a damaged file those before the damage, for reading will tell it."""
    head = bytearray()
    with explain_damage(path), open_bytes(path) as handle:
        try:
            while len(head) < num_bytes and (more := handle.read1(num_bytes - len(head))):
                head += more
        except _DAMAGE:
            pass
    return bytes(head)


def read_head_lines(path: str, num_bytes: int = 65_536) -> list[str]:
    """The first complete lines of a file; undecodable bytes are replaced, for they are reported when it is read."""
    head = read_head(path, num_bytes)
    lines = head.removeprefix(_BOM).decode("utf-8", errors="replace").split("\n")
    if len(head) == num_bytes and len(lines) > 1:
        lines.pop()
    return [line.removesuffix("\r") for line in lines]


@contextmanager
def explain_damage(path: str) -> Iterator[None]:
    """Turn what file systems, gzip and zstd say about a file into a CorpusError."""
    try:
        yield
    except (*_DAMAGE, *STORE_ERRORS) as error:
        raise _explain(error, path, path) from error


def _explain(error: Exception, path: str, place: str) -> CorpusError:
    if isinstance(error, ZstdDamage):
        return _describe_damage(error, place, "zstd", "`.zst` file is one or more complete zstd frames")
    if isinstance(error, _DAMAGE):
        return _describe_damage(error, place, "gzip", "`.gz` file is one or more complete gzip members")
    if is_uri(path):
        return explain_store(error, path, place)
    if isinstance(error, PermissionError):
        return CorpusError(
            "the file cannot be read",
            where=place,
            rule="the user who runs this may read the file",
            value=error.strerror,
            remedy=f"grant access, for instance `chmod a+r {path}`",
        )
    return CorpusError(
        "the file cannot be read",
        where=place,
        value=getattr(error, "strerror", None) or error,
        remedy="check that the path names a readable file",
    )


def _describe_damage(error: Exception, place: str, kind: str, rule: str) -> CorpusError:
    remedy = f"fetch or compress the file again; `{kind} -t` checks it"
    return CorpusError(f"the {kind} file is damaged", where=place, rule=f"a {rule}", value=error, remedy=remedy)


def _decode(line: bytes, path: str, number: int, offset: int, bad_encoding: BadEncoding) -> str:
    if number == 1 and line.startswith(_UTF16_BOMS):
        raise _not_text(path, number, offset, "a UTF-16 byte-order mark", "convert it: `iconv -f UTF-16 -t UTF-8`")
    if b"\0" in line:
        at = offset + line.index(b"\0")
        remedy = "give a text file; archives other than gzip and zstd are to be unpacked"
        raise _not_text(path, number, at, "a NUL byte", remedy)
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        found = f"the byte 0x{line[error.start]:02x}"
        remedy = "convert it, for instance `iconv -f WINDOWS-1252 -t UTF-8`"
        refusal = _not_text(path, number, offset + error.start, found, remedy)
        if bad_encoding == "refuse_file":
            raise refusal from error
        return UndecodableLine(line.decode("utf-8", "replace"), refusal)


def _not_text(path: str, number: int, offset: int, found: str, remedy: str) -> CorpusError:
    what = "the file is not UTF-8 text" if found.startswith(("the byte", "a UTF")) else "the file is binary"
    return CorpusError(
        what,
        where=f"{path}:{number}",
        rule="corpus files are text in UTF-8, plain, gzip or zstd",
        value=f"{found} at byte offset {offset} (line {number})",
        remedy=remedy,
    )
