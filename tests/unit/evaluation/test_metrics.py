"""Counts and scores: equal to seqeval's, additive, and the error kinds by example."""

import itertools
import json
import random
import warnings
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from seqeval.metrics.sequence_labeling import precision_recall_fscore_support as default_scores
from seqeval.metrics.v1 import precision_recall_fscore_support as strict_scores
from seqeval.scheme import IOB1, IOB2, IOBES

from pipelines.evaluation.matching import _find_overlaps, match_spans
from pipelines.evaluation.metrics import Counts, Scored, count, count_documents, get_surface, scores
from pipelines.ner.entities import Span
from pipelines.ner.labels import SCHEMES, read_spans, write_tags

DATA = Path(__file__).parents[3] / ".." / "shared" / "data"
LABELS = ("LOC", "ORG", "PER")
SEQEVAL_SCHEMES = {"BIO": IOB2, "IOB1": IOB1, "BIOES": IOBES}


def draw_spans(draw, num_words):
    """Legal spans: a label, or none, for each piece of a random cut of the words."""
    cuts = sorted({0, num_words, *draw(st.lists(st.integers(0, num_words), max_size=8))})
    pieces = itertools.pairwise(cuts)
    return [
        Span(a, b, label, 0.5) for a, b in pieces if (label := draw(st.sampled_from((None, None, *LABELS)))) is not None
    ]


@st.composite
def corpora(draw, scheme, legal):
    """[(gold tags, predicted spans)]; the gold is any sequence of tags, or a legal one."""
    prefixes = SCHEMES[scheme]
    tag = st.sampled_from(["O", *(f"{prefix}-{label}" for prefix in prefixes for label in LABELS)])
    corpus = []
    for _ in range(draw(st.integers(1, 4))):
        num_words = draw(st.integers(1, 10))
        gold = (
            write_tags(draw_spans(draw, num_words), num_words, scheme)
            if legal
            else draw(st.lists(tag, min_size=num_words, max_size=num_words))
        )
        copied = draw(st.booleans())
        predicted = read_spans(gold, scheme) if copied else draw_spans(draw, num_words)
        corpus.append((gold, predicted[: draw(st.integers(0, 6))]))
    return corpus


def to_records(corpus, scheme):
    words = [f"w{index}" for index in range(max(len(tags) for tags, _ in corpus))]
    return [
        Scored.from_tags(f"doc{index}", f"x.conll:{index}", words[: len(tags)], tags, scheme, predicted)
        for index, (tags, predicted) in enumerate(corpus)
    ]


def assert_equals_seqeval(corpus, scheme):
    result = scores(count(to_records(corpus, scheme)))
    gold = [list(tags) for tags, _ in corpus]
    predicted = [write_tags(spans, len(tags), scheme) for tags, spans in corpus]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for reading, score in (
            ("strict", lambda **k: strict_scores(gold, predicted, scheme=SEQEVAL_SCHEMES[scheme], **k)),
            ("lenient", lambda **k: default_scores(gold, predicted, **k)),
        ):
            per_label = list(zip(*score(average=None), strict=True))
            ours = [tuple(row.values()) for _, row in sorted(result[reading]["labels"].items())]
            assert len(ours) == len(per_label)
            for row, expected in zip(ours, per_label, strict=True):
                assert row == pytest.approx(expected, abs=1e-12)
            micro = score(average="micro")
            assert tuple(result[reading]["micro"].values()) == pytest.approx(micro, abs=1e-12)
            if per_label:
                macro = score(average="macro")
                assert tuple(result[reading]["macro"].values()) == pytest.approx(macro, abs=1e-12)


@settings(max_examples=120, deadline=None)
@given(corpora("BIO", legal=False))
def test_scores_equal_seqeval_for_any_bio_gold(corpus):
    assert_equals_seqeval(corpus, "BIO")


@settings(max_examples=120, deadline=None)
@given(corpora("BIOES", legal=False))
def test_scores_equal_seqeval_for_any_bioes_gold(corpus):
    assert_equals_seqeval(corpus, "BIOES")


@settings(max_examples=120, deadline=None)
@given(corpora("IOB1", legal=True))
def test_scores_equal_seqeval_for_legal_iob1_gold(corpus):
    assert_equals_seqeval(corpus, "IOB1")


def read_corpus(path):
    """Tag sequences and words of a CoNLL or IOB2 file."""
    word_column, tag_column = (1, 2) if path.suffix == ".iob2" else (0, 1)
    words, tags = [], []
    for line in [*path.read_text(encoding="utf-8").splitlines(), ""]:
        if not line.strip():
            if tags:
                yield words, tags
            words, tags = [], []
        elif not (path.suffix == ".iob2" and line.startswith("#")):
            columns = line.split("\t")
            words.append(columns[word_column])
            tags.append(columns[tag_column])


