"""Parts to output files: which parts go together, in what types, and into which folders."""

import datetime
import decimal
import gzip
import json
import os
import resource

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.corpus import assembly, sinks
from pipelines.corpus.assembly import (
    OutputSpec,
    PartFile,
    _assemble_group,
    cast_rows,
    move_output,
    name_partition,
    plan_files,
    split_partitions,
    unify_parts,
    unify_schemas,
)
from pipelines.corpus.chunks import JSON_TYPE, to_text
from pipelines.corpus.parts import PartFolder
from pipelines.corpus.sinks import open_sink


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([], []),
        ([5], [(0, 1)]),
        ([500], [(0, 1)]),
        ([4, 4, 4, 4, 4], [(0, 3), (3, 5)]),
        ([50, 1, 1, 50, 1], [(0, 1), (1, 3), (3, 4), (4, 5)]),
        ([9, 9, 9], [(0, 1), (1, 2), (2, 3)]),
        ([9, 1, 9, 1], [(0, 2), (2, 4)]),
    ],
)
def test_consecutive_parts_make_files_near_the_size_wanted(sizes, expected):
    assert plan_files(sizes, 10) == expected


def schema(**kinds):
    return pa.schema(list(kinds.items()))


def test_types_are_unified_over_parts():
    found = unify_schemas(
        [
            schema(a=pa.int64(), b=pa.int64(), c=pa.null(), d=pa.null(), e=pa.struct([("x", pa.int64())])),
            schema(a=pa.string(), b=pa.float64(), c=pa.bool_(), d=pa.null(), e=pa.struct([("y", pa.string())])),
        ]
    )
    assert found == schema(a=pa.string(), b=pa.float64(), c=pa.bool_(), d=pa.string(), e=JSON_TYPE)


STRUCT = pa.struct([("x", pa.int64())])


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [
        ([STRUCT, STRUCT], STRUCT),
        ([STRUCT, pa.struct([("x", pa.null())])], STRUCT),
        ([STRUCT, pa.struct([("x", pa.float64())])], pa.struct([("x", pa.float64())])),
        ([STRUCT, pa.struct([("x", pa.string())])], JSON_TYPE),
        ([pa.list_(STRUCT), pa.list_(pa.null())], pa.list_(STRUCT)),
        ([pa.list_(STRUCT), pa.list_(pa.struct([("y", pa.int64())]))], JSON_TYPE),
        ([JSON_TYPE, STRUCT, pa.null(), pa.list_(pa.null())], JSON_TYPE),
        ([JSON_TYPE, pa.string()], pa.string()),
        ([STRUCT, pa.int64()], pa.string()),
    ],
)
def test_objects_are_structs_where_all_have_the_same_fields_and_else_json(kinds, expected):
    assert unify_schemas([schema(a=kind) for kind in kinds]) == schema(a=expected)


@pytest.mark.parametrize(
    ("columns", "kind", "expected"),
    [
        ([[2**53], [0.5]], pa.float64(), [2.0**53, 0.5]),
        ([[2**53 + 1], [0.5]], pa.string(), [str(2**53 + 1), "0.5"]),
        ([[[2**53 + 1]], [[0.5]]], JSON_TYPE, [f"[{2**53 + 1}]", "[0.5]"]),
        ([[{"x": 2**53 + 1}], [{"x": 0.5}]], JSON_TYPE, [f'{{"x": {2**53 + 1}}}', '{"x": 0.5}']),
    ],
)
def test_whole_numbers_beside_fractions_lose_no_digit(columns, kind, expected, tmp_path):
    parts = {}
    for number, values in enumerate(columns):
        table = pa.table({"id": [number], "a.b": values})
        pq.write_table(table, tmp_path / str(number))
        parts[table.schema] = [str(tmp_path / str(number))]
    unified = unify_parts(parts)
    assert unified == pa.schema([("id", pa.int64()), ("a.b", kind)])
    rows = [cast_rows(pq.read_table(path), unified)["a.b"].to_pylist() for [path] in parts.values()]
    assert [*rows[0], *rows[1]] == expected


