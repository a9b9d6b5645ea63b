"""Blocks of raw text to windows: what is held out, and which words are rare."""

from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest

from pipelines.corpus.holding_out import choose_splits
from pipelines.corpus.mentions import MentionSources
from pipelines.corpus.raw_text import NUM_BUCKETS, PackText, _iterate_texts, check_order, count_block
from pipelines.corpus.records import CorpusError, Record, to_table
from pipelines.corpus.text_config import SPLITS, TextConfig, TextEncoding
from pipelines.ner.encoders import load_tokenizer
from pipelines.ner.units import ENTITY, RARE, WORD

WORDS = ["the", "mayor", "of", "Utrecht", "met", "some", "people", "."]


def make_table(texts, split="train"):
    records = [Record(record_id=f"t:{i}", doc_id=f"t:{i}", source=f"t:{i}", text=text) for i, text in enumerate(texts)]
    table = to_table(records)
    return table.append_column("split", pa.array([split] * len(texts), pa.string()))


def pack(encoder, table, *, fraction=0.0, packing="apart", rare_count=None, counts=None, window=32):
    encoding = TextEncoding(splitter="punctuation", packing=packing)
    packed = PackText(encoder, window, 1, encoding, fraction, MentionSources(), rare_count, counts)(table)
    return packed.to_pylist()


def test_a_share_of_the_documents_is_held_out_by_their_content(tiny_encoder):
    texts = [f"the mayor of place {number} met some people." for number in range(400)]
    first = pack(tiny_encoder, make_table(texts + texts[:50]), fraction=0.25)
    held_out = [row for row in first if row["split"] == "held_out"]
    assert len(held_out) / len(first) == pytest.approx(0.25, abs=0.06)
    seen = {tuple(row["input_ids"]) for row in first if row["split"] == "train"}
    assert not seen & {tuple(row["input_ids"]) for row in held_out}
    again = pack(tiny_encoder, make_table(texts[::-1]), fraction=0.25)
    assert {tuple(row["input_ids"]) for row in again if row["split"] == "held_out"} == {
        tuple(row["input_ids"]) for row in held_out
    }


def test_given_files_are_held_out_whole_and_documents_are_counted_once(tiny_encoder):
    rows = pack(tiny_encoder, make_table(["one two three"] * 30, "held_out"), packing="joined")
    assert {row["split"] for row in rows} == {"held_out"}
    assert len(rows) > 1
    assert sum(row["num_documents"] for row in rows) == 30


def test_windows_leave_room_for_special_tokens_and_hold_all_words(tiny_encoder):
    text = " ".join(WORDS * 20)
    rows = pack(tiny_encoder, make_table([text]), packing="joined")
    assert max(len(row["input_ids"]) for row in rows) <= 30
    tokenizer = load_tokenizer(tiny_encoder)
    expected = tokenizer(WORDS * 20, is_split_into_words=True, add_special_tokens=False)["input_ids"]
    assert [token for row in rows for token in row["input_ids"]] == expected
    assert sum(len(row["sentence_starts"]) for row in rows) == 20


def test_words_met_seldom_are_rare(tiny_encoder, tmp_path):
    table = make_table(["the mayor met the people", "the people met"])
    block = count_block(table, "punctuation", 0.0)
    counts = np.zeros(NUM_BUCKETS, dtype=np.int64)
    np.add.at(counts, block["bucket"].to_numpy(), block["count"].to_numpy())
    assert counts.sum() == 8
    np.save(tmp_path / "counts.npy", counts)
    rows = pack(tiny_encoder, table, rare_count=1, counts=tmp_path / "counts.npy")
    assert [row["unit_kinds"] for row in rows] == [[WORD, RARE, WORD, WORD, WORD], [WORD] * 3]


def test_every_mistake_is_told():
    problems = TextConfig(held_out_fraction=1.0, max_bad_fraction=-1).find_problems()
    assert [problem.what for problem in problems] == ["no text is given"] + ["a fraction out of range"] * 2
    assert len(TextEncoding(splitter="x", packing="y").find_problems()) == 2


def test_what_is_held_out_teaches_no_words(tiny_encoder):
    texts = [f"document{number}" for number in range(200)]
    table = make_table(texts)
    counted = count_block(table, "punctuation", 0.25)
    packed = pack(tiny_encoder, table, fraction=0.25)
    num_train = sum(row["num_documents"] for row in packed if row["split"] == "train")
    assert 100 < num_train < 190
    assert sum(counted["count"].to_pylist()) == num_train
    taught = set(_iterate_texts(SimpleNamespace(iter_batches=lambda **_: [table]), 0.25))
    splits = choose_splits(table.to_pylist(), 0.25)
    assert taught == {text for text, split in zip(texts, splits, strict=True) if split == "train"}
    assert len(taught) == num_train


def test_mentions_are_looked_for_in_what_is_trained_on_alone(tiny_encoder, tmp_path):
    (tmp_path / "names").write_text("place one\n")
    sources = MentionSources(gazetteer=[str(tmp_path / "names")])
    texts = [f"the mayor of place one met {number} people." for number in range(60)]
    encoding = TextEncoding(splitter="punctuation", packing="apart")
    rows = PackText(tiny_encoder, 32, 1, encoding, 0.3, sources, None, None)(make_table(texts)).to_pylist()
    found = {split: [ENTITY in row["unit_kinds"] for row in rows if row["split"] == split] for split in SPLITS}
    assert all(found["train"])
    assert not any(found["held_out"])


def test_windows_of_single_sentences_have_no_order_to_tell():
    with pytest.raises(CorpusError, match="no window has an order to tell") as caught:
        check_order(pa.table({"sentence_starts": [[0], [0], []]}))
    assert "3 windows" in str(caught.value)
    assert "`--objective masks`" in str(caught.value)
    check_order(pa.table({"sentence_starts": [[0], [0, 7]]}))
