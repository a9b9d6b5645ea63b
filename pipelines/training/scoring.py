"""What a model that trains is chosen by: strict micro F1 on dev, of all workers together."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch.distributed as dist

from pipelines.evaluation.metrics import Counts, Scored, count, scores
from pipelines.ner.engine import NerEngine
from pipelines.ner.errors import UserError


def score_dev(engine: NerEngine, dev: Sequence[Scored]) -> float:
    """Strict micro F1 of the workers' dev records together, each scored by the engine that predicts for users.

    Raises the UserError that any worker has met, in all: those whose records show nothing wrong would wait for it.
    """
    own: Any
    try:
        predicted = engine.predict_documents([scored.content for scored in dev])
        own = count(replace(scored, predicted=spans) for scored, spans in zip(dev, predicted, strict=True)).to_dict()
    except UserError as error:
        own = error
    told = [own]
    if dist.is_initialized() and dist.get_world_size() > 1:
        told = [None] * dist.get_world_size()
        dist.all_gather_object(told, own)
    problem = next((one for one in told if isinstance(one, UserError)), None)
    if problem is not None:
        raise problem
    f1: float = scores(sum((Counts.from_dict(plain) for plain in told), Counts()))["strict"]["micro"]["f1"]
    return f1