def test_rows_are_cast_to_the_unified_types():
    table = pa.table({"a": [1, None], "b": [True, False], "c": pa.nulls(2), "d": [1, 2], "e": [{"x": 1}, None]})
    wanted = schema(a=pa.string(), b=pa.string(), c=pa.int64(), d=pa.float64(), e=pa.string())
    assert cast_rows(table, wanted).to_pylist() == [
        {"a": "1", "b": "true", "c": None, "d": 1.0, "e": '{"x": 1}'},
        {"a": None, "b": "false", "c": None, "d": 2.0, "e": None},
    ]


def test_rows_go_to_the_folder_of_their_values_in_order():
    table = pa.table({"id": [1, 2, 3, 4], "lang": ["en", None, "en", "de"], "year": [1, 1, 1, 2]})
    found = {place: rows.to_pylist() for place, rows in split_partitions(table, ["lang", "year"])}
    assert found == {
        "lang=de/year=2": [{"id": 4}],
        "lang=en/year=1": [{"id": 1}, {"id": 3}],
        "lang=__HIVE_DEFAULT_PARTITION__/year=1": [{"id": 2}],
    }
    assert [place for place, _ in split_partitions(table, [])] == [""]


@pytest.mark.parametrize(
    ("value", "expected"),
    [("a/b=c", "k=a%2Fb%3Dc"), ("..", "k=.."), ("", "k=__HIVE_DEFAULT_PARTITION__"), (1.5, "k=1.5"), (True, "k=true")],
)
def test_names_of_partitions_are_safe(value, expected):
    assert name_partition(["k"], [value]) == expected


ROWS = pa.table({"id": list(range(5000)), "text": ["中 é\n"] * 5000})


def write(folder, file_format, compression, rows=ROWS):
    sink = open_sink(folder, 3, rows.schema, file_format, compression)
    for start in range(0, rows.num_rows, 700):
        sink.add(rows.slice(start, 700))
        assert not sink.path.exists()
    sink.close()
    assert [path.name for path in folder.iterdir()] == [sink.path.name]
    return sink.path


@pytest.mark.parametrize("compression", ["zstd", "gzip", "none"])
def test_parquet_has_several_row_groups(compression, tmp_path, monkeypatch):
    monkeypatch.setattr(sinks, "ROW_GROUP_BYTES", 20_000)
    path = write(tmp_path, "parquet", compression)
    assert path.name == "part-00003.parquet"
    metadata = pq.read_metadata(path)
    assert metadata.num_row_groups > 3
    kind = metadata.row_group(0).column(0).compression
    assert kind == {"none": "UNCOMPRESSED"}.get(compression, compression.upper())
    assert pq.read_table(path).equals(ROWS)


@pytest.mark.parametrize("compression", ["none", "gzip", "zstd"])
def test_lines_are_json_whatever_the_compression(compression, tmp_path, monkeypatch):
    monkeypatch.setattr(sinks, "ROW_GROUP_BYTES", 20_000)
    path = write(tmp_path, "jsonl", compression)
    content = path.read_bytes()
    if compression == "gzip":
        content = gzip.decompress(content)
    elif compression == "zstd":
        content = pa.input_stream(str(path), compression="zstd").read()
    assert [json.loads(line) for line in content.decode().splitlines()] == ROWS.to_pylist()


def test_file_without_rows_has_its_columns(tmp_path):
    path = write(tmp_path, "parquet", "zstd", ROWS.slice(0, 0))
    assert pq.read_schema(path).names == ["id", "text"]


def test_sink_that_was_cut_short_leaves_no_file_and_is_begun_again(tmp_path):
    sink = open_sink(tmp_path, 3, ROWS.schema, "parquet", "zstd")
    sink.add(ROWS)
    sink.flush()
    assert not sink.path.exists()
    assert pq.read_table(write(tmp_path, "parquet", "zstd")).equals(ROWS)


def test_output_is_moved_once_and_stays(tmp_path):
    work = PartFolder(tmp_path / ".work")
    made = work.root / "final" / "entities" / "lang=en"
    made.mkdir(parents=True)
    (made / "part-00000.parquet").touch()
    expected = [str(tmp_path / "entities" / "lang=en" / "part-00000.parquet")]
    assert move_output(work, tmp_path) == expected
    assert move_output(work, tmp_path) == expected
    assert not (tmp_path / "quarantine").exists()


