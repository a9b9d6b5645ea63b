"""Checked, tokenized, sharded Parquet: what `prepare` writes and `train` reads.

A folder of shards holds `records/split=train|dev|test/*.parquet` (the records, and for train also their encoded
windows), `records/split=augmented` with the siblings of training records and their windows where there are any, the
ledger, and `shards.json`, which is written last: a folder without it is unfinished.
"""

import json
import platform
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pds

from pipelines.corpus.augmentation.siblings import AUGMENTED
from pipelines.corpus.records import RECORD_SCHEMA, CorpusError
from pipelines.ner.bundle import hash_mention
from pipelines.ner.encoders import SCRATCH, find_encoder, load_tokenizer, locate_encoder
from pipelines.ner.encoding import EncodingConfig, fingerprint_tokenizer
from pipelines.ner.errors import UserError
from pipelines.ner.labels import LabelScheme
from pipelines.ner.model import ModelConfig

SHARDS_FILE = "shards.json"
SCHEMA_VERSION = 1


@dataclass(frozen=True)
class SplitInfo:
    """Counts of one split."""

    num_records: int = 0
    num_documents: int = 0
    num_tokens: int = 0
    num_windows: int = 0
    entities: dict[str, int] = field(default_factory=dict)
    """Label → entities."""
    token_histogram: dict[str, int] = field(default_factory=dict)
    """Lower edge of the length in sub-tokens (steps of 16) → records."""


@dataclass(frozen=True)
class AugmentationInfo:
    """The siblings of training records: trained on beside the originals, and in no other count."""

    settings: dict[str, Any]
    """As `AugmentationConfig`."""
    siblings: dict[str, int]
    """Technique → siblings."""
    added: SplitInfo
    notes: list[str]
    """What the settings did not do, and why."""


@dataclass(frozen=True)
class ShardsInfo:
    """The sidecar `shards.json`."""

    encoder: str
    """As `find_encoder` takes it; a folder inside the shards for `scratch`."""
    tokenizer_fingerprint: str
    scheme: str
    """Scheme of the model's tags."""
    tags: list[str]
    corpus_scheme: str
    """Scheme in which the files were written."""
    splitter: str
    window: int
    stride: int
    splits: dict[str, SplitInfo]
    split_off: dict[str, float]
    """Splits that were made of training documents."""
    ledger: dict[str, Any]
    duplicates: dict[str, int]
    """Pairs of splits → records that stand in both."""
    casing: bool = False
    """Whether ids carry the case of their word."""
    schema_version: int = SCHEMA_VERSION
    augmentation: AugmentationInfo | None = None
    encoder_folder: str | None = None
    """The whole path of an encoder in a folder, for other working folders."""

    @property
    def label_scheme(self) -> LabelScheme:
        """The model's tags with their scheme."""
        return LabelScheme(self.scheme, tuple(self.tags))

    def describe_lack_of_gold(self) -> list[str]:
        """What a dev split without entities means for training; nothing of another."""
        dev = self.splits.get("dev")
        told = (
            "the dev split has no entity: F1 is 0 after every epoch, and the last one's weights are kept, good or bad"
        )
        return [told] if dev is not None and not dev.entities else []

    def to_dict(self) -> dict[str, Any]:
        """As in the sidecar, which does not speak of what there is not."""
        spared = ("augmentation", "encoder_folder")
        return {name: value for name, value in asdict(self).items() if name not in spared or value}

    def count_lengths(self, split: str) -> dict[str, int]:
        """`token_histogram` of a split; of train with the siblings that are trained on."""
        histogram = Counter(self.splits[split].token_histogram)
        if split == "train" and self.augmentation:
            histogram.update(self.augmentation.added.token_histogram)
        return dict(histogram)


def load_shards_info(folder: Path) -> ShardsInfo:
    """The sidecar of a folder of shards. Raises CorpusError where there is none."""
    path = folder / SHARDS_FILE
    if not path.is_file():
        raise CorpusError(
            f"`{folder}` holds no shards",
            rule=f"a folder written by `rayner prepare`, with {SHARDS_FILE}",
            value="no such folder" if not folder.exists() else f"no {SHARDS_FILE} in it: unfinished, or something else",
            remedy="run `rayner prepare --corpus.train … --output_dir` with that folder",
        )
    raw = json.loads(path.read_text(encoding="utf-8"))
    if raw["schema_version"] != SCHEMA_VERSION:
        raise CorpusError(
            "the shards were written by another version of rayner",
            where=str(folder),
            rule=f"schema version {SCHEMA_VERSION}",
            value=raw["schema_version"],
            remedy="run `rayner prepare` again",
        )
    splits = {name: SplitInfo(**counts) for name, counts in raw["splits"].items()}
    made = raw.get("augmentation")
    augmentation = made and AugmentationInfo(**{**made, "added": SplitInfo(**made["added"])})
    return ShardsInfo(**{**raw, "splits": splits, "augmentation": augmentation})


