"""Records to pieces and spans: gold is never lost, whatever the words, and comes back from tags as it went in."""

import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipelines.corpus.reading import RAW_SCHEMA, finish_records
from pipelines.corpus.records import RECORD_SCHEMA, Record, to_table
from pipelines.corpus.windows import WINDOW_TYPE, EncodeRecords, split_record
from pipelines.ner.casing import CASE_STEP
from pipelines.ner.entities import Span
from pipelines.ner.labels import LabelScheme, read_spans, read_strict_spans
from pipelines.ner.words import SPLITTERS

LABELS = ["LOC", "PER"]
TEXTS = st.text(
    st.sampled_from("abcXYZ09 .,-'’@#/:\n\t\r\u3000\u200b中国東京กขé\u0301\u0600\u202e👩\u200d🚀🇳🇱العربית")
    | st.characters(exclude_categories=["Cs"]),
    max_size=60,
)
every_splitter = pytest.mark.parametrize("splitter", SPLITTERS)


def to_rows(spans):
    return [{"start": span.start, "end": span.end, "label": span.label} for span in spans]


@st.composite
def texts_with_gold(draw):
    """A text with spans as the readers give them: apart, in order, without space at the edges."""
    text = draw(TEXTS)
    edges = sorted(draw(st.sets(st.integers(0, len(text)), max_size=12)))
    spans = []
    for start, end in zip(edges[::2], edges[1::2], strict=False):
        surface = text[start:end]
        start, end = end - len(surface.lstrip()), start + len(surface.rstrip())
        if start < end:
            spans.append(Span(start, end, draw(st.sampled_from(LABELS))))
    return text, spans


@st.composite
def words_with_gold(draw):
    odd = st.sampled_from(["", "北京大学", "Anglo-French", "U.S.", "x" * 250])
    words = draw(st.lists(TEXTS.filter(bool) | odd, max_size=10))
    edges = sorted(draw(st.sets(st.integers(0, len(words)), max_size=8)))
    labels = st.sampled_from(LABELS)
    return words, [Span(start, end, draw(labels)) for start, end in zip(edges[::2], edges[1::2], strict=False)]


@every_splitter
@given(texts_with_gold())
@example(("Paris-based", [Span(0, 5, "LOC")]))
@example(("\u0600 ab\u0600", [Span(0, 1, "LOC"), Span(2, 3, "PER"), Span(3, 5, "PER")]))
@settings(max_examples=50, deadline=None)
def test_split_record_keeps_every_entity_of_a_text_exactly(splitter, record):
    text, gold = record
    pieces, spans = split_record(text, None, to_rows(gold), splitter)
    assert [span.label for span in spans] == [span.label for span in gold]
    place, ranges = 0, []
    for piece in pieces:
        place = text.index(piece, place)
        ranges.append((place, place + len(piece)))
        place += len(piece)
    edges = [(ranges[span.start][0], ranges[span.end - 1][1]) for span in spans]
    assert edges == [(span.start, span.end) for span in gold]
    assert remove_space("".join(pieces)) == remove_space(text)


def remove_space(text):
    return "".join(text.split())


@every_splitter
@given(words_with_gold())
@settings(max_examples=30, deadline=None)
def test_split_record_keeps_every_entity_of_words_exactly(splitter, record):
    words, gold = record
    pieces, spans = split_record(None, words, to_rows(gold), splitter)
    assert [span.label for span in spans] == [span.label for span in gold]
    for span, wanted in zip(spans, gold, strict=True):
        found = remove_space("".join(pieces[span.start : span.end]))
        assert found == remove_space("".join(words[wanted.start : wanted.end]))
        assert span.start < span.end


@pytest.mark.parametrize("scheme", ["BIO", "IOB1", "BIOES", "BILOU", "BMES"])
@given(texts_with_gold())
@settings(max_examples=30, deadline=None)
def test_spans_of_pieces_come_back_from_their_tags(scheme, record):
    pieces, spans = split_record(record[0], None, to_rows(record[1]), "punctuation")
    labels = LabelScheme.from_labels(LABELS, scheme)
    tag_ids = labels.to_tag_ids(spans, len(pieces))
    tags = [labels.tags[index] for index in tag_ids]
    assert read_spans(tags, scheme) == spans
    assert read_strict_spans(tags, scheme) == spans


