"""Which documents of raw text are held out: whole, with their copies, and whatever the order of the files."""

import random
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest

from pipelines.corpus.holding_out import add_up, choose_splits, hash_block, write_documents
from pipelines.corpus.mentions import MentionSources
from pipelines.corpus.raw_text import PackText, _iterate_texts, count_block
from pipelines.corpus.records import Record, to_table
from pipelines.corpus.text_config import TextEncoding

SENTENCES = {f"d{number}": [f"sentence {at} of document {number}." for at in range(3)] for number in range(300)}


def make_table(documents, *, prefix="", split="train"):
    """A record a sentence; of documents without a name, `None`, each is its own."""
    records = []
    for name, texts in documents:
        for text in texts:
            place = f"{prefix}t:{len(records)}"
            content = {"text": text} if isinstance(text, str) else {"words": text}
            doc_id = place if name is None else prefix + name
            records.append(Record(record_id=place, doc_id=doc_id, source=place, **content))
    return to_table(records).append_column("split", pa.array([split] * len(records), pa.string()))


def as_dataset(*blocks):
    """What Ray would make of blocks, one after another."""
    return SimpleNamespace(
        map_batches=lambda function, **_: as_dataset(*map(function, blocks)), iter_batches=lambda **_: iter(blocks)
    )


def choose(tmp_path, *tables, fraction=0.25):
    """The table's rows with their sides."""
    documents = write_documents(as_dataset(*tables), tmp_path / "documents.npy")
    rows = [row for table in tables for row in table.to_pylist()]
    return list(zip(rows, choose_splits(rows, fraction, documents), strict=True))


def test_sentences_of_a_document_are_on_one_side(tmp_path):
    rows = [(name, [text]) for name, texts in SENTENCES.items() for text in texts]
    random.Random(0).shuffle(rows)
    sides = {}
    for row, split in choose(tmp_path, make_table(rows[:500]), make_table(rows[500:])):
        sides.setdefault(row["doc_id"], set()).add(split)
    assert all(len(found) == 1 for found in sides.values())
    share = sum(found == {"held_out"} for found in sides.values()) / len(sides)
    assert share == pytest.approx(0.25, abs=0.06)


def test_copies_of_documents_are_on_one_side_whatever_their_names_order_and_white_space(tmp_path):
    copies = [(f"other {name}", [*reversed(texts), texts[0]]) for name, texts in SENTENCES.items()]
    single = [(f"s{number}", [f"one text\nof number {number}.\n"]) for number in range(100)]
    nameless = [(None, [f" one text of number {number}."]) for number in range(100)]
    words = [("w" + str(number), [f"one text of number {number}.".split()]) for number in range(100)]
    tables = [make_table([*SENTENCES.items(), *single]), make_table([*copies, *nameless, *words], prefix="b/")]
    held_out, trained_on = (
        {" ".join(row["text"].split() if row["text"] else row["words"]) for row, split in found}
        for found in ([one for one in choose(tmp_path, *tables) if one[1] == side] for side in ("held_out", "train"))
    )
    assert held_out
    assert not held_out & trained_on


def test_sides_depend_on_no_order_and_no_folder(tmp_path):
    rows = list(SENTENCES.items())
    first = {(row["text"], split) for row, split in choose(tmp_path, make_table(rows))}
    moved = choose(tmp_path, make_table(rows[150:], prefix="/a/"), make_table(rows[:150][::-1], prefix="/a/"))
    assert {(row["text"], split) for row, split in moved} == first


def test_documents_of_one_text_are_held_out_by_it_and_need_no_file(tmp_path):
    named = make_table([(f"n{number}", [f"text {number}"] * 2) for number in range(40)])
    nameless = make_table([(None, [f"text {number}" for number in range(40)])])
    assert write_documents(as_dataset(named, nameless), tmp_path / "documents.npy") is None
    assert write_documents(as_dataset(), tmp_path / "documents.npy") is None
    assert not list(tmp_path.iterdir())
    assert hash_block(nameless).num_rows == 0
    assert choose_splits(named.to_pylist(), 0.3)[::2] == choose_splits(nameless.to_pylist(), 0.3)
    given = make_table(list(SENTENCES.items()), split="held_out")
    assert hash_block(given).num_rows == 0
    assert set(choose_splits(given.to_pylist(), 0.0)) == {"held_out"}


def test_hashes_add_up_over_distinct_texts():
    pairs = [(7, 2**63), (3, 5), (7, 2**63 + 1), (3, 5), (7, 2**63), (9, 1), (9, 4)]
    names, contents = (pa.array(column, pa.uint64()) for column in zip(*pairs, strict=True))
    found = add_up(pa.table({"name": names, "content": contents}))
    assert found.dtype == np.uint64
    assert found.tolist() == [[7, 9], [1, 5]]


def test_what_is_trained_on_is_the_same_for_windows_words_and_a_vocabulary(tiny_encoder, tmp_path):
    table = make_table([(name, texts) for name, texts in SENTENCES.items() if name < "d2"])
    documents = write_documents(as_dataset(table), tmp_path / "documents.npy")
    splits = choose_splits(table.to_pylist(), 0.3, documents)
    assert splits != choose_splits(table.to_pylist(), 0.3)
    encoding = TextEncoding(splitter="whitespace", packing="apart")
    pack = PackText(tiny_encoder, 64, 1, encoding, 0.3, MentionSources(), None, None, documents)
    assert [row["split"] for row in pack(table).to_pylist()] == sorted(splits, reverse=True)
    taught = list(_iterate_texts(as_dataset(table), 0.3, documents))
    assert taught == [text for text, split in zip(table["text"].to_pylist(), splits, strict=True) if split == "train"]
    assert sum(count_block(table, "whitespace", 0.3, documents)["count"].to_pylist()) == 5 * len(taught)
