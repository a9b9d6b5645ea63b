"""What the model of the quickstart must do: minimum functionality, invariance, direction."""

import pytest

from pipelines.ner.engine import NerEngine
from tests.quickstart import Quickstart

pytestmark = pytest.mark.timeout(1500)  # of which the quickstart takes the most


@pytest.fixture(scope="module")
def engine(quickstart: Quickstart) -> NerEngine:
    return NerEngine.load(quickstart.bundle)


def label(engine: NerEngine, text: str) -> list[tuple[str, str]]:
    (prediction,) = engine.predict([text])
    for entity in prediction.entities:
        assert text[entity.start : entity.end] == entity.text
    assert prediction.coverage.fraction == 1.0
    return [(entity.text, entity.label) for entity in prediction.entities]


@pytest.mark.parametrize(
    ("text", "entity"),
    [
        ("She moved to Paris in the spring.", ("Paris", "LOC")),
        ("The talks were held in Berlin on Monday.", ("Berlin", "LOC")),
        ("Angela Merkel said the talks would go on.", ("Angela Merkel", "PER")),
        ("The talks will continue, said John Smith.", ("John Smith", "PER")),
        ("Shares of Microsoft rose 3 percent.", ("Microsoft", "ORG")),
    ],
)
def test_well_known_names_are_found(engine, text, entity):
    assert entity in label(engine, text)


def test_text_without_names_has_no_entity(engine):
    assert label(engine, "The weather was mild and the garden was quiet all afternoon.") == []


@pytest.mark.parametrize("template", ["She flew to {} last week.", "The meeting in {} was short.", "They live in {}."])
def test_one_place_for_another_keeps_the_label(engine, template):
    for place in ("London", "Paris", "Berlin", "Tokyo", "Chicago"):
        assert (place, "LOC") in label(engine, template.format(place))


def test_white_space_around_a_text_changes_nothing_but_offsets(engine):
    text = "Angela Merkel visited Paris and Berlin."
    (plain,), (spaced,) = engine.predict([text]), engine.predict([f"\r\n  {text} \t\n "])
    assert [(e.start + 4, e.end + 4, e.label) for e in plain.entities] == [
        (e.start, e.end, e.label) for e in spaced.entities
    ]


def test_entity_between_emoji_keeps_its_label_and_exact_edges(engine):
    for emoji in ("🎉", "👩‍👩‍👧‍👦", "🇳🇱"):
        text = f"The talks were held in {emoji}Berlin{emoji} on Monday."
        places = [one for one in label(engine, text) if one[1] == "LOC"]
        assert ("Berlin", "LOC") in places


def test_what_is_in_the_batch_changes_no_answer(engine):
    texts = ["Angela Merkel visited Paris.", "x", "", "Shares of Microsoft rose in Tokyo. " * 80]
    together = [[(e.start, e.end, e.label) for e in one.entities] for one in engine.predict(texts)]
    alone = [[(e.start, e.end, e.label) for e in engine.predict([text])[0].entities] for text in texts]
    assert together == alone


def test_a_title_before_a_name_makes_a_person_more_certain(engine):
    def score(text: str, name: str) -> float:
        (prediction,) = engine.predict([text])
        return max((e.score for e in prediction.entities if e.label == "PER" and name in e.text), default=0.0)

    assert score("Yesterday Mr. Jordan spoke to reporters.", "Jordan") > score("They drove through Jordan.", "Jordan")


def test_a_name_added_adds_an_entity(engine):
    before = label(engine, "The talks were held in Berlin.")
    after = label(engine, "The talks were held in Berlin and Paris.")
    assert len(after) > len(before)
    assert ("Paris", "LOC") in after
