"""The report: counts of all, a fair sample of examples, and a page whose marks are exact and whose text is inert."""

import json
import pickle
import random
from html.parser import HTMLParser

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.evaluation.bootstrap import bootstrap_intervals
from pipelines.evaluation.examples import LONG_CHARACTERS, MAX_FINDINGS, Reservoir, cut_segments, make_example
from pipelines.evaluation.metrics import Scored, count, count_documents, scores
from pipelines.evaluation.rendering import describe_examples, render_html
from pipelines.evaluation.report import EvaluationReport
from pipelines.ner.entities import Span

ATTACK = "</div></script><script>alert(1)</script><img src=x onerror=alert(2)>'\"&amp;{{ 7*7 }}"
ALPHABET = ["a", " ", "\n", "\r\n", "\t", "<b>", "&amp;", "'", '"', "{{", "\u202e", "\x00"]
ALPHABET += ["é", "👩‍🚀", "🇳🇱", "שלום", "مرحبا", "漢字"]


class Page(HTMLParser):
    """What a browser would see: elements, and for each text block its marks as (start, end, title)."""

    VOID = ("meta", "circle", "rect", "line", "path", "br", "input", "link", "img")

    def __init__(self, html):
        super().__init__(convert_charrefs=True)
        self.elements, self.blocks, self.open, self.articles = [], [], [], []
        self.texts = {}
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.elements.append((tag, attributes))
        if tag == "article":
            self.articles.append({"findings": json.loads(attributes["data-findings"]), "blocks": []})
        if attributes.get("class") == "text":
            self.articles[-1]["blocks"].append({"text": "", "marks": []})
        if tag not in self.VOID:
            self.open.append((tag, attributes))

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open[-1][0] == tag
            self.open.pop()

    def handle_data(self, data):
        if self.open:
            self.texts[self.open[-1][0]] = self.texts.get(self.open[-1][0], "") + data
        if any(attributes.get("class") == "text" for _, attributes in self.open):
            block = self.articles[-1]["blocks"][-1]
            start = len(block["text"])
            block["text"] += data
            if self.open[-1][0] == "span":
                block["marks"].append((start, len(block["text"]), self.open[-1][1]["title"]))


def render(records, title="A report", facts=None, **options):
    report = EvaluationReport(**options)
    for scored in records:
        report.add(scored)
    examples = [*report.erroneous.get_records(), *report.correct.get_records()]
    return render_html(report.to_dict(), title, facts or {}, examples)


def cover(spans, side, length):
    """For every character, the titles' parts that should lie over it."""
    over = [set() for _ in range(length)]
    for span in spans:
        for index in range(span.start, span.end):
            over[index].add(f"{side} {span.label}" + (f" {span.score:.2f}" if side == "predicted" else ""))
    return over


@st.composite
def marked_texts(draw):
    text = "".join(draw(st.lists(st.sampled_from(ALPHABET), min_size=1, max_size=25)))

    def spans():
        cuts = sorted(draw(st.sets(st.integers(0, len(text)), max_size=8)))
        return [
            Span(a, b, draw(st.sampled_from(["PER", "LOC <x>", "O'Neill"])), draw(st.sampled_from([0.25, 0.5])))
            for a, b in zip(cuts[::2], cuts[1::2], strict=False)
        ]

    return text, spans(), spans()


@settings(max_examples=60, deadline=None)
@given(marked_texts())
def test_marks_on_the_page_reproduce_text_and_spans(case):
    text, gold, predicted = case
    html = render([Scored.from_text("d", "f:1", text, gold, predicted)], num_samples=10)
    page = Page(html)
    assert "\r" not in html  # a browser would read it as a line feed
    if not gold and not predicted:
        assert page.articles == []
        return
    (block,) = page.articles[0]["blocks"]
    assert block["text"] == text.replace("\x00", "␀")
    seen = [set() for _ in text]
    for start, end, title in block["marks"]:
        for index in range(start, end):
            seen[index] = set(title.split(" · "))
    expected = zip(cover(gold, "gold", len(text)), cover(predicted, "predicted", len(text)), strict=True)
    assert seen == [a | b for a, b in expected]


