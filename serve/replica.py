"""What a replica does, without Ray and without HTTP: it answers texts with one engine a model."""

import asyncio
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pipelines.ner.engine import NerEngine
from pipelines.ner.entities import Entity, Prediction
from pipelines.ner.errors import UserError
from serve.batching import Batcher
from serve.bodies import MAX_MISTAKES
from serve.keys import read_keys
from serve.metrics import Metrics
from serve.problems import Problem
from serve.redaction import redact
from serve.schemas import EntitiesRequest, Options, StreamLine
from serve.settings import Arguments, Tuning
from serve.shelf import LoadedModel, Shelf
from serve.warming import warm_up
from serve.work import Answer

CANARY = "Angela Merkel visited Utrecht in 2019. 中文"
CANARY_TIMEOUT_S = 10.0
HUNG_S = 60.0
"""A batch that takes less is never taken for one that hangs, nor one within a request's deadline."""
STREAM_RETRY_S = 5
"""When a client may come again where there are as many streams as a replica takes: nobody knows when one ends."""


@dataclass(slots=True)
class Timing:
    """Where the time of a request went: the longest of its texts."""

    queue_s: float = 0.0
    engine_s: float = 0.0
    num_tokens: int = 0

    def add(self, answer: Answer) -> None:
        """Count a text."""
        self.queue_s = max(self.queue_s, answer.queue_s)
        self.engine_s = max(self.engine_s, answer.engine_s)
        self.num_tokens += answer.prediction.coverage.num_tokens


