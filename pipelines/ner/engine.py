"""NerEngine: texts or words in, entities out. Evaluation, offline batch and serving all call this.

Each text is split into words, encoded into windows, and run in length-sorted batches under a token budget; the
windows' emissions are joined to one sequence of words, which is decoded once. So an entity on the border of two windows
stays one entity, and batch composition changes nothing but rounding.

The three stages overlap: while threads compute the batches of one group of documents, each on a core of its own, the
caller's thread encodes the next group and decodes the one before.
"""

import os
import re
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipelines.ner.bundle import BUNDLE_FILE, Bundle, load_bundle
from pipelines.ner.decoding import Decoder
from pipelines.ner.encoding import EncodedDocument, Window
from pipelines.ner.entities import Coverage, Entity, Prediction, Span
from pipelines.ner.errors import UserError
from pipelines.ner.runtimes.calibration import (
    RUNTIMES,
    Figure,
    Place,
    calibrate,
    find_cache,
    open_runtime,
)
from pipelines.ner.runtimes.int8 import explain_no_int8
from pipelines.ner.runtimes.runtime import PRECISIONS
from pipelines.ner.streams import PendingEmissions, Streams, start_threads
from pipelines.ner.words import split_words

FIRST_GROUP_TOKENS = 8192
"""So few, where no batch waits, so that computing starts soon."""
GROUPS_AHEAD = 2
"""Groups of documents that are encoded before the oldest is decoded."""
DEVICE = re.compile(r"auto|cpu|cuda(:\d{1,3})?")
DEVICE_RULE = "auto, cpu, cuda, cuda:1 …"


class EngineError(UserError):
    """A device, runtime or precision that there is not."""


@dataclass(frozen=True, slots=True)
class PreparedText:
    """A text, its words as ranges of characters, and its windows."""

    text: str
    words: list[tuple[int, int]]
    document: EncodedDocument


