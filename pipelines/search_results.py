"""What a search leaves: its preset, those of its front, and its pages."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipelines.corpus.shards import ShardsInfo
from pipelines.evaluation.report import EvaluationReport
from pipelines.folders import write_json
from pipelines.ner.files import write_text
from pipelines.search_view import print_leaders
from pipelines.trial_jobs import Prepared, TrialJobs
from pipelines.tuned_presets import render_run, write_front
from pipelines.tuning.budget import Budget
from pipelines.tuning.config import SearchConfig
from pipelines.tuning.leaders import Leader, describe_gain
from pipelines.tuning.report import collect_tuning, render_settings, render_tuning_html, render_tuning_markdown
from pipelines.tuning.rounds import Rounds
from pipelines.tuning.slots import Slots
from pipelines.tuning.space import Space

_OTHER_PHASES = {"prepare": "reading and tokenizing", "bundle": "writing", "evaluate": "test scores"}


@dataclass(frozen=True)
class BegunSearch:
    """A search that can begin: its corpus is tokenized, its space and its places are known."""

    base: Prepared
    """The recipe's own corpus."""
    base_values: dict[str, Any]
    space: Space
    jobs: TrialJobs
    slots: Slots
    budget: Budget
    rounds: Rounds


def write_results(
    search: SearchConfig,
    begun: BegunSearch,
    leaders: list[Leader],
    report: EvaluationReport,
    folder: Path,
    phases_s: Mapping[str, float],
) -> None:
    """The preset, the presets of the front, and the pages; also told on the terminal."""
    rounds, jobs, slots, winner = begun.rounds, begun.jobs, begun.slots, leaders[0]
    (folder / "evaluation").mkdir(exist_ok=True)
    report.write(folder / "evaluation", f"Evaluation of {folder.name}", {"settings": render_settings(winner.settings)})
    preset = render_run(jobs, slots, winner.number, winner.settings, winner.best_run)
    write_text(folder / "best.yaml", preset)
    phases = {f"{name} ({what})": phases_s.get(name, 0.0) for name, what in _OTHER_PHASES.items()}
    trials = rounds.trials.read_all()
    tuning = collect_tuning(
        trials,
        leaders,
        begun.space,
        begun.base_values,
        cost=search.cost,
        repeats=rounds.repeats.read_all(),
        phases_s={name: seconds for name, seconds in phases.items() if seconds},
    )
    scores = report.to_dict()
    tuning |= {
        "search": asdict(search),
        "winner": winner.number,
        "gain": describe_gain(leaders, trials[0].plan.seed),
        "preset": preset,
        "test_f1": scores["strict"]["micro"]["f1"],
        "test_interval": scores["intervals"]["strict"]["micro"]["f1"],
        "notes": rounds.list_notes(leaders),
        "facts": _collect_facts(search, begun.base.info, slots, begun.budget),
    }
    tuning["figures"] = _list_figures(tuning, leaders, begun.budget)
    if search.cost != "none":
        write_front(folder / "front", [trial for trial in trials if trial.number in tuning["front"]], jobs, slots)
    title = f"Tuning of {begun.base.info.encoder}"
    write_json(folder / "tuning.json", tuning)
    write_text(folder / "report.html", render_tuning_html(tuning, title))
    write_text(folder / "report.md", render_tuning_markdown(tuning, title))
    rounds.forget_weights()
    print_leaders(tuning)


def _collect_facts(search: SearchConfig, info: ShardsInfo, slots: Slots, budget: Budget) -> dict[str, Any]:
    price = search.price_per_hour
    return {
        "encoder": info.encoder,
        "sampler": search.sampler,
        "scheduler": search.scheduler if search.sampler != "pbt" else "population",
        "trials": search.num_trials,
        "seeds of a leader": search.num_seeds,
        "concurrency": slots.describe(),
        "wall-clock time": f"{budget.spent_s:,.0f} s",
        **({"price": f"{budget.spent_s / 3600 * price:,.4f}"} if price else {}),
        **({"budget": f"{search.limit_s:,.0f} s"} if search.limit_s else {}),
    }


def _list_figures(tuning: dict[str, Any], leaders: list[Leader], budget: Budget) -> list[tuple[str, str, str]]:
    """(name, figure, more) of what stands on top of the report."""
    winner = leaders[0]
    low, high = tuning["test_interval"]
    spread = (
        f"± {100 * winner.deviation:.1f} over {len(winner.runs)} seeds" if winner.deviation is not None else "one seed"
    )
    return [
        ("dev F1 of the winner", f"{100 * winner.mean_f1:.1f}", spread),
        ("test F1 of its bundle", f"{100 * tuning['test_f1']:.1f}", f"95 %: {100 * low:.1f} to {100 * high:.1f}"),
        (
            "trials",
            str(len(tuning["trials"])),
            f"{sum(t['status'] == 'stopped' for t in tuning['trials'])} stopped early",
        ),
        ("wall-clock time", f"{budget.spent_s:,.0f} s", ""),
    ]
