"""CSV, Parquet, Arrow, pandas and Hugging Face datasets become the same records."""

import csv
import io
import json

import datasets
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.corpus.formats.files import FormatOptions, find_files, read_records
from pipelines.corpus.formats.hub import split_id
from pipelines.corpus.formats.tables import read_csv, read_table
from pipelines.corpus.records import CorpusError, Record, to_table
from pipelines.ner.entities import Span

ROWS = [
    {"id": "d1", "text": "in Utrecht", "entities": [{"start": 3, "end": 10, "label": "LOC"}]},
    {"id": "d2", "text": "nowhere", "entities": []},
    {"id": "d3", "text": "no gold", "entities": None},
]
TAGGED = {"tokens": [["Angela", "smiles"], ["no"]], "ner_tags": [[1, 0], [0]]}
FEATURES = {
    "tokens": datasets.List(datasets.Value("string")),
    "ner_tags": datasets.List(datasets.ClassLabel(names=["O", "B-PER"])),
}


def read_lines_of_csv(text, **options):
    return list(read_csv(text.splitlines(keepends=True), "x.csv", FormatOptions(**options)))


def check_rows(records, source):
    assert [record.text for record in records] == ["in Utrecht", "nowhere", "no gold"]
    assert [record.spans for record in records] == [[Span(3, 10, "LOC")], [], None]
    assert [record.doc_id for record in records] == ["d1", "d2", "d3"]
    assert [record.source for record in records] == [f"{source}:{row}" for row in (1, 2, 3)]


def check_tagged(records):
    assert [record.words for record in records] == TAGGED["tokens"]
    assert [record.tags for record in records] == [["B-PER", "O"], ["O"]]


def test_csv_cells_hold_lists_as_json():
    text = 'id,text,entities\nd1,in Utrecht,"[[3, 10, ""LOC""]]"\nd2,nowhere,[]\nd3,no gold,\n'
    records = read_lines_of_csv(text)
    assert [record.spans for record in records] == [[Span(3, 10, "LOC")], [], None]
    assert [record.doc_id for record in records] == ["d1", "d2", "d3"]


def test_csv_of_words_and_tags():
    (record,) = read_lines_of_csv('tokens,ner_tags\n"[""a"", ""b""]","[""O"", ""B-X""]"\n')
    assert (record.words, record.tags) == (["a", "b"], ["O", "B-X"])


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_csv_delimiter_is_seen_in_the_header(delimiter):
    (record,) = read_lines_of_csv(f"id{delimiter}text\n7{delimiter}a\n")
    assert (record.doc_id, record.text) == ("7", "a")


def test_csv_sources_are_first_lines_also_after_cells_with_line_ends():
    one, two = read_lines_of_csv('text\n"a\r\nb"\n\nc\n')
    assert (one.text, one.source) == ("a\r\nb", "x.csv:2")
    assert two.text == "c"
    (three,) = (item for item in read_lines_of_csv('text\n"a\nb"\nc\n') if item.text == "c")
    assert three.source == "x.csv:4"


def test_csv_rows_of_another_length_are_rejected_with_their_line():
    one, bad, two = read_lines_of_csv("id,text\n1,a\n2,b,c\n3,d\n")
    assert (one.text, two.text) == ("a", "d")
    assert (bad.source, bad.reason) == ("x.csv:3", "ragged_row")
    assert "3 cells, the header 2" in bad.detail


def test_csv_quote_that_never_ends_is_rejected_with_the_lines_it_swallows():
    one, *bad = read_lines_of_csv('text\na\n"b\nc\nd\n')
    assert one.text == "a"
    assert [(each.source, each.reason) for each in bad] == [(f"x.csv:{line}", "broken_csv") for line in (3, 4, 5)]
    assert all("lines 3 to 5" in each.detail for each in bad)


def test_csv_reads_on_after_a_broken_row():
    bad, good = read_lines_of_csv('text\n"a"b\nc\n')
    assert (bad.reason, bad.source, good.text, good.source) == ("broken_csv", "x.csv:2", "c", "x.csv:3")


