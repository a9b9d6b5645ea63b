"""The scaling report: tables and plots as one self-contained page, and the tables as Markdown."""

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from pipelines.evaluation.curves import render_curves_svg
from pipelines.evaluation.pages import (
    EN_DASH,
    Table,
    build_environment,
    render_markdown_facts,
    render_markdown_table,
    render_markdown_tables,
)

_HUES = (282, 212, 24, 150, 48)

Result = Mapping[str, Any]


def render_scaling_html(scaling: Mapping[str, Any], title: str) -> str:
    """The page of what `scaling.json` holds."""
    cases = scaling["cases"]
    template = build_environment().get_template("scaling.html.jinja")
    return template.render(
        title=title,
        advice=scaling["advice"],
        notes=scaling["notes"],
        tables=[speed_table(cases), memory_table(cases)],
        left_out=_list_left_out(scaling),
        curves=Markup(render_curves_svg(trace_speed_up(cases), "workers", "times one worker", "Speed-up")),
        splits=_list_splits(cases),
        hues={part: _HUES[number % len(_HUES)] for number, part in enumerate(_list_parts(cases))},
        facts=[(name, str(value)) for name, value in scaling["facts"].items()],
    )


def render_scaling_markdown(scaling: Mapping[str, Any], title: str) -> str:
    """The same tables in text."""
    cases = scaling["cases"]
    parts = [f"# {title}", scaling["advice"], *render_markdown_tables([speed_table(cases), memory_table(cases)])]
    names = _list_parts(cases)
    splits = [[case["name"], *(f"{1000 * case['parts_s'].get(name, 0.0):,.1f}" for name in names)] for case in cases]
    parts += ["## Milliseconds of a step", render_markdown_table(["", *names], splits)] if names else []
    left_out = [[name, reason] for name, reason in _list_left_out(scaling)]
    parts += ["## Not measured", render_markdown_table(["", "reason"], left_out, num_text=2)] if left_out else []
    parts += ["## Notes", *scaling["notes"], render_markdown_facts(scaling["facts"])]
    return "\n\n".join(parts) + "\n"


def speed_table(cases: Sequence[Result]) -> Table:
    """How fast each case is, what it costs, and whether it trains the same."""
    header = ["", "sub-tokens/s", "ms a step", "speed-up", "efficiency", "time, larger corpus"]
    header += ["slowest/median worker", "loss difference"]
    is_priced = any(case["cost_per_million_tokens"] is not None for case in cases)
    rows = [
        [
            case["name"],
            f"{case['tokens_per_s']:,.0f}",
            f"{1000 * case['step_s']:,.1f}",
            f"{case['speed_up']:.2f}",
            f"{case['efficiency']:.0%}",
            f"{case['time_factor']:.2f}",
            _show(case["slowest_to_median_worker"], ".2f"),
            _show(case["loss_difference"], ".1e"),
            *([_show(case["cost_per_million_tokens"], ",.4f")] if is_priced else []),
        ]
        for case in cases
    ]
    return "Speed", header + ["cost of a million"] * is_priced, rows


def memory_table(cases: Sequence[Result]) -> Table:
    """What a worker holds and sends."""
    kinds = sorted({kind for case in cases for kind in case["sent_mib"]})
    header = ["", "weights", "gradients", "moments", "peak of a worker", *(f"sent: {kind}" for kind in kinds)]
    rows = []
    for case in cases:
        state = case["state_mib"] or {}
        held = [_show(state.get(name), ",.1f") for name in ("weights", "gradients", "moments")]
        sent = [_show(case["sent_mib"].get(kind, 0.0), ",.1f") for kind in kinds]
        rows.append([case["name"], *held, _show(case["peak_memory_mib"], ",.0f"), *sent])
    return (
        "MiB that a worker holds, and sends in a step",
        [*header, "sent in all"],
        [[*row, f"{sum(case['sent_mib'].values()):,.1f}"] for row, case in zip(rows, cases, strict=True)],
    )


def trace_speed_up(cases: Sequence[Result]) -> dict[str, list[tuple[float, float]]]:
    """(workers, speed-up) of every strategy, from one worker on, and the ideal."""
    first = min(cases, key=lambda case: case["num_workers"])
    start = (float(first["num_workers"]), first["speed_up"])
    series: dict[str, list[tuple[float, float]]] = {}
    for case in sorted(cases, key=lambda case: case["num_workers"]):
        if case is not first:
            name = case["strategy"] + (", growing batch" if case["growth"] > 1 else "")
            series.setdefault(name, [start]).append((float(case["num_workers"]), case["speed_up"]))
    most = max(float(case["num_workers"]) for case in cases)
    return {"ideal": [(start[0], start[0]), (most, most)], **(series or {first["strategy"]: [start]})}


def _list_splits(cases: Sequence[Result]) -> list[tuple[str, list[tuple[str, float, float]]]]:
    """(case, [(part, seconds, percent of the longest step)]) where parts were measured."""
    longest = max((sum(case["parts_s"].values()) for case in cases), default=0.0)
    return [
        (case["name"], [(name, seconds, 100 * seconds / longest) for name, seconds in case["parts_s"].items()])
        for case in cases
        if case["parts_s"]
    ]


def _list_parts(cases: Sequence[Result]) -> list[str]:
    return list(dict.fromkeys(name for case in cases for name in case["parts_s"]))


def _list_left_out(scaling: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(case["name"], case["reason"]) for case in scaling["left_out"]]


def _show(value: float | None, how: str) -> str:
    return EN_DASH if value is None else format(value, how)
