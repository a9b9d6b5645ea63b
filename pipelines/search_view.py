"""What `rayner tune` shows on a terminal: trials as they begin, learn and end, and the leaders."""

from typing import Any

from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from pipelines.job import console, progress_console
from pipelines.terminal import format_duration


class SearchView:
    """How far a search is: a bar on a terminal and a line for each trial that ends; elsewhere one an epoch too."""

    def __init__(self, num_trials: int) -> None:
        self.num_trials = num_trials
        self.best = -1.0
        self.is_quiet = not progress_console.is_interactive
        columns = (TextColumn("trials"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[facts]}"))
        self.bar = Progress(*columns, console=progress_console, transient=True, disable=self.is_quiet)
        self.task = self.bar.add_task("", total=max(1, num_trials), facts="")

    def __enter__(self) -> "SearchView":
        """Show the bar."""
        self.bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        """Take it away."""
        self.bar.stop()

    def tell(self, trial: Any, event: str) -> None:
        """A trial begins, has done an epoch, or ends."""
        name = f"trial {trial.number} (seed {trial.plan.seed})"
        if event == "begins":
            progress_console.print(escape(f"  {name}: {trial.describe_settings()}"))
            return
        f1 = trial.best_f1
        is_best = f1 is not None and f1 > self.best
        self.best = max(self.best, f1 or 0.0)
        if event == "epoch" and trial.epochs:
            epoch, now = trial.epochs[-1]
            mark = " (best so far)" if is_best else ""
            facts = f"{name}: epoch {epoch} of {trial.num_epochs}, dev F1 {now:.4f}{mark}"
            self.bar.update(self.task, facts=f"best dev F1 {self.best:.4f}")
            if self.is_quiet:
                progress_console.print(f"  {facts}")
        if event == "ends":
            self.bar.advance(self.task)
            score = "no score" if f1 is None else f"dev F1 {f1:.4f}"
            reason = f", {trial.reason}" if trial.reason else ""
            progress_console.print(
                escape(f"  {name}: {trial.status}{reason}; {score}, {format_duration(trial.train_s)}")
            )


def print_leaders(tuning: dict[str, Any]) -> None:
    """The leaders with what they reach over seeds, and whether the winner is better than the recipe as it was."""
    table = Table(title="leaders", title_justify="left", title_style="bold", box=None, padding=(0, 2, 0, 0))
    table.add_column("trial")
    table.add_column("settings")
    for name in ("dev F1", "deviation", "seeds"):
        table.add_column(name, justify="right")
    for number, leader in enumerate(tuning["leaders"]):
        pairs = [f"{path.rsplit('.', 1)[-1]} {value}" for path, value in leader["settings"].items()]
        spread = "" if leader["deviation"] is None else f"{leader['deviation']:.4f}"
        cells = [
            str(leader["number"]) if leader["number"] >= 0 else "",
            escape(", ".join(pairs) or "the recipe as it is"),
        ]
        cells += [f"{leader['mean_f1']:.4f}", spread, str(len(leader["runs"]))]
        table.add_row(*cells, style="bold" if number == 0 else "")
    console.print()
    console.print(table)
    low, high = tuning["test_interval"]
    console.print(escape(tuning["gain"]))
    console.print(
        f"test strict F1 [bold]{tuning['test_f1']:.4f}[/], 95 % interval {low:.3f} to {high:.3f} over documents"
    )
