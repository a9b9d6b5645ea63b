"""Corpus files to shards: read, check, split, tokenize in actors, write."""

import json
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import ray.data
from transformers import AutoConfig

from pipelines.corpus.augmentation.config import AugmentationConfig
from pipelines.corpus.augmentation.preparing import augment_corpus, check_mask_token, list_idle_techniques
from pipelines.corpus.augmentation.siblings import AUGMENTED
from pipelines.corpus.config import CorpusConfig
from pipelines.corpus.ledger import LedgerEntry
from pipelines.corpus.reading import Corpus, read_corpus
from pipelines.corpus.records import CorpusError
from pipelines.corpus.shards import SHARDS_FILE, AugmentationInfo, ShardsInfo, SplitInfo, read_split
from pipelines.corpus.summary import SPLITS
from pipelines.corpus.windows import EncodeRecords
from pipelines.ner.bundle import DEFAULT_WINDOW
from pipelines.ner.casing import can_learn_cases
from pipelines.ner.encoders import SCRATCH, build_scratch_encoder, find_encoder, load_tokenizer, locate_encoder
from pipelines.ner.encoding import Encoder, EncodingConfig, EncodingError, fingerprint_tokenizer
from pipelines.ner.labels import LabelScheme
from pipelines.ner.model import ModelConfig, get_max_window

ROW_GROUP_RECORDS = 5000
HISTOGRAM_STEP = 16


def prepare_shards(
    corpus: CorpusConfig,
    encoding: EncodingConfig,
    model: ModelConfig,
    folder: Path,
    *,
    seed: int,
    num_actors: int,
    needed: Sequence[str] = SPLITS,
) -> ShardsInfo:
    """Read, check, split, tokenize and write a corpus; the folder appears whole or not at all.

    Args:
        needed: the splits that must not be empty.

    Raises CorpusError, EncoderError, EncodingError.
    """
    encoder = model.encoder if model.encoder == SCRATCH else find_encoder(model.encoder)
    if encoder != SCRATCH:
        tokenizer = load_tokenizer(encoder)
        resolve_window(encoder, tokenizer, encoding)  # a wrong window is told before the corpus is read
        check_mask_token(corpus.augmentation, tokenizer)
    missing = {"dev": corpus.dev_fraction, "test": corpus.test_fraction}
    split_off = {split: share for split, share in missing.items() if not getattr(corpus, split) and share > 0}
    read = read_corpus(
        corpus.list_patterns(),
        corpus.reader,
        scheme=corpus.scheme,
        max_bad_fraction=corpus.max_bad_fraction,
        split_off=split_off,
    )
    check_splits(read, needed, split_off)
    with stage_folder(folder) as staging:
        return _write_shards(read, staging, encoder, encoding, model, corpus.augmentation, split_off, seed, num_actors)


@contextmanager
def stage_folder(folder: Path) -> Iterator[Path]:
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
    augmentation: AugmentationConfig,
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
    records, notes = read.records, list[str]()
    if augmentation.rates:
        records, augmentation, notes = augment_corpus(read, augmentation, tokenizer, splitter=splitter, casing=casing)
    encoded = records.map_batches(
        EncodeRecords,
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
    check_written(staging, read.num_records)
    ledger = read.summary.ledger
    ledger.entries += _find_repairs(staging)
    ledger.write_parquet(staging / "ledger.parquet")
    counts = ledger.counts()
    located = locate_encoder(model.encoder)
    info = ShardsInfo(
        encoder=SCRATCH if encoder.startswith(str(staging)) else model.encoder,
        encoder_folder=None if model.encoder == located else located,
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
        augmentation=_count_siblings(staging, augmentation, notes) if augmentation.rates or notes else None,
    )
    (staging / SHARDS_FILE).write_text(
        json.dumps(info.to_dict(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    return info


def resolve_window(encoder: str, tokenizer: Any, encoding: EncodingConfig) -> tuple[int, int]:
    """Window and stride in sub-tokens, defaults filled in. Raises EncodingError if the encoder cannot take them."""
    longest = get_max_window(AutoConfig.from_pretrained(encoder, trust_remote_code=False), tokenizer)
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
    possible = can_learn_cases(AutoConfig.from_pretrained(encoder, trust_remote_code=False), tokenizer)
    if model.casing and not possible:
        raise EncodingError(
            "the encoder cannot learn the case of words",
            where="`model.casing`",
            rule="an uncased tokenizer, and a network with token types (BERT, ELECTRA, ALBERT)",
            value=encoder,
            remedy="leave `--model.casing` out: a cased encoder reads it anyway",
        )
    return possible if model.casing is None else model.casing


def check_written(folder: Path, num_records: Mapping[str, int]) -> None:
    """Raise CorpusError where the written files do not hold the records that were read (split → how many)."""
    for split, expected in num_records.items():
        found = read_split(folder, split, ["record_id"]).num_rows
        if found != expected:
            raise CorpusError(
                f"the written files do not hold the {split} split as it was read",
                where=str(folder),
                rule=f"{expected} records",
                value=f"{found} records, as this machine sees them",
                remedy="give an `--output_dir` that every machine of the cluster sees",
            )


def check_splits(corpus: Corpus, needed: Sequence[str], split_off: Mapping[str, float]) -> None:
    """Raise CorpusError for a needed split that is empty, and for labels that only dev or test has.

    Args:
        split_off: splits that were made of training documents.
    """
    num_records, labels = corpus.num_records, corpus.labels
    for split in needed:
        if not num_records.get(split):
            raise CorpusError(
                f"the {split} split is empty",
                rule=f"{', '.join(needed[:-1])} and {needed[-1]} each have at least one record",
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
                remedy=_advise_on_labels(split, is_split_off=split in split_off),
            )


def _advise_on_labels(split: str, *, is_split_off: bool) -> str:
    if not is_split_off:
        return "use the same label names everywhere, or move such records into train"
    return (
        f"these documents were set apart from train by a hash: set another `--corpus.{split}_fraction`, "
        f"give files as `--corpus.{split}`, or more documents with these labels"
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


def _count_siblings(folder: Path, config: AugmentationConfig, notes: list[str]) -> AugmentationInfo:
    if (folder / "records" / f"split={AUGMENTED}").is_dir():
        counted = Counter(read_split(folder, AUGMENTED, ["technique"])["technique"].to_pylist())
        added = _count_split(folder, AUGMENTED)
    else:
        counted, added = Counter(), SplitInfo()
    siblings = {name: counted[name] for name in config.rates}
    return AugmentationInfo(asdict(config), siblings, added, [*notes, *list_idle_techniques(config, siblings)])


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
