"""Shards with siblings: the original corpus is in them as it was, and what is trained on is more."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipelines.corpus.augmentation.config import AugmentationConfig
from pipelines.corpus.augmentation.siblings import AUGMENTED
from pipelines.corpus.config import CorpusConfig
from pipelines.corpus.preparation import prepare_shards
from pipelines.corpus.records import CorpusError
from pipelines.corpus.shards import (
    SHARDS_FILE,
    ShardsInfo,
    hash_seen_mentions,
    load_shards_info,
    read_rows,
    read_split,
    read_windows,
)
from pipelines.corpus.windows import split_record
from pipelines.ner.encoders import load_tokenizer
from pipelines.ner.encoding import Encoder, EncodingConfig
from pipelines.ner.model import ModelConfig
from pipelines.resources import read_lengths
from tests.conftest import SAMPLE

pytestmark = pytest.mark.usefixtures("ray_session")

RATES = {"mention_replacement": 1.5, "masking": 0.5, "script_forms": 1.0, "typo_noise": 0.3}
CONLL = "Angela B-PER\nMerkel I-PER\nvisited O\nUtrecht B-LOC\n. O\n\nBern I-LOC\nis O\nlarge O\n\nnothing O\n"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Some texts in two languages, and sentences of words of which one has an illegal tag."""
    folder = tmp_path_factory.mktemp("files")
    for name, number in (("en", 12), ("zh", 6)):
        lines = (SAMPLE / f"{name}-train.jsonl").open(encoding="utf-8").readlines()[:number]
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    (folder / "a.conll").write_text(CONLL, encoding="utf-8")
    return [str(folder / name) for name in ("en.jsonl", "zh.jsonl", "a.conll")]


def prepare(folder: Path, encoder: str, train: list[str], num_actors: int = 1, **augmentation: object) -> ShardsInfo:
    held = ["sample:en-dev.jsonl"] if len(train) > 1 else train
    corpus = CorpusConfig(train=train, dev=held, test=held, augmentation=AugmentationConfig(**augmentation))
    model = ModelConfig(encoder=encoder)
    return prepare_shards(corpus, EncodingConfig(window=64), model, folder, seed=1, num_actors=num_actors)


