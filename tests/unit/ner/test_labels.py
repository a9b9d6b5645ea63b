"""Schemes: what is written is legal and read back, what is read equals seqeval, and a scheme is known by its tags."""

import itertools
from collections import Counter

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from seqeval.metrics.sequence_labeling import get_entities
from seqeval.scheme import BILOU, IOB1, IOB2, IOBES, Tokens

from pipelines.ner.entities import Span
from pipelines.ner.labels import (
    OUTSIDE,
    SCHEMES,
    LabelScheme,
    SchemeError,
    check_bare_labels,
    count_illegal_tags,
    detect_scheme,
    observe_tags,
    parse_tag,
    read_spans,
    read_strict_spans,
    split_tag,
    write_tags,
)

LABELS = ("LOC", "PER")
STRICT = {"BIO": IOB2, "BIOES": IOBES, "BILOU": BILOU, "IOB1": IOB1}


@st.composite
def documents(draw, scheme=None, min_words=0):
    """(spans, number of words); adjacent spans of one label are left out where IO cannot tell them apart."""
    num_words = draw(st.integers(min_words, 12))
    cuts = sorted({0, num_words, *draw(st.lists(st.integers(0, num_words), max_size=8))})
    spans = []
    for start, end in itertools.pairwise(cuts):
        label = draw(st.sampled_from((None, *LABELS)))
        touching = bool(spans) and spans[-1].end == start and spans[-1].label == label
        if label is not None and not (scheme == "IO" and touching):
            spans.append(Span(start, end, label))
    return spans, num_words


def all_tags(scheme):
    return LabelScheme.from_labels(LABELS, scheme).tags


def is_written_by_some_spans(tags, scheme):
    """Brute force: some set of spans over these words is written exactly so."""
    return tuple(tags) in written_sequences(scheme, len(tags))


def written_sequences(scheme, num_words):
    sequences = set()
    for cuts in itertools.product((False, True), repeat=max(num_words - 1, 0)):
        edges = [0, *(at + 1 for at, cut in enumerate(cuts) if cut), num_words]
        pieces = [piece for piece in itertools.pairwise(edges) if piece[0] < piece[1]]
        for labels in itertools.product((None, *LABELS), repeat=len(pieces)):
            spans = [Span(*piece, label) for piece, label in zip(pieces, labels, strict=True) if label is not None]
            sequences.add(tuple(write_tags(spans, num_words, scheme)))
    return sequences


@pytest.mark.parametrize("scheme", SCHEMES)
@given(data=st.data())
def test_read_spans_gives_back_what_was_written(scheme, data):
    spans, num_words = data.draw(documents(scheme))
    tags = write_tags(spans, num_words, scheme)
    assert read_spans(tags, scheme) == spans
    assert read_strict_spans(tags, scheme) == spans


@pytest.mark.parametrize("scheme", SCHEMES)
@given(data=st.data())
def test_write_tags_is_legal_and_in_the_scheme(scheme, data):
    spans, num_words = data.draw(documents())
    labels = LabelScheme.from_labels(LABELS, scheme)
    ids = labels.to_tag_ids(spans, num_words)
    tags = [labels.tags[index] for index in ids]
    assert tags == labels.to_tags(spans, num_words)
    assert count_illegal_tags(tags, scheme) == 0
    if tags:
        assert labels.legal_starts()[ids[0]]
        assert labels.legal_ends()[ids[-1]]
    assert all(labels.legal_transitions()[a][b] for a, b in itertools.pairwise(ids))


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("num_words", [1, 2, 3])
def test_legal_matrices_admit_exactly_the_sequences_that_spans_can_write(scheme, num_words):
    labels = LabelScheme.from_labels(LABELS, scheme)
    steps, starts, ends = labels.legal_transitions(), labels.legal_starts(), labels.legal_ends()
    admitted = set()
    for ids in itertools.product(range(len(labels.tags)), repeat=num_words):
        legal = starts[ids[0]] and ends[ids[-1]] and all(steps[a][b] for a, b in itertools.pairwise(ids))
        tags = tuple(labels.tags[index] for index in ids)
        assert (count_illegal_tags(tags, scheme) == 0) == legal
        if legal:
            admitted.add(tags)
    assert admitted == written_sequences(scheme, num_words)


@pytest.mark.parametrize(
    ("scheme", "num_tags"), [("BIO", 5), ("IOB1", 5), ("BIOES", 9), ("BILOU", 9), ("BMES", 9), ("IO", 3)]
)
def test_from_labels_lists_outside_first_and_each_label_once(scheme, num_tags):
    labels = LabelScheme.from_labels(["PER", "LOC", "PER"], scheme)
    assert labels.tags[0] == OUTSIDE
    assert len(labels.tags) == len(set(labels.tags)) == num_tags
    assert labels.labels == ("LOC", "PER")


