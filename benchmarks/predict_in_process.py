"""The engine alone on a corpus: `python -m benchmarks.predict_in_process MODEL CORPUS` prints sub-tokens per second."""

import json
import sys
import time
from pathlib import Path

from pipelines.ner.engine import NerEngine


def main() -> None:
    """Load, warm up, label, print."""
    model, corpus = sys.argv[1:]
    texts = [json.loads(line)["text"] for line in Path(corpus).read_text(encoding="utf-8").split("\n") if line]
    engine = NerEngine.load(model)
    engine.predict(texts[:20])
    started = time.perf_counter()
    num_tokens = sum(prediction.coverage.num_tokens for prediction in engine.predict(texts))
    print(num_tokens / (time.perf_counter() - started))


if __name__ == "__main__":
    main()
