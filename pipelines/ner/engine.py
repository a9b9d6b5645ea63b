"""NerEngine: texts or words in, entities out. Evaluation, offline batch and serving all call this.

Each text is split into words, encoded into windows, and run in length-sorted batches under a token budget; the
windows' emissions are joined to one sequence of words, which is decoded once. So an entity on the border of two windows
stays one entity, and batch composition changes nothing but rounding.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from pipelines.ner.bundle import Bundle, load_bundle
from pipelines.ner.decoding import Decoder
from pipelines.ner.encoding import EncodedDocument, Window, pad, plan_batches
from pipelines.ner.entities import Coverage, Entity, Prediction, Span
from pipelines.ner.errors import UserError
from pipelines.ner.words import split_words

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
MAX_GROUP_TOKENS = 262_144
"""Sub-tokens encoded before the encoder runs: enough to sort by length, little to hold."""


class EngineError(UserError):
    """A device or precision that this machine does not have."""


class NerEngine:
    """Predicts entities with one loaded model.

    Args:
        device: `cpu`, `cuda`, `cuda:1` …; `auto` takes a GPU if there is one.
        precision: fp32, bf16 or fp16 for the encoder; decoding is always in double precision.
        max_batch_tokens: padded sub-tokens in one forward pass.
    """

    def __init__(
        self, bundle: Bundle, *, device: str = "auto", precision: str = "fp32", max_batch_tokens: int = 8192
    ) -> None:
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        if device.startswith("cuda") and not torch.cuda.is_available():
            raise EngineError("this machine has no CUDA device", value=device, remedy="use `cpu` or `auto`")
        if precision not in PRECISIONS:
            raise EngineError(f"no precision `{precision}`", rule="one of " + ", ".join(PRECISIONS), value=precision)
        self.bundle = bundle
        try:
            self.device = torch.device(device)
        except RuntimeError as error:
            raise EngineError(f"no device `{device}`", rule="auto, cpu, cuda, cuda:1 …", value=device) from error
        self.max_batch_tokens = max_batch_tokens
        self.decoder = Decoder(bundle.model.scheme, bundle.model.chain)  # before its scores are rounded
        self.model = bundle.model.eval().to(self.device, PRECISIONS[precision])
        self.encoder = bundle.encoder

    @classmethod
    def load(
        cls,
        model: str | Path,
        *,
        device: str = "auto",
        precision: str = "fp32",
        max_batch_tokens: int = 8192,
        scheme: str | None = None,
    ) -> "NerEngine":
        """An engine on a bundle folder, a Hugging Face token-classification checkpoint folder, or a hub id."""
        bundle = load_bundle(model, scheme=scheme)
        return cls(bundle, device=device, precision=precision, max_batch_tokens=max_batch_tokens)

    def predict(self, texts: Sequence[str]) -> list[Prediction]:
        """Entities and coverage of each text, in order; offsets are Unicode code points."""
        if isinstance(texts, str):
            raise TypeError("predict takes a list of texts: predict([text])")
        ranges = [split_words(text, self.encoder.splitter) for text in texts]
        encoded = (
            self.encoder.encode_pieces([text[start:end] for start, end in words])
            for text, words in zip(texts, ranges, strict=True)
        )
        predictions = []
        for index, (document, spans) in enumerate(self._predict_spans(encoded)):
            text, words = texts[index], ranges[index]
            coverage = Coverage(
                num_characters=len(text),
                num_words=len(words),
                num_tokens=document.num_tokens,
                num_windows=len(document.windows),
                fraction=document.num_tokens_read / document.num_tokens if document.num_tokens else 1.0,
            )
            predictions.append(Prediction([_build_entity(text, words, span) for span in spans], coverage))
        return predictions

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

    def compute_emissions(self, documents: Sequence[EncodedDocument]) -> list[Tensor]:
        """Emissions `[W, K]` of each document in float32 on the CPU: its windows' owned words, in order."""
        windows = [window for document in documents for window in document.windows]
        rows: list[Tensor] = [torch.empty(0)] * len(windows)
        with torch.inference_mode():
            for batch in plan_batches([len(window.input_ids) for window in windows], self.max_batch_tokens):
                emissions_BWK = self._run([windows[index] for index in batch]).float().cpu()
                for index, scores_WK in zip(batch, emissions_BWK, strict=True):
                    rows[index] = scores_WK[: len(windows[index].word_starts)]
        ready = iter(rows)
        empty = torch.empty(0, len(self.model.scheme.tags))
        return [torch.cat([empty, *(next(ready) for _ in document.windows)]) for document in documents]

    def _run(self, windows: Sequence[Window]) -> Tensor:
        input_ids_BT = pad([window.input_ids for window in windows], self.encoder.pad_id)
        attention_mask_BT = pad([[1] * len(window.input_ids) for window in windows], 0)
        word_starts_BW = pad([window.word_starts for window in windows], 0)
        inputs = (input_ids_BT, attention_mask_BT, word_starts_BW)
        emissions_BWK: Tensor = self.model(*(tensor.to(self.device) for tensor in inputs))
        return emissions_BWK

    def _predict_spans(self, encoded: Iterator[EncodedDocument]) -> Iterator[tuple[EncodedDocument, list[Span]]]:
        for group in _group(encoded):
            yield from zip(group, self.decoder.decode(self.compute_emissions(group)), strict=True)


def _group(encoded: Iterator[EncodedDocument]) -> Iterator[list[EncodedDocument]]:
    group: list[EncodedDocument] = []
    num_tokens = 0
    for document in encoded:
        group.append(document)
        num_tokens += document.num_tokens
        if num_tokens >= MAX_GROUP_TOKENS:
            yield group
            group, num_tokens = [], 0
    if group:
        yield group


def _build_entity(text: str, words: Sequence[tuple[int, int]], span: Span) -> Entity:
    start, end = words[span.start][0], words[span.end - 1][1]
    return Entity(text[start:end], span.label, start, end, span.score)
