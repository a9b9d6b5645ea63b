"""A model's first batches, computed before anybody waits for them: kernels are made for every count of rows."""

from pipelines.ner.engine import NerEngine

WORD = "a"
"""One sub-token in any vocabulary."""
MAX_TOKENS = 512
"""Of the batches computed: kernels of larger ones are made while they are needed, in a small part of their time."""
GROWTH = 1.06
"""From one length to the next; rows are filled up to counts further apart than that."""


def warm_up(engine: NerEngine, max_tokens: int = MAX_TOKENS) -> None:
    """Compute batches of all sizes on each of the engine's threads, and as a batch does that has all cores."""
    num_words, num_tokens = 1, 0
    engine.predict([WORD])  # the parts that no thread of a stream runs
    while num_tokens < max_tokens:
        windows = engine.prepare(" ".join([WORD] * num_words)).document.windows
        num_tokens = sum(len(window.input_ids) for window in windows)
        streams = engine.streams
        for pool, count in ((streams.wide, 1), (streams.pool, streams.num_streams)):
            for one in [pool.submit(engine.compute, windows) for _ in range(count)]:
                one.result()
        num_words = max(num_words + 1, int(num_words * GROWTH))
