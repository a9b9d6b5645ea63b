"""Real engines that go wrong over certain texts, as loaders for the actors of `predict`."""

import os
import resource
import signal
from collections.abc import Sequence
from pathlib import Path

from pipelines.corpus.inference import ActorPlan, InferenceConfig, load_engine
from pipelines.ner.engine import EngineError, NerEngine
from pipelines.ner.entities import Prediction

DEADLY = "kill the worker"
DEADLY_ONCE = "kill the worker unless there is a file"
BROKEN = "raise an error"
ENDLESS = "take all memory"
HALTING = "end the job unless there is a file"
"""The last word of a text names the file."""


class TouchyEngine(NerEngine):
    """Goes wrong over some texts; everything else it labels as usual."""

    def predict(self, texts: Sequence[str]) -> list[Prediction]:
        """As the engine, but for some texts."""
        for text in texts:
            mark = Path(text.split()[-1])
            if HALTING in text and not mark.exists():
                raise EngineError("the device is not ready")
            if DEADLY_ONCE in text:
                if not mark.exists():
                    mark.touch()
                    os.kill(os.getpid(), signal.SIGKILL)
            elif DEADLY in text:
                os.kill(os.getpid(), signal.SIGKILL)
            if BROKEN in text:
                raise ValueError("this text\ncannot be")
            if ENDLESS in text:
                raise MemoryError
        return super().predict(texts)


class FailingEngine(NerEngine):
    """Fails whatever it is given."""

    def predict(self, texts: Sequence[str]) -> list[Prediction]:
        """Never anything."""
        raise RuntimeError("the device is gone")


def load_touchy(model: str, config: InferenceConfig, plan: ActorPlan) -> NerEngine:
    """A loader as `load_engine`."""
    engine = load_engine(model, config, plan)
    engine.__class__ = TouchyEngine
    return engine


def load_failing(model: str, config: InferenceConfig, plan: ActorPlan) -> NerEngine:
    """A loader as `load_engine`."""
    engine = load_engine(model, config, plan)
    engine.__class__ = FailingEngine
    return engine


def load_nothing(model: str, config: InferenceConfig, plan: ActorPlan) -> NerEngine:
    """A loader that dies, as one that finds no memory."""
    os.kill(os.getpid(), signal.SIGKILL)
    return load_engine(model, config, plan)


def load_on_full_disk(model: str, config: InferenceConfig, plan: ActorPlan) -> NerEngine:
    """A loader as `load_engine`, after which the process can write no file of more than 100 bytes."""
    engine = load_engine(model, config, plan)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    return engine
