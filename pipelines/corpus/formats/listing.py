"""URIs to files: a file, the corpora in a folder, or what a pattern matches, on any file system."""

import difflib
import posixpath
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from urllib.parse import quote

from pyarrow.fs import FileInfo, FileSelector, FileSystem, FileType

from pipelines.corpus.formats.hub import FOLDER_MARKS
from pipelines.corpus.formats.names import EXTENSIONS, describe_names, is_corpus_name, is_hidden
from pipelines.corpus.formats.stores import join_uri, open_store, split_uri
from pipelines.corpus.records import CorpusError

_PATIENCE_S = 5
_SAFE = "/-._~!$&'()+,;=:@"
_ANY_DEPTH = "**"


def find_in_store(uri: str) -> list[str]:
    """URIs of the files that a URI means, sorted: itself, the corpora in a folder, or what a pattern matches.

    Wildcards are `*`, `[…]` and `**`; `?` begins the query. Raises CorpusError where nothing is found, and lets through
    what the file system's client raises.
    """
    place = _Place.open(uri)
    if place.pattern:
        found, error = place.to_uris(place.match()), _describe_unmatched
    else:
        kind = place.store.get_file_info(place.path).type
        if kind == FileType.File:
            return [uri]
        is_folder = kind == FileType.Directory
        found = place.to_uris(place.walk(place.path)) if is_folder else []
        error = _describe_empty if is_folder else _describe_missing
    if not found:
        raise error(uri, place)
    return found


@dataclass(frozen=True)
class _Place:
    """A URI up to its first wildcard, opened, and the segments from there on."""

    uri: str
    store: FileSystem
    path: str
    pattern: list[str]

    @classmethod
    def open(cls, uri: str) -> "_Place":
        """Open the store that a URI lies in. Raises CorpusError if it cannot be reached."""
        scheme, authority, path, query = split_uri(uri)
        segments = path.split("/")
        first = next((index for index, one in enumerate(segments) if _is_pattern(one)), len(segments))
        root = "/" if first < len(segments) else ""  # of the wildcard, where nothing but the root comes before it
        base = join_uri(scheme, authority, "/".join(segments[:first]) or root, query)
        store, name = open_store(base, _PATIENCE_S)
        return cls(base, store, name, [one for one in segments[first:] if one])

    def read_folder(self, path: str, *, recursive: bool = False, hidden: bool = False) -> list[FileInfo]:
        """What is in a folder, sorted; without what is hidden or lies in hidden folders, unless asked for."""
        found = self.store.get_file_info(FileSelector(path, recursive=recursive, allow_not_found=True))
        shown = (one for one in found if hidden or not any(map(is_hidden, _get_relative(one.path, path).split("/"))))
        return sorted(shown, key=lambda one: str(one.path))

    def walk(self, path: str) -> Iterator[str]:
        """Paths of the corpora in a folder and its subfolders."""
        for one in self.read_folder(path, recursive=True):
            if one.base_name in FOLDER_MARKS:
                raise _describe_dataset(self.to_uri(posixpath.dirname(one.path)))
            if one.type == FileType.File and is_corpus_name(one.base_name):
                yield one.path

    def match(self) -> list[str]:
        """Paths that the pattern matches, as local globs do: of files those named like corpora if there are any."""
        found = [FileInfo(self.path, FileType.Directory)]
        for place, segment in enumerate(self.pattern, 1):
            is_last = place == len(self.pattern)
            found = [match for one in found for match in self._match(one, segment, is_last)]
        files = [one.path for one in found if one.type == FileType.File]
        named = [path for path in files if is_corpus_name(posixpath.basename(path))]
        inside = [path for one in found if one.type == FileType.Directory for path in self.walk(one.path)]
        return [*named, *inside] or files

    def to_uris(self, paths: Iterable[str]) -> list[str]:
        """URIs of paths, each once, sorted."""
        return sorted({self.to_uri(path) for path in paths})

    def to_uri(self, path: str) -> str:
        """The URI of a path below this one."""
        scheme, authority, base, query = split_uri(self.uri)
        inside = quote(_get_relative(path, self.path), safe=_SAFE)
        return join_uri(scheme, authority, f"{base.rstrip('/')}/{inside}" if inside else base, query)

    def _match(self, folder: FileInfo, segment: str, is_last: bool) -> list[FileInfo]:
        """What one segment of the pattern matches in a folder."""
        if folder.type != FileType.Directory:
            return []
        if segment == _ANY_DEPTH:
            found = self.read_folder(folder.path, recursive=True)
            return [folder, *(one for one in found if is_last or one.type == FileType.Directory)]
        if not _is_pattern(segment):
            one = self.store.get_file_info(posixpath.join(folder.path, segment))
            return [] if one.type == FileType.NotFound else [one]
        listed = self.read_folder(folder.path, hidden=is_hidden(segment))
        return [one for one in listed if fnmatchcase(one.base_name, segment)]


def _is_pattern(segment: str) -> bool:
    return "*" in segment or "[" in segment


def _get_relative(path: str, base: str) -> str:
    return path[len(base) :].lstrip("/")


def _describe_missing(uri: str, place: _Place) -> CorpusError:
    parent, name = _find_existing_parent(place, place.path)
    names = [one.base_name for one in place.read_folder(parent)] if parent else []
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    if near:
        remedy = "did you mean " + " or ".join(f"`{one}`" for one in near) + "?"
    elif parent:
        remedy = f"check the path; `{parent}` holds {describe_names(names)}"
    else:
        remedy = "check the name of the bucket and the path"
    return CorpusError(
        "there is no such file",
        where=uri,
        rule="a file, a folder or a pattern on a file system that exists",
        value=f"nothing named `{name}`" + (f" in `{parent}`" if parent else ""),
        remedy=remedy,
    )


def _describe_unmatched(uri: str, place: _Place) -> CorpusError:
    parent, name = _find_existing_parent(place, posixpath.join(place.path, "*"))
    names = [one.base_name for one in place.read_folder(parent)] if parent else []
    return CorpusError(
        "the pattern matches no file",
        where=uri,
        value=f"`{parent}` holds {describe_names(names)}" if parent else f"nothing named `{name}`",
        remedy="mend the pattern; `*` and `[…]` stand for names, `**` for folders at any depth, `?` begins a query",
    )


def _describe_empty(uri: str, place: _Place) -> CorpusError:
    return CorpusError(
        "the folder holds no corpus files",
        where=uri,
        rule="a folder is searched, with its subfolders, for " + ", ".join(f"`*{one}`" for one in EXTENSIONS),
        value=describe_names([one.base_name for one in place.read_folder(place.path, hidden=True)]),
        remedy="name the files themselves if they end otherwise",
    )


def _describe_dataset(uri: str) -> CorpusError:
    return CorpusError(
        "the folder is a dataset written by `save_to_disk`",
        where=uri,
        rule="such folders are read from local disks only",
        remedy="copy it to a disk, or write it as Parquet with `to_parquet`",
    )


def _find_existing_parent(place: _Place, path: str) -> tuple[str, str]:
    """The deepest folder on the way to a path that exists, or an empty name; and the next name, which does not."""
    parent, name = posixpath.split(path)
    while parent and place.store.get_file_info(parent).type != FileType.Directory:
        parent, name = posixpath.split(parent)
    return parent, name
