"""The report of a search: what `tuning.json` holds, as one self-contained page and as Markdown with the same tables."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from markupsafe import Markup

from pipelines.evaluation.pages import (
    EN_DASH,
    Table,
    build_environment,
    render_markdown_facts,
    render_markdown_table,
    render_markdown_tables,
)
from pipelines.evaluation.pictures import Line, draw_curves, draw_parallel, draw_scatter
from pipelines.tuning.domains import Value, render_value
from pipelines.tuning.leaders import Leader, find_front
from pipelines.tuning.sampling import find_common_epoch, list_comparable, measure_cost, rank_importance
from pipelines.tuning.space import Space
from pipelines.tuning.trials import FAILED, FINISHED, OPEN, REFUSED, STOPPED, Trial

COST_LABELS = {"none": "seconds of training", "seconds": "seconds of training", "flops": "floating-point operations"}


def collect_tuning(
    trials: Sequence[Trial],
    leaders: Sequence[Leader],
    space: Space,
    base_values: Mapping[str, Value],
    *,
    cost: str,
    repeats: Sequence[Trial],
    phases_s: Mapping[str, float],
) -> dict[str, Any]:
    """What a search found, as plain values.

    Args:
        base_values: what the recipe has for the settings of the space.
        repeats: the leaders' other trainings.
        phases_s: seconds of what was done besides training.
    """
    scored = list_comparable(space, trials)
    shown = "seconds" if cost == "none" else cost
    return {
        "trials": [_describe_trial(trial, shown) for trial in trials],
        "leaders": [leader.to_dict() for leader in leaders],
        "front": [trial.number for trial in find_front(trials, shown)],
        "importance": rank_importance(space, trials),
        "importance_epoch": find_common_epoch(scored) if scored else None,
        "space": [
            {"path": path, "domain": domain.describe(), **_describe_axis(asdict(domain))}
            for path, domain in space.items()
        ],
        "base_values": dict(base_values),
        "cost": shown,
        "spent": _sum_up(trials, repeats, phases_s),
    }


def render_tuning_html(tuning: Mapping[str, Any], title: str) -> str:
    """The page."""
    longest = max((row["seconds"] for row in tuning["spent"]), default=0) or 1
    template = build_environment(__file__).get_template("tuning.html.jinja")
    return template.render(
        title=title,
        gain=tuning["gain"],
        figures=tuning["figures"],
        notes=tuning["notes"],
        pictures=[Markup(picture) for picture in _draw_pictures(tuning)],
        importance=[
            (path, share, 100 * share / max(tuning["importance"].values()))
            for path, share in tuning["importance"].items()
        ],
        importance_epoch=tuning["importance_epoch"],
        spent=[(row["what"], row["number"], row["seconds"], 100 * row["seconds"] / longest) for row in tuning["spent"]],
        tables=[leaders_table(tuning), trials_table(tuning)],
        preset=tuning["preset"],
        failures=[
            (f"trial {trial['number']}", trial["reason"])
            for trial in tuning["trials"]
            if trial["status"] in (FAILED, REFUSED)
        ],
        facts=[(name, str(value)) for name, value in tuning["facts"].items()],
    )


def render_tuning_markdown(tuning: Mapping[str, Any], title: str) -> str:
    """The same tables in text."""
    parts = [f"# {title}", tuning["gain"], *render_markdown_tables([leaders_table(tuning), trials_table(tuning)])]
    if tuning["importance"]:
        rows = [[path, f"{share:.0%}"] for path, share in tuning["importance"].items()]
        parts += [
            f"## Importance for F1 after epoch {tuning['importance_epoch']}",
            render_markdown_table(["", "share"], rows),
        ]
    rows = [[row["what"], str(row["number"] or ""), f"{row['seconds']:,.0f}"] for row in tuning["spent"]]
    parts += ["## What was spent", render_markdown_table(["", "number", "seconds"], rows)]
    parts += ["## Notes", *tuning["notes"], render_markdown_facts(tuning["facts"])]
    return "\n\n".join(parts) + "\n"


def leaders_table(tuning: Mapping[str, Any]) -> Table:
    """The leaders, the winner first, with what they reach with each seed."""
    seeds = sorted({run["seed"] for leader in tuning["leaders"] for run in leader["runs"]})
    rows = []
    for leader in tuning["leaders"]:
        scores = {run["seed"]: f"{100 * run['f1']:.1f}" for run in leader["runs"]}
        deviation = EN_DASH if leader["deviation"] is None else f"{100 * leader['deviation']:.1f}"
        settings = render_settings(leader["settings"]) or "the recipe as it is"
        cells = [f"{100 * leader['mean_f1']:.1f}", deviation, *(scores.get(seed, EN_DASH) for seed in seeds)]
        name = f"trial {leader['number']}: {settings}" if leader["number"] >= 0 else settings
        rows.append([name, *cells])
    return "Leaders, with several seeds", ["", "mean dev F1", "deviation", *(f"seed {seed}" for seed in seeds)], rows


def trials_table(tuning: Mapping[str, Any]) -> Table:
    """Every trial, the best first."""
    paths = [axis["path"] for axis in tuning["space"]]
    header = ["", "dev F1", "epochs", "s", *(path.rsplit(".", 1)[-1] for path in paths), "how it ended"]
    is_flops = tuning["cost"] == "flops"
    header[3] = "PFLOP" if is_flops else "s"
    rows = []
    for trial in sorted(tuning["trials"], key=lambda one: (-(one["f1"] or 0.0), one["number"])):
        values = trial["settings"] or tuning["base_values"]
        cost = (
            EN_DASH
            if trial["cost"] is None
            else f"{trial['cost'] / 1e15:,.3f}"
            if is_flops
            else f"{trial['cost']:,.1f}"
        )
        ended = trial["status"] if trial["status"] == FINISHED else f"{trial['status']} {trial['reason']}".strip()
        rows.append(
            [
                f"trial {trial['number']}" + ("" if trial["settings"] else " (the recipe)"),
                EN_DASH if trial["f1"] is None else f"{100 * trial['f1']:.1f}",
                f"{len(trial['epochs'])} of {trial['num_epochs'] or '?'}",
                cost,
                *(render_value(values[path]) if path in values else EN_DASH for path in paths),
                ended if len(ended) <= 40 else f"{ended[:39]}…",
            ]
        )
    return "Trials", header, rows


def render_settings(settings: Mapping[str, Value]) -> str:
    """Settings in a line, by their last names."""
    return ", ".join(f"{path.rsplit('.', 1)[-1]} {render_value(value)}" for path, value in settings.items())


def _describe_trial(trial: Trial, cost: str) -> dict[str, Any]:
    return {
        "number": trial.number,
        "settings": trial.plan.settings,
        "turns": trial.plan.turns,
        "seed": trial.plan.seed,
        "status": trial.status,
        "reason": trial.reason,
        "f1": trial.best_f1,
        "epochs": [list(point) for point in trial.epochs],
        "num_epochs": trial.num_epochs,
        "seconds": round(trial.train_s, 3),
        "num_tokens": trial.num_tokens,
        "cost": measure_cost(trial, cost),
    }


def _describe_axis(domain: dict[str, Any]) -> dict[str, Any]:
    return {
        "is_log": domain["kind"] in ("loguniform", "lograndint"),
        "choices": [render_value(choice) for choice in domain["choices"]],
        "low": domain["low"],
        "high": domain["high"],
    }


def _sum_up(trials: Sequence[Trial], repeats: Sequence[Trial], phases_s: Mapping[str, float]) -> list[dict[str, Any]]:
    """Seconds of training by what became of it, and of what was done besides."""
    names = {
        FINISHED: "trials that came to their end",
        STOPPED: "trials stopped early",
        OPEN: "trials that time ended",
        FAILED: "trials that failed",
        REFUSED: "trials refused",
    }
    rows = []
    for status, name in names.items():
        found = [trial for trial in trials if trial.status == status]
        rows.append((name, len(found), sum(trial.train_s for trial in found)))
    rows.append(("leaders with other seeds", len(repeats), sum(trial.train_s for trial in repeats)))
    rows += [(name, 0, seconds) for name, seconds in phases_s.items()]
    return [
        {"what": name, "number": number, "seconds": round(seconds, 1)}
        for name, number, seconds in rows
        if number or seconds
    ]


def _draw_pictures(tuning: Mapping[str, Any]) -> list[str]:
    scored = [trial for trial in tuning["trials"] if trial["epochs"] and trial["f1"] is not None]
    if not scored:
        return []
    leading = {leader["number"] for leader in tuning["leaders"]}
    low, high = min(trial["f1"] for trial in scored), max(trial["f1"] for trial in scored)

    def draw(trial: Mapping[str, Any], points: Sequence[tuple[float, float]]) -> Line:
        """A trial as a line through these points."""
        settings = render_settings(trial["settings"]) or "the recipe as it is"
        return Line(
            f"trial {trial['number']}: {settings}: {trial['f1']:.4f}",
            (trial["f1"] - low) / ((high - low) or 1.0),
            trial["number"] in leading,
            points,
            _place_settings(trial, tuning),
        )

    curves = [draw(trial, [(epoch, f1) for epoch, f1 in trial["epochs"]]) for trial in scored]
    ends = [draw(trial, [(0.0, trial["f1"])]) for trial in scored]
    pictures = [
        draw_curves(curves, "Dev F1 of every trial", "epoch", "strict micro F1"),
        draw_parallel(ends, tuning["space"], "Settings and F1"),
    ]
    paid = [one for one in scored if one["cost"] is not None and one["status"] == FINISHED and not one["turns"]]
    if len(paid) > 1:
        costs = [draw(trial, [(trial["cost"], trial["f1"])]) for trial in paid]
        places = {trial["number"]: place for place, trial in enumerate(paid)}
        front = [places[number] for number in tuning["front"] if number in places]
        pictures.append(draw_scatter(costs, front, "F1 against cost", COST_LABELS[tuning["cost"]], "dev F1"))
    return pictures


def _place_settings(trial: Mapping[str, Any], tuning: Mapping[str, Any]) -> dict[str, Any]:
    """What a trial has on each axis: numbers, and as text what is chosen from a list or is no number."""
    choices = {axis["path"] for axis in tuning["space"] if axis["choices"]}
    values = trial["settings"] or tuning["base_values"]
    return {
        path: render_value(value)
        if path in choices or isinstance(value, bool) or not isinstance(value, int | float)
        else value
        for path, value in values.items()
    }