def find_shards_encoder(folder: Path, info: ShardsInfo) -> str:
    """The path or hub id of the encoder for which shards were tokenized. Raises EncoderError, CorpusError."""
    named = info.encoder if Path(info.encoder).is_dir() else info.encoder_folder or info.encoder
    encoder = str(folder / SCRATCH) if info.encoder == SCRATCH else find_encoder(named)
    found = fingerprint_tokenizer(load_tokenizer(encoder))
    if found != info.tokenizer_fingerprint:
        raise CorpusError(
            "the shards were tokenized by another tokenizer",
            where=str(folder),
            rule=f"tokenizer {info.tokenizer_fingerprint} (of `{info.encoder}` then)",
            value=f"tokenizer {found}",
            remedy="run `rayner prepare` again with this encoder",
        )
    return encoder


def find_shards_misfits(
    folder: Path, info: ShardsInfo, model: ModelConfig, encoding: EncodingConfig
) -> list[UserError]:
    """Settings that differ from those the shards were prepared with."""
    is_same = locate_encoder(model.encoder) in (info.encoder_folder, locate_encoder(info.encoder))
    given = {
        "model.encoder": (model.encoder, ModelConfig().encoder, model.encoder if is_same else info.encoder),
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


def read_split(folder: Path, split: str, columns: Sequence[str] = RECORD_SCHEMA.names) -> pa.Table:
    """The records of a split (columns as `RECORD_SCHEMA`, or also `windows`), in no particular order."""
    files = sorted(str(path) for path in (folder / "records" / f"split={split}").glob("*.parquet"))
    if not files:
        return RECORD_SCHEMA.empty_table().select([name for name in columns if name in RECORD_SCHEMA.names])
    return pds.dataset(files, format="parquet").to_table(columns=list(columns))


def read_rows(folder: Path, split: str) -> list[dict[str, Any]]:
    """The records of a split as plain rows, ordered by `record_id`."""
    rows: list[dict[str, Any]] = read_split(folder, split).sort_by("record_id").to_pylist()
    return rows


def read_windows(folder: Path) -> pa.Table:
    """The encoded windows of the training split and of its siblings, one a row, with their record's id.

    Raises CorpusError where the folder is not to be seen: a worker may be on another machine than its writer.
    """
    columns = ["record_id", "windows"]
    table = read_split(folder, "train", columns)
    if "windows" not in table.column_names:
        raise CorpusError(
            "a worker does not find the shards",
            where=str(folder),
            rule="a folder that every machine of the cluster sees under the same path",
            value=f"no training split on {platform.node()}",
            remedy="give an `--output_dir`, or `--corpus.shards`, that all machines see",
        )
    siblings = read_split(folder, AUGMENTED, columns)
    if len(siblings):
        table = pa.concat_tables([table, siblings])
    return flatten_windows(table)


def flatten_windows(table: pa.Table) -> pa.Table:
    """Records' windows, one a row, with their record's id."""
    lists = table["windows"].combine_chunks()
    windows = pa.Table.from_struct_array(pc.list_flatten(lists))
    return windows.append_column("record_id", table["record_id"].take(pc.list_parent_indices(lists)))


def sample_windows(folder: Path, num_steps: int, batch_tokens: int, seed: int) -> pa.Table:
    """Training windows in random order, enough for so many steps of so many sub-tokens; repeated if they are too few.

    Raises CorpusError if the training split has no words.
    """
    windows = read_windows(folder)
    windows = windows.filter(pc.greater(pc.list_value_length(windows["tag_ids"]), 0))
    if not len(windows):
        raise CorpusError("the training corpus has no words", where=str(folder), remedy="give another corpus")
    order = np.random.default_rng(seed).permutation(len(windows))
    lengths = pc.list_value_length(windows["input_ids"]).to_numpy()[order]
    ends = np.cumsum(np.minimum(lengths, batch_tokens))  # a longer window makes a step of its own
    rounds, rest = divmod(num_steps * batch_tokens, int(ends[-1]))
    last = order[: np.searchsorted(ends, rest) + 1] if rest else order[:0]
    return windows.take(pa.array(np.concatenate([*[order] * rounds, last])))


def hash_seen_mentions(folder: Path) -> frozenset[int]:
    """Hashes of the training split's mentions with their labels, for telling seen from unseen ones later."""
    table = read_split(folder, "train", ["text", "words", "spans"])
    seen = set()
    for row in table.to_pylist():
        for span in row["spans"]:
            part = (row["text"] if row["text"] is not None else row["words"])[span["start"] : span["end"]]
            seen.add(hash_mention(part if isinstance(part, str) else " ".join(part), span["label"]))
    return frozenset(seen)