class Replica:
    """Answers requests. To be used from one event loop.

    Raises UserError where keys are needed and there are none, or a file of them cannot be used.

    Args:
        redaction_key: of the hashes in redacted texts; all replicas of an endpoint have the same.
    """

    def __init__(self, arguments: Arguments, redaction_key: bytes) -> None:
        self.arguments, self.tuning = arguments, arguments.tuning
        self.metrics = Metrics()
        self.keys = read_keys(arguments.api_keys_file, are_needed=arguments.needs_api_keys)
        self.redaction_key = redaction_key
        self.num_threads = max(1, int(arguments.num_cpus))
        torch.set_num_threads(self.num_threads)
        paths = {arguments.model_name: arguments.model, **arguments.models}
        self.shelf = Shelf(paths, arguments.max_models_mib, self.open_engine, self.make_batcher)
        self.is_ready = False
        self.num_streams = 0
        """That are under way."""

    async def start(self) -> None:
        """Load the default model and answer once. Raises Problem."""
        async with self.shelf.borrow(self.arguments.model_name):
            await self.check()
        self.is_ready = True

    async def check(self) -> None:
        """Answer a known text with each model in memory that has nothing to do, or whose last batches failed; what is
        wrong is raised, also that a batch does not end."""
        for name in list(self.shelf.loaded):
            with self.shelf.look(name) as model:  # asking for it would load it, or keep it from making room
                if model is None:
                    continue
                model.batcher.check_running(max(HUNG_S, self.tuning.timeout_s))
                if model.batcher.is_idle or model.batcher.is_suspect:  # else requests show that it works
                    await asyncio.wait_for(model.batcher.predict(CANARY), CANARY_TIMEOUT_S)

    def tune(self, tuning: Tuning) -> None:
        """Go on with other thresholds and budgets."""
        self.tuning = tuning
        for model in self.shelf.loaded.values():
            model.batcher.max_batch_tokens = self._choose_batch_tokens(model.engine)
            model.batcher.max_queued_tokens = tuning.max_queued_tokens
            model.batcher.max_wait_s = tuning.max_wait_s

    def open_engine(self, path: str) -> NerEngine:
        """A model's engine, warm."""
        share = self.arguments.num_gpus
        engine = NerEngine.load(
            path,
            device=self.arguments.device if share or self.arguments.device != "auto" else "cpu",
            runtime=self.arguments.runtime,
            precision=self.arguments.precision,
            scheme=self.arguments.scheme,
            num_threads=self.num_threads,
            gpu_memory_fraction=share if 0 < share < 1 else None,
        )
        warm_up(engine)
        return engine

    def make_batcher(self, engine: NerEngine) -> Batcher:
        """The batcher of a loaded model."""
        return Batcher(
            engine,
            max_batch_tokens=self._choose_batch_tokens(engine),
            max_queued_tokens=self.tuning.max_queued_tokens,
            max_wait_s=self.tuning.max_wait_s,
            observe=self.metrics.observe_batch,
        )

    def _choose_batch_tokens(self, engine: NerEngine) -> int:
        return self.tuning.max_batch_tokens or engine.streams.max_batch_tokens

    def check_room(self) -> None:
        """Raise Overloaded where the default model's queue is full."""
        model = self.shelf.loaded.get(self.arguments.model_name)
        if model is not None:
            model.batcher.check_room()

    @contextmanager
    def hold_stream(self) -> Iterator[None]:
        """A block that answers a stream. Raises Problem where there are as many as a replica takes."""
        if self.num_streams >= self.tuning.max_streams:
            detail = f"{self.num_streams} streams are under way, as many as a replica takes"
            raise Problem(429, detail, headers={"retry-after": str(STREAM_RETRY_S)})
        self.num_streams += 1
        try:
            yield
        finally:
            self.num_streams -= 1

    async def answer(self, request: EntitiesRequest, model: str | None, timing: Timing) -> dict[str, Any]:
        """A `Result`, or `Results` for several texts, as plain data."""
        if request.text is not None:
            return await self.answer_text(request.text, request, model, timing)
        async with self.shelf.borrow(model or self.arguments.model_name) as loaded:
            return {"results": await self._answer_all(request.texts or [], request, loaded, timing)}

    async def _answer_all(
        self, texts: Sequence[str], options: Options, model: LoadedModel, timing: Timing
    ) -> list[dict[str, Any]]:
        check_labels(options, model)
        model.batcher.check_room()  # once: a request whose texts do not fit in the queue together would never be taken
        tasks = [asyncio.ensure_future(self._answer_one(text, options, model, timing)) for text in texts]
        try:
            return list(await asyncio.gather(*tasks))
        except Exception as error:
            failed = (index for index, task in enumerate(tasks) if _find_error(task) is error)
            raise FailedText(next(failed), error) from error
        finally:
            for task in tasks:
                task.cancel()

    async def answer_text(
        self, text: str, options: Options, model: str | None, timing: Timing, *, is_patient: bool = False
    ) -> dict[str, Any]:
        """A `Result` as plain data.

        Args:
            is_patient: wait where the queue is full; the deadline is for computing alone. Else it is the caller's.
        """
        async with self.shelf.borrow(model or self.arguments.model_name) as loaded:
            check_labels(options, loaded)
            if not is_patient:
                loaded.batcher.check_room()
            return await self._answer_one(text, options, loaded, timing, is_patient=is_patient)

    async def _answer_one(
        self, text: str, options: Options, model: LoadedModel, timing: Timing, *, is_patient: bool = False
    ) -> dict[str, Any]:
        timeout_s = self.tuning.timeout_s if is_patient else None
        answer = await model.batcher.predict(text, is_patient=is_patient, timeout_s=timeout_s)
        timing.add(answer)
        self.metrics.observe_text(model.name, answer.prediction, answer.queue_s, answer.engine_s)
        return self.render(text, answer.prediction, options)

    def render(self, text: str, prediction: Prediction, options: Options) -> dict[str, Any]:
        """What the options let through."""
        entities = choose_entities(prediction.entities, options, self.tuning.min_score)
        coverage = prediction.coverage
        result: dict[str, Any] = {
            "entities": [
                {"text": one.text, "label": one.label, "start": one.start, "end": one.end, "score": one.score}
                for one in entities
            ],
            "coverage": {
                "num_characters": coverage.num_characters,
                "num_words": coverage.num_words,
                "num_tokens": coverage.num_tokens,
                "num_windows": coverage.num_windows,
                "fraction": coverage.fraction,
            },
        }
        if options.redact is not None:
            result["redacted"] = redact(text, entities, options.redact, self.redaction_key).model_dump()
        return result

    def check_request(self, request: EntitiesRequest) -> None:
        """Raise Problem for a request beyond the limits."""
        texts = request.texts or []
        if len(texts) > self.tuning.max_texts:
            detail = f"a request may have {self.tuning.max_texts} texts; this one has {len(texts)}"
            raise Problem(422, detail, errors=[("/texts", detail)])
        for at, text in enumerate(texts):
            self.check_text(text, f"/texts/{at}")
        if request.text is not None:
            self.check_text(request.text, "/text")

    def check_text(self, text: str, pointer: str) -> None:
        """Raise Problem for a text that is too long."""
        if len(text) > self.tuning.max_characters:
            detail = f"a text may have {self.tuning.max_characters} characters; this one has {len(text)}"
            raise Problem(422, detail, errors=[(pointer, detail)])

    def check_line(self, line: StreamLine) -> None:
        """Raise Problem for a line beyond the limits."""
        self.check_text(line.text, "/text")

    def count_load(self) -> int:
        """Sub-tokens that wait or are computed."""
        return sum(
            model.batcher.num_waiting_tokens + model.batcher.num_running_tokens for model in self.shelf.loaded.values()
        )

    def list_models(self) -> dict[str, Any]:
        """`ModelList` as plain data."""
        return {
            "default": self.arguments.model_name,
            "models": list(self.shelf.paths),
            "loaded": list(self.shelf.loaded),
        }

    async def describe_model(self, name: str | None) -> dict[str, Any]:
        """`ModelInfo` as plain data."""
        async with self.shelf.borrow(name or self.arguments.model_name) as model:
            return model.describe()

    def look(self) -> None:
        """Bring the gauges up to date."""
        self.metrics.queued.set(self.count_load())
        self.metrics.models.set(len(self.shelf.loaded))
        self.metrics.memory.set(_read_resident_bytes())


