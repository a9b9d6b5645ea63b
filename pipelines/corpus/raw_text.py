"""Raw text to windows in Parquet: read, checked, a share held out, tokenized and packed, by Ray Data.

A folder of raw text holds `windows/split=train|held_out/*.parquet`, the ledger, and `text.json`, which is written last.
"""

import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pds
import ray.data

from pipelines.corpus.formats.options import NO_COLUMN, FormatOptions
from pipelines.corpus.holding_out import CHOSEN_BY, choose_splits, write_documents
from pipelines.corpus.mentions import MentionSources
from pipelines.corpus.packing import SENTENCE_ENDS, build_units, pack_documents
from pipelines.corpus.preparation import stage_folder
from pipelines.corpus.reading import keep_records, read_raw, summarize
from pipelines.corpus.records import CorpusError
from pipelines.corpus.summary import Summary
from pipelines.corpus.text_config import SPLITS, TextConfig, TextEncoding
from pipelines.ner.encoders import SCRATCH, build_scratch_encoder, load_tokenizer
from pipelines.ner.encoding import Encoder
from pipelines.ner.units import ENTITY, RARE, SEPARATOR, measure_units
from pipelines.ner.words import split_pieces, split_words

TEXT_FILE = "text.json"
COUNTS_FILE = "word_counts.npy"
DOCUMENTS_FILE = "documents.npy"
NUM_BUCKETS = 1 << 20
PACKED_AT_ONCE = 8192
"""Into which words are counted; two words in one bucket make a rare one look frequent, never the other way round."""
_INTEGERS = pa.list_(pa.int32())
WINDOW_SCHEMA = pa.schema(
    [
        ("window_id", pa.string()),
        *((name, _INTEGERS) for name in ("input_ids", "unit_starts", "unit_kinds", "sentence_starts")),
        ("num_documents", pa.int32()),
        ("split", pa.string()),
    ]
)


@dataclass(frozen=True)
class TextInfo:
    """The sidecar `text.json`."""

    encoder: str
    window: int
    num_documents: dict[str, int]
    """Split → documents."""
    num_windows: dict[str, int]
    num_tokens: dict[str, int]
    """Without special tokens around windows."""
    fill: float
    """Share of the room in windows that holds sub-tokens."""
    shares: dict[str, float]
    """Of the sub-tokens for training: those of mentions and of rare words."""
    ledger: dict[str, Any]


