"""A model's first batches, computed before anybody waits for them: kernels are made for every count of rows."""

from pipelines.ner.encoding import Window
from pipelines.ner.engine import NerEngine

WORD = "a"
"""Whose first sub-token the batches are made of."""
MAX_TOKENS = 512
"""Of the batches computed: kernels of larger ones are made while they are needed, in a small part of their time."""
GROWTH = 1.06
"""From one length to the next; rows are filled up to counts further apart than that."""


def warm_up(engine: NerEngine, max_tokens: int = MAX_TOKENS) -> None:
    """Compute batches of all sizes on each of the engine's threads, and as a batch does that has all cores."""
    engine.predict([WORD])  # the parts that no thread of a stream runs
    streams, num_tokens = engine.streams, 1
    while num_tokens < max_tokens:
        num_tokens = max(num_tokens + 1, int(num_tokens * GROWTH))
        windows = _make_windows(engine, num_tokens)
        for pool, count in ((streams.wide.pool, 1), (streams.pool, streams.num_streams)):
            for one in [pool.submit(engine.compute, windows) for _ in range(count)]:
                one.result()


def _make_windows(engine: NerEngine, num_tokens: int) -> list[Window]:
    """So many sub-tokens, or a few more: full windows and one with the rest.

    They are made as windows, not of text: a word may have more than one sub-token, and then more than fit.
    """
    encoder = engine.encoder
    first = len(encoder.prefix)
    token = engine.prepare(WORD).document.windows[0].input_ids[first]
    number, rest = divmod(num_tokens, encoder.window)
    counts = [encoder.capacity] * number + ([max(1, rest - encoder.window + encoder.capacity)] if rest else [])
    return [
        Window([*encoder.prefix, *[token] * count, *encoder.suffix], list(range(first, first + count)), True, True)
        for count in counts
    ]
