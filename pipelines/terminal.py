"""What doors show on a terminal: a corpus, scores, text with its entities marked, the progress of training."""

import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from pipelines.corpus.shards import AugmentationInfo, ShardsInfo
from pipelines.evaluation.comparison import HEADER, list_comparison_rows
from pipelines.evaluation.examples import make_visible
from pipelines.evaluation.rendering import list_unannotated
from pipelines.job import console, progress_console

TOTAL = "all (micro)"
COLORS = ("green", "blue", "magenta", "yellow", "cyan", "red")
POLL_S = 0.3
LINE_EVERY_S = 10.0
RECENT_STEPS = 20
MOST_EXAMPLES = 5
_SENTENCE = re.compile(r"(?<=[.!?])\s+|(?<=[。！？])|\n")


def print_shards(info: ShardsInfo, folder: Path) -> None:
    """Say on stdout what a prepared corpus holds."""
    console.print(f"[bold]corpus[/] {escape(str(folder))}")
    for name, split in info.splits.items():
        made = f", {info.split_off[name]:.0%} of the training documents" if name in info.split_off else ""
        entities = ", ".join(f"{_show(label)} {number:,}" for label, number in split.entities.items()) or "no entity"
        console.print(f"  {name:<5} {split.num_records:,} records, {split.num_tokens:,} sub-tokens{made}; {entities}")
    if info.augmentation:
        console.print(f"  train {describe_siblings(info.augmentation)}")
        for note in info.augmentation.notes:
            console.print(f"  [yellow]![/] {escape(note)}")
    print_ledger(info.ledger, folder)
    console.print(f"  tags read as {info.corpus_scheme}; the model predicts {info.scheme} over {len(info.tags)} tags")
    for pair, number in info.duplicates.items():
        console.print(f"  [yellow]{number:,} distinct records stand in both {pair}[/]: scores on them flatter")


def print_ledger(ledger: Mapping[str, Any], folder: Path) -> None:
    """Say on stdout what has become of the records read, and where each is told."""
    console.print(f"  ledger: {escape(describe_ledger(ledger))}; written as {escape(str(folder / 'ledger.parquet'))}")


def describe_ledger(ledger: Mapping[str, Any]) -> str:
    """How many records were kept, repaired and rejected, and for which reasons."""
    repaired = f", {ledger['repaired']:,} of them repaired" if "repaired" in ledger else ""  # raw text cannot be
    told = f"{ledger['kept']:,} kept{repaired}, {ledger['rejected']:,} rejected"
    reasons = ", ".join(f"{reason} {number:,}" for reason, number in ledger["reasons"].items())
    return f"{told} ({reasons})" if reasons else told


def describe_siblings(augmentation: AugmentationInfo) -> str:
    """What augmentation has added to the training split."""
    added, siblings = augmentation.added, augmentation.siblings
    ways = ", ".join(f"{name} {number:,}" for name, number in siblings.items() if number)
    told = f"+ {added.num_records:,} siblings by augmentation, {added.num_tokens:,} sub-tokens"
    return f"{told}; {ways}" if ways else told


