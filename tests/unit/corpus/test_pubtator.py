"""PubTator: titles and abstracts, offsets across both, relations passed over; what does not fit is told."""

import pytest

from pipelines.corpus.formats.files import FormatOptions, read_records
from pipelines.corpus.formats.pubtator import looks_like_pubtator, read_pubtator
from pipelines.ner.entities import Span

FIRST = [
    "10021369|t|Gout and the APC gene.",
    "10021369|a|The Wnt-1 proto-oncogene causes gout.",
    "10021369\t0\t4\tGout\tDisease\tD006073",
    "10021369\t13\t16\tAPC\tGene\t324",
    "10021369\t55\t59\tgout\tDisease\tD006073",
    "10021369\tCID\tD006073\tD000001",
]
SECOND = ["7|t|Nothing", "7|a|"]


def read(*lines, **options):
    return list(read_pubtator(lines, "a.pubtator", FormatOptions(**options)))


@pytest.mark.parametrize("gap", [[""], ["", " "], []])
def test_documents_are_title_and_abstract_with_offsets_across_both(gap):
    one, two = read(*FIRST, *gap, *SECOND)
    assert one.text == "Gout and the APC gene. The Wnt-1 proto-oncogene causes gout."
    assert one.spans == [Span(0, 4, "Disease"), Span(13, 16, "Gene"), Span(55, 59, "Disease")]
    assert (one.doc_id, one.source, one.record_id) == ("10021369", "a.pubtator:1", "a.pubtator:1")
    assert (two.text, two.spans, two.doc_id) == ("Nothing ", [], "7")
    assert two.source == f"a.pubtator:{7 + len(gap)}"


def test_document_may_have_a_title_alone():
    [record] = read(*FIRST[:1], *FIRST[2:4])
    assert (record.text, len(record.spans)) == ("Gout and the APC gene.", 2)


@pytest.mark.parametrize(
    ("lines", "reason", "told"),
    [
        (FIRST[2:3], "no_text", "`|t|`"),
        ([*FIRST[:2], "10021369|a|More."], "bad_document", "a second `|a|`"),
        ([*FIRST[:2], "8\t0\t4\tGout\tDisease\tD1"], "bad_document", "10021369, 8"),
        ([*FIRST[:2], "10021369\t0\t4"], "bad_annotation", "10021369"),
        ([*FIRST[:2], "10021369\t0\tx\tGout\tDisease"], "bad_annotation", "Gout"),
        ([*FIRST[:2], "what is this"], "bad_annotation", "what is this"),
        ([*FIRST[:2], "10021369\t0\t4\tFlu\tDisease"], "span_text_differs", "'Flu' but the text there is 'Gout'"),
        ([*FIRST[:3], "10021369\t0\t8\tGout and\tGene"], "overlapping_spans", "`Disease` 0..4"),
        ([*FIRST[:2], "10021369\t0\t999\tGout\tDisease"], "span_outside_text", "0..999"),
        ([*FIRST[:2], "10021369\t0\t4\tGout\t "], "empty_label", "0..4"),
        ([*FIRST[:2], "10021369\t0,9\t4,12\tGout\tDisease"], "bad_annotation", "0,9"),
        ([*FIRST[:2], "10021369\t-1\t4\tGout\tDisease"], "bad_annotation", "-1"),
        ([*FIRST[:2], "10021369\t\t4\tGout\tDisease"], "bad_annotation", "Gout"),
        ([*FIRST[:2], f"10021369\t0\t{'4' * 5000}\tGout\tDisease"], "bad_annotation", "444"),
    ],
)
def test_what_does_not_fit_rejects_its_document_alone(lines, reason, told):
    entry, record = read(*lines, "", *SECOND)
    assert (entry.outcome, entry.reason, entry.source) == ("rejected", reason, "a.pubtator:1")
    assert told in entry.detail
    assert record.doc_id == "7"


def test_gold_is_not_looked_at_where_none_is_wanted():
    for line in ("10021369\t0\t4\tFlu\tDisease", "10021369\t0\t4"):
        [record] = read(*FIRST[:2], line, spans_column="none")
        assert record.spans is None


def test_prose_with_bars_is_no_document():
    assert looks_like_pubtator("10021369|t|Gout")
    assert not looks_like_pubtator("if a|t|b then")


def test_line_that_is_not_text_rejects_its_document_alone_on_request(tmp_path):
    path = tmp_path / "a.pubtator"
    path.write_bytes(b"1|t|caf\xe9\n\n" + "\n".join(SECOND).encode())
    entry, record = read_records(str(path), FormatOptions(bad_encoding="reject_record"))
    assert (entry.reason, entry.source, record.doc_id) == ("invalid_utf8", f"{path}:1", "7")
