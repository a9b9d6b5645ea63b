"""Which predicted span stands for which gold span, and what kind of error each pair is."""

from collections.abc import Sequence
from dataclasses import dataclass

from pipelines.ner.entities import Span

CORRECT, BOUNDARY, TYPE = "correct", "boundary", "type"
TYPE_AND_BOUNDARY, MISSED, SPURIOUS = "type+boundary", "missed", "spurious"
KINDS = (CORRECT, BOUNDARY, TYPE, TYPE_AND_BOUNDARY, MISSED, SPURIOUS)
ERROR_KINDS = KINDS[1:]

_PREFERENCE = {kind: rank for rank, kind in enumerate((CORRECT, TYPE, BOUNDARY, TYPE_AND_BOUNDARY))}


@dataclass(frozen=True, slots=True)
class Match:
    """A gold span and the predicted span that stands for it; one of them is None where nothing does."""

    kind: str
    gold: Span | None
    predicted: Span | None


def match_spans(gold: Sequence[Span], predicted: Sequence[Span]) -> list[Match]:
    """Pair gold with predicted spans greedily; each span is in exactly one match.

    Pairs that overlap are taken in this order: equal edges and label (correct), equal edges (type), equal label
    (boundary), any other overlap (type+boundary); among equals the larger overlap first, then the one further left.
    Gold spans that are left over are missed, predicted ones spurious. Spans given twice count once.
    """
    gold, predicted = _sort_unique(gold), _sort_unique(predicted)
    pairs = sorted(
        (_PREFERENCE[kind], -overlap, gold_index, predicted_index, kind)
        for gold_index, predicted_index, overlap, kind in _find_overlaps(gold, predicted)
    )
    free_gold, free_predicted = set(range(len(gold))), set(range(len(predicted)))
    matches = []
    for _, _, gold_index, predicted_index, kind in pairs:
        if gold_index in free_gold and predicted_index in free_predicted:
            free_gold.remove(gold_index)
            free_predicted.remove(predicted_index)
            matches.append(Match(kind, gold[gold_index], predicted[predicted_index]))
    matches += [Match(MISSED, gold[index], None) for index in free_gold]
    matches += [Match(SPURIOUS, None, predicted[index]) for index in free_predicted]
    return sorted(matches, key=_position)


def _find_overlaps(gold: list[Span], predicted: list[Span]) -> list[tuple[int, int, int, str]]:
    """(gold index, predicted index, overlap, kind) of every overlapping pair; spans of either may be nested.

    In the order of their starts, each span meets those of the other side that have not ended by then.
    """
    found = []
    sides = gold, predicted
    begun: tuple[list[int], list[int]] = [], []
    for start, side, index in sorted(
        (span.start, side, index) for side, spans in enumerate(sides) for index, span in enumerate(spans)
    ):
        other = 1 - side
        begun[other][:] = [one for one in begun[other] if sides[other][one].end > start]
        for one in begun[other]:
            gold_index, predicted_index = (one, index) if other == 0 else (index, one)
            left, right = gold[gold_index], predicted[predicted_index]
            overlap = min(left.end, right.end) - start
            if overlap > 0:
                found.append((gold_index, predicted_index, overlap, _judge(left, right)))
        begun[side].append(index)
    return found


def _judge(gold: Span, predicted: Span) -> str:
    same_edges = (gold.start, gold.end) == (predicted.start, predicted.end)
    if gold.label == predicted.label:
        return CORRECT if same_edges else BOUNDARY
    return TYPE if same_edges else TYPE_AND_BOUNDARY


def _sort_unique(spans: Sequence[Span]) -> list[Span]:
    return sorted({(span.start, span.end, span.label): span for span in spans}.values())


def _position(match: Match) -> tuple[int, int, str]:
    span = match.gold or match.predicted
    assert span is not None
    return span.start, span.end, match.kind