def print_scores(result: dict[str, Any], title: str) -> None:
    """The table of strict and lenient scores by label, with the interval of the whole."""
    table = Table(title=title, title_justify="left", title_style="bold", box=None, padding=(0, 2, 0, 0))
    table.add_column("label")
    for name in ("precision", "recall", "F1", "lenient F1", "gold"):
        table.add_column(name, justify="right")
    strict, lenient = result["strict"], result["lenient"]
    nothing = {"precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 0}
    by_label = sorted(lenient["labels"].items())
    rows = [(_show(label), strict["labels"].get(label, nothing), other) for label, other in by_label]
    for label, one, other in [*rows, (TOTAL, strict["micro"], lenient["micro"])]:
        cells = [f"{one[name]:.3f}" for name in ("precision", "recall", "f1")]
        cells += [f"{other['f1']:.3f}", f"{other['support']:,}"]
        table.add_row(label, *cells, style="bold" if label is TOTAL else "")
    console.print()
    console.print(table)
    low, high = result["intervals"]["strict"]["micro"]["f1"]
    f1 = f"[bold]{strict['micro']['f1']:.4f}[/]"
    console.print(f"test strict F1 {f1}, 95 % interval {low:.3f} to {high:.3f} over documents")
    for warning in list_unannotated(result):
        console.print(f"[yellow]![/] {_show(warning)}")


def print_comparison(comparison: Mapping[str, Any]) -> None:
    """How far a model is from another one."""
    title = f"compared to {_show(comparison['compared_to'])}, in points"
    table = Table(title=title, title_justify="left", title_style="bold", box=None, padding=(0, 2, 0, 0))
    for name in HEADER:
        table.add_column(name, justify="right" if name else "left")
    for name, *cells in list_comparison_rows(comparison):
        table.add_row(_show(name), *cells)
    console.print()
    console.print(table)


def print_scaling(scaling: dict[str, Any]) -> None:
    """Speed and memory of each case in short, what was left out and why, and which to take."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("case", no_wrap=True)
    for name in ("sub-tokens/s", "speed-up", "efficiency", "MiB held", "MiB sent", "loss diff."):
        table.add_column(name, justify="right", min_width=max(map(len, name.split())))
    for case in scaling["cases"]:
        held, difference = case["state_mib"], case["loss_difference"]
        cells = [f"{case['tokens_per_s']:,.0f}", f"{case['speed_up']:.2f}", f"{case['efficiency']:.0%}"]
        cells += [f"{sum(held.values()):,.1f}" if held else "", f"{sum(case['sent_mib'].values()):,.1f}"]
        table.add_row(case["name"], *cells, "" if difference is None else f"{difference:.0e}")
    console.print(table)
    console.print()
    for case in scaling["left_out"]:
        console.print(f"[yellow]not measured: {escape(case['name'])}[/]: {escape(case['reason'])}")
    console.print(escape(scaling["advice"]))


def print_variants(result: Mapping[str, Any]) -> None:
    """What each variant of a model costs and gives."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("variant", no_wrap=True)
    for name in ("dev F1", "difference", "sub-tokens/s", "speed", "MiB", "peak MiB"):
        table.add_column(name, justify="right")
    start = result["variants"][0]
    for variant in result["variants"]:
        verdict = variant["verdict"]
        cells = [f"{100 * variant['f1']:.2f}", f"{verdict['overall']['difference']:+.2f}" if verdict else ""]
        cells += [f"{variant['tokens_per_s']:,.0f}", f"{variant['tokens_per_s'] / start['tokens_per_s']:.2f} ×"]
        cells += [f"{variant['size_mib']:,.1f}", f"{variant['peak_memory_mib']:,}"]
        mark = "[red]✗[/] " if verdict and not verdict["passes"] else "[green]✓[/] " if verdict else "  "
        table.add_row(mark + escape(variant["name"]), *cells)
    console.print(table)


def print_examples(rows: Sequence[dict[str, Any]]) -> None:
    """A few predicted sentences with their entities marked in a colour per label."""
    sentences = [sentence for row in rows for sentence in _split_sentences(row)]
    chosen = sorted(sentences, key=lambda sentence: -min(3, len({label for *_, label in sentence[1]})))[:MOST_EXAMPLES]
    labels = sorted({label for _, spans in chosen for *_, label in spans})
    if not chosen:
        return
    console.print("\n[bold]predicted[/]")
    for text, spans in chosen:
        marked = Text("  ")
        at = 0
        for start, end, label in spans:
            marked.append(text[at:start])
            marked.append(f" {text[start:end]} ", style=f"bold reverse {COLORS[labels.index(label) % len(COLORS)]}")
            marked.append(make_visible(label), style=f"{COLORS[labels.index(label) % len(COLORS)]}")
            at = end
        marked.append(text[at:])
        console.print(marked)


@contextmanager
def watch_training(read_metrics: Callable[[], list[dict[str, Any]]]) -> Iterator[None]:
    """Show how far training is while the block runs: a bar on a terminal, a line now and then elsewhere."""
    view = _TrainingView(read_metrics())
    stop = threading.Event()

    def follow() -> None:
        """Show new rows of the history until the block ends."""
        while not stop.wait(POLL_S):
            view.update(read_metrics())

    with view.bar:
        thread = threading.Thread(target=follow, daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
            view.update(read_metrics())


class LabellingView:
    """How far an offline job is: a bar on a terminal, a line now and then elsewhere."""

    def __init__(self, num_documents: int, num_characters: int, done: int, done_characters: int) -> None:
        """Give what there is to do in all, and what was done before."""
        self.num_documents, self.num_characters = num_documents, num_characters
        self.documents, self.characters = done, done_characters
        self.new_characters = self.new_tokens = 0
        self.first: float | None = None
        self.told = time.monotonic()
        columns = (TextColumn("labelling"), BarColumn(), TextColumn("{task.fields[facts]}"))
        self.is_quiet = not progress_console.is_interactive
        self.bar = Progress(*columns, console=progress_console, transient=True, disable=self.is_quiet)
        self.task = self.bar.add_task("", total=max(1, num_characters), completed=done_characters, facts="starting")

    def update(self, num_documents: int, num_characters: int, num_tokens: int, seconds: float) -> None:
        """Take over one more chunk, which took so many seconds."""
        now = time.monotonic()
        self.first = now - seconds if self.first is None else min(self.first, now - seconds)
        self.documents += num_documents
        self.characters += num_characters
        self.new_characters += num_characters
        self.new_tokens += num_tokens
        facts = self.describe(now - self.first)
        self.bar.update(self.task, completed=self.characters, facts=facts)
        if self.is_quiet and now - self.told >= LINE_EVERY_S:
            self.told = now
            progress_console.print(f"  {facts}")

    def describe(self, elapsed: float) -> str:
        """Documents, rate and remaining time, by what was done in so many seconds."""
        elapsed = max(elapsed, 1e-3)
        left_s = (self.num_characters - self.characters) * elapsed / max(1, self.new_characters)
        done = f"{self.documents:,} of {self.num_documents:,} documents"
        return f"{done}, {self.new_tokens / elapsed:,.0f} sub-tokens/s, {format_duration(left_s)} left"


def format_duration(seconds: float) -> str:
    """`45 s`, `12 min`, `3 h 05 min`."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60:,} h {minutes % 60:02d} min"


class _TrainingView:
    def __init__(self, before: list[dict[str, Any]]) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("steps"))
        facts = TextColumn("{task.fields[facts]}")
        self.is_quiet = not progress_console.is_interactive
        self.bar = Progress(*columns, facts, console=progress_console, transient=True, disable=self.is_quiet)
        self.task = self.bar.add_task("starting workers", total=None, facts="")
        self.latest: dict[str, Any] | None = None
        self.epochs_told = 0
        self.notices_told = sum(row["kind"] == "notice" for row in before)  # those of an earlier try
        self.has_rows = bool(before)
        self.told = time.monotonic()

    def update(self, rows: list[dict[str, Any]]) -> None:
        """Show what the history holds by now."""
        if self.has_rows and not rows:
            _tell_notice("the run folder cannot be read: training goes on for a while, and tries again to write to it")
        self.has_rows = bool(rows)
        if not rows or rows[-1] == self.latest:
            return
        self.latest = rows[-1]
        notices = [row["text"] for row in rows if row["kind"] == "notice"]
        for text in notices[self.notices_told :]:
            _tell_notice(text)
        self.notices_told = max(self.notices_told, len(notices))
        start = next((row for row in reversed(rows) if row["kind"] == "start"), None)
        recent = list(islice((row for row in reversed(rows) if row["kind"] == "step"), RECENT_STEPS))
        if start is not None and recent:
            epoch, step = f"epoch {recent[0]['epoch'] + 1} of {start['num_epochs']}", recent[0]["step"]
            facts = describe_training(start, recent)
            self.bar.update(self.task, description=epoch, total=start["num_steps"], completed=step, facts=facts)
            if self.is_quiet and time.monotonic() - self.told >= LINE_EVERY_S:
                self.told = time.monotonic()
                progress_console.print(f"  {epoch}, step {step:,} of {start['num_steps']:,}: {facts}")
        epochs = [row for row in rows if row["kind"] == "epoch"]
        for row in epochs[self.epochs_told :]:
            progress_console.print(f"  {describe_epoch(row)}")
        self.epochs_told = max(self.epochs_told, len(epochs))


def describe_epoch(row: dict[str, Any]) -> str:
    """How an epoch scored: F1 on dev, or the perplexity on held-out text."""
    if "dev_f1" in row:
        best = " (best so far)" if row["dev_f1"] == row["best_dev_f1"] else ""
        return f"epoch {row['epoch']}: dev F1 {row['dev_f1']:.4f}{best}"
    told = f"held-out perplexity {row['held_out_perplexity']:,.2f}"
    if not row["epoch"]:
        return f"before training: {told}"
    best = " (best so far)" if row["held_out_perplexity"] == row["best_held_out_perplexity"] else ""
    return f"epoch {row['epoch']}: {told}{best}"


def describe_training(start: dict[str, Any], recent: list[dict[str, Any]]) -> str:
    """Loss and rate of the recent steps (the last one first), and the remaining time by what passed since the start.

    That time has scoring and checkpoints in it. Where a group has only just resumed, steps alone tell.
    """
    loss = sum(row["loss"] for row in recent) / len(recent)
    seconds = max(1e-9, sum(row["seconds"] for row in recent))
    rate = sum(row["num_tokens"] for row in recent) / seconds
    num_done, num_left = recent[0]["step"] - start["step"], start["num_steps"] - recent[0]["step"]
    step_s = (recent[0]["time"] - start["time"]) / num_done if num_done > len(recent) else seconds / len(recent)
    return f"loss {loss:.3f}, {rate:,.0f} sub-tokens/s, {format_duration(step_s * num_left)} left"


def _tell_notice(text: str) -> None:
    progress_console.print(f"  [yellow]![/] {escape(text)}")


def _show(label: str) -> str:
    """A label as it stands, whatever brackets and control characters it has."""
    return escape(make_visible(label))


def _split_sentences(row: dict[str, Any]) -> Iterator[tuple[str, list[tuple[int, int, str]]]]:
    """Sentences of a predicted record that hold entities, each with its entities' places in it."""
    spans = [(span["start"], span["end"], span["label"]) for span in row["predicted"]]
    text = row["text"]
    if text is None:
        starts = [0]
        for word in row["words"]:
            starts.append(starts[-1] + len(word) + 1)
        text = " ".join(row["words"])
        spans = [(starts[start], starts[end] - 1, label) for start, end, label in spans]
    begin = 0
    for match in [*_SENTENCE.finditer(text), None]:
        end = match.start() if match else len(text)
        inside = [(a - begin, b - begin, label) for a, b, label in spans if begin <= a and b <= end]
        if inside and end - begin <= 240:
            yield make_visible(text[begin:end]), inside
        begin = match.end() if match else end
