"""Redacted texts: what is between entities is unchanged, spans are exact, hashes tell of equal mentions and no more."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from pipelines.ner.entities import Entity
from serve.redaction import HASH_CHARACTERS, MASK, redact

KEY, OTHER_KEY = b"k" * 32, b"o" * 32
KINDS = ("mask", "label", "hash")
labels = st.sampled_from(["PER", "ORG", "LOC", "a b", "[", ""])


@st.composite
def documents(draw: st.DrawFn) -> tuple[str, list[Entity]]:
    """A text and disjoint entities of it, in order; some touch."""
    text = draw(
        st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=60)
        | st.just("👩‍👩‍👧 e\u0301\r\n[PER]█")
    )
    edges = sorted(draw(st.sets(st.integers(0, len(text)), max_size=12)))
    ranges = list(itertools.pairwise(edges))
    if draw(st.booleans()):
        ranges = ranges[::2]
    return text, [Entity(text[start:end], draw(labels), start, end, 0.5) for start, end in ranges]


@given(documents(), st.sampled_from(KINDS))
def test_text_between_spans_is_unchanged_and_spans_are_exact(document, kind):
    text, entities = document
    redacted = redact(text, entities, kind, KEY)
    assert [span.label for span in redacted.spans] == [entity.label for entity in entities]
    before, after = [0], [0]
    for span, entity in zip(redacted.spans, entities, strict=True):
        assert redacted.text[after[-1] : span.start] == text[before[-1] : entity.start]
        replacement = redacted.text[span.start : span.end]
        if kind == "mask":
            assert replacement == MASK * len(entity.text)
        elif kind == "label":
            assert replacement == f"[{entity.label}]"
        else:
            assert replacement.startswith(f"[{entity.label}:")
            assert len(replacement) == len(entity.label) + HASH_CHARACTERS + 3
        before.append(entity.end)
        after.append(span.end)
    assert redacted.text[after[-1] :] == text[before[-1] :]


@given(documents())
def test_mask_keeps_the_length_and_every_span(document):
    text, entities = document
    redacted = redact(text, entities, "mask", KEY)
    assert len(redacted.text) == len(text)
    assert [(span.start, span.end) for span in redacted.spans] == [(one.start, one.end) for one in entities]


def hash_mention(text: str, label: str, key: bytes) -> str:
    return redact(text, [Entity(text, label, 0, len(text), 1.0)], "hash", key).text


@given(st.text(st.characters(exclude_categories=("Cs",)), min_size=1), labels)
def test_equal_mentions_have_equal_hashes_and_another_key_has_another(text, label):
    assert hash_mention(text, label, KEY) == hash_mention(text, label, KEY)
    assert hash_mention(text, label, KEY) != hash_mention(text, label, OTHER_KEY)
    assert hash_mention(text, label, KEY) != hash_mention(text + "x", label, KEY)


def test_hash_depends_on_the_label_also_where_text_and_label_join_to_the_same_characters():
    assert hash_mention("b c", "a", KEY)[-11:] != hash_mention("c", "a b", KEY)[-11:]


def test_text_without_entities_is_unchanged():
    redacted = redact("Ada met Grace.", [], "label", KEY)
    assert (redacted.text, redacted.spans) == ("Ada met Grace.", [])