def test_quote_marks_of_tab_separated_rows_swallow_none():
    lines = ["text\tentities", '"open\t[]', "", "y", 'z"\t[]', '"Hello" he said\t[]', '"a ""b"" c"\t[]', '"end\t[]']
    *doubtful, hello, quoted, last = read_lines_of_csv("\n".join(lines) + "\n")
    assert [(one.reason, one.source) for one in doubtful] == [
        ("ambiguous_quotes", f"x.csv:{line}") for line in (2, 4, 5)
    ]
    assert [one.text for one in (hello, quoted, last)] == ['"Hello" he said', 'a "b" c', '"end']
    assert [one.source for one in (hello, quoted, last)] == [f"x.csv:{line}" for line in (6, 7, 8)]


def test_quoted_cell_that_could_be_rows_is_not_cut_into_records():
    *doubtful, last = read_lines_of_csv('id\ttext\n1\t"Name: Ada\nCity:\tOslo"\n2\tb\n')
    assert [(one.reason, one.source) for one in doubtful] == [("ambiguous_quotes", f"x.csv:{line}") for line in (2, 3)]
    assert "lines 2 to 3" in doubtful[0].detail
    assert (last.doc_id, last.text) == ("2", "b")


def test_cells_of_tab_separated_rows_may_hold_line_ends():
    one, two = read_lines_of_csv('text\tid\n"a\nb"\t1\nc\t"2\n"\n')
    assert [(item.text, item.doc_id) for item in (one, two)] == [("a\nb", "1"), ("c", "2\n")]


def test_csv_header_is_the_first_line_that_holds_anything():
    one, bad, two = read_lines_of_csv('\n \r\nid,text\n1,a\n2,"b"b\n3,c\n')
    assert [(item.doc_id, item.source) for item in (one, two)] == [("1", "x.csv:4"), ("3", "x.csv:6")]
    assert (bad.source, bad.reason) == ("x.csv:5", "broken_csv")
    assert "lines 5 to 5" in bad.detail
    assert read_lines_of_csv("\n\n") == []


@pytest.mark.parametrize("options", [{}, {"delimiter": "comma"}])
def test_csv_with_cr_line_ends_is_refused_with_a_remedy(options):
    with pytest.raises(CorpusError, match="the header of the table cannot be read") as caught:
        list(read_csv(["\n", "id,text\r1,a\r2,b\r"], "x.csv", FormatOptions(**options)))
    assert caught.value.where == "x.csv:2"
    assert "tr '\\r' '\\n'" in caught.value.remedy


def test_csv_cells_may_be_long():
    (record,) = read_lines_of_csv("text\n" + "a" * 300_000)
    assert len(record.text) == 300_000


@pytest.mark.parametrize(
    ("header", "options", "told"),
    [
        ("sentence,label", {}, "`sentence`, `label`"),
        ("text,label", {"text_column": "body"}, "`body`"),
        ("text,label", {"spans_column": "gold"}, "there is no column `gold`"),
        ("text,label", {"id_column": "key"}, "there is no column `key`"),
        ("text,text,label", {}, "two columns are called `text`"),
    ],
)
def test_missing_and_repeated_columns_are_refused_with_those_there_are(header, options, told):
    with pytest.raises(CorpusError) as caught:
        read_lines_of_csv(f"{header}\na,b\n", **options)
    assert told in str(caught.value)
    assert "`label`" in str(caught.value)


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")), min_size=1, max_size=4))
def test_csv_round_trip(texts):
    file = io.StringIO(newline="")
    writer = csv.writer(file, quoting=csv.QUOTE_ALL)
    writer.writerows([["text"], *([text] for text in texts)])
    lines = [line + "\n" for line in file.getvalue().split("\n")][:-1]
    assert [record.text for record in read_csv(lines, "x")] == texts


def test_parquet_is_read_row_by_row(tmp_path):
    path = str(tmp_path / "a.parquet")
    pq.write_table(pa.Table.from_pylist(ROWS), path, row_group_size=1)
    check_rows(list(read_records(path)), path)


def test_parquet_of_our_own_records_reads_back(tmp_path):
    path = str(tmp_path / "a.parquet")
    records = [
        Record("x:1", "d", "x:1", text="in Utrecht", spans=[Span(3, 10, "LOC")]),
        Record("x:2", "d", "x:2", words=["a"], tags=["O"]),
        Record("x:3", "d", "x:3", text=""),
    ]
    pq.write_table(to_table(records), path)
    found = list(read_records(path))
    assert [(r.doc_id, r.text, r.words, r.tags, r.spans) for r in found] == [
        (r.doc_id, r.text, r.words, r.tags, r.spans) for r in records
    ]


