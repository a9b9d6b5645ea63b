"""What a pretraining tells at its end: facts, what a reader of them should know, and the report."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.markup import escape

from pipelines.corpus.raw_text import TextInfo
from pipelines.evaluation.curves import render_curves_svg
from pipelines.evaluation.pretraining_page import render_pretraining_html, render_pretraining_markdown
from pipelines.job import console
from pipelines.ner.encoders import SCRATCH
from pipelines.ner.files import write_text
from pipelines.terminal import describe_ledger, print_ledger
from pipelines.training.history import Row, trace_loss, trace_perplexity
from pipelines.training.job import TrainingResult

Facts = dict[str, dict[str, Any]]
STEEP = 5
"""A fall of the perplexity in the first epoch by this factor would leave no room for the rest of the curve."""


def print_text(info: TextInfo, folder: Path) -> None:
    """Say on stdout what the text holds."""
    console.print("[bold]text[/]")
    for split, number in info.num_documents.items():
        told = f"{number:,} documents, {info.num_tokens[split]:,} sub-tokens in {info.num_windows[split]:,} windows"
        console.print(f"  {split:<9} {told}")
    told = ", ".join(f"{name} {share:.1%}" for name, share in info.shares.items() if share)
    more = f"; {escape(told)} of the sub-tokens" if told else ""
    console.print(f"  windows of {info.window} are {info.fill:.0%} full{more}")
    print_ledger(info.ledger, folder)


def collect_facts(
    encoder: str, objective: str, packing: str, seed: int, info: TextInfo, result: TrainingResult, usage: Row
) -> Facts:
    """Group → name → value, for the report and the card."""
    documents = {
        f"text, {split}": f"{number:,} documents, {info.num_tokens[split]:,} sub-tokens"
        for split, number in info.num_documents.items()
    }
    across = "attention sees across them" if packing == "joined" else "one a window"
    return {
        "Encoder": {
            "continued from": encoder,
            "objective": objective,
            "best epoch": f"{result.best_epoch} of {result.num_epochs}",
        },
        "Text": {
            **documents,
            "records": describe_ledger(info.ledger),
            "window": f"{info.window} sub-tokens, {info.fill:.1%} full",
            "documents in a window": f"{packing}: {across}",
            **{f"share of {name}": f"{share:.2%}" for name, share in info.shares.items() if share},
        },
        "Training": {
            "steps": result.num_steps,
            "workers": usage["num_workers"],
            "strategy": usage["strategy"],
            "precision": usage["precision"],
            "device": usage["device"],
            "sub-tokens per second": f"{usage['tokens_per_s']:,.0f}",
            "time in steps": ", ".join(f"{name} {share:.0%}" for name, share in usage["shares"].items()),
            "peak memory of a worker": f"{usage['worker_peak_memory_mib']:,} MiB",
            "seed": seed,
        },
    }


def list_notes(encoder: str, before: float, best: float, *, has_head: bool) -> list[str]:
    """What a reader of the perplexities should know.

    Args:
        has_head: whether the encoder brought the head of a masked language model.
    """
    notes = ["The perplexity is that of hidden sub-tokens, with the same masks before, after, and in every run."]
    if encoder == SCRATCH:
        notes.append("The encoder began with random weights.")
    elif not has_head:
        notes.append(
            f"{encoder} brought no head for hidden sub-tokens: it began anew, so most of the fall from the perplexity "
            "before training is the head's, not the encoder's."
        )
    if best >= before:
        notes.append("Training did not lower it: more text, or a lower learning rate, may.")
    return notes


def write_report(
    folder: Path, rows: Sequence[Row], masks: Mapping[str, float], facts: Facts, notes: Sequence[str]
) -> Path:
    """Write `report.md` and `report.html`; returns the latter."""
    title, epochs = f"Pretraining of {folder.name}", [row for row in rows if row["kind"] == "epoch"]
    pages = {
        "report.md": render_pretraining_markdown(title, epochs, masks, facts, notes),
        "report.html": render_pretraining_html(title, epochs, masks, facts, notes, _render_curves(rows)),
    }
    for name, page in pages.items():
        write_text(folder / name, page, errors="replace")
    return folder / "report.html"


def _render_curves(rows: Sequence[Row]) -> str:
    points = trace_perplexity(rows)
    is_steep = len(points) > 2 and points[0][1] > STEEP * points[1][1]
    title = "Perplexity on held-out text" + (", from the first epoch on" if is_steep else "")
    loss = render_curves_svg({"training loss": trace_loss(rows)}, "step", "nats per hidden sub-token", "Training loss")
    return loss + render_curves_svg({"held-out": points[is_steep:]}, "epoch", "perplexity", title)
