"""Corpus files through Ray: what is read, split, repaired, refused, and what the shards hold."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.corpus import shards as shards_module
from pipelines.corpus.config import CorpusConfig
from pipelines.corpus.formats.options import FormatOptions
from pipelines.corpus.ledger import Ledger
from pipelines.corpus.preparation import prepare_shards
from pipelines.corpus.reading import read_corpus
from pipelines.corpus.records import CorpusError
from pipelines.corpus.shards import (
    SHARDS_FILE,
    find_shards_encoder,
    load_shards_info,
    read_rows,
    read_split,
    read_windows,
)
from pipelines.corpus.windows import split_record
from pipelines.ner.encoders import load_tokenizer
from pipelines.ner.encoding import Encoder, EncodingConfig, fingerprint_tokenizer
from pipelines.ner.entities import Span
from pipelines.ner.errors import UserErrors
from pipelines.ner.model import ModelConfig
from tests.conftest import SAMPLE

pytestmark = pytest.mark.usefixtures("ray_session")

CONLL = "Angela B-PER\nMerkel I-PER\nvisited O\nUtrecht B-LOC\n. O\n\nSiemens B-ORG\nhires O\n"


def write(folder: Path, name: str, content: str) -> str:
    (folder / name).write_text(content, encoding="utf-8")
    return str(folder / name)


def write_rows(folder: Path, name: str, rows: list[dict]) -> str:
    return write(folder, name, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def read(*patterns: str, split_off: dict[str, float] | None = None, **settings):
    return read_corpus({"train": list(patterns)}, FormatOptions(), split_off=split_off, **settings)


def rows_of(corpus) -> list[dict]:
    return sorted(corpus.records.take_all(), key=lambda row: row["record_id"])


def test_formats_mix_and_add_up(tmp_path):
    conll = write(tmp_path, "a.conll", CONLL)
    jsonl = write_rows(tmp_path, "b.jsonl", [{"id": "d1", "text": "Bern 🇨🇭", "entities": [[0, 4, "LOC"]]}])
    words = {"tokens": [["Ada", "Lovelace"], ["Oslo"]], "ner_tags": [["B-PER", "I-PER"], ["B-LOC"]]}
    pq.write_table(pa.table(words), tmp_path / "c.parquet")
    corpus = read(conll, jsonl, str(tmp_path / "c.parquet"))
    rows = rows_of(corpus)
    assert [row["source"] for row in rows] == [
        *(f"{conll}:1", f"{conll}:7", f"{jsonl}:1"),
        *(f"{tmp_path}/c.parquet:1", f"{tmp_path}/c.parquet:2"),
    ]
    assert [row["text"] for row in rows] == [None, None, "Bern 🇨🇭", None, None]
    assert rows[3]["words"] == ["Ada", "Lovelace"]
    assert corpus.scheme == "BIO"
    assert corpus.labels == {"train": {"PER", "LOC", "ORG"}}
    assert corpus.num_records == {"train": 5}
    assert corpus.summary.ledger.num_kept == 5


@pytest.mark.parametrize(
    ("tags", "scheme"),
    [
        ("B-PER I-PER O B-PER", "BIO"),
        ("I-PER I-PER O I-LOC", "IOB1"),
        ("B-PER E-PER O S-LOC", "BIOES"),
        ("B-PER L-PER O U-LOC", "BILOU"),
        ("B-PER M-PER E-PER S-LOC", "BMES"),
        ("PER PER O LOC", "IO"),
    ],
)
def test_tag_scheme_is_detected_over_all_files(tags, scheme, tmp_path):
    lines = "".join(f"word {tag}\n" for tag in tags.split())
    corpus = read(write(tmp_path, "a.conll", lines), write(tmp_path, "b.conll", "nothing O\n"))
    assert corpus.scheme == scheme


def test_mixed_schemes_are_refused_with_places(tmp_path):
    one, other = write(tmp_path, "a.conll", CONLL), write(tmp_path, "b.conll", "Ada U-PER\n\nx B-PER\ny M-PER\n")
    with pytest.raises(CorpusError, match="mix label schemes") as caught:
        read(one, other)
    assert f"`M-PER` in {other}:3" in str(caught.value)
    assert f"`U-PER` in {other}:1" in str(caught.value)


def test_unknown_prefix_is_refused_with_its_place_and_read_as_label_on_request(tmp_path):
    path = write(tmp_path, "a.conll", CONLL + "\nBern Q-LOC\n")
    with pytest.raises(CorpusError, match="unknown tag prefix") as caught:
        read(path)
    assert f"`Q-LOC` in {path}:10" in str(caught.value)
    with pytest.raises(CorpusError, match="a tag that the scheme BIO does not have"):
        read(path, scheme="BIO")
    assert "Q-LOC" in read(path, scheme="IO").labels["train"]


def test_too_many_bad_records_stop_with_the_first_ten(tmp_path):
    path = write(tmp_path, "a.conll", CONLL + "".join(f"\nbad{number}\n" for number in range(12)))
    with pytest.raises(CorpusError, match="12 of 14 records cannot be used") as caught:
        read(path)
    shown = [line for line in str(caught.value).splitlines() if "too_few_columns" in line]
    assert len(shown) == 10
    assert shown[0].strip().startswith(f"{path}:10: too_few_columns: `bad0`")
    assert "… and 2 more" in str(caught.value)
    kept = read(path, max_bad_fraction=0.9)
    assert kept.num_records == {"train": 2}
    assert kept.summary.ledger.counts().rejected == 12


def test_unreadable_files_are_told_all_at_once(tmp_path):
    damaged = tmp_path / "a.parquet"
    damaged.write_bytes(b"PAR1 and nothing more")
    empty = write(tmp_path, "b.conll", "")
    utf16 = tmp_path / "c.conll"
    utf16.write_text(CONLL, encoding="utf-16")
    with pytest.raises(UserErrors) as caught:
        read(str(damaged), empty, str(utf16), write(tmp_path, "good.conll", CONLL))
    assert {error.where for error in caught.value.errors} == {str(damaged), empty, f"{utf16}:1"}


def test_splits_are_made_of_whole_documents_and_stay_the_same(tmp_path):
    rows = [
        {"doc_id": f"d{number // 3}", "text": f"Ada {number}", "entities": [[0, 3, "PER"]]} for number in range(300)
    ]
    path = write_rows(tmp_path, "a.jsonl", rows)
    share = {"dev": 0.2, "test": 0.2}
    first = {row["record_id"]: (row["doc_id"], row["split"]) for row in rows_of(read(path, split_off=share))}
    again = {row["record_id"]: (row["doc_id"], row["split"]) for row in rows_of(read(path, split_off=share))}
    assert first == again
    splits = {doc: {split for one, split in first.values() if one == doc} for doc, _ in first.values()}
    assert all(len(found) == 1 for found in splits.values())
    counts = {split: sum(found == {split} for found in splits.values()) for split in ("train", "dev", "test")}
    assert sum(counts.values()) == 100
    assert 10 <= counts["dev"] <= 30
    assert 10 <= counts["test"] <= 30


def test_copies_of_a_record_come_into_one_split_wherever_they_stand(tmp_path):
    rows = [{"text": f"Ada {number % 100}", "entities": [[0, 3, "PER"]]} for number in range(300)]
    files = [write_rows(tmp_path, f"{name}.jsonl", part) for name, part in (("a", rows[:150]), ("b", rows[150:]))]
    found = [(row["text"], row["split"]) for row in rows_of(read(*files, split_off={"dev": 0.2, "test": 0.2}))]
    assert len(found) == 300
    assert len(set(found)) == 100
    assert {split for _, split in found} == {"train", "dev", "test"}


def test_records_without_gold_are_refused(tmp_path):
    path = write_rows(tmp_path, "a.jsonl", [{"text": "Ada"}, {"text": "Bern", "entities": [[0, 4, "LOC"]]}])
    with pytest.raises(CorpusError, match="1 records have no annotation"):
        read(path)


def prepare(folder: Path, encoder: str, *, train: list[str], window: int = 32, **corpus):
    config = CorpusConfig(train=train, **corpus)
    encoding = EncodingConfig(window=window, stride=8)
    return prepare_shards(config, encoding, ModelConfig(encoder=encoder), folder, seed=1, num_actors=1)


def test_illegal_tags_are_repaired_counted_and_in_the_ledger(tmp_path, tiny_encoder):
    files = [write(tmp_path, "a.conll", CONLL + "\nBern I-LOC\nBasel I-PER\n")]
    clean = [write(tmp_path, "b.conll", CONLL)]
    info = prepare(tmp_path / "shards", tiny_encoder, train=files, dev=clean, test=clean)
    assert info.ledger["repaired"] == 1
    assert info.ledger["reasons"] == {"illegal_tags": 1}
    ledger = Ledger.from_table(pq.read_table(tmp_path / "shards" / "ledger.parquet"))
    assert [(entry.source, entry.outcome) for entry in ledger.entries] == [(f"{files[0]}:10", "repaired")]
    assert "2 tags" in ledger.entries[0].detail
    repaired = next(row for row in read_rows(tmp_path / "shards", "train") if row["words"][0] == "Bern")
    assert [(span["start"], span["end"], span["label"]) for span in repaired["spans"]] == [(0, 1, "LOC"), (1, 2, "PER")]


def test_duplicates_across_splits_are_counted(tmp_path, tiny_encoder):
    one = write(tmp_path, "a.conll", CONLL)
    other = write(tmp_path, "b.conll", "Siemens B-ORG\nhires O\n\nBern B-LOC\n")
    info = prepare(tmp_path / "shards", tiny_encoder, train=[one], dev=[one], test=[other])
    assert info.duplicates == {"train & dev": 2, "train & test": 1, "dev & test": 1}


def test_label_that_train_lacks_is_refused_and_nothing_is_left(tmp_path, tiny_encoder):
    one, other = write(tmp_path, "a.conll", CONLL), write(tmp_path, "b.conll", "Bern B-CITY\n")
    with pytest.raises(CorpusError, match="the dev split has labels that the training split lacks") as caught:
        prepare(tmp_path / "out" / "shards", tiny_encoder, train=[one], dev=[other], test=[one])
    assert "`CITY`" in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def sample_shards(ray_session: None, tiny_encoder: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of both sample corpora with a long document that has emoji, in windows of 32."""
    folder = tmp_path_factory.mktemp("prepared")
    text = "Ada Lovelace 👩‍💻 met José in São Paulo. " * 60
    places = [at for at in range(len(text)) if text.startswith("Ada Lovelace", at)]
    row = {"id": "long", "text": text, "entities": [[at, at + 12, "PER"] for at in places]}
    long = write_rows(folder, "long.jsonl", [row])
    prepare(
        folder / "shards",
        tiny_encoder,
        train=["sample:en-train.jsonl", "sample:zh-train.jsonl", long],
        dev=["sample:en-dev.jsonl"],
        test=["sample:en-test.jsonl", "sample:zh-test.jsonl"],
    )
    return folder / "shards"


