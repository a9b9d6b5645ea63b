"""What of a folder goes with a job: the files that its ignore files leave, in one package.

Ray ships a working folder by itself, too. Here it is listed first, so that what is too large, or needed and left out,
is told before anything is sent; and packed so that equal content is always the same package.
"""

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZipFile, ZipInfo

from pathspec import GitIgnoreSpec

from pipelines.ner.errors import UserError

IGNORE_FILES = (".gitignore", ".rayignore")
NEVER_SHIPPED = (".git", ".venv", "venv", "__pycache__")
"""What Ray leaves out without being told."""
MIB = 1 << 20
MAX_TOLD = 3
COPY_BYTES = 1 << 20
Specs = tuple[tuple[str, int, GitIgnoreSpec], ...]
"""(name of the ignore file, depth it counts from, what it says), from the top down."""
_NO_TIME = (1980, 1, 1, 0, 0, 0)


class ShippingError(UserError):
    """A folder that cannot go with a job."""


@dataclass(frozen=True)
class ShippedFile:
    """A file that goes with the job."""

    name: str
    """Its path in the folder, with `/`."""
    num_bytes: int


def list_shipped(folder: Path) -> list[ShippedFile]:
    """The files that go with a job, by name. Ignore files count for their folder and those below, as git reads them.

    Raises ShippingError for what cannot be read.
    """
    try:
        files = sorted(_walk(folder, (), ()), key=lambda file: file.name)
    except OSError as error:
        raise ShippingError(
            "the working folder cannot be read",
            where=str(error.filename or folder),
            value=error.strerror,
            remedy="give another `--working_dir`, or name what cannot be read in `.rayignore`",
        ) from error
    unnamed = [file.name for file in files if _has_no_utf8(file.name)]
    if unnamed:
        raise ShippingError(
            "a file whose name is no UTF-8 cannot go with a job",
            where=str(folder),
            value=ascii(unnamed[0]),
            remedy="rename it, or name it in `.rayignore` with `?` for what is no UTF-8",
        )
    return files


def _has_no_utf8(name: str) -> bool:
    return any("\udc80" <= character <= "\udcff" for character in name)


def find_excess(folder: Path, files: Sequence[ShippedFile], max_mib: float) -> UserError | None:
    """The mistake of shipping too much, with what is large in it."""
    num_bytes = sum(file.num_bytes for file in files)
    if num_bytes <= max_mib * MIB:
        return None
    return ShippingError(
        "the working folder is too large to go with a job",
        where=str(folder),
        rule=f"at most {max_mib:g} MiB; data belongs where every node sees it",
        value=f"{num_bytes / MIB:,.1f} MiB in {len(files):,} files: {_describe_largest(files)}",
        remedy="name in `.rayignore` what the job does not need, or raise `--max_working_dir_mib`",
    )


def write_package(folder: Path, files: Sequence[ShippedFile], path: Path) -> str:
    """Write the files as a zip file, and return the digest of their names and contents.

    Times and owners are left out, so that the same content is the same package wherever it was checked out.
    """
    digest = hashlib.sha256()
    with ZipFile(path, "w", ZIP_DEFLATED, compresslevel=1) as package:
        for file in files:
            source = folder / file.name
            entry = ZipInfo(file.name, _NO_TIME)
            entry.compress_type = ZIP_DEFLATED
            entry.external_attr = (0o755 if os.access(source, os.X_OK) else 0o644) << 16
            digest.update(f"{file.name}\0{file.num_bytes}\0".encode(errors="surrogateescape"))
            with source.open("rb") as content, package.open(entry, "w") as target:
                while block := content.read(COPY_BYTES):
                    digest.update(block)
                    target.write(block)
    return digest.hexdigest()


def _walk(folder: Path, above: tuple[str, ...], specs: Specs, seen: tuple[str, ...] = ()) -> Iterator[ShippedFile]:
    """The files below `folder`, which lies `above` in the shipped one."""
    real = os.path.realpath(folder)
    if real in seen:  # a link to a folder that it lies in
        return
    for name in IGNORE_FILES:
        if (folder / name).is_file():
            specs = (*specs, (name, len(above), _read_spec(folder / name)))
    with os.scandir(folder) as found:
        for entry in found:
            parts = (*above, entry.name)
            if entry.name in NEVER_SHIPPED:
                continue
            is_folder = entry.is_dir()
            ending = "/" if is_folder else ""
            if _is_ignored(parts, ending, specs):
                continue
            if is_folder:
                yield from _walk(folder / entry.name, parts, specs, (*seen, real))
            elif entry.is_file():
                yield ShippedFile("/".join(parts), entry.stat().st_size)


def _is_ignored(parts: tuple[str, ...], ending: str, specs: Specs) -> bool:
    """Whether one of the two kinds of ignore files leaves it out: of each kind the deepest that speaks of it counts."""
    for name in IGNORE_FILES:
        for kind, depth, spec in reversed(specs):
            told = spec.check_file("/".join(parts[depth:]) + ending).include if kind == name else None
            if told is not None:
                if told:
                    return True
                break
    return False


def _read_spec(path: Path) -> GitIgnoreSpec:
    return GitIgnoreSpec.from_lines(path.read_text(encoding="utf-8", errors="replace").splitlines())


def _describe_largest(files: Sequence[ShippedFile]) -> str:
    """The largest entries of the folder itself, each with its largest file."""
    groups: dict[str, list[ShippedFile]] = {}
    for file in files:
        groups.setdefault(file.name.partition("/")[0], []).append(file)
    ordered = sorted(groups.values(), key=lambda group: -sum(file.num_bytes for file in group))
    return "; ".join(map(_describe_group, ordered[:MAX_TOLD]))


def _describe_group(group: Sequence[ShippedFile]) -> str:
    largest = max(group, key=lambda file: file.num_bytes)
    size = f"{largest.name} {largest.num_bytes / MIB:,.1f} MiB"
    if len(group) == 1:
        return size
    total = sum(file.num_bytes for file in group) / MIB
    return f"{largest.name.partition('/')[0]}/ {total:,.1f} MiB in {len(group):,} files, of them {size}"
