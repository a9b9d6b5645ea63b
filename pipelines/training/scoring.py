"""What a model that trains is chosen by: strict micro F1 on dev, of all workers together."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch.distributed as dist

from pipelines.evaluation.metrics import Counts, Scored, count, scores
from pipelines.ner.engine import NerEngine


def score_dev(engine: NerEngine, dev: Sequence[Scored]) -> float:
    """Strict micro F1 of the workers' dev records together, each scored by the engine that predicts for users."""
    predicted = engine.predict_documents([scored.content for scored in dev])
    counts = count(replace(scored, predicted=spans) for scored, spans in zip(dev, predicted, strict=True))
    if dist.is_initialized() and dist.get_world_size() > 1:
        gathered: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(gathered, counts.to_dict())
        counts = sum((Counts.from_dict(plain) for plain in gathered), Counts())
    f1: float = scores(counts)["strict"]["micro"]["f1"]
    return f1
