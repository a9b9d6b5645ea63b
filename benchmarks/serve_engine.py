"""The engine alone, warm as a replica is: `python -m benchmarks.serve_engine MODEL CORPUS SECONDS` prints its rate.

It reads the corpus once before what counts, for the first batch of each shape takes far longer than the next; then
over and over for so many seconds, once at least. The rate is in sub-tokens per second.
"""

import json
import sys
import time
from pathlib import Path

from pipelines.ner.engine import NerEngine


def main() -> None:
    """Load, warm up, label, print."""
    model, corpus, seconds = sys.argv[1:]
    texts = [json.loads(line)["text"] for line in Path(corpus).read_text(encoding="utf-8").split("\n") if line]
    engine = NerEngine.load(model)
    num_tokens = sum(prediction.coverage.num_tokens for prediction in engine.predict(texts))
    num_passes, started = 0, time.perf_counter()
    while not num_passes or time.perf_counter() - started < float(seconds):
        engine.predict(texts)
        num_passes += 1
    print(num_passes * num_tokens / (time.perf_counter() - started))


if __name__ == "__main__":
    main()
