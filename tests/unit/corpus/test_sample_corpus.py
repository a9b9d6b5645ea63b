"""The sample corpus: as large, as clean and as varied as the main job and the tests need it."""

import json
from collections import Counter, defaultdict

import pytest

from pipelines.corpus.formats.files import SAMPLE_FOLDER, read_records
from pipelines.corpus.records import Record

LABELS = {"PER", "ORG", "LOC", "MISC"}
SPLITS = ("train", "dev", "test")
FILES = [f"{language}-{split}.jsonl" for language in ("en", "zh") for split in SPLITS]
LEAST = {"en": {"train": 150, "dev": 15, "test": 40}, "zh": {"train": 30, "dev": 4, "test": 10}}

every_file = pytest.mark.parametrize("name", FILES)


def load(name):
    return [json.loads(line) for line in (SAMPLE_FOLDER / name).read_text(encoding="utf-8").splitlines()]


def load_language(language):
    return [document for split in SPLITS for document in load(f"{language}-{split}.jsonl")]


def list_surfaces(documents):
    return [(one["text"][start:end], label) for one in documents for start, end, label in one["entities"]]


def test_the_folder_holds_these_files_and_no_other():
    assert sorted(path.name for path in SAMPLE_FOLDER.glob("*.jsonl")) == sorted(FILES)


@pytest.mark.parametrize(("language", "num_sentences", "num_documents"), [("en", 600, 120), ("zh", 150, 30)])
def test_there_are_enough_sentences_and_documents(language, num_sentences, num_documents):
    documents = load_language(language)
    assert len(documents) >= num_documents
    assert sum(len(document["sentences"]) for document in documents) >= num_sentences


@every_file
def test_every_record_is_read_without_repair_and_with_its_gold(name):
    items = list(read_records(str(SAMPLE_FOLDER / name)))
    assert [item for item in items if not isinstance(item, Record)] == []
    documents = load(name)
    assert [(item.doc_id, item.text) for item in items] == [(one["doc_id"], one["text"]) for one in documents]
    spans = [[[span.start, span.end, span.label] for span in item.spans] for item in items]
    assert spans == [one["entities"] for one in documents]


@every_file
def test_spans_lie_inside_one_sentence_in_order_trimmed_and_apart(name):
    for document in load(name):
        text, before = document["text"], 0
        for start, end, _ in document["entities"]:
            surface = text[start:end]
            assert before <= start < end <= len(text), (document["doc_id"], surface)
            assert surface == surface.strip(), document["doc_id"]
            assert any(first <= start and end <= last for first, last in document["sentences"]), surface
            before = end


@every_file
def test_sentences_are_in_order_and_leave_out_nothing_but_space(name):
    for document in load(name):
        edges = [0, *(edge for sentence in document["sentences"] for edge in sentence), len(document["text"])]
        assert edges == sorted(edges), document["doc_id"]
        gaps = [document["text"][start:end] for start, end in zip(edges[::2], edges[1::2], strict=True)]
        assert "".join(gaps).strip() == "", document["doc_id"]


@pytest.mark.parametrize("name", FILES[:3])
def test_english_spans_begin_and_end_at_the_edges_of_words(name):
    for document in load(name):
        text = f" {document['text']} "
        for start, end, _ in document["entities"]:
            outside = text[start] + text[end + 1]
            assert not any(character.isalnum() for character in outside), (document["doc_id"], text[start : end + 2])


@every_file
def test_every_label_occurs_often_enough_in_every_split_and_no_other_does(name):
    language, split = name.removesuffix(".jsonl").split("-")
    counts = Counter(label for _, label in list_surfaces(load(name)))
    assert counts.keys() == LABELS
    assert min(counts.values()) >= LEAST[language][split] / 2
    assert len(load(name)) >= LEAST[language][split]


@pytest.mark.parametrize("key", ["doc_id", "text"])
def test_no_document_and_no_text_stands_in_two_splits_or_twice(key):
    values = [document[key] for language in ("en", "zh") for document in load_language(language)]
    assert [value for value, number in Counter(values).items() if number > 1] == []


def test_no_sentence_but_a_phrase_stands_in_train_and_test():
    def list_sentences(name):
        return {document["text"][start:end] for document in load(name) for start, end in document["sentences"]}

    for language in ("en", "zh"):
        shared = list_sentences(f"{language}-test.jsonl") & list_sentences(f"{language}-train.jsonl")
        assert [sentence for sentence in shared if len(sentence) > 25] == []


def test_english_entities_have_one_to_eight_words_and_more():
    lengths = {len(surface.split()) for surface, _ in list_surfaces(load_language("en"))}
    assert set(range(1, 9)) <= lengths


@pytest.mark.parametrize(("language", "number"), [("en", 15), ("zh", 3)])
def test_some_surfaces_have_different_labels(language, number):
    labels = defaultdict(set)
    for surface, label in list_surfaces(load_language(language)):
        labels[surface].add(label)
    assert sum(len(found) > 1 for found in labels.values()) >= number


@pytest.mark.parametrize("language", ["en", "zh"])
def test_test_split_has_entities_that_training_shows_and_entities_that_it_does_not(language):
    seen = set(list_surfaces(load(f"{language}-train.jsonl")))
    found = set(list_surfaces(load(f"{language}-test.jsonl")))
    assert found & seen
    assert len(found - seen) > len(found) / 4