def read_contents(folder: Path) -> dict[str, bytes]:
    """Every file by its folder: Ray gives those of a split random names."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {f"{path.parent.relative_to(folder)}/{path.suffix}": path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def plain(files, tiny_encoder: str, ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plain") / "shards"
    prepare(folder, tiny_encoder, files)
    return folder


@pytest.fixture(scope="module")
def augmented(files, tiny_encoder: str, ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("augmented") / "shards"
    prepare(folder, tiny_encoder, files, **RATES)
    return folder


def test_rates_of_zero_give_the_shards_that_were_given_before_bit_for_bit(files, tiny_encoder, plain, tmp_path):
    prepare(tmp_path / "shards", tiny_encoder, files, masking=0.0, seed=9, strength=0.7)
    found, expected = read_contents(tmp_path / "shards"), read_contents(plain)
    assert found.keys() == expected.keys()
    assert len(found) >= 5
    assert found == expected
    assert "augmentation" not in json.loads((plain / SHARDS_FILE).read_text())


def test_the_original_corpus_is_told_and_kept_as_without_augmentation(plain, augmented):
    told, untouched = load_shards_info(augmented), load_shards_info(plain)
    for name in ("splits", "ledger", "duplicates", "tags", "corpus_scheme", "splitter", "split_off"):
        assert getattr(told, name) == getattr(untouched, name)
    for split in ("train", "dev", "test"):
        assert read_rows(augmented, split) == read_rows(plain, split)
    assert hash_seen_mentions(augmented) == hash_seen_mentions(plain)
    ledgers = [pq.read_table(folder / "ledger.parquet") for folder in (augmented, plain)]
    assert ledgers[0].equals(ledgers[1])


def test_siblings_are_told_marked_and_trained_on(plain, augmented, tiny_encoder):
    info = load_shards_info(augmented)
    made = info.augmentation
    rows = read_split(
        augmented, AUGMENTED, ["record_id", "original", "technique", "text", "words", "spans"]
    ).to_pylist()
    originals = {row["record_id"]: row for row in read_rows(augmented, "train")}
    assert sum(made.siblings.values()) == made.added.num_records == len(rows) > 20
    assert all(made.siblings[name] for name in RATES)
    assert made.settings["masking"] == 0.5
    assert made.notes == []
    assert {row["original"] for row in rows} <= originals.keys()
    for row in rows:
        before = originals[row["original"]]
        assert [span["label"] for span in row["spans"]] == [span["label"] for span in before["spans"]]
        assert (row["text"], row["words"]) != (before["text"], before["words"])
    windows = read_windows(augmented)
    assert len(windows) == info.splits["train"].num_windows + made.added.num_windows
    assert set(windows["record_id"].to_pylist()) == originals.keys() | {row["record_id"] for row in rows}
    own = [row for row in windows.to_pylist() if row["record_id"] in originals]
    key = lambda row: (row["record_id"], row["input_ids"])  # noqa: E731
    assert sorted(own, key=key) == sorted(read_windows(plain).to_pylist(), key=key)
    assert read_lengths(info).num_windows > read_lengths(load_shards_info(plain)).num_windows


def test_windows_of_siblings_equal_a_plain_loop_and_masks_are_one_token(augmented, tiny_encoder):
    info, tokenizer = load_shards_info(augmented), load_tokenizer(tiny_encoder)
    encoder = Encoder(tokenizer, window=info.window, stride=info.stride, splitter=info.splitter, casing=info.casing)
    columns = ["record_id", "technique", "text", "words", "spans"]
    found = {}
    for window in read_windows(augmented).to_pylist():
        found.setdefault(window["record_id"], []).append(window)
    num_masks = 0
    for row in read_split(augmented, AUGMENTED, columns).to_pylist():
        masked = "[MASK]" if row["technique"] == "masking" else None
        pieces, spans = split_record(row["text"], row["words"], row["spans"], info.splitter, masked)
        tags = [tag for window in found[row["record_id"]] for tag in window["tag_ids"]]
        assert tags == info.label_scheme.to_tag_ids(spans, len(pieces))
        ids = [list(window.input_ids) for window in encoder.encode_pieces(pieces).windows]
        assert [window["input_ids"] for window in found[row["record_id"]]] == ids
        num_masks += sum(one.count(tokenizer.mask_token_id) for one in ids)
        assert (tokenizer.mask_token_id in ids[0]) <= bool(masked)
    assert num_masks > 5


def test_the_siblings_are_the_same_with_other_actors_and_files_in_another_order(
    files, tiny_encoder, augmented, tmp_path
):
    prepare(tmp_path / "shards", tiny_encoder, files[::-1], num_actors=2, **RATES)
    assert read_rows(tmp_path / "shards", AUGMENTED) == read_rows(augmented, AUGMENTED)


def test_what_has_no_effect_is_noted_and_what_cannot_be_leaves_nothing(files, tiny_encoder, tmp_path):
    words, names = files[-1:], tmp_path / "names.tsv"
    names.write_text("Oslo\tLOC\nRay\tCITY\n", encoding="utf-8")
    rates = {"mention_replacement": 10.0, "width_forms": 1.0, "strength": 1.0, "gazetteer": [str(names)]}
    info = prepare(tmp_path / "shards", tiny_encoder, words, **rates)
    assert info.augmentation.siblings == {"mention_replacement": 4, "width_forms": 0}
    assert info.augmentation.notes[0] == "labels of the gazetteer that train lacks, left out: `CITY`"
    assert "`corpus.augmentation.width_forms` has made no sibling" in info.augmentation.notes[1]
    made = {tuple(row["words"]) for row in read_rows(tmp_path / "shards", AUGMENTED)}
    expected = [("Angela", "Merkel", "visited", name, ".") for name in ("Bern", "Oslo")]
    assert made == {*expected, *((name, "is", "large") for name in ("Utrecht", "Oslo"))}
    names.write_text("Ray\tCITY\n", encoding="utf-8")
    with pytest.raises(CorpusError, match="no label of the gazetteer is one of the corpus"):
        prepare(tmp_path / "other", tiny_encoder, words, **rates)
    assert {path.name for path in tmp_path.iterdir()} == {"shards", "names.tsv"}
