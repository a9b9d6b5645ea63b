"""Corpus files to shards: read, check, split, tokenize in actors, write."""

import json
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import ray.data
from transformers import AutoConfig

from pipelines.corpus.config import CorpusConfig
from pipelines.corpus.ledger import LedgerEntry
from pipelines.corpus.reading import Corpus, finish_records, read_corpus
from pipelines.corpus.records import CorpusError
from pipelines.corpus.shards import SHARDS_FILE, ShardsInfo, SplitInfo, read_split
from pipelines.corpus.summary import SPLITS
from pipelines.ner.bundle import DEFAULT_WINDOW
from pipelines.ner.casing import can_learn_cases
from pipelines.ner.encoders import SCRATCH, build_scratch_encoder, find_encoder, load_tokenizer
from pipelines.ner.encoding import Encoder, EncodingConfig, EncodingError, fingerprint_tokenizer
from pipelines.ner.entities import Span
from pipelines.ner.errors import UserError
from pipelines.ner.labels import LabelScheme
from pipelines.ner.model import ModelConfig, get_max_window
from pipelines.ner.words import split_pieces, split_words

ROW_GROUP_RECORDS = 5000
HISTOGRAM_STEP = 16

_INTEGERS = pa.list_(pa.int32())
_WINDOW = [("input_ids", _INTEGERS), ("word_starts", _INTEGERS), ("tag_ids", _INTEGERS)]
WINDOW_TYPE = pa.struct([*_WINDOW, ("starts_document", pa.bool_()), ("ends_document", pa.bool_())])


def prepare_shards(
    corpus: CorpusConfig, encoding: EncodingConfig, model: ModelConfig, folder: Path, *, seed: int, num_actors: int
) -> ShardsInfo:
    """Read, check, split, tokenize and write a corpus; the folder appears whole or not at all.

    Raises CorpusError, EncoderError, EncodingError.
    """
    encoder = model.encoder if model.encoder == SCRATCH else find_encoder(model.encoder)
    if encoder != SCRATCH:
        resolve_window(encoder, load_tokenizer(encoder), encoding)  # a wrong window is told before the corpus is read
    missing = {"dev": corpus.dev_fraction, "test": corpus.test_fraction}
    split_off = {split: share for split, share in missing.items() if not getattr(corpus, split) and share > 0}
    read = read_corpus(
        corpus.list_patterns(),
        corpus.reader,
        scheme=corpus.scheme,
        max_bad_fraction=corpus.max_bad_fraction,
        split_off=split_off,
    )
    _check_splits(read)
    with _stage(folder) as staging:
        return _write_shards(read, staging, encoder, encoding, model, split_off, seed, num_actors)


def find_shards_misfits(
    folder: Path, info: ShardsInfo, model: ModelConfig, encoding: EncodingConfig
) -> list[UserError]:
    """Settings that differ from those the shards were prepared with."""
    given = {
        "model.encoder": (model.encoder, ModelConfig().encoder, info.encoder),
        "model.casing": (model.casing, None, info.casing),
        "model.scheme": (model.scheme, ModelConfig().scheme, info.scheme),
        "encoding.window": (encoding.window, None, info.window),
        "encoding.stride": (encoding.stride, None, info.stride),
        "encoding.splitter": (encoding.splitter, EncodingConfig().splitter, info.splitter),
    }
    return [
        CorpusError(
            f"the shards were prepared with another `{name}`",
            rule=f"`{prepared}`, as in {folder}",
            value=f"`{value}`",
            remedy=f"leave `--{name}` out, or run `rayner prepare` with it",
        )
        for name, (value, default, prepared) in given.items()
        if value not in (default, prepared)
    ]


@contextmanager
def _stage(folder: Path) -> Iterator[Path]:
    """A folder that takes the place of `folder` once the block is done, and is gone if it fails."""
    staging = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    try:
        yield staging
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    shutil.rmtree(folder, ignore_errors=True)
    staging.rename(folder)


