"""A model's first batches, computed before anybody waits for them: kernels are made for every count of rows."""

from pipelines.ner.encoding import Window
from pipelines.ner.engine import NerEngine

WORD = "a"
"""One sub-token in any vocabulary."""
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
    """So many sub-tokens, or a few more: full windows and one with the rest."""
    capacity = engine.encoder.capacity
    [full] = engine.prepare(" ".join([WORD] * capacity)).document.windows
    number, rest = divmod(num_tokens, len(full.input_ids))
    special = len(full.input_ids) - capacity
    return [full] * number + (
        engine.prepare(" ".join([WORD] * max(1, rest - special))).document.windows if rest else []
    )