class NerEngine:
    """Predicts entities with one loaded model. Threads may share it.

    Args:
        device: `cpu`, `cuda`, `cuda:1` …; `auto` takes a GPU if there is one.
        runtime: torch, packed, torch-compiled or openvino; `auto` takes the fastest, measured once on this machine.
        precision: fp32, bf16, fp16 or, of a bundle that carries it, int8 for the encoder; `auto` takes bf16 where it is
            measured to be much faster, int8 where it is faster. Decoding is always in double precision.
        max_batch_tokens: sub-tokens in one forward pass; default: the runtime's own. Halved where memory ends.
        num_threads: CPU threads that compute; default: PyTorch's.
        gpu_memory_fraction: the share of the GPU's memory that this process may take.
        exports: folder in which a runtime keeps its form of the model.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        device: str = "auto",
        runtime: str = "auto",
        precision: str = "auto",
        max_batch_tokens: int | None = None,
        num_threads: int | None = None,
        gpu_memory_fraction: float | None = None,
        exports: Path | None = None,
    ) -> None:
        self.device = find_device(device)
        _check_choice("runtime", runtime, RUNTIMES)
        _check_choice("precision", precision, ("auto", *PRECISIONS))
        if gpu_memory_fraction is not None and self.device.type == "cuda":
            torch.cuda.set_per_process_memory_fraction(gpu_memory_fraction, self.device.index)
        self.num_threads = num_threads or torch.get_num_threads()
        self.encoder, self.scheme, self.info = bundle.encoder, bundle.model.scheme, bundle.info
        self.decoder = Decoder(bundle.model.scheme, bundle.model.chain, bundle.info.temperatures)
        self.size_bytes = sum(one.numel() * one.element_size() for one in bundle.model.parameters())
        place = Place(bundle.model, bundle.encoder, self.device, self.num_threads, exports, bundle.int8)
        if precision == "int8" and (problem := explain_no_int8(place.int8, place.device, runtime)):
            raise problem
        self.figures: list[Figure] = []
        if "auto" in (runtime, precision):
            runtime, precision, self.figures = calibrate(runtime, precision, place)
        self.runtime = open_runtime(runtime, precision, place)
        budget = max_batch_tokens or self.runtime.batch_tokens
        self.streams = Streams(self.runtime, self.device, self.num_threads, budget)
        self.decoding = start_threads("decoding", 1, 1)

    @classmethod
    def load(
        cls,
        model: str | Path,
        *,
        device: str = "auto",
        runtime: str = "auto",
        precision: str = "auto",
        max_batch_tokens: int | None = None,
        num_threads: int | None = None,
        gpu_memory_fraction: float | None = None,
        scheme: str | None = None,
    ) -> "NerEngine":
        """An engine on a bundle folder, a Hugging Face token-classification checkpoint folder, or a hub id."""
        bundle = load_bundle(model, scheme=scheme)
        return cls(
            bundle,
            device=device,
            runtime=runtime,
            precision=precision,
            max_batch_tokens=max_batch_tokens,
            num_threads=num_threads,
            gpu_memory_fraction=gpu_memory_fraction,
            exports=_find_exports(Path(model), bundle.info.fingerprint),
        )

    def predict(self, texts: Sequence[str]) -> list[Prediction]:
        """Entities and coverage of each text, in order; offsets are Unicode code points."""
        if isinstance(texts, str):
            raise TypeError("predict takes a list of texts: predict([text])")
        ranges = [split_words(text, self.encoder.splitter) for text in texts]
        encoded = (self._encode(text, words) for text, words in zip(texts, ranges, strict=True))
        return [
            _build_prediction(PreparedText(texts[index], ranges[index], document), spans)
            for index, (document, spans) in enumerate(self._predict_spans(encoded))
        ]

    def prepare(self, text: str) -> PreparedText:
        """A text as words and windows: the first of `predict`'s three stages, for who makes batches of windows."""
        words = split_words(text, self.encoder.splitter)
        return PreparedText(text, words, self._encode(text, words))

    def compute(self, windows: Sequence[Window]) -> list[Tensor]:
        """Emissions `[W, K]` of each window's words, in one batch on the calling thread, which is one of `streams`':
        the second stage."""
        return self.streams.compute(windows)

    def finish(self, texts: Sequence[PreparedText], emissions: Sequence[Sequence[Tensor]]) -> list[Prediction]:
        """The answers for texts whose windows' emissions are all there: the third stage."""
        joined = [_join_windows(parts, len(self.scheme.tags)) for parts in emissions]
        return [_build_prediction(text, spans) for text, spans in zip(texts, self.decoder.decode(joined), strict=True)]

    def predict_words(self, sentences: Sequence[Sequence[str]]) -> list[list[Span]]:
        """Spans of each sentence (or document) given as words, in order."""
        encoded = (self.encoder.encode_words(words) for words in sentences)
        return [spans for _, spans in self._predict_spans(encoded)]

    def predict_documents(self, documents: Sequence[str | Sequence[str]]) -> list[list[Span]]:
        """Spans of documents that are each a text (ranges of characters) or a list of words (ranges of words)."""
        with_words = [document for document in documents if not isinstance(document, str)]
        with_text = [document for document in documents if isinstance(document, str)]
        words = iter(self.predict_words(with_words))
        texts = iter(self.predict(with_text))
        return [
            [Span(entity.start, entity.end, entity.label, entity.score) for entity in next(texts).entities]
            if isinstance(document, str)
            else next(words)
            for document in documents
        ]

    def count_tokens(self, text: str) -> int:
        """Sub-tokens of a text, without special tokens: for batching by tokens."""
        return self.encoder.count_tokens([text[start:end] for start, end in split_words(text, self.encoder.splitter)])

    def close(self) -> None:
        """End its threads, once what they compute is done. It predicts nothing after that."""
        self.streams.close()
        self.decoding.shutdown(wait=False)

    def describe(self) -> dict[str, Any]:
        """What computes, and why: runtime, precision, device, threads, token budget, and each candidate's figures."""
        return {
            "runtime": self.runtime.name,
            "precision": self.runtime.precision,
            "device": str(self.device),
            "num_threads": self.num_threads,
            "max_batch_tokens": self.streams.max_batch_tokens,
            "candidates": [asdict(figure) for figure in self.figures],
        }

    def compute_emissions(self, documents: Sequence[EncodedDocument]) -> list[Tensor]:
        """Emissions `[W, K]` of each document in float32 on the CPU: its windows' owned words, in order."""
        return self._join(documents, self._submit(documents))

    def _predict_spans(self, encoded: Iterator[EncodedDocument]) -> Iterator[tuple[EncodedDocument, list[Span]]]:
        waiting: deque[tuple[list[EncodedDocument], PendingEmissions]] = deque()
        most = self.runtime.group_tokens
        for group in _group(encoded, min(FIRST_GROUP_TOKENS, most) if self.streams.is_idle else most, most):
            waiting.append((group, self._submit(group)))
            if len(waiting) > GROUPS_AHEAD:
                yield from self._decode(*waiting.popleft())
        while waiting:
            yield from self._decode(*waiting.popleft())

    def _submit(self, documents: Sequence[EncodedDocument]) -> PendingEmissions:
        return self.streams.submit([window for document in documents for window in document.windows])

    def _decode(
        self, group: list[EncodedDocument], pending: PendingEmissions
    ) -> Iterator[tuple[EncodedDocument, list[Span]]]:
        """Spans of a group; in a thread of its own, for a second one would wait for the cores that compute."""
        spans = self.decoding.submit(lambda: self.decoder.decode(self._join(group, pending)))
        return zip(group, spans.result(), strict=True)

    def _join(self, documents: Sequence[EncodedDocument], pending: PendingEmissions) -> list[Tensor]:
        """The emissions of each document, of those of its windows."""
        ready = iter(pending.wait())
        num_tags = len(self.scheme.tags)
        return [_join_windows([next(ready) for _ in document.windows], num_tags) for document in documents]

    def _encode(self, text: str, words: Sequence[tuple[int, int]]) -> EncodedDocument:
        return self.encoder.encode_pieces([text[start:end] for start, end in words])


