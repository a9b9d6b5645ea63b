"""What a compression reads: the model given, the corpus in that model's own sub-tokens, and raw text."""

import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import pyarrow.parquet as pq

from pipelines.compression.config import CompressionError
from pipelines.compression.gate import LEAST_DOCUMENTS
from pipelines.corpus.config import CorpusConfig
from pipelines.corpus.ledger import Ledger
from pipelines.corpus.raw_text import read_texts
from pipelines.corpus.shards import ShardsInfo, read_split
from pipelines.job import console
from pipelines.ner.bundle import BUNDLE_FILE, Bundle, save_bundle
from pipelines.ner.encoding import EncodingConfig
from pipelines.ner.model import ModelConfig
from pipelines.run_record import RunRecord
from pipelines.runs import SHARDS_FOLDER, get_shards
from pipelines.terminal import print_ledger

NEEDED = ("train", "dev")
LEDGER_FILE = "ledger.parquet"


def keep_model(model: str, bundle: Bundle, folder: Path) -> Path:
    """The model given as a bundle folder; one from elsewhere is written down as `folder`."""
    path = Path(model).expanduser().absolute()
    if (path / BUNDLE_FILE).is_file():
        return path
    if not folder.is_dir():
        save_bundle(folder, bundle)
    return folder


def get_own_shards(
    model: str, bundle: Bundle, corpus: CorpusConfig, seed: int, folder: Path, record: RunRecord
) -> tuple[Path, ShardsInfo, bool]:
    """The corpus in the model's own sub-tokens, and whether it is new in the run folder.

    Nothing of train is split off, for the model may have learned it. Raises CompressionError for a corpus that the
    model or the gate cannot use.
    """
    if corpus.shards:
        encoding, shape = EncodingConfig(), ModelConfig()
    else:
        corpus = CorpusConfig(**{**vars(corpus), "test": [], "dev_fraction": 0.0, "test_fraction": 0.0})
        encoder = bundle.encoder
        encoding = EncodingConfig(encoder.window, encoder.stride, encoder.splitter)
        shape = ModelConfig(model, bundle.info.head, bundle.info.scheme, casing=encoder.casing or None)
    shards, info, is_new = get_shards(corpus, encoding, shape, seed, folder / SHARDS_FOLDER, record, NEEDED)
    try:
        _check_labels(bundle, info)
        check_dev(shards)
    except CompressionError:
        if is_new:
            shutil.rmtree(shards)
        raise
    return shards, info, is_new


def _check_labels(bundle: Bundle, info: ShardsInfo) -> None:
    unknown = sorted(set(info.label_scheme.labels) - set(bundle.model.scheme.labels))
    if unknown:
        raise CompressionError(
            "the corpus has labels that the model does not know",
            rule="labels of the model: " + ", ".join(bundle.model.scheme.labels),
            value="only in the corpus: " + ", ".join(unknown),
            remedy="give the corpus that the model was trained on, or train a model on this one first",
        )


def check_dev(shards: Path) -> None:
    """Raise CompressionError for a dev set of which the gate could let no variant through."""
    number = count_documents(shards)
    if number < LEAST_DOCUMENTS:
        raise CompressionError(
            "the dev set shows nothing",
            where="`corpus.dev`",
            rule=f"entities in at least {LEAST_DOCUMENTS} documents, which the bootstrap draws",
            value=f"entities in {number} documents",
            remedy="give more text, annotated; in CoNLL files a `-DOCSTART-` begins a document",
        )


def count_documents(shards: Path) -> int:
    """Documents of dev with entities."""
    rows = read_split(shards, "dev", ["doc_id", "spans"]).to_pylist()
    return len({row["doc_id"] for row in rows if row["spans"]})


def read_unlabelled(files: Sequence[str], corpus: CorpusConfig, folder: Path, record: RunRecord) -> Ledger | None:
    """What becomes of the records of raw text, or has become, if that is noted. Raises CorpusError.

    Args:
        corpus: says how they are read, and how many may be bad.
    """
    if not files:
        return None
    if (folder / LEDGER_FILE).is_file():
        return Ledger.from_table(pq.read_table(folder / LEDGER_FILE))
    with record.phase("unlabelled", "reading the unlabelled text"):
        return read_texts({"train": files}, corpus.reader, corpus.max_bad_fraction)[1].ledger


def tell_unlabelled(ledger: Ledger, folder: Path) -> None:
    """Note and say what becomes of the records of raw text, unless an earlier try has."""
    if (folder / LEDGER_FILE).is_file():
        return
    folder.mkdir(exist_ok=True)
    ledger.write_parquet(folder / LEDGER_FILE)
    console.print("[bold]unlabelled text[/]")
    print_ledger(asdict(ledger.counts()), folder)
