"""Rows of every annotation tool: the same spans, exact offsets, bad rows refused with reason and value."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.corpus.formats.files import FormatOptions
from pipelines.corpus.formats.jsonl import read_jsonl
from pipelines.corpus.formats.rows import RowError, read_row, to_record
from pipelines.corpus.ledger import Ledger
from pipelines.ner.entities import Span

TEXT = "Angela Merkel visited Utrecht."
SPANS = [Span(0, 13, "PER"), Span(22, 29, "LOC")]


def read(row, **options):
    return to_record(row, "a.jsonl:1", FormatOptions(**options))


def read_record(row, **options):
    record, repairs = read(row, **options)
    assert repairs == []
    return record


def read_error(row, **options):
    with pytest.raises(RowError) as caught:
        read(row, **options)
    return caught.value


@pytest.mark.parametrize(
    "row",
    [
        {"text": TEXT, "entities": [[0, 13, "PER"], [22, 29, "LOC"]]},
        {"text": TEXT, "label": [[22, 29, "LOC"], [0, 13, "PER"]]},
        {"text": TEXT, "labels": [(0, 13, "PER"), (22, 29, "LOC")]},
        {"text": TEXT, "spans": [{"start": 0, "end": 13, "label": "PER"}, {"start": 22, "end": 29, "type": "LOC"}]},
        {"text": TEXT, "entities": [{"start": 0, "end": 13, "entity": "PER"}, {"start": 22, "end": 29, "tag": "LOC"}]},
        {
            "text": TEXT,
            "entities": [
                {"id": 1, "label": "PER", "start_offset": 0, "end_offset": 13},
                {"id": 2, "label": "LOC", "start_offset": 22, "end_offset": 29},
            ],
            "relations": [],
        },
        [TEXT, {"entities": [(0, 13, "PER"), (22, 29, "LOC")]}],
        (TEXT, {"entities": [(0, 13, "PER"), (22, 29, "LOC")]}),
        {"text": TEXT, "tokens": [{"text": "Angela", "id": 0}], "spans": [[0, 13, "PER"], [22, 29, "LOC"]]},
        {
            "text": TEXT,
            "label": [{"start": 0, "end": 13, "labels": ["PER"]}, {"start": 22, "end": 29, "labels": ["LOC"]}],
        },
        {
            "data": {"text": TEXT},
            "annotations": [
                {"was_cancelled": True, "result": []},
                {
                    "result": [
                        {
                            "type": "labels",
                            "value": {"start": 0, "end": 13, "text": "Angela Merkel", "labels": ["PER"]},
                        },
                        {"type": "relation", "from_id": "a", "to_id": "b"},
                        {"type": "labels", "value": {"start": 22, "end": 29, "text": "Utrecht", "labels": ["LOC"]}},
                    ]
                },
            ],
        },
        {"text": TEXT, "entities": '[[0, 13, "PER"], [22, 29, "LOC"]]'},
        {"text": TEXT, "entities": "[(0, 13, 'PER'), (22, 29, 'LOC')]"},
        {"text": TEXT, "entities": np.array([[np.int64(0), 13, "PER"], [22, 29, "LOC"]], dtype=object)},
        {"text": TEXT, "entities": [{"start": np.int64(0), "end": 13, "label": "PER"}, [22, 29, "LOC"]]},
    ],
)
def test_spans_of_every_tool_are_the_same(row):
    record = read_record(row)
    assert (record.text, record.spans, record.words, record.tags) == (TEXT, SPANS, None, None)


@pytest.mark.parametrize(
    "row",
    [
        {"words": ["Angela", "smiles"], "tags": ["B-PER", "O"]},
        {"tokens": ["Angela", "smiles"], "ner_tags": ["B-PER", "O"]},
        {"tokens": ("Angela", "smiles"), "labels": ("B-PER", "O")},
        {"tokens": ["Angela", "smiles"], "ner_tags": [1, 0], "id": 4},
        {"tokens": np.array(["Angela", "smiles"]), "ner_tags": np.array([1, 0])},
        {"text": "Angela smiles", "tokens": ["Angela", "smiles"], "labels": ["B-PER", "O"]},
        {"tokens": '["Angela", "smiles"]', "ner_tags": "[1, 0]"},
        {"text": None, "words": ["Angela", "smiles"], "tags": ["B-PER", "O"], "spans": None},
    ],
)
def test_words_with_tags(row):
    record = read_record(row, label_names=("O", "B-PER"))
    assert (list(record.words), list(record.tags)) == (["Angela", "smiles"], ["B-PER", "O"])
    assert (record.text, record.spans) == (None, None)


def test_spans_of_words_are_half_open():
    assert read_record({"words": ["Angela", "Merkel"], "spans": [[0, 2, "PER"]]}).spans == [Span(0, 2, "PER")]
    assert read_error({"words": ["Angela", "Merkel"], "spans": [[0, 3, "PER"]]}).reason == "span_outside_text"


def test_text_or_words_without_gold_have_no_spans():
    assert read_record({"text": TEXT}).spans is None
    assert read_record({"text": TEXT, "entities": None}).spans is None
    assert read_record({"text": TEXT, "entities": ""}).spans is None
    assert read_record({"text": TEXT, "entities": []}).spans == []
    assert read_record({"words": ["a"]}).tags is None
    assert read_record({"text": ""}).text == ""


def test_columns_by_option():
    row = {"body": TEXT, "gold": [[0, 13, "PER"]], "key": 7, "text": "other", "lang": "en"}
    options = {"text_column": "body", "spans_column": "gold", "id_column": "key", "extra_columns": ("lang", "absent")}
    record = read_record(row, **options)
    assert (record.text, record.spans, record.doc_id, record.extra) == (TEXT, SPANS[:1], "7", {"lang": "en"})


def test_column_none_reads_without_gold():
    assert read_record({"text": TEXT, "label": "sport"}, spans_column="none").spans is None
    assert read_record({"words": ["a"], "tags": [3]}, tags_column="none").tags is None


def test_answer_of_an_annotator_is_of_gold_alone():
    row = {"text": TEXT, "spans": [[0, 13, "PER"]]}
    assert read_record(row | {"answer": "accept"}).spans == SPANS[:1]
    assert read_record(row | {"answer": "reject"}, spans_column="none").text == TEXT
    assert read_record(row | {"answer": ["ignore"]}).spans == SPANS[:1]


def test_doc_id_is_a_column_or_the_source():
    assert read_record({"text": TEXT, "doc_id": "d1", "id": 2}).doc_id == "d1"
    assert read_record({"text": TEXT, "id": 2}).doc_id == "2"
    assert read_record({"text": TEXT, "id": None}).doc_id == "a.jsonl:1"
    record = read_record({"text": TEXT, "id": 2})
    assert (record.record_id, record.source) == ("a.jsonl:1", "a.jsonl:1")


def test_offsets_are_code_points():
    text = "👩‍👩‍👧 café in 東京 🇳🇱"
    start = text.index("東京")
    assert read_record({"text": text, "entities": [[start, start + 2, "LOC"]]}).spans == [Span(start, start + 2, "LOC")]


def test_a_mention_that_differs_shows_offsets_of_another_kind():
    row = {"text": "👍 Utrecht", "entities": [{"start": 3, "end": 10, "text": "Utrecht", "label": "LOC"}]}
    error = read_error(row)
    assert error.reason == "span_outside_text"
    row["text"] += "!"
    error = read_error(row)
    assert error.reason == "span_text_differs"
    assert "'Utrecht'" in error.detail
    assert "'trecht!'" in error.detail


def test_white_space_at_an_edge_is_trimmed_and_told():
    record, (entry,) = read({"text": "in  Utrecht\u00a0.", "entities": [[2, 12, "LOC"]]})
    assert record.spans == [Span(4, 11, "LOC")]
    assert (entry.outcome, entry.reason, entry.source) == ("repaired", "trimmed_span", "a.jsonl:1")
    assert "`LOC` 2..12" in entry.detail
    assert "4..11" in entry.detail


def test_duplicates_are_dropped_and_told_also_after_trimming():
    record, entries = read({"text": "Utrecht .", "entities": [[0, 7, "LOC"], [0, 7, "LOC"], [0, 8, "LOC"]]})
    assert record.spans == [Span(0, 7, "LOC")]
    assert [entry.reason for entry in entries] == ["trimmed_span", "duplicate_span", "duplicate_span"]


def test_touching_spans_do_not_overlap():
    assert len(read_record({"text": "東京大阪", "entities": [[2, 4, "LOC"], [0, 2, "LOC"]]}).spans) == 2


@pytest.mark.parametrize(
    "words", ["['EU' 'rejects' \"it's\"]", "['EU' 'rejects'\n \"it's\"]", "['EU', 'rejects', \"it's\"]"]
)
@pytest.mark.parametrize("tags", ["['B-ORG' 'O' 'O']", "[1 0\n 0]", "['B-ORG', 'O', 'O']"])
def test_lists_as_numpy_and_pandas_write_them_keep_their_words_apart(words, tags):
    record = read_record({"tokens": words, "ner_tags": tags}, label_names=("O", "B-ORG"))
    assert (record.words, record.tags) == (["EU", "rejects", "it's"], ["B-ORG", "O", "O"])


@pytest.mark.parametrize(
    "words", ["['EU', 'rejects' 'it']", "['EU''rejects']", "['EU' 'rejects' ... 'it']", "['EU' 'it')"]
)
def test_a_list_whose_words_python_would_join_is_refused(words):
    error = read_error({"tokens": words})
    assert (error.reason, words in error.detail or repr(words) in error.detail) == ("bad_words", True)


@pytest.mark.parametrize("options", [{}, {"spans_column": "none", "tags_column": "none"}])
def test_words_are_read_where_the_text_is_blank(options):
    assert read_record({"text": " ", "words": ["Angela", "Merkel"]}, **options).words == ["Angela", "Merkel"]
    assert read_record({"text": "", "words": []}, **options).text == ""
    assert read_record({"text": "", "words": ["Angela"]}, text_column="text").text == ""


def spans(*values):
    return {"text": TEXT, "entities": list(values)}


def label_studio(kind, start):
    value = {"start": start, "end": start, "startOffset": 0, "endOffset": 13, kind: ["PER"]}
    return {"data": {"text": TEXT}, "annotations": [{"result": [{"type": kind, "value": value}]}]}


@pytest.mark.parametrize(
    ("row", "reason", "told"),
    [
        (spans([0, 13, "PER"], [7, 21, "ORG"]), "overlapping_spans", "`PER` 0..13 and `ORG` 7..21"),
        (spans([0, 13, "PER"], [0, 13, "ORG"]), "overlapping_spans", "`ORG` 0..13 and `PER` 0..13"),
        (spans([22, 31, "LOC"]), "span_outside_text", "`LOC` 22..31 does not lie within the 30 characters"),
        (spans([-1, 3, "LOC"]), "span_outside_text", "-1..3"),
        (spans([5, 5, "LOC"]), "span_outside_text", "empty or runs backwards"),
        (spans([5, 2, "LOC"]), "span_outside_text", "empty or runs backwards"),
        (spans([0.0, 2, "LOC"]), "bad_offset", "not 0.0"),
        (spans(["0", "2", "LOC"]), "bad_offset", "not '0'"),
        (spans([False, True, "LOC"]), "bad_offset", "not False"),
        (spans({"start": 0, "label": "PER"}), "bad_offset", "not None"),
        (spans([0, 2, ""]), "empty_label", "0..2"),
        (spans([0, 2, " "]), "empty_label", "0..2"),
        (spans([0, 2, None]), "empty_label", "None"),
        (spans([0, 2, 7]), "empty_label", "7"),
        (spans([6, 7, "LOC"]), "blank_span", "' '"),
        (spans([0, 2]), "bad_spans", "[0, 2]"),
        (spans("PER"), "bad_spans", "'PER'"),
        ({"text": TEXT, "entities": {"PER": [[0, 2]]}}, "bad_spans", "`entities`"),
        ({"text": TEXT, "entities": "[[0, 2"}, "bad_spans", "JSON list"),
        ({"text": TEXT, "label": 3}, "bad_spans", "`label`, should be a list, not int 3"),
        ({"text": None}, "no_text", "the columns are `text`"),
        ({"txt": TEXT}, "no_text", "the columns are `txt`"),
        ({}, "no_text", "none of `text`, `words`, `tokens`"),
        ({"text": 5}, "bad_text", "int 5"),
        ({"text": ["a"]}, "bad_text", "list"),
        ({"text": "a\ud800b"}, "invalid_unicode", "U+D800 at character 1"),
        ({"text": TEXT, "entities": [[0, 2, "\udfff"]]}, "invalid_unicode", "a label"),
        ({"text": TEXT, "id": "\ud800"}, "invalid_unicode", "`id`"),
        ({"words": ["\ud800"], "tags": ["O"]}, "invalid_unicode", "`words`"),
        ({"words": ["a"], "tags": ["\ud800"]}, "invalid_unicode", "a tag"),
        ({"words": ["a", "b"], "tags": ["O"]}, "length_mismatch", "2 words under `words`, 1 tags in `tags`"),
        ({"words": "a b", "tags": ["O"]}, "bad_words", "'a b'"),
        ({"words": ["a", None], "tags": ["O", "O"]}, "bad_words", "NoneType"),
        ({"words": ["a", " "], "tags": ["O", "O"]}, "empty_word", "' '"),
        ({"words": ["a"], "tags": [""]}, "empty_tag", "''"),
        ({"words": ["a"], "tags": "O"}, "bad_tags", "'O'"),
        ({"words": ["a"], "tags": [1.5]}, "bad_tags", "1.5"),
        ({"words": ["a"], "tags": [True]}, "bad_tags", "True"),
        ({"words": ["a"], "tags": [1]}, "no_label_names", "set `label_names`"),
        ({"text": TEXT, "tags": ["O", "B-PER"]}, "tags_without_words", "`tags`"),
        ({"data": {"text": TEXT}, "annotations": [{"result": []}, {"result": []}]}, "several_annotations", "2"),
        (label_studio("hypertextlabels", "/p[1]/text()[1]"), "bad_offset", "'/p[1]/text()[1]'"),
        (label_studio("paragraphlabels", "0"), "bad_offset", "'0'"),
        (spans([0, 13, "PER"]) | {"answer": "reject"}, "not_accepted", "`reject`"),
        ({"text": TEXT, "answer": "ignore"}, "not_accepted", "`ignore`"),
        ("just text", "bad_row", "'just text'"),
        (None, "bad_row", "None"),
    ],
)
def test_bad_rows_are_refused_with_reason_and_value(row, reason, told):
    error = read_error(row)
    assert error.reason == reason
    assert told in error.detail


@pytest.mark.parametrize("number", [-100, -1, 2])
def test_a_tag_number_without_a_name_is_refused(number):
    error = read_error({"words": ["a"], "tags": [number]}, label_names=("O", "B-PER"))
    assert error.reason == "unknown_tag_id"
    assert f"the tag {number} has no name" in error.detail


def test_read_row_yields_repairs_before_the_record_and_rejections_alone():
    repair, record = read_row({"text": "a ", "entities": [[0, 2, "X"]]}, "x:1", FormatOptions())
    assert (repair.reason, record.spans) == ("trimmed_span", [Span(0, 1, "X")])
    (entry,) = read_row({"text": 1}, "x:2", FormatOptions())
    assert (entry.outcome, entry.reason, entry.source, entry.record_id) == ("rejected", "bad_text", "x:2", "x:2")


clean_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)


@st.composite
def texts_with_spans(draw):
    """A text of blocks with no white space at their edges, some of them labelled."""
    text, found = "", []
    for block, label in draw(st.lists(st.tuples(clean_text, st.sampled_from(["", "PER", "LOC"])), max_size=5)):
        if label and block.strip() == block and block:
            found.append(Span(len(text), len(text) + len(block), label))
        text += block
    return text, found


@given(texts_with_spans(), st.booleans())
def test_round_trip_of_text_through_jsonl(document, ascii_only):
    text, gold = document
    line = json.dumps({"text": text, "spans": [[s.start, s.end, s.label] for s in gold]}, ensure_ascii=ascii_only)
    (record,) = read_jsonl([line], "x")
    assert (record.text, record.spans) == (text, gold)


ODD_VALUES = [None, True, -1, 0, 1, 2, 2.5, float("nan"), "", " ", "a b", "O", "B-X", "[", "[[0, 1]]", "\ud800"]
json_values = st.recursive(
    st.sampled_from(ODD_VALUES),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["start", "end", "label", "text"]), inner)
    ),
    max_leaves=6,
)
COLUMNS = ["text", "entities", "label", "labels", "words", "tags", "ner_tags", "id", "data", "annotations", "\ud800"]


@given(st.dictionaries(st.sampled_from(COLUMNS), json_values, max_size=4))
def test_no_row_escapes_the_ledger(row):
    ledger = Ledger()
    for item in read_row(row, "x:1", FormatOptions(label_names=("O", "B-PER"))):
        ledger.add(item)
    assert ledger.counts().total == 1
    assert Ledger.from_table(ledger.to_table()) == ledger


def test_annotations_of_label_studio_are_nobodys_business_where_no_gold_is_wanted():
    task = {"id": 7, "data": {"text": TEXT}, "annotations": [{"result": []}, {"result": "broken"}]}
    record, entries = to_record(task, "a.json", FormatOptions(spans_column="none", tags_column="none"))
    assert (record.text, entries) == (TEXT, [])


@pytest.mark.parametrize(
    ("given", "kept", "dropped"),
    [
        ([[0, 13, "PER"], [7, 13, "ORG"]], [Span(0, 13, "PER")], ["`ORG` 7..13 was dropped: `PER` 0..13 is kept"]),
        ([[0, 13, "PER"], [0, 13, "ORG"]], [Span(0, 13, "ORG")], ["`PER` 0..13 was dropped: `ORG` 0..13 is kept"]),
        (  # the second is longer than those before and behind it
            [[0, 6, "A"], [3, 15, "B"], [14, 21, "C"], [22, 29, "LOC"]],
            [Span(3, 15, "B"), Span(22, 29, "LOC")],
            ["`C` 14..21 was dropped: `B` 3..15 is kept", "`A` 0..6 was dropped: `B` 3..15 is kept"],
        ),
        ([[0, 6, "A"], [6, 13, "B"]], [Span(0, 6, "A"), Span(6, 13, "B")], []),
    ],
)
def test_of_overlapping_spans_the_longest_are_kept_on_request(given, kept, dropped):
    text = "Angela-Merkel-visited Utrecht."
    record, repairs = read({"text": text, "entities": given}, overlapping_spans="keep_longest")
    assert record.spans == kept
    assert [(one.reason, one.detail) for one in repairs] == [("overlapping_spans", detail) for detail in dropped]
    words, _ = read({"words": list(text.replace(" ", "_")), "entities": given}, overlapping_spans="keep_longest")
    assert words.spans == kept


@given(st.lists(st.tuples(st.integers(0, 29), st.integers(1, 30)).map(sorted).filter(lambda one: one[0] < one[1])))
def test_longest_spans_never_overlap_and_leave_out_only_what_does(places):
    given = [[start, end, "X"] for start, end in places]
    record, _ = read({"words": ["w"] * 30, "entities": given}, overlapping_spans="keep_longest")
    taken = [place for span in record.spans for place in range(span.start, span.end)]
    assert len(taken) == len(set(taken))
    for start, end in places:
        around = [span for span in record.spans if span.start < end and start < span.end]
        assert any(span.end - span.start >= end - start for span in around)
