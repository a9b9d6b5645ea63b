"""What more workers bring: figures of synthetic runs, the advice, the notes, and the page."""

import pytest

from pipelines.evaluation.scaling import ALONE, WARMUP_STEPS, Case, advise, choose_case, compare_cases, list_notes
from pipelines.evaluation.scaling_page import render_scaling_html, render_scaling_markdown, trace_speed_up

ONE = Case(ALONE, 1)
NUM_STEPS = 20


def make_run(step_s, *, num_tokens=1000, workers=1, state=30.0, shift=0.0, device="CPU, AVX2", sent=None):
    """A run whose first steps are slow, whose measured step is slow, and of which another was held up."""
    rows = [{"kind": "start", "step": 0, "device": device, "precision": "fp32", "threads": 1}]
    for step in range(1, NUM_STEPS + 1):
        seconds = 50 * step_s if step <= WARMUP_STEPS or step in (8, 12) else step_s
        row = {"kind": "step", "step": step, "num_tokens": num_tokens, "seconds": seconds, "loss": 2 / step + shift}
        row["parts_s"] = {"forward": seconds * 0.4, "backward": seconds * 0.6}
        if workers > 1:
            row["worker_s"] = [step_s] * (workers - 1) + [2 * step_s]
        if step == 8:
            row["state_mib"] = {"weights": state / 4, "gradients": state / 4, "moments": state / 2}
            row |= {"sent_mib": sent or {"all-reduce": 7.5}} if workers > 1 else {}
        rows.append(row)
    return [*rows, {"kind": "epoch", "step": NUM_STEPS, "peak_memory_mib": 500, "gpu_peak_memory_mib": 0}]


@pytest.fixture
def runs():
    return {
        ONE: make_run(0.1),
        Case("ddp", 2): make_run(0.0625, workers=2),
        Case("fsdp", 2): make_run(0.08, workers=2, state=15.0, shift=1e-5),
        Case("ddp", 2, 2): make_run(0.11, num_tokens=2000, workers=2),
    }


def find(results, case):
    return next(result for result in results if result["name"] == case.describe())


def test_first_measured_and_held_up_steps_do_not_count(runs):
    alone = find(compare_cases(runs), ONE)
    assert alone["tokens_per_s"] == pytest.approx(10_000)
    assert alone["step_s"] == pytest.approx(0.1)
    assert alone["num_steps"] == NUM_STEPS
    assert alone["parts_s"] == {"forward": pytest.approx(0.04), "backward": pytest.approx(0.06)}


def test_exchange_that_one_of_several_steps_has_counts_with_its_share():
    run = make_run(0.1, workers=2)
    for row in run:
        if row["kind"] == "start":
            row["sync_every"] = 4
        elif row["kind"] == "step" and row["step"] % 4 == 0:
            row["seconds"] += 0.4
    local = find(compare_cases({ONE: make_run(0.1), Case("local_sgd", 2): run}), Case("local_sgd", 2))
    assert local["step_s"] == pytest.approx(0.2)
    assert local["tokens_per_s"] == pytest.approx(5_000)
    assert local["parts_s"]["forward"] == pytest.approx(0.04)


def test_speed_up_efficiency_and_cost_are_against_one_worker(runs):
    ddp = find(compare_cases(runs, price_per_hour=3.6), Case("ddp", 2))
    assert ddp["speed_up"] == pytest.approx(1.6)
    assert ddp["efficiency"] == pytest.approx(0.8)
    assert ddp["cost_per_million_tokens"] == pytest.approx(2 * 3.6 / 3600 * 1e6 / 16_000)
    assert compare_cases(runs)[0]["cost_per_million_tokens"] is None
    assert compare_cases(runs, price_per_hour=0.0)[0]["cost_per_million_tokens"] == 0.0


def test_a_corpus_twice_as_large_takes_two_workers_as_long_as_their_steps(runs):
    grown = find(compare_cases(runs), Case("ddp", 2, 2))
    assert grown["time_factor"] == pytest.approx(0.11 / 0.1)
    assert any("a corpus 2 times as large takes 1.10 times" in note for note in list_notes([grown], 2, is_dense=True))


def test_fewest_workers_are_the_measure_where_one_was_not_measured(runs):
    del runs[ONE]
    runs[Case("ddp", 4)] = make_run(0.05, workers=4)
    results = compare_cases(runs)
    assert find(results, Case("ddp", 2))["speed_up"] == pytest.approx(2)
    assert find(results, Case("ddp", 4))["speed_up"] == pytest.approx(2.5)
    assert trace_speed_up(results)["ideal"] == [(2.0, 2.0), (4.0, 4.0)]


def test_losses_are_compared_step_by_step_with_the_same_batches(runs):
    runs[Case("fsdp", 2, 2)] = make_run(0.2, num_tokens=2000, workers=2, shift=0.25)
    results = compare_cases(runs)
    assert find(results, ONE)["loss_difference"] is None
    assert find(results, Case("ddp", 2))["loss_difference"] == 0
    assert find(results, Case("fsdp", 2))["loss_difference"] == pytest.approx(1e-5)
    assert find(results, Case("ddp", 2, 2))["loss_difference"] is None
    assert find(results, Case("fsdp", 2, 2))["loss_difference"] == pytest.approx(0.25)


