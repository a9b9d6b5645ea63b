"""What a student is given to learn: a mixture of the teacher's view and the gold tags, for the same set of tags."""

import numpy as np
import pytest
import torch

from pipelines.corpus.records import CorpusError
from pipelines.corpus.targets import Lesson, find_tag_ids, match_tags, mix_targets, split_classifier
from pipelines.ner.bundle import load_bundle
from pipelines.ner.engine import NerEngine
from pipelines.ner.entities import Span
from pipelines.ner.labels import LabelScheme
from tests.conftest import EXACT, make_bundle

TEACHER = np.array([[0.9, 0.1, 0.0], [0.2, 0.3, 0.5]])


@pytest.mark.parametrize(
    ("share", "temperature", "expected"),
    [
        (1.0, 1.0, [[0.9, 0.1, 0.0], [0.2, 0.3, 0.5]]),
        (0.0, 1.0, [[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]),
        (0.5, 1.0, [[0.95, 0.05, 0.0], [0.1, 0.15, 0.75]]),
        (1.0, 2.0, [[0.75, 0.25, 0.0], [0.2628, 0.3218, 0.4155]]),
    ],
)
def test_targets_are_the_teachers_view_softened_and_the_gold_tags_in_shares(share, temperature, expected):
    found = mix_targets(TEACHER, [0, 2], Lesson("teacher", "student", share, temperature))
    np.testing.assert_allclose(found, expected, atol=1e-4)
    np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-6)


def test_tags_are_matched_by_name_in_whatever_order():
    teacher = LabelScheme("BIO", ("O", "B-PER", "I-PER", "B-LOC", "I-LOC"))
    student = LabelScheme("BIO", ("O", "B-LOC", "I-LOC", "B-PER", "I-PER"))
    assert [teacher.tags[place] for place in match_tags(teacher, student)] == list(student.tags)


@pytest.mark.parametrize(
    "student", [LabelScheme.from_labels(["PER"]), LabelScheme.from_labels(["LOC", "PER"], "BIOES")]
)
def test_student_with_other_tags_is_refused(student):
    with pytest.raises(CorpusError, match="not the teacher's"):
        match_tags(LabelScheme.from_labels(["LOC", "PER"]), student)


@pytest.mark.parametrize("head", ["linear", "crf"])
def test_split_classifier_gives_the_states_of_which_the_emissions_are_made(head, tiny_encoder, tmp_path):
    path = make_bundle(tiny_encoder, tmp_path / "teacher", head=head)
    whole = NerEngine(load_bundle(path), **EXACT)
    bundle, classifier = split_classifier(load_bundle(path))
    reader = NerEngine(bundle, **EXACT)
    texts = ["Angela Merkel visited Utrecht in the spring. " * 40, "", "x"]
    read = [whole.prepare(text).document for text in texts]
    assert len(read[0].windows) > 1
    states = [found.reshape(-1, classifier.in_features) for found in reader.compute_emissions(read)]
    for found, expected in zip(states, whole.compute_emissions(read), strict=True):
        with torch.no_grad():
            emissions = classifier(found)
        torch.testing.assert_close(emissions, expected, rtol=1e-4, atol=1e-5)


def test_tags_that_others_models_lack_are_read_as_the_nearest_of_the_label():
    spans = [Span(0, 1, "PER"), Span(1, 3, "PER"), Span(4, 5, "LOC"), Span(5, 6, "GPE")]
    iob1 = LabelScheme.from_tags(["O", "I-PER", "I-LOC"])
    assert [iob1.tags[one] for one in find_tag_ids(iob1, spans, 6)] == ["I-PER"] * 3 + ["O", "I-LOC", "O"]
    whole = LabelScheme.from_labels(["PER", "LOC", "GPE"])
    assert find_tag_ids(whole, spans, 6) == whole.to_tag_ids(spans, 6)
