"""The way in: patterns to files, files to records, whatever their format."""

import difflib
import glob
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from pipelines.corpus.formats.brat import BRAT_EXTENSION, find_text, read_brat
from pipelines.corpus.formats.conll import looks_like_conll, read_conll
from pipelines.corpus.formats.hub import PREFIX, is_dataset, read_dataset
from pipelines.corpus.formats.jsonl import detect_json, read_json, read_jsonl
from pipelines.corpus.formats.listing import find_in_store
from pipelines.corpus.formats.names import (
    CONLL_EXTENSIONS,
    EXTENSIONS,
    JSON_EXTENSIONS,
    describe_names,
    get_extension,
    is_corpus_name,
    is_uri,
)
from pipelines.corpus.formats.opening import explain_damage, read_head, read_head_lines, read_lines, read_text
from pipelines.corpus.formats.options import Format, FormatOptions
from pipelines.corpus.formats.parquet import read_parquet
from pipelines.corpus.formats.pubtator import PUBTATOR_EXTENSION, looks_like_pubtator, read_pubtator
from pipelines.corpus.formats.rows import read_checked
from pipelines.corpus.formats.tables import read_csv
from pipelines.corpus.formats.text import read_text_lines
from pipelines.corpus.ledger import LedgerEntry
from pipelines.corpus.records import CorpusError, EmptyFile, Record

__all__ = ["FormatOptions", "detect_format", "find_files", "read_records"]

SAMPLE_PREFIX = "sample:"
SAMPLE_FOLDER = Path(__file__).parents[2] / "sample"


def find_files(patterns: Sequence[str], file_format: Format = "auto") -> list[str]:
    """The files that patterns mean, each once, in the order given (sorted within a folder or glob).

    A pattern is a file, a glob, a folder (searched to its depths for known extensions), `sample:` or `sample:name` for
    the corpus inside this package, a folder of `save_to_disk`, `hf:name[:config][:split]`, or a file, folder or
    glob on another file system (`s3://bucket/part-*/*.jsonl.zst`). Of a text and BRAT's annotations of it, the latter
    stand for both, or the text alone where another format is asked for. Raises CorpusError for a pattern that means
    nothing.
    """
    found: list[str] = []
    for pattern in patterns:
        with explain_damage(pattern):
            found += _find(pattern)
    return drop_repeats(found, file_format)


def locate_files(pattern: str) -> str:
    """The same pattern for other working folders: by its whole path, if it means files of this machine."""
    if is_uri(pattern) or pattern.startswith((PREFIX, SAMPLE_PREFIX)):
        return pattern
    path = os.path.expanduser(pattern)
    here = os.getcwd()
    return os.path.join(here if os.path.exists(path) else glob.escape(here), path)


def drop_repeats(paths: Iterable[str], file_format: Format = "auto") -> list[str]:
    """The first path of each file, whatever links or dots the others have on their way to it; one of BRAT's pairs."""
    first: dict[tuple[str, str], str] = {}
    for path in paths:
        first.setdefault((_find_real(path), _find_real(find_text(path))), path)
    alone = {file for file, text in first if file == text}
    texts = {text for file, text in first if file != text}
    if file_format in ("auto", "brat"):
        return [path for (file, text), path in first.items() if file != text or file not in texts]
    return [path for (file, text), path in first.items() if file == text or text not in alone]


def detect_format(path: str, options: FormatOptions | None = None) -> Format:
    """The format of a file by its extension, and by its content where that leaves a choice."""
    if is_dataset(path):
        return "hf"
    extension = get_extension(path)
    if extension in CONLL_EXTENSIONS:
        return "conll"
    if extension in (".csv", ".parquet"):
        return "csv" if extension == ".csv" else "parquet"
    if extension in (BRAT_EXTENSION, PUBTATOR_EXTENSION):
        return "brat" if extension == BRAT_EXTENSION else "pubtator"
    if read_head(path, 4) == b"PAR1":
        return "parquet"
    lines = read_head_lines(path)
    first = next((line.strip() for line in lines if line.strip()), "")
    if extension in JSON_EXTENSIONS or (
        extension not in EXTENSIONS and first[:1] in ("{", "[") and not looks_like_conll(lines)
    ):
        return "json" if detect_json(lines) == "json" else "jsonl"
    if extension == ".tsv":
        names = options and (options.text_column or options.words_column)
        is_table = bool(names) or _is_header(first.split("\t")) or not looks_like_conll(lines)
        return "csv" if is_table and lines else "conll"
    if looks_like_pubtator(first):
        return "pubtator"
    return "conll" if looks_like_conll(lines) else "text"


def read_records(path: str, options: FormatOptions | None = None) -> Iterator[Record | LedgerEntry]:
    """Records of a file, streamed, and an entry for each that was repaired (before its record) or rejected.

    Raises CorpusError for a file that is as a whole not readable: missing, binary, without the columns; and where it
    meets damage, once all records before that have been yielded. Raises EmptyFile for one that holds no records.
    """
    options = options or FormatOptions()
    file_format = detect_format(path, options) if options.format == "auto" else options.format
    num_items = 0
    for item in _read(path, file_format, options):
        num_items += 1
        yield item
    if not num_items and file_format not in ("parquet", "hf"):
        raise EmptyFile(
            "the file holds no records",
            where=path,
            rule="a corpus file holds at least one record",
            value=f"read as `{file_format}`",
            remedy="remove the file, or set `format` if it was taken for the wrong one",
        )


