"""Siblings of any record: spans that are right, gold that is kept, and what each technique promises."""

from collections import Counter

import pyarrow as pa
import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.corpus.augmentation.config import TECHNIQUES, AugmentationConfig
from pipelines.corpus.augmentation.forms import _FULL_WIDTH, _HALF_WIDTH
from pipelines.corpus.augmentation.pools import Counts, list_tags, name_kind
from pipelines.corpus.augmentation.samples import Sample, read_sample
from pipelines.corpus.augmentation.siblings import AUGMENTED, MARKS, Augmenter, add_siblings, count_samples
from pipelines.corpus.reading import RAW_SCHEMA, finish_records
from pipelines.corpus.windows import split_record
from pipelines.ner.labels import LabelScheme, count_illegal_tags, read_spans
from pipelines.ner.words import SPLITTERS
from tests.unit.corpus.augmentation.samples import LABELS, make_row, text_rows, word_rows

MASK = "[MASK]"
SCHEMA = pa.schema([field for field in RAW_SCHEMA if field.name not in ("outcome", "reason", "detail")])
ROWS = st.one_of(text_rows(), word_rows())


def make_augmenter(rows, splitter="punctuation", **settings) -> Augmenter:
    counts = Counts()
    for row in rows:
        counts.add_sample(read_sample(row, splitter, row["scheme"]))
    return Augmenter(
        AugmentationConfig(**settings), splitter, rows[0]["scheme"] if rows else "BIO", counts.freeze(), MASK
    )


def list_siblings(row, augmenter):
    original = read_sample(row, augmenter.splitter, row["scheme"])
    return [(original, sibling) for *_, sibling in augmenter.list_siblings(row["record_id"], original)]


def get_outside(sample: Sample) -> list[str]:
    return [sample.words[place] for place in sample.outside]


def get_mentions(sample: Sample) -> list:
    return [(span.label, sample.cut(span.start, span.end)) for span in sample.spans]


def check_mention_replacement(one, other, augmenter):
    assert get_outside(one) == get_outside(other)
    for (label, before), (_, after) in zip(get_mentions(one), get_mentions(other), strict=True):
        assert after == before or after in augmenter.pools.mentions[name_kind(label, before)].items


def check_word_replacement(one, other, augmenter):
    for tag, before, after in zip(list_tags(one), one.words, other.words, strict=True):
        assert after == before or after in augmenter.pools.words[tag].items


def check_segment_shuffling(one, other, augmenter):
    assert one.segments == other.segments
    for start, end in one.segments:
        assert Counter(one.words[start:end]) == Counter(other.words[start:end])


def check_masking(one, other, augmenter):
    assert all(after in (before, MASK) for before, after in zip(one.words, other.words, strict=True))


def check_word_swap(one, other, augmenter):
    assert get_mentions(one) == get_mentions(other)
    assert Counter(get_outside(one)) == Counter(get_outside(other))


def check_word_duplication(one, other, augmenter):
    assert get_mentions(one) == get_mentions(other)
    rest = iter(get_outside(other))
    assert all(word in rest for word in get_outside(one))  # in this order
    assert Counter(get_outside(other)).keys() == Counter(get_outside(one)).keys()


def check_case_noise(one, other, augmenter):
    ways = (str.upper, str.lower, lambda word: word[:1].upper() + word[1:].lower())
    assert any(other.words == tuple(map(way, one.words)) for way in ways)


def check_typo_noise(one, other, augmenter):
    changed = [(a, b) for a, b in zip(one.words, other.words, strict=True) if a != b]
    assert all(a.isalpha() and len(a) >= 4 and len(a) - 1 <= len(b) <= len(a) for a, b in changed)


def check_width_forms(one, other, augmenter):
    halves = [[word.translate(_HALF_WIDTH) for word in sample.words] for sample in (one, other)]
    assert halves[0] == halves[1]
    assert other.words in [tuple(word.translate(table) for word in one.words) for table in (_FULL_WIDTH, _HALF_WIDTH)]


def check_script_forms(one, other, augmenter):
    for before, after in zip("".join(one.words), "".join(other.words), strict=True):
        assert before == after or regex.match(r"\p{Han}", before)


def check_is_right(row, sample, technique, splitters=SPLITTERS):
    """The spans of a sibling's row lie where they should, in the text, in its pieces, and in its tags."""
    made = sample.to_row()
    length = len(made["text"] if sample.is_text else made["words"])
    edges = [edge for span in made["spans"] for edge in (span["start"], span["end"])]
    assert edges == sorted(edges)
    assert all(span["start"] < span["end"] for span in made["spans"])
    assert not edges or (edges[0] >= 0 and edges[-1] <= length)
    for span, (label, phrase) in zip(made["spans"], get_mentions(sample), strict=True):
        assert span["label"] == label
        part = (made["text"] if sample.is_text else made["words"])[span["start"] : span["end"]]
        if sample.is_text:
            written = "".join(a + b for a, b in zip(phrase.words, (*phrase.gaps, ""), strict=True))
            assert part == written
            assert part == part.strip()
        else:
            assert tuple(part) == phrase.words
    for splitter in splitters:
        masked = MASK if technique == "masking" else None
        pieces, spans = split_record(made["text"], made["words"], made["spans"], splitter, masked)
        assert [span.label for span in spans] == [label for label, _ in get_mentions(sample)]
        for name in ("BIO", "BIOES"):
            scheme = LabelScheme.from_labels(LABELS, name)
            tags = scheme.to_tags(spans, len(pieces))
            assert count_illegal_tags(tags, name) == 0
            assert [(one.start, one.end, one.label) for one in read_spans(tags, name)] == [
                (one.start, one.end, one.label) for one in spans
            ]
    table = pa.Table.from_pylist([row | made], schema=SCHEMA)
    [finished] = finish_records(table, row["scheme"]).to_pylist()
    assert finished["spans"] == made["spans"]
    assert finished["num_illegal_tags"] == 0