def test_memory_exchange_and_stragglers_are_those_of_the_rows(runs):
    ddp = find(compare_cases(runs), Case("ddp", 2))
    assert ddp["state_mib"] == {"weights": 7.5, "gradients": 7.5, "moments": 15.0}
    assert ddp["sent_mib"] == {"all-reduce": 7.5}
    assert ddp["peak_memory_mib"] == 500
    assert ddp["slowest_to_median_worker"] == pytest.approx(2 / 1.5)
    alone = find(compare_cases(runs), ONE)
    assert (alone["slowest_to_median_worker"], alone["sent_mib"]) == (None, {})


def test_a_gpus_peak_is_told_instead_of_the_hosts():
    run = make_run(0.1, device="A GPU")
    for row in run:
        row.pop("parts_s", None)
        row["parts_s"] = {}
    run[-1]["gpu_peak_memory_mib"] = 9000
    [result] = compare_cases({ONE: run})
    assert (result["peak_memory_mib"], result["parts_s"]) == (9000, {})


def test_advice_takes_the_fastest_and_names_the_leanest(runs):
    results = compare_cases(runs)
    assert choose_case(results)["name"] == "ddp on 2 workers"
    told = advise(results)
    assert told.startswith("Take ddp on 2 workers: 16,000 sub-tokens a second, 1.60 times those of one worker")
    assert "fsdp on 2 workers, whose workers hold 15.0 MiB" in told
    assert "instead of 30.0, at 0.78 times the speed" in told


def test_advice_takes_one_worker_where_more_bring_nothing(runs):
    runs[Case("ddp", 2)] = make_run(0.099, workers=2)
    results = compare_cases(runs)
    runs_more = {ONE: runs[ONE], Case("ddp", 2): runs[Case("ddp", 2)]}
    assert choose_case(compare_cases(runs_more))["name"] == "one worker"
    assert "Take one worker" in advise(compare_cases(runs_more))
    assert "1.01 times as many" in advise(compare_cases(runs_more))
    assert choose_case(results)["name"] == "fsdp on 2 workers"


def test_advice_leaves_out_what_trains_otherwise(runs):
    runs[Case("local_sgd", 2)] = make_run(0.04, workers=2, shift=0.3)
    results = compare_cases(runs)
    assert choose_case(results)["name"] == "ddp on 2 workers"
    [note] = [note for note in list_notes(results, 2, is_dense=True) if "trains otherwise" in note]
    assert note.startswith("local_sgd on 2 workers")
    assert "0.300" in note


def test_a_case_alone_is_said_to_be_alone():
    assert advise(compare_cases({ONE: make_run(0.1)})).startswith("Take one worker: no other case")


def test_workers_that_share_cores_are_told(runs):
    results = compare_cases(runs)
    assert not [note for note in list_notes(results, 2, is_dense=True) if "cores." in note]
    crowded = [note for note in list_notes(results, 1, is_dense=True) if "2 threads on 1 cores" in note]
    assert len(crowded) == 3


def test_dense_gradients_are_told_where_they_were(runs):
    results = compare_cases(runs)
    told = [list_notes(results, 2, is_dense=is_dense)[0] for is_dense in (True, False)]
    assert ["dense gradients of the embeddings" in note for note in told] == [True, False]
    assert all("worker to worker" in note and "losses have to agree" in note for note in told)


@pytest.fixture
def scaling(runs):
    results = compare_cases(runs, price_per_hour=1.0)
    left = {"name": "tensor on 3 workers", "strategy": "tensor", "num_workers": 3, "growth": 1, "reason": "a <b> & c"}
    return {
        "cases": results,
        "left_out": [left],
        "advice": advise(results),
        "notes": list_notes(results, 2, is_dense=True),
        "facts": {"encoder": "<tiny>"},
    }


def test_page_shows_every_case_both_plots_and_what_was_left_out(scaling):
    page = render_scaling_html(scaling, "Scaling of <tiny>")
    for case in scaling["cases"]:
        assert page.count(f'<th scope="row">{case["name"]}</th>') == 3
    assert page.count("<svg") == 1
    assert "ddp, growing batch" in page
    assert page.count('class="part"') == 2 + 2 * len(scaling["cases"])
    assert "a &lt;b&gt; &amp; c" in page
    assert "<tiny>" not in page
    assert "cost of a million" in page
    assert "http://" not in page.replace("http://www.w3.org/2000/svg", "")


def test_markdown_has_the_same_tables(scaling):
    text = render_scaling_markdown(scaling, "Scaling")
    for title in ("## Speed", "## MiB that a worker holds", "## Milliseconds of a step", "## Not measured", "## Notes"):
        assert title in text
    [row] = [line for line in text.splitlines() if line.startswith("| ddp on 2 workers |")][:1]
    assert "| 16,000 | 62.5 | 1.60 | 80% | 1.25 | 1.33 | 0.0e+00 |" in row


def test_page_without_parts_says_why(scaling):
    for case in scaling["cases"]:
        case["parts_s"] = {}
    assert "Not measured: a GPU works on" in render_scaling_html(scaling, "Scaling")
    assert "Milliseconds of a step" not in render_scaling_markdown(scaling, "Scaling")