@pytest.mark.parametrize(
    ("text", "gold", "pieces", "spans"),
    [
        ("Londoners cheer", [Span(0, 6, "LOC")], ["London", "ers", "cheer"], [Span(0, 1, "LOC")]),
        ("ex-UK firm", [Span(3, 5, "LOC")], ["ex", "-", "UK", "firm"], [Span(2, 3, "LOC")]),
        (
            "abcdef",
            [Span(1, 3, "LOC"), Span(3, 5, "PER")],
            ["a", "bc", "de", "f"],
            [Span(1, 2, "LOC"), Span(2, 3, "PER")],
        ),
        ("在北京大学。", [Span(1, 3, "LOC")], list("在北京大学。"), [Span(1, 3, "LOC")]),
        ("no gold here", [], ["no", "gold", "here"], []),
        ("", [], [], []),
    ],
)
def test_gold_that_does_not_meet_the_edges_of_words_splits_the_words(text, gold, pieces, spans):
    assert split_record(text, None, to_rows(gold), "punctuation") == (pieces, spans)


@pytest.mark.parametrize(
    ("words", "gold", "splitter", "pieces", "spans"),
    [
        (["In", "北京", "now"], [Span(1, 2, "LOC")], "unicode", ["In", "北", "京", "now"], [Span(1, 3, "LOC")]),
        (["Anglo-French", "talks"], [Span(0, 1, "LOC")], "unicode", ["Anglo-French", "talks"], [Span(0, 1, "LOC")]),
        (["Anglo-French", "x"], [Span(1, 2, "LOC")], "punctuation", ["Anglo", "-", "French", "x"], [Span(3, 4, "LOC")]),
        (["a", " ", "b"], [Span(1, 3, "PER")], "unicode", ["a", " ", "b"], [Span(1, 3, "PER")]),
        (["x" * 150, "y"], [Span(1, 2, "PER")], "whitespace", ["x" * 100, "x" * 50, "y"], [Span(2, 3, "PER")]),
        ([], [], "unicode", [], []),
    ],
)
def test_words_that_raw_text_would_not_have_are_split_and_spans_follow(words, gold, splitter, pieces, spans):
    assert split_record(None, words, to_rows(gold), splitter) == (pieces, spans)


def encode(encoder, records, *, window=16, stride=4, corpus_scheme="BIO", splits=None, casing=False):
    table = to_table(records).append_column("split", pa.array(splits or ["train"] * len(records)))
    scheme = LabelScheme.from_labels(LABELS, "BIO")
    room = EncodeRecords(encoder, window, stride, "punctuation", casing, scheme, corpus_scheme)
    return room, room(table)


def test_windows_of_a_long_record_hold_each_word_and_tag_once_in_order(tiny_encoder):
    text = "Angela met Bo in Utrecht. " * 12
    gold = [Span(at, at + 6, "PER") for at in range(0, len(text), 26)]
    gold += [Span(at + 17, at + 24, "LOC") for at in range(0, len(text), 26)]
    gold.sort()
    room, table = encode(tiny_encoder, [Record("r:1", "d", "r:1", text=text, spans=gold)])
    windows = table["windows"].to_pylist()[0]
    pieces, spans = split_record(text, None, to_rows(gold), "punctuation")
    assert len(windows) > 5
    assert [window["starts_document"] for window in windows] == [True] + [False] * (len(windows) - 1)
    assert [window["ends_document"] for window in windows] == [False] * (len(windows) - 1) + [True]
    assert all(len(window["input_ids"]) <= 16 for window in windows)
    assert all(len(window["tag_ids"]) == len(window["word_starts"]) for window in windows)
    tags = [room.scheme.tags[tag] for window in windows for tag in window["tag_ids"]]
    assert len(tags) == len(pieces)
    assert read_spans(tags, "BIO") == spans
    assert table["num_tokens"].to_pylist() == [room.encoder.count_tokens(pieces)]
    assert table.schema.field("windows").type == pa.list_(WINDOW_TYPE)


def test_only_training_records_are_encoded_and_all_are_counted(tiny_encoder):
    records = [Record(f"r:{index}", "d", "r", words=["Bo", "left"], tags=["B-PER", "O"]) for index in range(3)]
    _, table = encode(tiny_encoder, records, splits=["train", "dev", "test"])
    assert [windows is None for windows in table["windows"].to_pylist()] == [False, True, True]
    assert len(set(table["num_tokens"].to_pylist())) == 1
    assert table["spans"].to_pylist() == [[{"start": 0, "end": 1, "label": "PER"}]] * 3