def _write_shards(
    read: Corpus,
    staging: Path,
    encoder: str,
    encoding: EncodingConfig,
    model: ModelConfig,
    split_off: dict[str, float],
    seed: int,
    num_actors: int,
) -> ShardsInfo:
    if encoder == SCRATCH:
        build_scratch_encoder(_iterate_words(read.records), staging / SCRATCH, seed)
        encoder = str(staging / SCRATCH)
    tokenizer = load_tokenizer(encoder)
    window, stride = resolve_window(encoder, tokenizer, encoding)
    splitter = encoding.splitter
    if splitter == "auto":
        splitter = "punctuation" if read.summary.num_texts else "unicode"
    Encoder(tokenizer, window=window, stride=stride, splitter=splitter)
    casing = resolve_casing(encoder, tokenizer, model)
    scheme = LabelScheme.from_labels(read.labels["train"], model.scheme)
    encoded = read.records.map_batches(
        _EncodeRecords,
        fn_constructor_kwargs={
            "encoder": encoder,
            "window": window,
            "stride": stride,
            "splitter": splitter,
            "casing": casing,
            "scheme": scheme,
            "corpus_scheme": read.scheme,
        },
        compute=ray.data.ActorPoolStrategy(size=num_actors),
        batch_size=None,
        batch_format="pyarrow",
    )
    encoded.write_parquet(str(staging / "records"), partition_cols=["split"], row_group_size=ROW_GROUP_RECORDS)
    ledger = read.summary.ledger
    ledger.entries += _find_repairs(staging)
    ledger.write_parquet(staging / "ledger.parquet")
    counts = ledger.counts()
    info = ShardsInfo(
        encoder=SCRATCH if encoder.startswith(str(staging)) else model.encoder,
        tokenizer_fingerprint=fingerprint_tokenizer(tokenizer),
        scheme=scheme.name,
        tags=list(scheme.tags),
        corpus_scheme=read.scheme,
        splitter=splitter,
        window=window,
        stride=stride,
        casing=casing,
        splits={split: _count_split(staging, split) for split in SPLITS if read.num_records.get(split)},
        split_off=split_off,
        ledger={
            "kept": counts.kept,
            "repaired": counts.repaired,
            "rejected": counts.rejected,
            "reasons": counts.reasons,
        },
        duplicates=read.summary.count_duplicates(),
    )
    (staging / SHARDS_FILE).write_text(json.dumps(asdict(info), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return info


def resolve_window(encoder: str, tokenizer: Any, encoding: EncodingConfig) -> tuple[int, int]:
    """Window and stride in sub-tokens, defaults filled in. Raises EncodingError if the encoder cannot take them."""
    longest = get_max_window(AutoConfig.from_pretrained(encoder), tokenizer)
    window = min(DEFAULT_WINDOW, longest) if encoding.window is None else encoding.window
    if window > longest:
        raise EncodingError(
            "the window is longer than the encoder can read",
            rule=f"`{encoder}` reads at most {longest} sub-tokens, special tokens included",
            value=f"window {window}",
            remedy=f"set `--encoding.window {longest}` or less",
        )
    stride = window // 4 if encoding.stride is None else encoding.stride
    Encoder(tokenizer, window=window, stride=stride, splitter="whitespace")
    return window, stride


def resolve_casing(encoder: str, tokenizer: Any, model: ModelConfig) -> bool:
    """Whether the model is to learn the case of words. Raises EncodingError if it is asked to and cannot."""
    possible = can_learn_cases(AutoConfig.from_pretrained(encoder), tokenizer)
    if model.casing and not possible:
        raise EncodingError(
            "the encoder cannot learn the case of words",
            where="`model.casing`",
            rule="an uncased tokenizer, and a network with token types (BERT, ELECTRA, ALBERT)",
            value=encoder,
            remedy="leave `--model.casing` out: a cased encoder reads it anyway",
        )
    return possible if model.casing is None else model.casing


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


class _EncodeRecords:
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


def _check_splits(corpus: Corpus) -> None:
    num_records, labels = corpus.num_records, corpus.labels
    for split in SPLITS:
        if not num_records.get(split):
            raise CorpusError(
                f"the {split} split is empty",
                rule="train, dev and test each have at least one record",
                value=", ".join(f"{name}: {num_records.get(name, 0)}" for name in SPLITS),
                remedy=f"give files as `--corpus.{split}`, or more documents as `--corpus.train`",
            )
    if not labels.get("train"):
        raise CorpusError("the training corpus has no entity", remedy="check the tag or span column")
    for split in ("dev", "test"):
        unknown = labels.get(split, set()) - labels["train"]
        if unknown:
            raise CorpusError(
                f"the {split} split has labels that the training split lacks",
                rule="labels of train: " + ", ".join(f"`{label}`" for label in sorted(labels["train"])),
                value="only in " + split + ": " + ", ".join(f"`{label}`" for label in sorted(unknown)),
                remedy="use the same label names everywhere, or move such records into train",
            )


def _iterate_words(records: ray.data.Dataset) -> Any:
    for batch in records.iter_batches(batch_size=1000, batch_format="pyarrow"):
        for text, words, split in zip(*(batch[name].to_pylist() for name in ("text", "words", "split")), strict=True):
            if split == "train":
                yield from words if text is None else [text]


def _find_repairs(folder: Path) -> list[LedgerEntry]:
    repairs = []
    for split in SPLITS:
        table = read_split(folder, split, ["record_id", "source", "num_illegal_tags"])
        for row in table.to_pylist():
            if row.get("num_illegal_tags"):
                detail = f"{row['num_illegal_tags']} tags may not stand where they stand; read as conlleval does"
                repairs.append(LedgerEntry(row["source"], row["record_id"], "repaired", "illegal_tags", detail))
    return sorted(repairs, key=lambda entry: entry.record_id)


def _count_split(folder: Path, split: str) -> SplitInfo:
    table = read_split(folder, split, ["doc_id", "spans", "num_tokens", "windows"])
    labels = pc.struct_field(pc.list_flatten(table["spans"].combine_chunks()), "label").to_pylist()
    lengths = table["num_tokens"].to_pylist()
    histogram = Counter(length // HISTOGRAM_STEP * HISTOGRAM_STEP for length in lengths)
    return SplitInfo(
        num_records=table.num_rows,
        num_documents=pc.count_distinct(table["doc_id"]).as_py(),
        num_tokens=sum(lengths),
        num_windows=pc.sum(pc.list_value_length(table["windows"])).as_py() or 0,
        entities=dict(sorted(Counter(labels).items())),
        token_histogram={str(edge): number for edge, number in sorted(histogram.items())},
    )
