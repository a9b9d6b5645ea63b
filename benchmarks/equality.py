"""Whether a runtime finds the entities that fp32 PyTorch finds, and whether those that differ are ties."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from pipelines.ner.encoding import EncodedDocument
from pipelines.ner.engine import NerEngine
from pipelines.ner.messages import find_best_tags
from pipelines.ner.words import split_words

TIE = 0.05
"""Two tag sequences tie where their log-probabilities, in fp32, differ by less: where one is 5 % likelier at most."""


def measure_equality(reference: NerEngine, engine: NerEngine, texts: Sequence[str]) -> dict[str, Any]:
    """Shares of the reference's entities that the engine finds too: of all, and of those in texts that are no ties.

    Also how many entities the engine adds, how many texts differ, and the largest gap between the log-probabilities
    (under the reference's emissions) of the two tag sequences of a text.
    """
    documents = [_encode(reference, text) for text in texts]
    expected_emissions, found_emissions = (one.compute_emissions(documents) for one in (reference, engine))
    expected, found = (reference.decoder.decode(emissions) for emissions in (expected_emissions, found_emissions))
    pairs = [
        ({(s.start, s.end, s.label) for s in one}, {(s.start, s.end, s.label) for s in other})
        for one, other in zip(expected, found, strict=True)
    ]
    differing = [index for index, (one, other) in enumerate(pairs) if one != other]
    gaps = [_find_gap(reference, expected_emissions[index], found_emissions[index]) for index in differing]
    missed = [len(pairs[index][0] - pairs[index][1]) for index in differing]
    num_entities = max(1, sum(len(one) for one, _ in pairs))
    return {
        "num_entities": num_entities,
        "equal": 1 - sum(missed) / num_entities,
        "equal_but_for_ties": 1 - sum(n for n, gap in zip(missed, gaps, strict=True) if gap >= TIE) / num_entities,
        "num_added": sum(len(other - one) for one, other in pairs),
        "num_texts_that_differ": len(differing),
        "largest_gap": max(gaps, default=0.0),
        "tie": TIE,
    }


def _encode(engine: NerEngine, text: str) -> EncodedDocument:
    words = split_words(text, engine.encoder.splitter)
    return engine.encoder.encode_pieces([text[start:end] for start, end in words])


def _find_gap(reference: NerEngine, expected_WK: Tensor, found_WK: Tensor) -> float:
    """How much likelier the reference holds its own tags than those of the other emissions."""
    best, other = _score_tags(reference, expected_WK, (expected_WK, found_WK))
    return best - other


def _score_tags(reference: NerEngine, expected_WK: Tensor, emissions: Sequence[Tensor]) -> Iterator[float]:
    chain = reference.decoder.chain
    for scores_WK in emissions:
        tags_W = find_best_tags(scores_WK, torch.tensor([len(scores_WK)]), chain)
        own = expected_WK.double().gather(1, tags_W[:, None]).sum()
        steps = chain.transitions_KK[tags_W[:-1], tags_W[1:]].sum()
        yield float(own + steps + chain.start_K[tags_W[0]] + chain.end_K[tags_W[-1]])
