"""The scaling report on a small Ray: equal losses, what is left out, and a second call that measures nothing again."""

import json
import re
from pathlib import Path

import pytest

from pipelines import scale
from pipelines.training.history import read_metrics

pytestmark = pytest.mark.usefixtures("ray_session")


@pytest.mark.long
@pytest.mark.timeout(900)
def test_report_of_two_strategies_and_a_second_call_that_only_adds(tiny_encoder: str, tmp_path: Path, capfd):
    folder = tmp_path / "scaling"
    command = ["--corpus.train", "sample:en-dev.jsonl", "--model.encoder", tiny_encoder, "--num_steps", "15"]
    command += ["--training.batch_tokens", "200", "--training.precision", "fp32", "--cpus_per_worker", "1"]
    command += ["--growing_corpus", "false", "--output_dir", str(folder)]
    assert scale.main([*command, "--workers", "1", "2", "99", "--strategies", "ddp", "fsdp", "hybrid"]) == 0
    told = capfd.readouterr()

    scaling = json.loads((folder / "scaling.json").read_text())
    cases = {case["name"]: case for case in scaling["cases"]}
    assert list(cases) == ["one worker", "ddp on 2 workers", "fsdp on 2 workers"]
    assert all(case["num_steps"] >= 15 and case["tokens_per_s"] > 0 for case in cases.values())
    assert cases["one worker"]["speed_up"] == 1
    whole, ddp, fsdp = (sum(case["state_mib"].values()) for case in cases.values())
    assert ddp == pytest.approx(whole)
    assert fsdp == pytest.approx(whole / 2, rel=0.05)
    assert cases["ddp on 2 workers"]["sent_mib"].keys() == {"all-reduce"}
    assert cases["fsdp on 2 workers"]["sent_mib"].keys() >= {"all-gather", "reduce-scatter"}
    for name in ("ddp on 2 workers", "fsdp on 2 workers"):
        assert cases[name]["loss_difference"] < 1e-3
        assert cases[name]["slowest_to_median_worker"] >= 1

    reasons = {case["name"]: case["reason"] for case in scaling["left_out"]}
    assert reasons.keys() == {f"{name} on 99 workers" for name in ("ddp", "fsdp", "hybrid")} | {"hybrid on 2 workers"}
    assert "no room for the workers" in reasons["ddp on 99 workers"]
    assert "at least 2 groups" in reasons["hybrid on 2 workers"]

    page = (folder / "report.html").read_text()
    assert page.count("<svg") == 1
    assert re.search(r'class="part" style="[^"]*width:[1-9]', page)
    assert scaling["advice"] in (folder / "report.md").read_text()
    assert scaling["advice"] in told.out
    assert re.search(r"rayner train --corpus.shards \S+ .*--resources.num_workers [12]", told.out)
    assert not list(folder.glob("cases/*/checkpoints"))

    before = {path: path.read_bytes() for path in folder.glob("cases/*/metrics.jsonl")}
    assert len(before) == 3
    assert scale.main([*command, "--workers", "1", "2", "--strategies", "ddp", "fsdp", "--price_per_hour", "2"]) == 0
    assert {path: path.read_bytes() for path in folder.glob("cases/*/metrics.jsonl")} == before
    again = json.loads((folder / "scaling.json").read_text())
    assert [case["name"] for case in again["cases"]] == list(cases)
    assert all(case["cost_per_million_tokens"] > 0 for case in again["cases"])
    assert len(read_metrics(next(iter(before)))) > 15


def test_when_no_case_is_left_every_reason_is_told_once(tiny_encoder: str, tmp_path: Path, capfd):
    command = ["--corpus.train", "sample:en-dev.jsonl", "--model.encoder", tiny_encoder, "--cpus_per_worker", "1"]
    command += ["--workers", "3", "--strategies", "pipeline", "hybrid", "--output_dir", str(tmp_path / "scaling")]
    assert scale.main(command) == 2
    told = capfd.readouterr()
    assert told.out == ""
    for fact in ("2 mistakes", "2 layers, 3 workers", "at least 2 groups"):
        assert told.err.count(fact) == 1
    assert not list(tmp_path.glob("scaling/cases"))