def find_device(device: str) -> torch.device:
    """The device of a name, `auto` for the best there is. Raises EngineError for one that this machine lacks."""
    if not DEVICE.fullmatch(device):
        raise EngineError(f"no device `{device}`", rule=DEVICE_RULE, value=device)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    found = torch.device(device)
    num_devices = torch.cuda.device_count() if found.type == "cuda" and torch.cuda.is_available() else 0
    if found.type == "cuda" and (found.index or 0) >= num_devices:
        what = f"this machine has no CUDA device{f' {found.index}' if num_devices else ''}"
        raise EngineError(what, rule=f"{num_devices} of them are here", value=device, remedy="use `cpu` or `auto`")
    return found


def _check_choice(what: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise EngineError(f"no {what} `{value}`", rule="one of " + ", ".join(choices), value=value)


def _find_exports(model: Path, fingerprint: str) -> Path | None:
    """Beside the bundle, or in the user's cache where that cannot be written; nowhere for a model not in a bundle."""
    if not (model / BUNDLE_FILE).is_file():
        return None
    beside = model.absolute().parent
    folder = beside / f"{model.absolute().name}.cache" if os.access(beside, os.W_OK) else find_cache() / "models"
    return folder / fingerprint


def _group(encoded: Iterator[EncodedDocument], enough: int, max_tokens: int) -> Iterator[list[EncodedDocument]]:
    """Documents whose windows are sorted together: `enough` sub-tokens at first, then ever more."""
    group: list[EncodedDocument] = []
    num_tokens = 0
    for document in encoded:
        group.append(document)
        num_tokens += document.num_tokens
        if num_tokens >= enough:
            yield group
            group, num_tokens = [], 0
            enough = min(4 * enough, max_tokens)
    if group:
        yield group


def _join_windows(parts: Sequence[Tensor], num_tags: int) -> Tensor:
    if len(parts) == 1:
        return parts[0]
    return torch.cat(list(parts)) if parts else torch.empty(0, num_tags)


def _build_prediction(text: PreparedText, spans: Sequence[Span]) -> Prediction:
    document = text.document
    coverage = Coverage(
        num_characters=len(text.text),
        num_words=len(text.words),
        num_tokens=document.num_tokens,
        num_windows=len(document.windows),
        fraction=document.num_tokens_read / document.num_tokens if document.num_tokens else 1.0,
    )
    return Prediction([_build_entity(text.text, text.words, span) for span in spans], coverage)


def _build_entity(text: str, words: Sequence[tuple[int, int]], span: Span) -> Entity:
    start, end = words[span.start][0], words[span.end - 1][1]
    return Entity(text[start:end], span.label, start, end, span.score)