@pytest.mark.parametrize("scheme", ["BIO", "BIOES"])
@given(data=st.data())
def test_read_spans_equals_seqeval_on_any_sequence(scheme, data):
    tags = data.draw(st.lists(st.sampled_from(all_tags(scheme)), max_size=12))
    expected = [Span(start, end + 1, label) for label, start, end in get_entities(tags)]
    assert read_spans(tags, scheme) == expected


@pytest.mark.parametrize("scheme", STRICT)
@given(data=st.data())
def test_read_strict_spans_equals_seqeval_strict_on_any_sequence(scheme, data):
    tags = data.draw(st.lists(st.sampled_from(all_tags(scheme)), max_size=12))
    if scheme == "IOB1":  # seqeval reads `O B-X I-X` as an entity of the second word; its first word is not legal
        assume(count_illegal_tags(tags, "IOB1") == 0)
    expected = [Span(e.start, e.end, e.tag) for e in Tokens(tags, STRICT[scheme]).entities]
    assert read_strict_spans(tags, scheme) == expected


def test_read_strict_spans_drops_an_iob1_entity_with_a_needless_b():
    assert read_strict_spans(["O", "B-PER", "I-PER"], "IOB1") == []
    assert read_spans(["O", "B-PER", "I-PER"], "IOB1") == [Span(1, 3, "PER")]


@pytest.mark.parametrize("scheme", SCHEMES)
@given(data=st.data())
def test_every_tagged_word_is_in_exactly_one_span_when_read_leniently(scheme, data):
    tags = data.draw(st.lists(st.sampled_from(all_tags(scheme)), max_size=12))
    covered = Counter(index for span in read_spans(tags, scheme) for index in range(span.start, span.end))
    assert covered == Counter(index for index, tag in enumerate(tags) if tag != OUTSIDE)


@pytest.mark.parametrize("scheme", SCHEMES)
@given(data=st.data())
def test_detect_scheme_knows_the_scheme_that_wrote_a_corpus(scheme, data):
    sequences = [write_tags(*data.draw(documents(min_words=1)), scheme) for _ in range(4)]
    # One document that shows all that tells the scheme apart: a single, a long one, and two that touch.
    shown = [Span(0, 1, "PER"), Span(2, 6, "PER"), Span(7, 8, "LOC"), Span(8, 10, "LOC")]
    sequences.append(write_tags(shown, 11, scheme))
    seen = sum((observe_tags(tags) for tags in sequences), Counter())
    assert detect_scheme(seen) == scheme


@pytest.mark.parametrize("scheme", SCHEMES)
@given(data=st.data())
def test_detect_scheme_never_misreads_even_where_it_cannot_tell_the_name(scheme, data):
    spans, num_words = data.draw(documents(scheme))
    tags = write_tags(spans, num_words, scheme)
    assert read_spans(tags, detect_scheme(observe_tags(tags))) == spans


def test_detect_scheme_refuses_bare_labels_beside_prefixed_tags():
    with pytest.raises(SchemeError, match="some have none") as caught:
        detect_scheme(observe_tags(["B-PER", "LOC", "O"]))
    assert "IO" in caught.value.remedy
    assert "B" in caught.value.value


def test_io_tags_may_have_the_prefix_i():
    tags = ["I-PER", "I-PER", "O", "LOC"]
    spans = [Span(0, 2, "PER"), Span(3, 4, "LOC")]
    assert read_strict_spans(tags, "IO") == read_spans(tags, "IO") == spans
    assert LabelScheme.from_tags(["O", "I-PER", "LOC"], "IO").to_tag_ids(spans, 4) == [1, 1, 0, 2]


@pytest.mark.parametrize("tags", [["B", "I", "O"], ["O", "I"], ["B", "M", "E", "S"], ["U", "O"]])
def test_prefixes_without_a_label_are_refused_and_not_taken_for_labels(tags):
    for judge in (LabelScheme.from_tags, lambda tags: detect_scheme(observe_tags(tags))):
        with pytest.raises(SchemeError, match="prefixes without a label") as caught:
            judge(tags)
        assert "`B-ENTITY`" in caught.value.remedy
        assert "`scheme` `IO`" in caught.value.remedy
    assert set(LabelScheme.from_tags(tags, "IO").labels) == set(tags) - {"O"}


def test_bare_labels_may_have_one_that_is_a_letter_of_a_scheme():
    assert detect_scheme(observe_tags(["M", "PER", "O"])) == "IO"
    assert LabelScheme.from_tags(["O", "M", "PER"]).name == "IO"


@pytest.mark.parametrize(
    "tags", [["b-loc", "i-loc", "o"], ["B_LOC", "I_LOC", "O"], ["PER-B", "PER-I", "O"], ["b-loc", "O"]]
)
def test_misspelt_prefixes_are_not_taken_for_labels(tags):
    with pytest.raises(SchemeError, match="prefixes of the tags are not understood") as caught:
        check_bare_labels(tags, 90, 10)
    assert f"`{tags[0]}`" in caught.value.value


