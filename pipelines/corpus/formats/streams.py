"""Bytes of files: from any file system, with gzip and zstd undone."""

import gzip
import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow as pa

from pipelines.corpus.formats.names import get_compression, is_uri
from pipelines.corpus.formats.stores import open_store

_MAGIC = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}
_BLOCK_BYTES = 1 << 16
_REQUEST_BYTES = 1 << 22  # of a store; each request has a price and a delay


class ZstdDamage(Exception):
    """A zstd file that is cut off, altered, or not zstd at all."""


@contextmanager
def open_bytes(path: str) -> Iterator[io.BufferedIOBase]:
    """The content of a file; its name tells how it is compressed, and otherwise its first bytes."""
    with _open_stored(path) as stored:
        kind = get_compression(path) or _recognize(stored.peek(4))
        if kind == "gzip":
            with gzip.GzipFile(fileobj=stored) as plain:
                yield plain
        elif kind == "zstd":
            with _ZstdStream(path, stored) as raw:
                yield io.BufferedReader(raw, _BLOCK_BYTES)
        else:
            yield stored


def _open_stored(path: str) -> io.BufferedReader:
    """The bytes as they are stored."""
    if not is_uri(path):
        return io.BufferedReader(io.FileIO(path), _BLOCK_BYTES)
    store, name = open_store(path)
    stream: Any = store.open_input_stream(name, compression=None, buffer_size=_REQUEST_BYTES)
    return io.BufferedReader(stream, _BLOCK_BYTES)


def _recognize(head: bytes) -> str:
    return next((kind for magic, kind in _MAGIC.items() if head.startswith(magic)), "")


class _ZstdStream(io.RawIOBase):
    """The content of a zstd file, of all its frames; of a damaged one everything before the damage.

    A read of Arrow's that meets damage loses what it had got before. So the file is then read once more up to there,
    and on byte by byte.
    """

    def __init__(self, path: str, stored: io.BufferedReader) -> None:
        self._path = path
        self._position = 0
        self._damage = ""
        self._open(stored)

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer, as far as one read goes. Raises ZstdDamage where nothing more can be had."""
        try:
            num_bytes = int(self._stream.readinto(memoryview(buffer)[:1] if self._damage else buffer))
        except OSError as error:
            if not str(error).startswith(("ZSTD decompress", "Truncated compressed stream")):
                raise
            if self._damage:
                raise ZstdDamage(self._damage) from error
            self._damage = str(error)
            self._read_again()
            return self.readinto(buffer)
        self._position += num_bytes
        return num_bytes

    def close(self) -> None:
        """Close the file as well."""
        if not self.closed:
            self._stored.close()
        super().close()

    def _open(self, stored: io.BufferedReader) -> None:
        self._stored = stored
        self._stream = pa.CompressedInputStream(stored, "zstd")

    def _read_again(self) -> None:
        self._stored.close()
        self._open(_open_stored(self._path))
        left = self._position
        while left:
            left -= len(self._stream.read(min(left, _BLOCK_BYTES)))