class FailedText(Exception):
    """One of several texts that could not be computed."""

    def __init__(self, index: int, cause: Exception) -> None:
        self.index, self.cause = index, cause
        super().__init__(f"text {index} could not be computed")


def _find_error(task: "asyncio.Future[Any]") -> BaseException | None:
    return task.exception() if task.done() and not task.cancelled() else None


def check_labels(options: Options, model: LoadedModel) -> None:
    """Raise Problem for a label that the model lacks: misspelt, it would leave out what should be redacted."""
    known = model.engine.scheme.labels
    unknown = [(at, label) for at, label in enumerate(options.labels or []) if label not in known]
    if unknown:
        errors = [(f"/labels/{at}", f"the model has no label `{label[:100]}`") for at, label in unknown]
        raise Problem(422, f"{errors[0][1]}; it has {', '.join(known)}", errors=errors[:MAX_MISTAKES])


def choose_entities(entities: Sequence[Entity], options: Options, min_score: float) -> list[Entity]:
    """Those of the wanted labels and scores."""
    least = min_score if options.min_score is None else options.min_score
    labels = None if options.labels is None else frozenset(options.labels)
    return [one for one in entities if one.score >= least and (labels is None or one.label in labels)]


def read_redaction_key(file: str | None) -> bytes:
    """The bytes of a file; without one, a key made now. Raises UserError."""
    if file is None:
        return secrets.token_bytes(32)
    try:
        key = Path(file).read_bytes().strip()
    except OSError as error:
        raise UserError("the redaction key cannot be read", where=f"`{file}`", value=error.strerror) from error
    if len(key) < 16:
        raise UserError("the redaction key is too weak", where=f"`{file}`", rule="at least 16 bytes", value=len(key))
    return key


def _read_resident_bytes() -> int:
    import psutil  # type: ignore[import-untyped]  # it comes with Ray, which may have to be imported first

    return int(psutil.Process().memory_info().rss)
