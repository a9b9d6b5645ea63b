"""A plan on the terminal, for people."""

from collections.abc import Callable, Mapping
from typing import Any

from rich.markup import escape
from rich.table import Table

from pipelines.job import console
from pipelines.planning.plans import Plan, render_prediction, render_seconds


def print_plan(plan: Plan, facts: dict[str, Any]) -> None:
    """The plan for people."""
    known = "" if facts["is_known_family"] else " (an architecture that is reckoned as if it were a BERT)"
    model = f"{facts['model']}, {facts['parameters'] / 1e6:,.1f} million parameters{known}"
    corpus = (
        f"{facts['num_tokens']:,} sub-tokens in {facts['num_windows']:,} windows of up to {facts['longest_window']}"
    )
    assert plan.inventory is not None
    rows = [
        ("model", model),
        ("corpus", corpus),
        ("cluster", "; ".join(plan.inventory.to_dict()["nodes"])),
        *([("may add", "; ".join(plan.inventory.to_dict()["may_add"]))] if plan.inventory.groups else []),
        ("plan", f"[bold]{escape(plan.summary)}[/]"),
        ("predicted", escape(render_prediction(plan) or "nothing")),
        ("bottleneck", plan.bottleneck),
    ]
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column()
    for name, value in rows:
        table.add_row(name, value if name == "plan" else escape(value))
    for number, reason in enumerate(plan.reasons):
        table.add_row("why" if not number else "", escape(reason))
    console.print(table)
    if plan.memory is not None:
        parts = vars(plan.memory)
        console.print(
            _tabulate(f"memory of each {plan.settings['unit']}", parts, lambda value: f"{value / 2**20:,.0f} MiB")
        )
    if plan.parts:
        console.print(_tabulate("a step", plan.parts, render_seconds))
    for warning in plan.warnings:
        console.print(f"[yellow]![/] {escape(warning)}")
    if plan.rejected:
        console.print("\n[bold]rejected[/]")
        for one in plan.rejected:
            console.print(f"  {escape(one.what)}: {escape(one.why)}")
    if plan.placement.added:
        more = ", ".join(f"{number} of `{group}`" for group, number in plan.placement.added.items())
        console.print(f"\n[yellow]needs more nodes[/]: {escape(more)}")
    console.print(f"[dim]reckoned with {escape(plan.rates_source)}[/]")


def _tabulate(title: str, parts: Mapping[str, float], render: Callable[[float], str]) -> Table:
    """Parts of a whole, with bars."""
    table = Table(title=title, title_justify="left", title_style="bold", box=None, padding=(0, 2, 0, 0))
    for column, justify in ((title, "left"), ("", "right"), ("", "left")):
        table.add_column(column, justify=justify, no_wrap=True)  # type: ignore[arg-type]
    table.show_header = False
    total = sum(parts.values())
    for name, value in parts.items():
        if value:
            table.add_row(name, render(value), "█" * round(24 * value / total))
    table.add_row("total", render(total), style="bold")
    return table