def test_parquet_without_rows_is_no_mistake(tmp_path):
    path = str(tmp_path / "a.parquet")
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), path)
    assert list(read_records(path)) == []


def test_damaged_parquet_is_refused(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.Table.from_pylist(ROWS), path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(CorpusError, match="Parquet file is damaged"):
        list(read_records(str(path)))


def test_parquet_with_bytes_that_are_not_utf8_is_refused(tmp_path):
    path = str(tmp_path / "a.parquet")
    bad = pa.Array.from_buffers(pa.string(), 1, [None, pa.py_buffer(b"\0\0\0\0\2\0\0\0"), pa.py_buffer(b"\xff\xfe")])
    pq.write_table(pa.table({"text": bad}), path)
    with pytest.raises(CorpusError, match="UTF-8"):
        list(read_records(path))


def test_parquet_written_by_datasets_brings_its_tag_names(tmp_path):
    path = str(tmp_path / "a.parquet")
    datasets.Dataset.from_dict(TAGGED, features=datasets.Features(FEATURES)).to_parquet(path)
    check_tagged(list(read_records(path)))


def test_arrow_tables_and_batches_and_frames():
    table = pa.Table.from_pylist(ROWS)
    check_rows(list(read_table(table, "t")), "t")
    check_rows(list(read_table(table.to_batches()[0], "t")), "t")
    check_rows(list(read_table(pd.DataFrame(ROWS), "t")), "t")
    check_rows(list(read_table(table.to_pandas(), "t")), "t")


def test_frames_hold_mixed_lists_and_missing_values():
    frame = pd.DataFrame({"text": ["in Utrecht", float("nan"), pd.NA], "label": [[[3, 10, "LOC"]], None, None]})
    one, *bad = read_table(frame, "t")
    assert one.spans == [Span(3, 10, "LOC")]
    assert [(entry.reason, entry.source) for entry in bad] == [("no_text", "t:2"), ("no_text", "t:3")]


def test_label_names_of_the_options_go_before_those_of_the_data():
    dataset = datasets.Dataset.from_dict(TAGGED, features=datasets.Features(FEATURES))
    check_tagged(list(read_table(dataset, "t")))
    records = list(read_table(dataset, "t", FormatOptions(label_names=("O", "B-X"))))
    assert records[0].tags == ["B-X", "O"]


def test_dataset_folders_are_found_and_read(tmp_path):
    dataset = datasets.Dataset.from_dict(TAGGED, features=datasets.Features(FEATURES))
    dataset.save_to_disk(str(tmp_path / "one"))
    assert find_files([str(tmp_path)]) == [str(tmp_path / "one")]
    check_tagged(list(read_records(str(tmp_path / "one"))))


def test_a_dataset_of_several_splits_is_refused_with_their_names(tmp_path):
    dataset = datasets.Dataset.from_dict(TAGGED, features=datasets.Features(FEATURES))
    datasets.DatasetDict(train=dataset, test=dataset).save_to_disk(str(tmp_path / "two"))
    with pytest.raises(CorpusError) as caught:
        list(read_records(str(tmp_path / "two")))
    assert "train, test" in str(caught.value)
    assert str(tmp_path / "two" / "train") in str(caught.value)
    check_tagged(list(read_records(str(tmp_path / "two" / "train"))))
    datasets.DatasetDict(train=dataset).save_to_disk(str(tmp_path / "single"))
    check_tagged(list(read_records(str(tmp_path / "single"))))


def test_a_damaged_dataset_folder_is_refused(tmp_path):
    (tmp_path / "state.json").write_text(json.dumps({}))
    with pytest.raises(CorpusError, match="cannot be loaded"):
        list(read_records(str(tmp_path)))


@pytest.mark.parametrize(
    ("path", "parts"),
    [
        ("hf:conll2003", ("conll2003", None, None)),
        ("hf:a/b:test", ("a/b", None, "test")),
        ("hf:a/b:train[:10%]", ("a/b", None, "train[:10%]")),
        ("hf:a/b:en", ("a/b", "en", None)),
        ("hf:a/b:en:dev", ("a/b", "en", "dev")),
        ("hf:a/b:en:", ("a/b", "en", None)),
    ],
)
def test_hub_ids_have_a_name_a_config_and_a_split(path, parts):
    assert split_id(path) == parts
    assert find_files([path]) == [path]
