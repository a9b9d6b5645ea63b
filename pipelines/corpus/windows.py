"""Records to windows: their pieces and gold as the model reads them, encoded in actors."""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from pipelines.corpus.reading import finish_records
from pipelines.ner.encoders import load_tokenizer
from pipelines.ner.encoding import Encoder
from pipelines.ner.entities import Span
from pipelines.ner.labels import LabelScheme
from pipelines.ner.words import split_pieces, split_words

_INTEGERS = pa.list_(pa.int32())
_WINDOW = [("input_ids", _INTEGERS), ("word_starts", _INTEGERS), ("tag_ids", _INTEGERS)]
WINDOW_TYPE = pa.struct([*_WINDOW, ("starts_document", pa.bool_()), ("ends_document", pa.bool_())])


def split_record(
    text: str | None, words: Sequence[str] | None, spans: Sequence[dict[str, Any]], splitter: str
) -> tuple[list[str], list[Span]]:
    """A record's pieces as the encoder reads them, and its gold spans over those pieces.

    Gold that does not meet the edges of words splits the words; words that raw text would not have are split too.
    """
    if text is None:
        pieces, first_piece = [], [0]
        for word in words or ():
            pieces += split_pieces(word, splitter)
            first_piece.append(len(pieces))
        return pieces, [Span(first_piece[span["start"]], first_piece[span["end"]], span["label"]) for span in spans]
    ranges = split_words(text, splitter, {edge for span in spans for edge in (span["start"], span["end"])})
    first_at = {start: index for index, (start, _) in enumerate(ranges)}
    last_at = {end: index for index, (_, end) in enumerate(ranges)}
    labelled = [Span(first_at[span["start"]], last_at[span["end"]] + 1, span["label"]) for span in spans]
    return [text[start:end] for start, end in ranges], labelled


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

    def __call__(self, table: pa.Table) -> pa.Table:
        """The records with `num_tokens`, and `windows`, which are null outside the training split."""
        table = finish_records(table, self.corpus_scheme)
        num_tokens: list[int] = []
        windows: list[list[dict[str, Any]] | None] = []
        for row in table.select(["text", "words", "spans", "split"]).to_pylist():
            pieces, spans = split_record(row["text"], row["words"], row["spans"], self.encoder.splitter)
            encoded = self.encoder.encode_pieces(pieces)
            num_tokens.append(encoded.num_tokens)
            if row["split"] != "train":
                windows.append(None)
                continue
            tag_ids = iter(self.scheme.to_tag_ids(spans, len(pieces)))
            windows.append(
                [
                    {
                        "input_ids": window.input_ids,
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