def spoil(spans, num_words, rng, labels):
    """Predictions with every kind of error, still legal."""
    spoiled, free = [], 0
    for span in spans:
        start, end, label = span.start, span.end, span.label
        chance = rng.random()
        if chance < 0.1:
            continue
        if chance < 0.2:
            label = rng.choice(labels)
        if 0.15 < chance < 0.25:
            end = min(num_words, end + 1)
        if 0.25 < chance < 0.35:
            start = max(0, start - 1)
        start = max(start, free)
        if start < end:
            spoiled.append(Span(start, end, label, rng.random()))
            free = end
    if rng.random() < 0.1 and free < num_words:
        spoiled.append(Span(free, free + 1, rng.choice(labels), rng.random()))
    return spoiled


@pytest.mark.parametrize("name", ["wnut17/test.conll", "ncbi_disease/test.tsv", "zh_gsdsimp/test.iob2"])
def test_scores_equal_seqeval_on_real_corpora(name):
    path = DATA / name
    if not path.exists():
        pytest.skip(f"the corpus {path} is not on this machine")
    rng = random.Random(7)
    sequences = [tags for _, tags in read_corpus(path)]
    labels = sorted({span.label for tags in sequences for span in read_spans(tags)})
    corpus = [(tags, spoil(read_spans(tags), len(tags), rng, labels)) for tags in sequences]
    assert len(corpus) >= 500
    assert_equals_seqeval(corpus, "BIO")


def is_seen(mention, label):
    return mention == "w1" or label == "LOC"


@settings(max_examples=60, deadline=None)
@given(corpora("BIO", legal=False), st.data())
def test_counts_add_over_any_partition(corpus, data):
    records = to_records(corpus, "BIO")
    block = data.draw(st.lists(st.integers(0, 2), min_size=len(records), max_size=len(records)))
    parts = [count([r for r, b in zip(records, block, strict=True) if b == k], is_seen) for k in range(3)]
    whole = count(records, is_seen)
    assert parts[0] + parts[1] + parts[2] == whole
    assert parts[2] + (parts[1] + parts[0]) == whole
    assert sum(whole.errors.values()) - whole.errors["spurious"] == whole.num_gold
    assert sum(whole.errors.values()) - whole.errors["missed"] == whole.num_predicted


@settings(max_examples=40, deadline=None)
@given(corpora("BIO", legal=False))
def test_counts_survive_json(corpus):
    counts = count(to_records(corpus, "BIO"), is_seen)
    assert Counts.from_dict(json.loads(json.dumps(counts.to_dict()))) == counts


def test_adding_leaves_the_summands_alone():
    counts = count([Scored.from_text("d", "f:1", "ab", [Span(0, 1, "A")], [Span(0, 1, "A")])])
    assert (counts + counts).labels["A"] == [2, 0, 0, 2, 0, 0]
    assert counts.labels["A"] == [1, 0, 0, 1, 0, 0]


def kinds(gold, predicted):
    return [(m.kind, m.gold, m.predicted) for m in match_spans(gold, predicted)]


A, B = "A", "B"


@pytest.mark.parametrize(
    ("gold", "predicted", "expected"),
    [
        ([Span(0, 2, A)], [Span(0, 2, A)], ["correct"]),
        ([Span(0, 2, A)], [Span(0, 1, A)], ["boundary"]),
        ([Span(0, 2, A)], [Span(0, 2, B)], ["type"]),
        ([Span(0, 2, A)], [Span(1, 3, B)], ["type+boundary"]),
        ([Span(0, 2, A)], [], ["missed"]),
        ([], [Span(0, 2, A)], ["spurious"]),
        ([Span(0, 2, A)], [Span(2, 3, A)], ["missed", "spurious"]),
        ([Span(0, 4, A)], [Span(0, 2, A), Span(2, 4, A)], ["boundary", "spurious"]),
        ([Span(0, 2, A), Span(2, 4, A)], [Span(0, 4, A)], ["boundary", "missed"]),
        ([Span(0, 4, A), Span(1, 2, B)], [Span(1, 2, B)], ["missed", "correct"]),
    ],
)
def test_error_kinds(gold, predicted, expected):
    assert [kind for kind, _, _ in kinds(gold, predicted)] == expected