@pytest.mark.parametrize("technique", TECHNIQUES)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_every_sibling_keeps_its_gold_and_what_its_technique_promises(technique, data):
    rows = data.draw(st.lists(ROWS, min_size=1, max_size=3))
    strength = data.draw(st.sampled_from([0.2, 1.0]))
    augmenter = make_augmenter(rows, data.draw(st.sampled_from(SPLITTERS)), strength=strength, **{technique: 2.0})
    for row in rows:
        for original, sibling in list_siblings(row, augmenter):
            assert sibling != original
            assert [span.label for span in sibling.spans] == [span.label for span in original.spans]
            assert sibling.is_text == original.is_text
            globals()[f"check_{technique}"](original, sibling, augmenter)
            check_is_right(row, sibling, technique)


@settings(max_examples=100, deadline=None)
@given(row=ROWS, splitter=st.sampled_from(SPLITTERS))
def test_a_record_that_is_not_changed_comes_back_as_it_was(row, splitter):
    sample = read_sample(row, splitter, row["scheme"])
    made = sample.to_row()
    assert (made["text"], made["words"]) == (row["text"], row["words"])
    tags = row["tags"]
    expected = (
        row["spans"]
        if tags is None
        else [{"start": one.start, "end": one.end, "label": one.label} for one in read_spans(tags, row["scheme"])]
    )
    assert made["spans"] == expected
    assert sample.replace_ranges({}) == sample


PLAIN = [
    make_row(record_id=f"/data/a.conll:{at}", words=words.split(), tags=tags.split())
    for at, (words, tags) in enumerate(
        [
            ("Angela Merkel visited Utrecht yesterday .", "B-PER I-PER O B-LOC O O"),
            ("Ada Lovelace was in Bern today .", "B-PER I-PER O O B-LOC O O"),
            ("nothing happened here at all .", "O O O O O O"),
        ]
        * 20
    )
]


def make_table(rows) -> pa.Table:
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def augment(rows, **settings) -> list[dict]:
    return add_siblings(make_table(rows), make_augmenter(PLAIN, **settings)).to_pylist()[len(rows) :]


def test_siblings_stand_after_their_block_and_are_marked():
    table = make_table([*PLAIN[:2], PLAIN[2] | {"split": "dev"}])
    found = add_siblings(table, make_augmenter(PLAIN, mention_replacement=1.0, strength=1.0))
    names = [name for name, _ in MARKS]
    assert found.slice(0, 3).drop_columns(names).equals(table)
    assert all(found[name].slice(0, 3).null_count == 3 for name in names)
    first, second = found.to_pylist()[3:]
    assert first["record_id"] == "/data/a.conll:0~mention_replacement.1"
    assert (first["original"], first["technique"], first["split"]) == (
        "/data/a.conll:0",
        "mention_replacement",
        AUGMENTED,
    )
    assert (first["doc_id"], first["source"]) == (PLAIN[0]["doc_id"], PLAIN[0]["source"])
    assert first["words"] == ["Ada", "Lovelace", "visited", "Bern", "yesterday", "."]
    assert second["words"] == ["Angela", "Merkel", "was", "in", "Utrecht", "today", "."]


def test_siblings_are_the_same_in_whatever_blocks_and_wherever_the_files_lie():
    rates = dict.fromkeys(TECHNIQUES, 0.7)
    together = augment(PLAIN, **rates)
    apart = [row for one in reversed(PLAIN) for row in augment([one], **rates)]
    key = lambda row: row["record_id"]  # noqa: E731
    assert sorted(together, key=key) == sorted(apart, key=key)
    moved = augment([row | {"record_id": row["record_id"].replace("/data/", "s3://bucket/")} for row in PLAIN], **rates)
    assert [row["words"] for row in moved] == [row["words"] for row in together]
    assert [row["words"] for row in augment(PLAIN, seed=2, **rates)] != [row["words"] for row in together]


def test_a_rate_is_the_mean_number_of_siblings_and_a_higher_one_keeps_those_of_a_lower_one():
    rows = [row | {"record_id": f"a:{at}"} for at, row in enumerate(PLAIN * 10)]
    few, some, many = (augment(rows, masking=rate) for rate in (0.3, 0.8, 2.5))
    assert len(few) / len(rows) == pytest.approx(0.3, abs=0.06)
    assert len(some) / len(rows) == pytest.approx(0.8, abs=0.06)
    assert len(many) / len(rows) == pytest.approx(2.5, abs=0.15)  # two may be alike
    told = [{(row["record_id"], *row["words"]) for row in found} for found in (few, some, many)]
    assert told[0] < told[1] < told[2]


def test_without_another_mention_of_the_label_there_is_no_sibling():
    rows = [PLAIN[0], PLAIN[2]]
    augmenter = make_augmenter(rows, mention_replacement=3.0)
    assert len(add_siblings(make_table(rows), augmenter)) == len(rows)


def test_a_record_without_a_mention_gets_siblings_by_techniques_that_need_none():
    rates = dict.fromkeys(TECHNIQUES, 1.0)
    assert Counter(row["technique"] for row in augment([PLAIN[2]], **rates)).keys() == {
        *("word_replacement", "segment_shuffling", "masking", "word_swap", "word_duplication"),
        *("case_noise", "typo_noise"),
    }


def test_siblings_of_no_records_are_none():
    assert add_siblings(make_table([]), make_augmenter([], masking=1.0)).num_rows == 0
    assert count_samples(make_table([]), "unicode", "BIO")["counts"]