def test_segments_are_cut_at_every_edge_of_overlapping_marks():
    segments = cut_segments("abcdefgh", 0, 8, [Span(1, 5, "A")], [Span(3, 7, "B", 0.5)])
    assert [segment.text for segment in segments] == ["a", "bc", "de", "fg", "h"]
    assert [segment.title for segment in segments] == [
        "", "gold A", "gold A · predicted B 0.50", "predicted B 0.50", ""
    ]  # fmt: skip
    assert [segment.starts_predicted for segment in segments] == [False, False, True, False, False]
    assert [segment.starts_gold for segment in segments] == [False, True, False, False, False]
    assert [segment.ends_predicted for segment in segments] == [False, False, False, True, False]


def test_words_are_joined_and_marked_in_characters():
    words = ["👩‍🚀", "Angela", "Merkel", "!"]
    both = "gold PER · predicted PER 0.90"
    example = make_example(Scored("d", "f:1", [Span(1, 3, "PER")], [], [Span(2, 4, "PER", 0.9)], words=words))
    pieces = [(segment.text, segment.title) for segment in example.windows[0]]
    assert pieces == [("👩‍🚀 ", ""), ("Angela ", "gold PER"), ("Merkel", both), (" !", "predicted PER 0.90")]
    assert [(f.kind, f.gold_text, f.predicted_text) for f in example.findings] == [
        ("boundary", "Angela Merkel", "Merkel !")
    ]


def test_hostile_text_is_inert_everywhere():
    spans = [Span(0, 9, ATTACK)], [Span(4, 20, ATTACK + "2")]
    record = Scored.from_text(ATTACK, ATTACK + ":1", ATTACK, *spans)
    page = Page(render([record], title=ATTACK, facts={ATTACK: ATTACK, "group " + ATTACK: {ATTACK: ATTACK}}))
    tags = [tag for tag, _ in page.elements]
    assert tags.count("script") == 1
    assert "img" not in tags
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
    assert "".join(block["text"] for block in page.articles[0]["blocks"]) == ATTACK
    assert page.texts["h1"] == ATTACK
    assert page.articles[0]["findings"] == [["type+boundary", sorted({ATTACK, ATTACK + "2"})]]


def test_the_page_needs_nothing_from_outside():
    page = Page(render([Scored.from_text("d", "f:1", "ab", [Span(0, 1, "A")], [])]))
    links = [value for _, attributes in page.elements for name, value in attributes.items() if name in ("src", "href")]
    assert links
    assert all(link.startswith("#") for link in links)
    anchors = {attributes.get("id") for _, attributes in page.elements}
    assert {link[1:] for link in links} <= anchors
    assert "@import" not in page.texts["style"]
    assert "url(" not in page.texts["style"]


def test_a_long_document_is_shown_as_windows_around_its_errors():
    filler = "lorem ipsum " * 100
    text = f"{filler}Angela Merkel{filler}Utrecht{filler}"
    gold = [Span(text.index(name), text.index(name) + len(name), "X") for name in ("Angela Merkel", "Utrecht")]
    record = Scored.from_text("d", "f:1", text, gold, [])
    example = make_example(record)
    windows = ["".join(segment.text for segment in window) for window in example.windows]
    assert len(windows) == 2
    assert "Angela Merkel" in windows[0]
    assert "Utrecht" in windows[1]
    assert all(window in text and len(window) < 500 for window in windows)
    assert example.cut_before
    assert example.cut_after
    html = render([record])
    assert html.count('<p class="cut"') == 3


def test_windows_never_cut_a_mention():
    text = "x" * 1000
    gold = [Span(300, 310, "A"), Span(50, 290, "B"), Span(311, 700, "B")]
    predicted = [Span(50, 290, "B"), Span(311, 700, "B")]
    (window,) = make_example(Scored.from_text("d", "f:1", text, gold, predicted), context=20).windows
    assert "".join(segment.text for segment in window) == text[50:700]


def test_window_grows_over_staggered_mentions_but_not_without_end():
    text = "x" * 20_000
    gold, predicted = ([Span(at, at + 15, "A") for at in range(first, 19_980, 20)] for first in (0, 10))
    (window,) = make_example(Scored.from_text("d", "f:1", text, gold[:20], predicted[:20]), context=1).windows
    assert "".join(segment.text for segment in window) == text[: predicted[19].end + 1]
    (window,) = make_example(Scored.from_text("d", "f:1", text, gold, predicted), context=1).windows
    length = len("".join(segment.text for segment in window))
    assert predicted[MAX_FINDINGS - 1].end < length < predicted[MAX_FINDINGS - 1].end + LONG_CHARACTERS + 20