def test_sidecar_tells_what_the_shards_hold(sample_shards, tiny_encoder):
    info = load_shards_info(sample_shards)
    assert (info.scheme, info.corpus_scheme, info.splitter) == ("BIO", "BIO", "punctuation")
    assert (info.window, info.stride) == (32, 8)
    assert info.tokenizer_fingerprint == fingerprint_tokenizer(load_tokenizer(tiny_encoder))
    assert find_shards_encoder(sample_shards, info) == tiny_encoder
    assert info.tags[0] == "O"
    assert set(info.label_scheme.labels) >= {"PER", "ORG", "LOC"}
    for split, names in (("train", ("en-train", "zh-train")), ("dev", ("en-dev",)), ("test", ("en-test", "zh-test"))):
        given = [json.loads(line) for name in names for line in (SAMPLE / f"{name}.jsonl").open()]
        counts = info.splits[split]
        extra = split == "train"
        assert counts.num_records == len(given) + extra
        assert sum(counts.entities.values()) == sum(len(row["entities"]) for row in given) + 60 * extra
        assert sum(counts.token_histogram.values()) == counts.num_records
        assert (counts.num_windows > counts.num_records) == extra
    assert info.ledger == {"kept": sum(split.num_records for split in info.splits.values())} | {
        "repaired": 0,
        "rejected": 0,
        "reasons": {},
    }


