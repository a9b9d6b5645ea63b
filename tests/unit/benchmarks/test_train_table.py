"""The training speeds in README.md are those of the results file."""

import json
import statistics

from benchmarks.tables import README, put_table
from benchmarks.train import OURS, PEERS, RESULTS, ROUNDS, render_table

PATH = RESULTS / "train-cpu.json"


def test_the_table_of_the_readme_is_rendered_from_the_results():
    page = README.read_text(encoding="utf-8")
    assert put_table(page, render_table(json.loads(PATH.read_text(encoding="utf-8"))), "train") == page


def test_rates_are_medians_of_rounds_measured_in_turns():
    for corpus in json.loads(PATH.read_text(encoding="utf-8"))["corpora"].values():
        assert corpus["rounds"].keys() == corpus["tokens_per_s"].keys() == {*PEERS, *OURS}
        for name, rounds in corpus["rounds"].items():
            assert len(rounds) == ROUNDS
            assert corpus["tokens_per_s"][name] == statistics.median(rounds)