def test_part_file_knows_its_size(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"12345")
    assert PartFile.of(path) == PartFile(str(path), 5)


def test_decimals_beside_whole_numbers_become_text():
    exact, whole = (pa.schema([("price", kind)]) for kind in (pa.decimal128(5, 2), pa.int64()))
    schema = unify_schemas([exact, whole])
    assert schema.field("price").type == pa.string()
    table = pa.table({"price": pa.array([10**12], pa.int64())})
    assert cast_rows(table, schema)["price"].to_pylist() == ["1000000000000"]
    assert unify_schemas([exact, exact]).field("price").type == pa.decimal128(5, 2)


def test_dates_and_decimals_are_written_as_they_are():
    assert to_text(datetime.date(2024, 5, 1)) == "2024-05-01"
    assert to_text(decimal.Decimal("1.50")) == "1.50"
    assert [to_text(one) for one in (None, True, 2, 1.5, ["ä"], {"a": 1})] == [
        *("null", "true", "2", "1.5", '["ä"]', '{"a": 1}'),
    ]


def test_numbers_that_json_lacks_are_null_in_lines(tmp_path):
    rows = pa.table({"f": [1.5, float("nan")], "g": [[float("inf"), 2.0], [3.0]]})
    lines = write(tmp_path, "jsonl", "none", rows).read_text().splitlines()
    assert lines == ['{"f": 1.5, "g": [null, 2.0]}', '{"f": null, "g": [3.0]}']


def test_json_of_kept_columns_is_objects_in_lines_and_text_in_parquet(tmp_path):
    rows = pa.table({"meta": pa.array(['{"a": 1}', "{}", None], JSON_TYPE), "text": ["{}", "[", "1"]})
    lines = write(tmp_path / "lines", "jsonl", "none", rows).read_text().splitlines()
    assert [json.loads(line)["meta"] for line in lines] == [{"a": 1}, {}, None]
    assert [json.loads(line)["text"] for line in lines] == ["{}", "[", "1"]
    table = pq.read_table(write(tmp_path / "table", "parquet", "zstd", rows))
    assert table["meta"].to_pylist() == ['{"a": 1}', "{}", None]


def test_lines_end_where_every_reader_ends_them(tmp_path):
    rows = pa.table({"a\u2028b": ["c\u2029d", "e\x85f\r\n"]})
    lines = write(tmp_path, "jsonl", "none", rows).read_text().splitlines()
    assert [json.loads(line) for line in lines] == rows.to_pylist()


def test_bytes_are_base64_in_lines_and_in_text(tmp_path):
    rows = pa.table({"image": [b"\x00\xff", None], "pages": [[b"a"], []]})
    lines = write(tmp_path, "jsonl", "none", rows).read_text().splitlines()
    assert lines == ['{"image": "AP8=", "pages": ["YQ=="]}', '{"image": null, "pages": []}']
    assert [to_text(b"\x00\xff"), to_text([b"a"])] == ["AP8=", '["YQ=="]']


def test_partitions_are_written_with_few_files_open(tmp_path, monkeypatch):
    monkeypatch.setattr(assembly, "OPEN_FILES", 7)
    table = pa.table({"doc_id": list(range(120)), "a.day": [f"d{number % 60}" for number in range(120)]})
    paths = [str(tmp_path / name) for name in "ab"]
    for start, path in zip((0, 60), paths, strict=True):
        pq.write_table(table.slice(start, 60), path)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/dev/fd")) + 30, limits[1]))
    try:
        _assemble_group(paths, 0, table.schema, OutputSpec("parquet", "zstd", ("a.day",), 1 << 27), tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    files = list((tmp_path / "out").rglob("part-00000.parquet"))
    assert len(files) == 60
    for path in files:
        day = int(path.parent.name.removeprefix("a.day=d"))
        assert pq.read_table(path, partitioning=None).to_pylist() == [{"doc_id": day}, {"doc_id": day + 60}]