def test_equal_edges_win_over_equal_label():
    gold, predicted = [Span(0, 2, A)], [Span(0, 2, B), Span(1, 3, A)]
    assert kinds(gold, predicted) == [("type", gold[0], predicted[0]), ("spurious", None, predicted[1])]


def test_larger_overlap_wins():
    gold, predicted = [Span(0, 5, A)], [Span(0, 2, A), Span(2, 6, A)]
    assert kinds(gold, predicted) == [("spurious", None, predicted[0]), ("boundary", gold[0], predicted[1])]


def test_a_nested_gold_span_behind_a_long_one_is_found():
    gold = [Span(0, 100, A), Span(10, 12, B), Span(50, 60, B)]
    assert ("boundary", gold[2], Span(55, 60, B)) in kinds(gold, [Span(55, 60, B)])


nested = st.lists(st.builds(Span, st.integers(0, 12), st.integers(0, 12), st.sampled_from([A, B])), max_size=8)


@settings(max_examples=200, deadline=None)
@given(nested, nested)
def test_overlaps_are_those_of_all_pairs_however_spans_are_nested(gold, predicted):
    wanted = {
        (i, j, overlap)
        for i, one in enumerate(gold)
        for j, other in enumerate(predicted)
        if (overlap := min(one.end, other.end) - max(one.start, other.start)) > 0
    }
    found = _find_overlaps(gold, predicted)
    assert len(found) == len(wanted)
    assert {pair[:3] for pair in found} == wanted


def test_span_of_a_whole_book_does_not_have_each_mention_met_with_all_others():
    """With every pair looked at, it takes minutes."""
    mentions = [Span(at, at + 1, A) for at in range(0, 80_000, 2)]
    found = [kind for kind, _, _ in kinds([Span(0, 80_000, B), *mentions], mentions)]
    assert (found.count("correct"), found.count("missed")) == (len(mentions), 1)


def test_confusion_names_the_missing_side_o():
    gold, predicted = [Span(0, 1, A), Span(3, 5, A)], [Span(3, 4, B), Span(6, 7, B)]
    counts = count([Scored.from_text("d", "f:1", "x" * 9, gold, predicted)])
    assert scores(counts)["confusion"] == {"A": {"B": 1, "O": 1}, "O": {"B": 1}}


def test_strict_and_lenient_differ_on_illegal_gold():
    record = Scored.from_tags("d", "f:1", ["a", "b", "c"], ["I-PER", "O", "B-LOC"], "BIO", [Span(2, 3, "LOC")])
    result = scores(count([record]))
    assert result["strict"]["micro"] == {"precision": 1.0, "recall": 1.0, "f1": 1.0, "support": 1}
    assert result["lenient"]["micro"]["recall"] == 0.5
    assert result["lenient"]["micro"]["support"] == 2


def test_seen_split_looks_at_surface_and_label():
    known = {("Rome", "LOC"), ("New York", "LOC")}
    words, tags = ["New", "York", "beats", "Rome", "or", "Oslo"], ["B-LOC", "I-LOC", "O", "B-ORG", "O", "B-LOC"]
    record = Scored.from_tags("d", "f:1", words, tags, "BIO", [Span(0, 2, "LOC"), Span(3, 4, "LOC")])
    result = scores(count([record], lambda mention, label: (mention, label) in known))
    assert result["seen"] == {"precision": 0.5, "recall": 1.0, "f1": pytest.approx(2 / 3), "support": 1}
    assert result["unseen"] == {"precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 2}


def test_seen_is_none_without_a_predicate():
    result = scores(count([Scored.from_text("d", "f:1", "ab", [Span(0, 1, A)], [])]))
    assert result["seen"] is None
    assert result["unseen"] is None


def test_nothing_counted_scores_zero():
    result = scores(Counts())
    assert result["strict"]["micro"] == {"precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 0}
    assert result["strict"]["macro"] == {"precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 0}
    assert result["lenient"]["labels"] == {}


def test_surface_of_characters_and_of_words():
    assert get_surface("ein 👩‍🚀 da", Span(4, 7, A)) == "👩‍🚀"
    assert get_surface(["New", "York"], Span(0, 2, A)) == "New York"


def test_a_record_needs_exactly_one_content():
    with pytest.raises(ValueError, match=r"f:1: a scored record has either"):
        Scored("d", "f:1", [], [], [])


def test_records_of_one_document_share_a_tally():
    records = [Scored.from_text("d", f"f:{i}", "ab", [Span(0, 1, A)], [Span(0, 1, A)]) for i in range(3)]
    assert count_documents(records) == {"d": {"A": [3, 0, 0, 3, 0, 0]}}