@pytest.mark.parametrize("tags", [["O", "B_PER", "I_PER"], ["O", "b-PER", "i-PER"], ["O", "PER-B", "PER-I"]])
def test_misspelt_prefixes_of_a_foreign_model_are_not_taken_for_labels(tags):
    with pytest.raises(SchemeError, match="prefixes of the tags are not understood"):
        LabelScheme.from_tags(tags)
    assert LabelScheme.from_tags(tags, "IO").labels == tuple(sorted(tags[1:]))


def find_refusal(tags: list[str], num_bare: int) -> str | None:
    try:
        check_bare_labels(tags, num_bare, 0)
    except SchemeError as error:
        return error.what
    return None


@pytest.mark.parametrize(("num_outside", "what"), [(0, "no tag is `O`"), (2, "hardly any tag is `O`")])
def test_words_are_not_taken_for_labels(num_outside, what):
    with pytest.raises(SchemeError, match=what) as caught:
        check_bare_labels([f"word{number}" for number in range(30)], 100, num_outside)
    assert "`reader.tag_column`" in caught.value.remedy


@pytest.mark.parametrize(
    "tags",
    [
        ["PER", "LOC", "O"],
        ["e-mail", "PER"],
        ["e-mail"],
        ["Vitamin-B", "disease", "o"],
        ["Hepatitis_B"],
        ["S_TIME", "E_PLACE"],
        ["house_number", "road", "city", "postcode"],
        [f"label{number}" for number in range(30)],  # each of them often
    ],
)
def test_bare_labels_are_taken(tags):
    assert find_refusal(tags, 1000) is None
    assert LabelScheme.from_tags(tags).name == "IO"
    assert find_refusal([f"word{number}" for number in range(30)], 100) == "no tag is `O`"


@pytest.mark.parametrize(
    "tags", [["S-PER", "U-PER"], ["B-PER", "M-PER", "L-PER"], ["M-PER", "I-PER"], ["E-PER", "L-PER"]]
)
def test_detect_scheme_refuses_mixed_schemes(tags):
    with pytest.raises(SchemeError, match="mix label schemes"):
        detect_scheme(observe_tags(tags))


@pytest.mark.parametrize("tags", [[], ["O"], ["O", "O"]])
def test_detect_scheme_takes_bio_where_nothing_is_labelled(tags):
    assert detect_scheme(observe_tags(tags)) == "BIO"


@pytest.mark.parametrize(
    ("tags", "scheme"),
    [
        (["O", "B-PER", "I-PER"], "BIO"),
        (["O", "B-PER", "I-PER", "B-LOC"], "BIO"),
        # dbmdz/bert-large-cased-finetuned-conll03-english and xlm-roberta-large-finetuned-conll03-english: no B-PER
        (["B-LOC", "B-MISC", "B-ORG", "I-LOC", "I-MISC", "I-ORG", "I-PER", "O"], "IOB1"),
        (["O", "I-LOC", "I-PER", "I-MISC", "I-ORG"], "IOB1"),  # Jean-Baptiste/camembert-ner
        (["O", "PER", "LOC"], "IO"),
        (["O", "B-PER", "I-PER", "E-PER", "S-PER"], "BIOES"),
        (["O", "B-PER", "I-PER", "L-PER", "U-PER"], "BILOU"),
        (["O", "B-PER", "M-PER", "E-PER", "S-PER"], "BMES"),
    ],
)
def test_from_tags_reads_a_scheme_in_which_every_tag_can_occur(tags, scheme):
    labels = LabelScheme.from_tags(tags)
    assert labels.name == scheme
    assert labels.tags == tuple(tags)
    reachable = set()
    for sequence in itertools.product(range(len(tags)), repeat=2):
        starts, steps = labels.legal_starts(), labels.legal_transitions()
        if starts[sequence[0]] and steps[sequence[0]][sequence[1]]:
            reachable.update(sequence)
    assert reachable == set(range(len(tags)))


def test_from_tags_obeys_a_given_name():
    assert LabelScheme.from_tags(["O", "B-PER", "I-PER"], "IOB1").name == "IOB1"


@pytest.mark.parametrize(
    ("tag", "parts"),
    [
        ("O", ("O", "")),
        ("B-PER", ("B", "PER")),
        ("I-work-of-art", ("I", "work-of-art")),
        ("PER", ("", "PER")),
        ("X-PER", ("", "X-PER")),
        ("B-", ("", "B-")),
    ],
)
def test_split_tag_cuts_only_a_known_prefix(tag, parts):
    assert split_tag(tag) == parts


def test_parse_tag_reads_other_prefixes_as_roles():
    assert parse_tag("L-PER", "BILOU") == ("E", "PER")
    assert parse_tag("M-PER", "BMES") == ("I", "PER")
    assert parse_tag("PER", "IO") == parse_tag("I-PER", "IO") == ("I", "PER")


def test_count_illegal_tags_counts_each_wrong_step_and_an_open_end():
    assert count_illegal_tags(["I-PER", "O", "I-LOC"], "BIO") == 2
    assert count_illegal_tags(["B-PER", "I-PER"], "BIOES") == 1
    assert not is_written_by_some_spans(["B-PER", "I-PER"], "BIOES")