def load_text_info(folder: Path) -> TextInfo | None:
    """What is known of a folder of raw text; None if there is none, or an unfinished one."""
    path = folder / TEXT_FILE
    return TextInfo(**json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None


def read_text_windows(folder: Path, split: str) -> pa.Table:
    """The windows of a split, in no particular order."""
    files = sorted(str(path) for path in (folder / "windows" / f"split={split}").glob("*.parquet"))
    names = [name for name in WINDOW_SCHEMA.names if name != "split"]
    return pds.dataset(files, format="parquet").to_table(columns=names)


def read_texts(
    patterns: Mapping[str, Sequence[str]], reader: FormatOptions, max_bad_fraction: float = 0.01
) -> tuple[ray.data.Dataset, Summary]:
    """The records of files (split → patterns) whose annotation, if any, is left out. Raises CorpusError."""
    reader = replace(reader, spans_column=NO_COLUMN, tags_column=NO_COLUMN)
    raw = read_raw(patterns, reader).materialize()
    summary = summarize(raw)
    summary.ledger.check(max_bad_fraction)
    return keep_records(raw), summary


def prepare_text(
    corpus: TextConfig,
    encoding: TextEncoding,
    encoder: str,
    mentions: MentionSources,
    folder: Path,
    *,
    window: int | None,
    num_segments: int,
    rare_count: int | None,
    seed: int,
) -> TextInfo:
    """Read, check, tokenize, pack and write raw text; the folder appears whole or not at all. Raises CorpusError.

    Args:
        encoder: a resolved path or hub id, or `scratch`, which is made in the folder.
        window: sub-tokens of a window; None for the encoder's own choice.
        num_segments: segments that a window is to hold, each of which costs a separator.
        rare_count: words met so many times, or fewer, are told to be rare; None: no word is.
    """
    records, summary = read_texts(corpus.list_patterns(), corpus.reader, corpus.max_bad_fraction)
    if encoding.splitter == "auto":
        encoding = replace(encoding, splitter="punctuation" if summary.num_texts else "unicode")
    held_out = 0.0 if corpus.held_out else corpus.held_out_fraction
    with stage_folder(folder) as staging:
        name = encoder
        documents = write_documents(records, staging / DOCUMENTS_FILE) if held_out else None
        if encoder == SCRATCH:
            encoder = build_scratch_encoder(_iterate_texts(records, held_out, documents), staging / SCRATCH, seed)
        settings: dict[str, Any] = {
            "encoder": encoder,
            "window": window or 256,
            "num_segments": num_segments,
            "encoding": encoding,
            "held_out_fraction": held_out,
            "mentions": mentions,
            "rare_count": rare_count,
            "counts": None,
            "documents": documents,
        }
        if rare_count is not None:
            settings["counts"] = str(staging / COUNTS_FILE)
            np.save(staging / COUNTS_FILE, count_words(records, encoding.splitter, held_out, documents))
        packed = records.map_batches(
            PackText,
            fn_constructor_kwargs=settings,
            compute=ray.data.ActorPoolStrategy(size=1),
            batch_size=PACKED_AT_ONCE,  # of small files too: what is packed together are the documents of a batch
            batch_format="pyarrow",
        )
        packed.write_parquet(str(staging / "windows"), partition_cols=["split"])
        for file in (COUNTS_FILE, DOCUMENTS_FILE):
            (staging / file).unlink(missing_ok=True)
        summary.ledger.write_parquet(staging / "ledger.parquet")
        info = _describe(staging, name, window or 256, summary.ledger.counts())
        if num_segments > 1:
            check_order(read_text_windows(staging, "train"))
        (staging / TEXT_FILE).write_text(json.dumps(asdict(info), indent=2) + "\n", encoding="utf-8")
    return info


class PackText:
    """Tokenizes and packs blocks of documents."""

    def __init__(
        self,
        encoder: str,
        window: int,
        num_segments: int,
        encoding: TextEncoding,
        held_out_fraction: float,
        mentions: MentionSources,
        rare_count: int | None,
        counts: str | Path | None,
        documents: str | Path | None = None,
    ) -> None:
        """Take the settings of `prepare_text`.

        Args:
            counts: file that tells how often the words of each bucket occur; None where no word is rare.
            documents: the file of `write_documents`, if there is one.
        """
        tokenizer = load_tokenizer(encoder)
        self.encoder = Encoder(tokenizer, window=window, stride=0, splitter=encoding.splitter)
        self.capacity = self.encoder.capacity - (num_segments - 1)
        separator = tokenizer.sep_token_id
        self.separator_id: int = separator if separator is not None else tokenizer.eos_token_id
        self.packing, self.held_out_fraction, self.documents = encoding.packing, held_out_fraction, documents
        self.finder = mentions.open(encoding.splitter)
        self.rare_count = rare_count
        self.counts = None if counts is None else np.load(counts)

    def __call__(self, table: pa.Table) -> pa.Table:
        """The windows of a block of records."""
        rows = table.select(["record_id", *CHOSEN_BY]).to_pylist()
        documents = [_split(row["text"], row["words"], self.encoder.splitter) for row in rows]
        splits = choose_splits(rows, self.held_out_fraction, self.documents)
        found: list[list[tuple[int, int]]] = [[] for _ in documents]
        if self.finder:  # mentions of held-out text would be hidden as one, and its perplexity another
            trained_on = [index for index, split in enumerate(splits) if split == "train"]
            for index, mentions in zip(
                trained_on, self.finder.find([documents[index][0] for index in trained_on]), strict=True
            ):
                found[index] = mentions
        windows: list[dict[str, Any]] = []
        for split in SPLITS:
            chosen = [index for index, one in enumerate(splits) if one == split and documents[index][0]]
            units = [self._build_units(*documents[index], found[index]) for index in chosen]
            packed = pack_documents(units, self.capacity, self.separator_id, self.packing)
            for number, window in enumerate(packed):
                values = {name: getattr(window, name) for name in WINDOW_SCHEMA.names if hasattr(window, name)}
                more = {"window_id": f"{rows[chosen[0]]['record_id']}#{number:06d}", "split": split}
                windows.append(values | more | {"num_documents": len(chosen) if not number else 0})
        return pa.Table.from_pylist(windows, schema=WINDOW_SCHEMA)

    def _build_units(self, words: list[str], newlines: frozenset[int], mentions: list[tuple[int, int]]) -> Any:
        ids = self.encoder.tokenize(words)
        if self.counts is None or self.rare_count is None:
            rare: Any = [False] * len(words)
        else:
            rare = (self.counts[_find_buckets(words)] <= self.rare_count).tolist()
        return build_units(words, ids, mentions, rare, newlines)


def count_words(
    records: ray.data.Dataset, splitter: str, held_out_fraction: float, documents: Path | None = None
) -> np.ndarray:
    """How often the words of each bucket occur in the records for training."""
    total = np.zeros(NUM_BUCKETS, dtype=np.int64)
    count = partial(count_block, splitter=splitter, held_out_fraction=held_out_fraction, documents=documents)
    for batch in records.map_batches(count, batch_size=None, batch_format="pyarrow").iter_batches(batch_format="numpy"):
        np.add.at(total, batch["bucket"], batch["count"])
    return total


def count_block(table: pa.Table, splitter: str, held_out_fraction: float, documents: Path | None = None) -> pa.Table:
    """Buckets that the words of some records fall into, and how often."""
    rows = _list_train_rows(table, held_out_fraction, documents)
    words = [word for row in rows for word in _split(row["text"], row["words"], splitter)[0]]
    buckets, counts = np.unique(_find_buckets(words), return_counts=True)
    return pa.table({"bucket": buckets, "count": counts})


def _find_buckets(words: list[str]) -> np.ndarray:
    hashes = [zlib.crc32(word.encode("utf-8", "replace")) for word in words]
    return np.array(hashes, dtype=np.int64) % NUM_BUCKETS


def _split(text: str | None, words: list[str] | None, splitter: str) -> tuple[list[str], frozenset[int]]:
    """The words of a document, and those before which a line ends."""
    if text is None:
        return [piece for word in words or () for piece in split_pieces(word, splitter)], frozenset()
    ranges = split_words(text, splitter)
    pieces = [text[start:end] for start, end in ranges]
    gaps = pairwise(ranges)
    return pieces, frozenset(index for index, ((_, end), (start, _)) in enumerate(gaps, 1) if "\n" in text[end:start])


def _list_train_rows(table: pa.Table, held_out_fraction: float, documents: Path | None) -> list[dict[str, Any]]:
    """The records that are trained on: what is known of the others would flatter the perplexity."""
    rows = table.select(list(CHOSEN_BY)).to_pylist()
    splits = choose_splits(rows, held_out_fraction, documents)
    return [row for row, split in zip(rows, splits, strict=True) if split == "train"]


def _iterate_texts(records: ray.data.Dataset, held_out_fraction: float, documents: Path | None = None) -> Iterator[str]:
    for batch in records.iter_batches(batch_size=1000, batch_format="pyarrow"):
        for row in _list_train_rows(batch, held_out_fraction, documents):
            yield from row["words"] if row["text"] is None else [row["text"]]


def _describe(folder: Path, encoder: str, window: int, ledger: Any) -> TextInfo:
    """Counts of what was written. Raises CorpusError if a split is empty."""
    documents, windows, tokens, room = {}, {}, {}, 0
    for split in SPLITS:
        if not (folder / "windows" / f"split={split}").is_dir():
            raise CorpusError(
                "there is no text to train on" if split == "train" else "no document is held out",
                rule="a document at least to train on, and another to be held out; a `doc_id` is one document",
                remedy="give more text, or raise `--corpus.held_out_fraction`, or give files as `--corpus.held_out`",
            )
        table = read_text_windows(folder, split)
        documents[split] = pc.sum(table["num_documents"]).as_py()
        windows[split] = table.num_rows
        tokens[split] = pc.sum(pc.list_value_length(table["input_ids"])).as_py()
        room += table.num_rows * window
        if split == "train":
            kinds = _count_kinds(table)
    total = max(1, int(kinds[:SEPARATOR].sum()))
    told = {"kept": ledger.kept, "rejected": ledger.rejected, "reasons": ledger.reasons}
    shares = {"mentions": round(kinds[ENTITY] / total, 5), "rare words": round(kinds[RARE] / total, 5)}
    return TextInfo(encoder, window, documents, windows, tokens, round(sum(tokens.values()) / room, 4), shares, told)


def check_order(windows: pa.Table) -> None:
    """Raise CorpusError for windows none of which has a sentence that begins inside it, so that parts have no order."""
    starts = windows["sentence_starts"].combine_chunks().flatten().to_numpy()
    if not (starts > 0).any():
        ends = " ".join(sorted(SENTENCE_ENDS))
        raise CorpusError(
            "no window has an order to tell",
            where="`objective` masks_and_order",
            rule=f"windows of several sentences, each ended by one of {ends} or a line's end",
            value=f"{windows.num_rows:,} windows to train on, none of which has a sentence that begins inside it",
            remedy="give text of several sentences, a longer `--encoding.window`, or `--objective masks`",
        )


def _count_kinds(table: pa.Table) -> np.ndarray:
    """Sub-tokens of units of each kind."""
    ids, starts, kinds = (table[name].combine_chunks() for name in ("input_ids", "unit_starts", "unit_kinds"))
    sizes, counts = (column.value_lengths().to_numpy(zero_copy_only=False) for column in (ids, starts))
    begins = np.repeat(np.cumsum(sizes) - sizes, counts)
    lengths = measure_units(starts.flatten().to_numpy() + begins, int(sizes.sum()))
    return np.bincount(kinds.flatten().to_numpy(), weights=lengths, minlength=4).astype(np.int64)
