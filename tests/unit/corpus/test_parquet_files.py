"""Parquet: every type of string, every row before a damage, and wrong types as rejected rows."""

import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.corpus.formats.files import FormatOptions, read_records
from pipelines.corpus.formats.parquet import _iterate_batches, _open
from pipelines.corpus.ledger import LedgerEntry
from pipelines.corpus.records import CorpusError, EmptyFile, Record


def write(path, column, **options):
    pq.write_table(pa.table({"text": column}), path, **options)
    return str(path)


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())], ids=str
)
def test_every_type_of_string_is_text(tmp_path, kind):
    path = write(tmp_path / "a.parquet", pa.array(["a", "é", "a", None], pa.string()).cast(kind))
    *records, entry = read_records(path)
    assert [record.text for record in records] == ["a", "é", "a"]
    assert (entry.source, entry.reason) == (f"{path}:4", "no_text")


@pytest.mark.parametrize(
    ("column", "told"),
    [(pa.array([1, 2]), "int 1"), (pa.array([b"a", b"b"]), "bytes"), (pa.array([["a"], []]), "list")],
)
def test_a_column_of_another_type_is_rejected_row_by_row(tmp_path, column, told):
    path = write(tmp_path / "a.parquet", column)
    entries = list(read_records(path))
    assert [(entry.source, entry.reason) for entry in entries] == [(f"{path}:{row}", "bad_text") for row in (1, 2)]
    assert told in entries[0].detail


def test_a_missing_column_refuses_the_file_once(tmp_path):
    path = str(tmp_path / "a.parquet")
    pq.write_table(pa.table({"body": ["a", "b"]}), path)
    with pytest.raises(CorpusError, match=r"no column holds the text[\s\S]*`body`"):
        list(read_records(path))
    assert len(list(read_records(path, FormatOptions(text_column="body")))) == 2


def damage_page(path, row_group):
    """Overwrite the middle of a column chunk and leave the footer."""
    chunk = pq.ParquetFile(path).metadata.row_group(row_group).column(0)
    content = bytearray(path.read_bytes())
    middle = chunk.data_page_offset + chunk.total_compressed_size // 2
    content[middle : middle + 40] = b"\xff" * 40
    path.write_bytes(bytes(content))


@pytest.mark.parametrize("compression", ["snappy", "zstd", "none"])
@pytest.mark.parametrize(("group_rows", "row_group"), [(100, 2), (3_000, 1), (3_000, 0), (4, 1)])
def test_every_row_before_a_damaged_page_is_read(tmp_path, compression, group_rows, row_group):
    path = tmp_path / "a.parquet"
    texts = [f"{row} " + "wort" * 20 for row in range(3 * group_rows)]
    write(
        path,
        texts,
        row_group_size=group_rows,
        compression=compression,
        use_dictionary=False,
        data_page_size=4_096,
        write_page_checksum=True,
        write_statistics=False,  # they would take most of a small page
    )
    damage_page(path, row_group)
    records = []
    with pytest.raises(CorpusError, match="the Parquet file is damaged") as caught:
        records.extend(read_records(str(path)))  # keeps what came before the error
    found = [record.text for record in records]
    assert found == texts[: len(found)]
    assert group_rows * row_group <= len(found) < group_rows * (row_group + 1)
    assert f"{path}:{len(found) + 1}\n" in str(caught.value)


def test_a_file_without_a_byte_is_empty(tmp_path):
    path = tmp_path / "a.parquet"
    path.touch()
    for place in (str(path), path.as_uri()):
        with pytest.raises(EmptyFile, match="the file is empty"):
            list(read_records(place))


@pytest.mark.parametrize("kept", [1, 3, 8, 500])
def test_a_file_without_its_footer_is_refused(tmp_path, kept):
    path = tmp_path / "a.parquet"
    write(path, [f"text {row}" for row in range(1000)])
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(CorpusError, match="the Parquet file is damaged"):
        list(read_records(str(path)))


def test_a_missing_file_is_told_as_missing(tmp_path):
    with pytest.raises(CorpusError, match="No such file"):
        list(read_records(str(tmp_path / "a.parquet")))


@pytest.mark.parametrize(("size", "most"), [(10, 1024), (100_000, 42), (5_000_000, 1)])
def test_large_documents_are_held_a_few_at_a_time(tmp_path, size, most):
    dice = random.Random(0)
    texts = ["small", *(dice.randbytes(size // 2).hex() for _ in range(min(3000, 10_000_000 // size)))]
    path = write(tmp_path / "a.parquet", texts, row_group_size=1500, compression="none")
    with _open(path) as file:
        batches = list(_iterate_batches(file, ["text"]))
    assert max(batch.num_rows for batch in batches) == most
    assert [text for batch in batches for text in batch["text"].to_pylist()] == texts


def test_date_that_python_has_not_costs_its_row_alone(tmp_path):
    when = pa.array([0, 253402300799000, 0], pa.timestamp("ms", tz="Asia/Tokyo"))
    pq.write_table(pa.table({"text": ["a", "b", "c"], "when": when}), tmp_path / "a.parquet")
    found = list(read_records(str(tmp_path / "a.parquet"), FormatOptions(extra_columns=("when",))))
    assert [one.text for one in found if isinstance(one, Record)] == ["a", "c"]
    assert [one.reason for one in found if isinstance(one, LedgerEntry)] == ["bad_value"]