def test_record_without_any_word_has_no_window(tiny_encoder):
    _, table = encode(tiny_encoder, [Record("r:1", "d", "r:1", text=" \n ", spans=[])])
    assert table["windows"].to_pylist() == [[]]
    assert table["num_tokens"].to_pylist() == [0]


@pytest.mark.parametrize(
    ("tags", "scheme", "spans", "illegal"),
    [
        (["B-PER", "I-PER", "O"], "BIO", [Span(0, 2, "PER")], 0),
        (["O", "I-PER", "I-LOC"], "BIO", [Span(1, 2, "PER"), Span(2, 3, "LOC")], 2),
        (["S-PER", "B-LOC", "E-LOC"], "BIOES", [Span(0, 1, "PER"), Span(1, 3, "LOC")], 0),
    ],
)
def test_finish_records_reads_tags_and_counts_those_that_may_not_stand_there(tags, scheme, spans, illegal):
    words = [f"w{index}" for index in range(len(tags))]
    table = finish_records(to_table([Record("r:1", "d", "r:1", words=words, tags=tags)]), scheme)
    assert table["spans"].to_pylist() == [to_rows(spans)]
    assert table["num_illegal_tags"].to_pylist() == [illegal]


def test_finish_records_leaves_spans_of_texts_as_they_are():
    record = Record("r:1", "d", "r:1", text="Bo left", spans=[Span(0, 2, "PER")])
    table = finish_records(to_table([record]), "BIO")
    assert table["spans"].to_pylist() == [to_rows(record.spans)]
    assert table.select(RECORD_SCHEMA.names).schema == RECORD_SCHEMA
    assert set(RECORD_SCHEMA.names) < set(RAW_SCHEMA.names)


def test_ids_of_training_windows_carry_case_where_the_encoder_learns_it(tiny_encoder):
    records = [Record("r:1", "d", "r:1", text="Bo met BO", spans=[])]
    (_, plain), (_, cased) = (encode(tiny_encoder, records, casing=casing) for casing in (False, True))
    [before], [after] = (table["windows"].to_pylist()[0] for table in (plain, cased))
    assert [found % CASE_STEP for found in after["input_ids"]] == before["input_ids"]
    assert [after["input_ids"][at] // CASE_STEP for at in after["word_starts"]] == [1, 0, 2]


@every_splitter
def test_a_mask_token_stays_whole_where_one_is_given(splitter):
    spans = [{"start": 0, "end": 10, "label": "PER"}, {"start": 11, "end": 21, "label": "LOC"}]
    pieces, found = split_record("Ada [MASK],[MASK]Bern [MASK]", None, spans, splitter, "[MASK]")
    assert pieces == ["Ada", "[MASK]", ",", "[MASK]", "Bern", "[MASK]"]
    assert found == [Span(0, 2, "PER"), Span(3, 5, "LOC")]
    gold = [{"start": 1, "end": 2, "label": "PER"}]
    assert split_record(None, ["a", "[MASK]"], gold, splitter, "[MASK]") == (["a", "[MASK]"], [Span(1, 2, "PER")])


def test_a_mask_token_in_which_gold_ends_is_no_mask():
    spans = [{"start": 0, "end": 3, "label": "PER"}]
    assert split_record("[MASK] [MASK]", None, spans, "punctuation", "[MASK]") == (
        ["[", "MA", "SK", "]", "[MASK]"],
        [Span(0, 2, "PER")],
    )


def test_masks_of_siblings_are_one_token_without_a_case(tiny_encoder):
    rows = [
        {"split": "augmented", "technique": kind} | {"text": "ADA [MASK]", "spans": []} for kind in ("masking", "x")
    ]
    schema = pa.schema([*RAW_SCHEMA, ("technique", pa.string())])
    room = EncodeRecords(tiny_encoder, 16, 4, "punctuation", True, LabelScheme.from_labels(LABELS), "BIO")
    masked, other = room(pa.Table.from_pylist(rows, schema=schema))["windows"].to_pylist()
    mask_id = room.encoder.tokenizer.mask_token_id
    assert masked[0]["input_ids"][-2] == mask_id
    assert [len(one[0]["tag_ids"]) for one in (masked, other)] == [2, 4]
    assert not any(token % CASE_STEP == mask_id for token in other[0]["input_ids"])
    assert masked[0]["input_ids"][1] >= CASE_STEP  # the other word keeps its capitals
