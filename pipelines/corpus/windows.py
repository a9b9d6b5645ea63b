"""Records to windows: their pieces and gold as the model reads them, encoded in actors."""

import re
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from pipelines.corpus.augmentation.siblings import AUGMENTED
from pipelines.corpus.reading import finish_records
from pipelines.ner.casing import CASE_STEP
from pipelines.ner.encoders import load_tokenizer
from pipelines.ner.encoding import Encoder
from pipelines.ner.entities import Span
from pipelines.ner.labels import LabelScheme
from pipelines.ner.words import split_pieces, split_words

_INTEGERS = pa.list_(pa.int32())
_WINDOW = [("input_ids", _INTEGERS), ("word_starts", _INTEGERS), ("tag_ids", _INTEGERS)]
WINDOW_TYPE = pa.struct([*_WINDOW, ("starts_document", pa.bool_()), ("ends_document", pa.bool_())])


def split_record(
    text: str | None,
    words: Sequence[str] | None,
    spans: Sequence[dict[str, Any]],
    splitter: str,
    mask_token: str | None = None,
) -> tuple[list[str], list[Span]]:
    """A record's pieces as the encoder reads them, and its gold spans over those pieces.

    Gold that does not meet the edges of words splits the words; words that raw text would not have are split too. A
    mask token stays whole, where one is given.
    """
    if text is None:
        pieces, first_piece = [], [0]
        for word in words or ():
            pieces += [word] if word == mask_token else split_pieces(word, splitter)
            first_piece.append(len(pieces))
        return pieces, [Span(first_piece[span["start"]], first_piece[span["end"]], span["label"]) for span in spans]
    edges = {edge for span in spans for edge in (span["start"], span["end"])}
    ranges = (
        _split_around_masks(text, splitter, edges, mask_token) if mask_token else split_words(text, splitter, edges)
    )
    first_at = {start: index for index, (start, _) in enumerate(ranges)}
    last_at = {end: index for index, (_, end) in enumerate(ranges)}
    labelled = [Span(first_at[span["start"]], last_at[span["end"]] + 1, span["label"]) for span in spans]
    return [text[start:end] for start, end in ranges], labelled


def _split_around_masks(text: str, splitter: str, edges: set[int], mask_token: str) -> list[tuple[int, int]]:
    """As `split_words`, with each mask token as one word; one that gold begins or ends in is no mask."""
    found = (match.span() for match in re.finditer(re.escape(mask_token), text))
    ends = {start: end for start, end in found if not edges & set(range(start + 1, end))}
    inside = {place for start, end in ends.items() for place in range(start + 1, end)}
    ranges = split_words(text, splitter, edges.union(ends, ends.values()))
    return [(start, ends.get(start, end)) for start, end in ranges if start not in inside]


class EncodeRecords:
    """Fills in spans, counts sub-tokens, and encodes the training records into windows with tags."""

    def __init__(
        self,
        encoder: str,
        window: int,
        stride: int,
        splitter: str,
        casing: bool,
        scheme: LabelScheme,
        corpus_scheme: str,
    ) -> None:
        self.encoder = Encoder(load_tokenizer(encoder), window=window, stride=stride, splitter=splitter, casing=casing)
        self.scheme, self.corpus_scheme = scheme, corpus_scheme
        self.mask_token: str | None = self.encoder.tokenizer.mask_token
        self.mask_id: int | None = self.encoder.tokenizer.mask_token_id

    def __call__(self, table: pa.Table) -> pa.Table:
        """The records with `num_tokens`, and `windows`, which are null for records that are not trained on."""
        table = finish_records(table, self.corpus_scheme)
        num_tokens: list[int] = []
        windows: list[list[dict[str, Any]] | None] = []
        names = ["text", "words", "spans", "split", *({"technique"} & set(table.column_names))]
        for row in table.select(names).to_pylist():
            is_masked = row.get("technique") == "masking"
            mask_token = self.mask_token if is_masked else None
            pieces, spans = split_record(row["text"], row["words"], row["spans"], self.encoder.splitter, mask_token)
            encoded = self.encoder.encode_pieces(pieces)
            num_tokens.append(encoded.num_tokens)
            if row["split"] not in ("train", AUGMENTED):
                windows.append(None)
                continue
            tag_ids = iter(self.scheme.to_tag_ids(spans, len(pieces)))
            windows.append(
                [
                    {
                        "input_ids": self._drop_case_of_masks(window.input_ids) if is_masked else window.input_ids,
                        "word_starts": window.word_starts,
                        "tag_ids": [next(tag_ids) for _ in window.word_starts],
                        "starts_document": window.starts_document,
                        "ends_document": window.ends_document,
                    }
                    for window in encoded.windows
                ]
            )
        table = table.append_column("num_tokens", pa.array(num_tokens, pa.int32()))
        return table.append_column("windows", pa.array(windows, pa.list_(WINDOW_TYPE)))

    def _drop_case_of_masks(self, input_ids: Sequence[int]) -> list[int]:
        """`[MASK]` is spelled in capitals, which tell nothing of the word that it hides."""
        return [self.mask_id if token % CASE_STEP == self.mask_id else token for token in input_ids]
