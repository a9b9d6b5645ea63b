"""JSON lines and JSON lists: broken lines are counted, broken files refused."""

import json

import pytest

from pipelines.corpus.formats.jsonl import detect_json, read_json, read_jsonl
from pipelines.corpus.records import CorpusError
from pipelines.ner.entities import Span


def test_broken_lines_are_rejected_with_their_number_and_the_rest_is_read():
    lines = ['{"text": "a"}', '{"text": "b', "", "nonsense", '{"text": "c"}', "[" * 100_000]
    one, broken, nonsense, two, deep = read_jsonl(lines, "x.jsonl")
    assert (one.record_id, two.record_id) == ("x.jsonl:1", "x.jsonl:5")
    assert [entry.source for entry in (broken, nonsense, deep)] == ["x.jsonl:2", "x.jsonl:4", "x.jsonl:6"]
    assert {entry.reason for entry in (broken, nonsense, deep)} == {"broken_json"}
    assert '`{"text": "b`' in broken.detail


def test_a_line_may_be_a_spacy_pair():
    (record,) = read_jsonl(['["in Utrecht", {"entities": [[3, 10, "LOC"]]}]'], "x.jsonl")
    assert (record.text, record.spans) == ("in Utrecht", [Span(3, 10, "LOC")])


@pytest.mark.parametrize("indent", [None, 0, 2])
def test_one_list_is_read_with_the_position_of_each_item(indent):
    text = json.dumps([{"text": "a"}, {"text": 5}, ["b", {"entities": []}]], indent=indent)
    one, bad, two = read_json(text, "x.json")
    assert (one.record_id, bad.source, two.record_id) == ("x.json:1", "x.json:2", "x.json:3")
    assert (one.text, bad.reason, two.text) == ("a", "bad_text", "b")


def test_broken_json_is_refused_with_its_line():
    with pytest.raises(CorpusError) as caught:
        list(read_json('[\n{"text": "a"},\n{"text": }\n]', "x.json"))
    assert "x.json:3" in str(caught.value)
    assert "not valid JSON" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ('{"text": "a"}\n{"text": "b"}', "jsonl"),
        ('{"text": "a\n{"text": "b"}', "jsonl"),
        ('["a", {"entities": []}]\n["b", {"entities": []}]', "jsonl"),
        ('["a", {"ent\n["b", {"entities": []}]', "jsonl"),
        ('[{"text": "a"}]', "json"),
        ('[["a", {"entities": []}]]', "json"),
        ("[]", "json"),
        ('\n[\n{"text": "a"}]', "json"),
        ('[{"text": "a"},\n{"text": "b"}]', "json"),
        ('{\n"text": "a"}', "json"),
        ("", "jsonl"),
    ],
)
def test_detect_json_tells_a_list_from_lines(text, kind):
    assert detect_json(text.split("\n")) == kind