def _read(path: str, file_format: Format, options: FormatOptions) -> Iterator[Record | LedgerEntry]:
    if file_format == "hf":
        return read_dataset(path, options)
    if file_format == "parquet":
        return read_parquet(path, options)
    if file_format == "json":
        return read_json(read_text(path), path, options)
    if file_format == "brat":
        return read_checked(lambda: read_brat(path, options), f"{path}:1")
    readers = {
        "conll": read_conll,
        "jsonl": read_jsonl,
        "csv": read_csv,
        "text": read_text_lines,
        "pubtator": read_pubtator,
    }
    bad_encoding = "refuse_file" if file_format == "conll" else options.bad_encoding
    lines = read_lines(path, keep_ends=file_format in ("csv", "text"), bad_encoding=bad_encoding)
    return readers[file_format](lines, path, options)


def _find(pattern: str) -> list[str]:
    if is_uri(pattern):
        return find_in_store(pattern)
    path = os.path.expanduser(pattern)
    if pattern.startswith(SAMPLE_PREFIX):
        path = str(SAMPLE_FOLDER / pattern.removeprefix(SAMPLE_PREFIX))
    if is_dataset(path) or os.path.isfile(path):
        return [path]
    if os.path.isdir(path):
        return _find_in_folder(path)
    files = _find_by_glob(path) if glob.has_magic(path) else []
    if not files:
        raise _nothing_found(pattern, path)
    return files


def _find_by_glob(pattern: str) -> list[str]:
    """What a glob matches; of files, only those named like corpora if there are any (`folder/*`)."""
    found = sorted(glob.glob(pattern, recursive=True))
    files = [path for path in found if os.path.isfile(path) or not os.path.exists(path)]  # a link to nothing is told
    named = [path for path in files if is_corpus_name(os.path.basename(path))]
    folders = [path for path in found if os.path.isdir(path)]
    inside = [file for path in folders for file in ([path] if is_dataset(path) else _walk(path))]
    return sorted({*named, *inside}) or files


def _find_in_folder(folder: str) -> list[str]:
    found = _walk(folder)
    if not found:
        raise CorpusError(
            "the folder holds no corpus files",
            where=folder,
            rule="a folder is searched, with its subfolders, for "
            + ", ".join(f"`*{one}`" for one in EXTENSIONS)
            + ", and folders of `save_to_disk`",
            value=_describe_folder(folder),
            remedy="name the files themselves if they end otherwise",
        )
    return found


def _walk(folder: str) -> list[str]:
    """The corpora in a folder and in what its links lead to, each folder once and rather by its own name."""
    found: list[str] = []
    visited: set[str] = set()
    tops = [folder]
    for top in tops:  # it grows by the links that are met
        for parent, folders, names in os.walk(top, onerror=_raise):
            real = os.path.realpath(parent)
            if real in visited:
                folders.clear()
                continue
            visited.add(real)
            datasets = {name for name in folders if is_dataset(os.path.join(parent, name))}
            folders[:] = [name for name in folders if name[0] not in "._" and name not in datasets]
            tops += sorted(path for name in folders if os.path.islink(path := os.path.join(parent, name)))
            found += [os.path.join(parent, name) for name in (*datasets, *filter(is_corpus_name, names))]
    return sorted(found)


def _find_real(path: str) -> str:
    return path if is_uri(path) else os.path.realpath(path)


def _raise(error: OSError) -> None:
    raise error


def _is_header(cells: Sequence[str]) -> bool:
    return bool({"text", "words", "tokens"} & set(cells)) and not looks_like_conll(["\t".join(cells)])


def _describe_folder(folder: str) -> str:
    return describe_names(os.listdir(folder))


def _nothing_found(pattern: str, path: str) -> CorpusError:
    if glob.has_magic(path):
        remedy = "mend the pattern; quote it, so that the shell leaves it alone, and use `**` for folders at any depth"
        return CorpusError("the pattern matches no file", where=pattern, value=_describe_parent(path), remedy=remedy)
    parent, name = _find_existing_parent(path)
    near = difflib.get_close_matches(name, sorted(os.listdir(parent or ".")), n=3, cutoff=0.5)
    shown = " or ".join(f"`{os.path.join(parent, one)}`" for one in near)
    return CorpusError(
        "there is no such file",
        where=pattern,
        rule="a file, a folder or a glob, here or on another file system (`s3://bucket/…`); a folder of "
        f"`save_to_disk`; `{PREFIX}name[:config][:split]`; or `{SAMPLE_PREFIX}name`",
        value=f"nothing named `{name}` in `{parent or '.'}`",
        remedy=f"did you mean {shown}?" if near else f"check the path; {_describe_parent(path)}",
    )


def _describe_parent(path: str) -> str:
    parent, _ = _find_existing_parent(path)
    return f"`{parent or '.'}` holds {_describe_folder(parent or '.')}"


def _find_existing_parent(path: str) -> tuple[str, str]:
    """The deepest folder on the way to a path that exists, and the next name, which does not."""
    parent, name = os.path.split(path.rstrip("/"))
    while parent and not os.path.isdir(parent):
        parent, name = os.path.split(parent)
    return parent, name