def test_sidecar_tells_where_an_encoder_lies_that_is_named_from_here(tmp_path, tiny_encoder, monkeypatch):
    monkeypatch.chdir(Path(tiny_encoder).parent)
    path = [write(tmp_path, "a.conll", CONLL)]
    info = prepare(tmp_path / "shards", Path(tiny_encoder).name, train=path, dev=path, test=path)
    assert (info.encoder, info.encoder_folder) == (Path(tiny_encoder).name, tiny_encoder)


def test_windows_from_ray_equal_a_plain_loop(sample_shards, tiny_encoder):
    info = load_shards_info(sample_shards)
    encoder = Encoder(load_tokenizer(tiny_encoder), window=32, stride=8, splitter=info.splitter)
    expected = []
    for row in read_rows(sample_shards, "train"):
        pieces, spans = split_record(row["text"], row["words"], row["spans"], info.splitter)
        tags = iter(info.label_scheme.to_tag_ids(spans, len(pieces)))
        for window in encoder.encode_pieces(pieces).windows:
            own = [next(tags) for _ in window.word_starts]
            expected.append((row["record_id"], list(window.input_ids), list(window.word_starts), own))
        assert next(tags, None) is None, "every word is owned once"
    found = [
        (row["record_id"], row["input_ids"], row["word_starts"], row["tag_ids"])
        for row in read_windows(sample_shards).to_pylist()
    ]
    assert sorted(found) == sorted(expected)


