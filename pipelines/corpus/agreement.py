"""One way of computing for all actors of a job: what the first one finds the fastest, the others take too.

Two runtimes differ in rounding, and with it here and there in an entity. If each actor chose for itself, the output
would depend on who labelled what.
"""

import json
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from pipelines.corpus.inference import ActorPlan, InferenceConfig, find_device
from pipelines.ner.engine import NerEngine
from pipelines.ner.runtimes.runtime import RuntimeUnavailable

LoadEngine = Callable[[str, InferenceConfig, ActorPlan], NerEngine]


def load_agreed(work: Path, model: str, config: InferenceConfig, plan: ActorPlan, load: LoadEngine) -> NerEngine:
    """An engine with the runtime and precision that the job's first actor on this kind of device has chosen.

    An actor whose machine does not have that runtime chooses for itself.
    """
    device = find_device(config, plan)
    kind = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device.split(":")[0]
    path = work / f"engine-{kind}.json"
    agreed = _follow(path, config)
    try:
        engine = load(model, agreed, plan)
    except RuntimeUnavailable:
        if agreed == config:
            raise
        return load(model, config, plan)
    _propose(path, engine.describe())
    described = replace(config, runtime=engine.describe()["runtime"], precision=engine.describe()["precision"])
    return engine if _follow(path, described) == described else load_agreed(work, model, config, plan, load)


def read_agreements(work: Path) -> list[dict[str, Any]]:
    """What engines tell of themselves, the figures of their choice included; one for each kind of device."""
    texts = [path.read_text(encoding="utf-8") for path in sorted(work.glob("engine-*.json"))]
    return [json.loads(text) for text in texts if text]


def _follow(path: Path, config: InferenceConfig) -> InferenceConfig:
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    if not text:  # none yet; or, where there are no hard links, one that is about to be written
        return config
    agreed = json.loads(text)
    return replace(config, runtime=agreed["runtime"], precision=agreed["precision"])


def _propose(path: Path, choice: dict[str, Any]) -> None:
    """Write the choice down, whole, unless another actor was first."""
    staging = path.with_name(f".{path.name}.{os.uname().nodename}.{os.getpid()}")
    staging.write_text(json.dumps(choice), encoding="utf-8")
    try:
        os.link(staging, path)
    except FileExistsError:
        pass
    except OSError:  # the file system has no hard links
        with suppress(FileExistsError), path.open("x", encoding="utf-8") as file:
            file.write(json.dumps(choice))
    finally:
        staging.unlink()
