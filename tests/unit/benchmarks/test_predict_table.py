"""The speeds in README.md are those of the results file, and what the file claims follows from its own figures."""

import json

import pytest

from benchmarks.predict import PEER, RESULTS, render_table
from benchmarks.tables import README, put_table
from benchmarks.texts import MAX_CHARACTERS, generate_documents, write_jsonl

PATH = RESULTS / "predict-cpu.json"


def test_the_table_of_the_readme_is_rendered_from_the_results():
    page = README.read_text(encoding="utf-8")
    results = json.loads(PATH.read_text(encoding="utf-8"))
    assert put_table(page, render_table(results), "predict") == page


def test_rates_are_medians_of_rounds_measured_beside_the_peer():
    results = json.loads(PATH.read_text(encoding="utf-8"))
    for corpus in results["corpora"].values():
        assert corpus["tokens_per_s"][PEER] > 0
        for name, rounds in corpus["rounds"].items():
            assert len(rounds) == 3
            assert corpus["tokens_per_s"][name] == sorted(rounds)[1]


def test_generated_documents_are_seeded_and_as_long_as_in_the_wild(tmp_path):
    documents = list(generate_documents(["Ada met Alan in Oslo ."] * 3, 500_000))
    assert documents == list(generate_documents(["Ada met Alan in Oslo ."] * 3, 500_000))
    lengths = sorted(map(len, documents))
    assert lengths[-1] <= MAX_CHARACTERS
    assert lengths[len(lengths) // 2] == pytest.approx(900, rel=0.3)
    assert sum(lengths) == pytest.approx(500_000, rel=0.05)
    assert write_jsonl(tmp_path / "corpus.jsonl", iter(documents)) == len(documents)
    rows = [json.loads(line) for line in (tmp_path / "corpus.jsonl").read_text().splitlines()]
    assert [row["text"] for row in rows] == documents