def test_long_document_is_many_windows_that_own_each_word_once(sample_shards):
    windows = [row for row in read_windows(sample_shards).to_pylist() if row["record_id"].endswith("long.jsonl:1")]
    row = next(row for row in read_rows(sample_shards, "train") if row["doc_id"] == "long")
    info = load_shards_info(sample_shards)
    pieces, spans = split_record(row["text"], None, row["spans"], info.splitter)
    assert len(windows) > 40
    assert all(len(window["input_ids"]) <= 32 for window in windows)
    assert [window["starts_document"] for window in windows] == [True, *[False] * (len(windows) - 1)]
    assert [window["ends_document"] for window in windows] == [*[False] * (len(windows) - 1), True]
    tag_ids = [tag for window in windows for tag in window["tag_ids"]]
    assert tag_ids == info.label_scheme.to_tag_ids(spans, len(pieces))
    assert spans[0] == Span(0, 2, "PER")


def test_only_training_records_have_windows(sample_shards):
    for split in ("dev", "test"):
        assert (
            read_split(sample_shards, split, ["windows"])["windows"].null_count
            == load_shards_info(sample_shards).splits[split].num_records
        )


def test_scratch_vocabulary_is_the_same_each_time(tmp_path):
    files = {"train": ["sample:en-dev.jsonl"], "dev": ["sample:en-dev.jsonl"], "test": ["sample:en-dev.jsonl"]}
    one = prepare(tmp_path / "one", "scratch", **files)
    two = prepare(tmp_path / "two", "scratch", **files)
    assert one.tokenizer_fingerprint == two.tokenizer_fingerprint
    assert find_shards_encoder(tmp_path / "one", one) == str(tmp_path / "one" / "scratch")
    weights = [(tmp_path / name / "scratch" / "model.safetensors").read_bytes() for name in ("one", "two")]
    assert weights[0] == weights[1]


def test_interrupted_shards_are_none_and_are_replaced(tmp_path, tiny_encoder, sample_shards):
    staging = tmp_path / ".shards.partial"
    (staging / "records").mkdir(parents=True)
    (staging / "records" / "leftover").touch()
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "records").symlink_to(sample_shards / "records")
    with pytest.raises(CorpusError, match="holds no shards") as caught:
        load_shards_info(tmp_path / "half")
    assert SHARDS_FILE in str(caught.value)
    path = [write(tmp_path, "a.conll", CONLL)]
    prepare(tmp_path / "shards", tiny_encoder, train=path, dev=path, test=path)
    assert not staging.exists()
    assert load_shards_info(tmp_path / "shards").splits["train"].num_records == 2


def test_failure_while_writing_leaves_no_folder(tmp_path, tiny_encoder):
    path = [write(tmp_path, "a.conll", CONLL)]
    config = CorpusConfig(train=path, dev=path, test=path)
    with pytest.raises(Exception, match="no word splitter `letters`"):
        prepare_shards(
            config,
            EncodingConfig(splitter="letters"),
            ModelConfig(encoder=tiny_encoder),
            tmp_path / "out" / "shards",
            seed=1,
            num_actors=1,
        )
    assert list((tmp_path / "out").iterdir()) == []


def test_shards_of_another_tokenizer_or_version_are_refused(tmp_path, sample_shards):
    folder = tmp_path / "shards"
    folder.mkdir()
    raw = json.loads((sample_shards / SHARDS_FILE).read_text())
    (folder / SHARDS_FILE).write_text(json.dumps(raw | {"tokenizer_fingerprint": "other"}))
    with pytest.raises(CorpusError, match="tokenized by another tokenizer"):
        find_shards_encoder(folder, load_shards_info(folder))
    (folder / SHARDS_FILE).write_text(json.dumps(raw | {"schema_version": shards_module.SCHEMA_VERSION + 1}))
    with pytest.raises(CorpusError, match="another version"):
        load_shards_info(folder)
