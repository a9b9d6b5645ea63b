"""The end of the offline job: its parts, in the order of the input, become output files of a good size.

Every step may be cut short and done again. Files are made in the work folder, a group of parts by one Ray task, and a
mark tells that a group is finished; then whole folders are moved to where the user looks.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pyarrow as pa
import pyarrow.parquet as pq
import ray

from pipelines.corpus.chunks import JSON_TYPE, to_text
from pipelines.corpus.parts import PartFolder
from pipelines.corpus.sinks import JSONL_COMPRESSIONS, PARQUET_COMPRESSIONS, open_sink

FORMATS = {"parquet": PARQUET_COMPRESSIONS, "jsonl": JSONL_COMPRESSIONS}
ENTITIES_FOLDER, QUARANTINE_FOLDER = "entities", "quarantine"
_TEXTS = (pa.string(), JSON_TYPE)
NO_VALUE = "__HIVE_DEFAULT_PARTITION__"
JSONL_GROWTH = {"none": 7, "gzip": 1.2, "zstd": 1.2}
"""About how much larger than a part its documents are as JSON lines."""
OPEN_FILES = 100
"""Partitions of a group that are written at once: a process may have 1,024 files open, or 256."""
BUFFERED_BYTES = 128 << 20
"""Arrow memory of the rows that wait to be written, over all partitions of a group."""


@dataclass(frozen=True)
class OutputSpec:
    """What the output files are like."""

    format: str
    compression: str
    partition_by: tuple[str, ...]
    file_bytes: int
    """About how large a file becomes."""


@dataclass(frozen=True)
class PartFile:
    """One part, as far as the end of the job needs it."""

    path: str
    num_bytes: int

    @classmethod
    def of(cls, path: Path) -> "PartFile":
        """The part at a path."""
        return cls(str(path), path.stat().st_size)


def assemble_output(work: PartFolder, parts: Sequence[PartFile], schema: pa.Schema, spec: OutputSpec) -> None:
    """Make the files of a folder `entities` in the work folder out of all parts, on the whole cluster.

    Args:
        parts: in the order of the input.
        schema: of the rows; parts whose columns have another type are cast.
    """
    growth = 1 if spec.format == "parquet" else JSONL_GROWTH[spec.compression]
    groups = plan_files([part.num_bytes * growth for part in parts], spec.file_bytes)
    _assemble(work, ENTITIES_FOLDER, [parts[start:stop] for start, stop in groups], schema, spec)


def assemble_quarantine(work: PartFolder, parts: Sequence[PartFile], schema: pa.Schema, file_bytes: int) -> None:
    """Make the files of a folder `quarantine`; Parquet, whatever the output is."""
    spec = OutputSpec("parquet", "zstd", (), file_bytes)
    groups = plan_files([part.num_bytes for part in parts], file_bytes)
    _assemble(work, QUARANTINE_FOLDER, [parts[start:stop] for start, stop in groups], schema, spec)


def move_output(work: PartFolder, folder: Path) -> list[str]:
    """Move what is assembled into the output folder, where some may be already; returns the files of entities."""
    for name in (ENTITIES_FOLDER, QUARANTINE_FOLDER):
        made = _final(work) / name
        if made.is_dir():
            made.rename(folder / name)
    return sorted(str(path) for path in (folder / ENTITIES_FOLDER).rglob("part-*"))


def plan_files(sizes: Sequence[float], file_bytes: int) -> list[tuple[int, int]]:
    """Consecutive parts for each file, as half-open ranges: as many as come nearest to the size wanted."""
    groups: list[tuple[int, int]] = []
    start, total = 0, 0.0
    for index, size in enumerate(sizes):
        if index > start and total + size / 2 > file_bytes:
            groups.append((start, index))
            start, total = index, 0.0
        total += size
    return [*groups, (start, len(sizes))] if sizes else []


def unify_parts(parts: Mapping[pa.Schema, Sequence[str]]) -> pa.Schema:
    """One schema for parts whose kept columns may differ in type: text where the cast of some value would change it.

    Args:
        parts: a schema → the files that have it.
    """
    schema = unify_schemas(list(parts))
    for index, field in enumerate(schema):
        others = [(own.field(field.name).type, paths) for own, paths in parts.items()]
        cast = [path for kind, paths in others if kind != field.type for path in paths]
        if field.type not in _TEXTS and not _can_cast(cast, field):
            schema = schema.set(index, field.with_type(_choose_text([kind for kind, _ in others])))
    return schema


def unify_schemas(schemas: Sequence[pa.Schema]) -> pa.Schema:
    """One schema for all; text where types have nothing in common.

    Whole numbers become fractions where some file has fractions.
    """
    names = schemas[0].names
    return pa.schema([(name, _unify_types([schema.field(name).type for schema in schemas])) for name in names])


def _unify_types(types: Sequence[pa.DataType]) -> pa.DataType:
    kinds = set(types)
    if len(kinds) > 1 and (JSON_TYPE in kinds or not _have_same_fields(types)):
        return _choose_text(types)
    try:
        columns = [pa.schema([("column", one)]) for one in types]
        found = pa.unify_schemas(columns, promote_options="permissive").field("column").type
        if _has_decimal(found) and len(kinds) > 1:  # whole numbers that no such decimal holds
            return _choose_text(types)
    except pa.ArrowException:
        return _choose_text(types)
    return pa.string() if pa.types.is_null(found) else found


def _choose_text(types: Sequence[pa.DataType]) -> pa.DataType:
    """Text for values of these types: JSON where all are objects or lists."""
    is_json = all(one == JSON_TYPE or pa.types.is_nested(one) or pa.types.is_null(one) for one in types)
    return JSON_TYPE if is_json else pa.string()


def _have_same_fields(types: Sequence[pa.DataType]) -> bool:
    """Whether structs in one place, at any depth, have the same fields: a cast would add what no object has."""
    left = [types]
    while left:
        types = left.pop()
        structs = [one for one in types if pa.types.is_struct(one)]
        names = [{field.name for field in one} for one in structs]
        if any(one != names[0] for one in names):
            return False
        left += [[one.field(name).type for one in structs] for name in (names[0] if names else ())]
        items = [one.value_type for one in types if pa.types.is_list(one)]
        if items:
            left.append(items)
    return True


def _can_cast(paths: Sequence[str], field: pa.Field) -> bool:
    """Whether a field holds every value that its column has in some parts."""
    try:
        for path in paths:
            _cast(_read_columns(path, [field.name])[field.name], field.type)
    except pa.ArrowInvalid:
        return False
    return True


def _has_decimal(kind: pa.DataType) -> bool:
    """Whether a type has decimals, at any depth."""
    return pa.types.is_decimal(kind) or any(_has_decimal(kind.field(index).type) for index in range(kind.num_fields))


def cast_rows(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """The columns of `schema`, in its types."""
    return pa.table([_cast(table[field.name], field.type) for field in schema], schema=schema)


def _cast(column: pa.ChunkedArray, kind: pa.DataType) -> Any:
    if column.type == kind:
        return column
    if kind in _TEXTS:
        return pa.array([None if value is None else to_text(value) for value in column.to_pylist()], kind)
    return column.cast(kind)


def _final(work: PartFolder) -> Path:
    return work.root / "final"


def _assemble(
    work: PartFolder, name: str, groups: Sequence[Sequence[PartFile]], schema: pa.Schema, spec: OutputSpec
) -> None:
    marks = work.root / "assembled"
    marks.mkdir(exist_ok=True)
    unfinished = [number for number in range(len(groups)) if not (marks / f"{name}-{number}").exists()]
    if unfinished:
        (_final(work) / name).mkdir(parents=True, exist_ok=True)
    task = ray.remote(num_cpus=1)(_assemble_group)
    settings = (schema, spec, _final(work) / name)
    pending = [task.remote([part.path for part in groups[number]], number, *settings) for number in unfinished]
    for number, reference in zip(unfinished, pending, strict=True):
        ray.get(reference)
        (marks / f"{name}-{number}").touch()


def _assemble_group(paths: Sequence[str], number: int, schema: pa.Schema, spec: OutputSpec, folder: Path) -> None:
    """Write the files of one group: one, or one a partition; the parts are read once for every `OPEN_FILES` of them."""
    inside = pa.schema([field for field in schema if field.name not in spec.partition_by])
    places = _list_places(paths, schema, spec.partition_by)
    for start in range(0, len(places), OPEN_FILES):
        names = places[start : start + OPEN_FILES]
        sinks = {name: open_sink(folder / name, number, inside, spec.format, spec.compression) for name in names}
        for path in paths:
            table = cast_rows(pq.read_table(path, use_threads=False, partitioning=None), schema)
            for place, rows in split_partitions(table, spec.partition_by):
                if place in sinks:
                    sinks[place].add(rows)
            if sum(sink.num_buffered_bytes for sink in sinks.values()) > BUFFERED_BYTES:
                for sink in sinks.values():
                    sink.flush()
        for sink in sinks.values():
            sink.close()


def _list_places(paths: Sequence[str], schema: pa.Schema, columns: Sequence[str]) -> list[str]:
    """The partitions that some parts have rows for."""
    if not columns:
        return [""]
    inside = pa.schema([schema.field(name) for name in columns])
    tables = (cast_rows(_read_columns(path, columns), inside) for path in paths)
    return sorted({place for table in tables for place, _ in split_partitions(table, columns)})


def _read_columns(path: str, names: Sequence[str]) -> pa.Table:
    """Some columns of a part, whatever their names: `read_table` takes a dot for a way into a struct."""
    return pq.ParquetFile(path).read(list(names), use_threads=False)


def split_partitions(table: pa.Table, columns: Sequence[str]) -> Iterator[tuple[str, pa.Table]]:
    """`lang=en/year=2024` → the rows with these values, without these columns, in their order."""
    if not columns:
        yield "", table
        return
    places: dict[str, list[int]] = {}
    values = zip(*(table[name].to_pylist() for name in columns), strict=True)
    for index, row in enumerate(values):
        places.setdefault(name_partition(columns, row), []).append(index)
    rest = table.drop_columns(list(columns))
    for place in sorted(places):
        yield place, rest.take(places[place])


def name_partition(columns: Sequence[str], values: Sequence[Any]) -> str:
    """The folder of a partition, as Hive names it: values are quoted as in an address."""
    return os.path.join(*(f"{_quote(name)}={_show(value)}" for name, value in zip(columns, values, strict=True)))


def _show(value: Any) -> str:
    return NO_VALUE if value is None else _quote(to_text(value))


def _quote(text: str) -> str:
    return quote(text, safe=" ") or NO_VALUE