def test_a_record_shows_its_first_errors_and_counts_the_others():
    words = [f"w{number}" for number in range(400_000)]
    gold = [Span(at, at + 2, "PER") for at in range(0, 400_000, 200)]
    predicted = [Span(at + 1, at + 3, "PER", 0.5) for at in range(0, 400_000, 200)]
    scored = Scored("d", "f:1", gold, gold, predicted, words=words)
    example = make_example(scored)
    assert (len(example.findings), example.num_more) == (MAX_FINDINGS, 2000 - MAX_FINDINGS)
    assert len(example.windows) == MAX_FINDINGS
    assert example.cut_after
    html = render([scored], num_samples=10)
    assert "and 1\u202f950 more" in html
    assert len(html) < 200_000


def test_each_edge_is_looked_at_once_however_many_errors_a_window_has():
    looks = 0

    class Counted(Span):
        """A span that counts how often its end is asked for."""

        def __getattribute__(self, name):
            nonlocal looks
            looks += name == "end"
            return object.__getattribute__(self, name)

    gold = [Counted(at, at + 5, "A") for at in range(0, 20_000, 10)]
    segments = cut_segments("x" * 20_000, 0, 20_000, gold, [])
    assert [segment.starts_gold for segment in segments] == [True, False] * 2000
    assert looks < 20 * len(gold)


def test_a_very_long_mention_is_shown_at_its_edges():
    text = "before " * 100 + "x" * 3_000_000 + " after" * 100
    start, end = text.index("x"), text.rindex("x") + 1
    example = make_example(Scored.from_text("d", "f:1", text, [Span(start, end, "A")], []))
    (_, first), (last, _) = example.windows
    assert (first.starts_gold, last.starts_gold) == (True, False)
    assert first.title == last.title == "gold A"
    assert sum(len(segment.text) for window in example.windows for segment in window) < 1000
    assert len(example.findings[0].gold_text) < 400


def make_records(num_records, seed=0):
    rng = random.Random(seed)
    records = []
    for index in range(num_records):
        gold = [Span(0, 3, rng.choice("AB"))]
        predicted = rng.choice([gold, [], [Span(0, 2, "A")], [Span(0, 3, "B")]])
        records.append(Scored.from_text(f"doc{index // 3}", f"f.jsonl:{index}", f"abc def {index}", gold, predicted))
    return records


def fill(records, **options):
    report = EvaluationReport(**options)
    for scored in records:
        report.add(scored)
    return report


def test_merged_reports_equal_the_report_of_all(tmp_path):
    records, options = make_records(400), {"num_erroneous": 20, "num_correct": 5, "num_samples": 50}
    whole = fill(records, **options)
    merged = fill(records[::2][:50], **options)
    merged.merge(pickle.loads(pickle.dumps(fill(records[::2][50:], **options))))
    merged.merge(fill(records[1::2], **options))
    assert merged.to_dict() == whole.to_dict()
    paths, expected = merged.write(tmp_path / "a", "T", {}), whole.write(tmp_path / "b", "T", {})
    assert [paths[name].read_bytes() == expected[name].read_bytes() for name in paths] == [True, True, True]


def test_the_report_holds_scores_counts_and_intervals():
    records = make_records(60)
    result = fill(records, seen=lambda mention, label: label == "A").to_dict()
    assert {key: result[key] for key in ("strict", "lenient")} == {
        key: scores(count(records))[key] for key in ("strict", "lenient")
    }
    assert result["intervals"] == bootstrap_intervals(count_documents(records))
    assert (result["num_documents"], result["num_records"], result["num_gold"]) == (20, 60, 60)
    assert result["seen"]["support"] + result["unseen"]["support"] == 60
    assert result["examples"]["num_erroneous_records"] + result["examples"]["num_correct_records"] == 60


