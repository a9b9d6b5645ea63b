"""How fast models are next to each other: in turns, so that what else the machine does meets all of them alike."""

import time
from collections.abc import Sequence
from statistics import median

from pipelines.ner.engine import NerEngine

Document = str | Sequence[str]


def compare_speeds(engines: Sequence[NerEngine], documents: Sequence[Document], *, num_rounds: int) -> list[float]:
    """Sub-tokens a second of each engine on the same documents: the median of its rounds, after one that warms up."""
    seconds: list[list[float]] = [[] for _ in engines]
    for _ in range(num_rounds + 1):
        for engine, taken in zip(engines, seconds, strict=True):
            started = time.perf_counter()
            engine.predict_documents(documents)
            taken.append(time.perf_counter() - started)
    num_tokens = count_tokens(engines[0], documents)
    return [round(num_tokens / median(taken[1:]), 1) for taken in seconds]


def count_tokens(engine: NerEngine, documents: Sequence[Document]) -> int:
    """Sub-tokens of documents by an engine's tokenizer: by the first one's for all, so that texts count the same."""
    return sum(
        engine.count_tokens(document) if isinstance(document, str) else engine.encoder.encode_words(document).num_tokens
        for document in documents
    )


def repeat_documents(documents: Sequence[Document], engine: NerEngine, num_tokens: int) -> list[Document]:
    """The documents, over again until they have so many sub-tokens; all of them, if they have more."""
    once = max(1, count_tokens(engine, documents))
    return list(documents) * max(1, -(-num_tokens // once))