def test_the_sample_is_bounded_fair_and_ruled_by_the_seed():
    records = make_records(3000)
    samples = []
    for seed in (0, 1):
        reservoir = Reservoir(300, seed)
        for scored in records:
            reservoir.add(scored)
        samples.append([scored.source for scored in reservoir.get_records()])
        assert (len(reservoir), reservoir.total) == (300, 3000)
    assert samples[0] != samples[1]
    early = sum(int(source.split(":")[1]) < 1500 for source in samples[0])
    assert 110 < early < 190


def test_files_are_written_whole_and_readable(tmp_path):
    report = fill(make_records(30), num_samples=20)
    facts = {"model": "m|x", "device": {"cores": 2, "fast": True}, "seconds": 1.23456, "none": None}
    paths = report.write(tmp_path / "new" / "folder", "A title", facts, [("Curves", "<svg id='c'></svg>")])
    assert sorted(path.name for path in (tmp_path / "new" / "folder").iterdir()) == sorted(paths)
    plain = json.loads(paths["report.json"].read_text(encoding="utf-8"))
    assert plain["facts"] == facts
    assert plain["strict"] == json.loads(json.dumps(report.to_dict()["strict"]))
    text = paths["report.md"].read_text(encoding="utf-8")
    assert text.startswith("# A title\n")
    assert "| model | m\\|x |" in text
    assert "| boundary | right label, other edges |" in text
    page = Page(paths["report.html"].read_text(encoding="utf-8"))
    assert ("svg", {"id": "c"}) in page.elements
    assert len(page.articles) == 30


def test_a_failed_write_leaves_the_old_file_and_no_debris(tmp_path):
    report = fill(make_records(3), num_samples=20)
    report.write(tmp_path, "Old", {})
    before = (tmp_path / "report.html").read_bytes()
    (tmp_path / "report.md").unlink()
    (tmp_path / "report.md").mkdir()
    with pytest.raises(IsADirectoryError):
        report.write(tmp_path, "New", {})
    assert (tmp_path / "report.html").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "report.json", "report.md"]


def test_an_empty_report_can_be_written(tmp_path):
    paths = EvaluationReport().write(tmp_path, "Nothing", {})
    page = Page(paths["report.html"].read_text(encoding="utf-8"))
    assert page.articles == []
    assert json.loads(paths["report.json"].read_text())["strict"]["micro"]["f1"] == 0.0
    assert "0 records in 0 documents" in paths["report.md"].read_text(encoding="utf-8")


def test_a_lone_surrogate_does_not_stop_the_report(tmp_path):
    report = fill([Scored.from_text("d", "f:1", "a\ud800b", [Span(1, 2, "A")], [])])
    page = Page(report.write(tmp_path, "T", {})["report.html"].read_text(encoding="utf-8"))
    assert page.articles[0]["blocks"][0] == {"text": "a\ufffdb", "marks": [(1, 2, "gold A")]}


def test_illegal_gold_is_pointed_out():
    record = Scored.from_tags("d", "f:1", ["a", "b"], ["I-PER", "O"], "BIO", [Span(0, 1, "PER")])
    assert "1 gold mention of the corpus has tags that the label scheme forbids" in render([record])


def test_labels_that_no_gold_mention_has_are_named_in_page_and_text(tmp_path):
    predicted = [Span(0, 1, "PER"), Span(1, 2, "<MISC>"), Span(2, 3, "<MISC>")]
    report = fill([Scored.from_text("d", "f:1", "abc", [Span(0, 2, "PER")], predicted)], num_samples=10)
    paths = report.write(tmp_path, "T", {})
    assert "in no gold mention: <MISC> (2). All" in paths["report.md"].read_text(encoding="utf-8")
    assert "in no gold mention: &lt;MISC&gt; (2). All" in paths["report.html"].read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("numbers", "sentence"),
    [
        ((0, 0, 0, 0), "No record has an error."),
        ((1, 1, 0, 0), "The one record with errors."),
        ((57, 57, 3, 3), "All 57 records with errors, and all 3 records with mentions and no error."),
        (
            (3411, 200, 1812, 30),
            "A random 200 of 3\u202f411 records with errors, and a random 30 of 1\u202f812 records with mentions"
            " and no error.",
        ),
    ],
)
def test_a_sentence_says_how_many_examples_are_shown(numbers, sentence):
    names = ("num_erroneous_records", "num_erroneous_shown", "num_correct_records", "num_correct_shown")
    assert describe_examples(dict(zip(names, numbers, strict=True))) == sentence
