"""The report of a pretraining: figures, curves and tables as one self-contained page, and the tables as Markdown."""

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from pipelines.evaluation.pages import build_environment, render_markdown_table
from pipelines.evaluation.rendering import group_facts

MASK_MEANINGS = {
    "chosen": "of the sub-tokens are to be told",
    "masked": "of these are hidden by the mask token",
    "random": "of these are replaced by any sub-token",
    "kept": "of these stay as they are",
    "entity_chosen": "of the sub-tokens of mentions are to be told",
    "rare_chosen": "of the sub-tokens of rare words are to be told",
}

Epochs = Sequence[Mapping[str, Any]]


def render_pretraining_html(
    title: str, epochs: Epochs, masks: Mapping[str, float], facts: Mapping[str, Any], notes: Sequence[str], curves: str
) -> str:
    """The page. Everything is escaped except the curves, which are our own SVG.

    Args:
        epochs: rows of the history that tell of epochs, the first one of what was before training.
        masks: share → value, as `MASK_MEANINGS` names them.
        facts: group → name → value.
    """
    header, rows = _list_epochs(epochs)
    template = build_environment().get_template("pretraining.html.jinja")
    return template.render(
        title=title,
        figures=list_figures(epochs),
        curves=Markup(curves),
        header=header,
        rows=rows,
        masks=[(*row, 100 * share) for row, share in zip(_list_masks(masks), masks.values(), strict=True)],
        notes=notes,
        facts=group_facts(facts),
    )


def render_pretraining_markdown(
    title: str, epochs: Epochs, masks: Mapping[str, float], facts: Mapping[str, Any], notes: Sequence[str]
) -> str:
    """The same tables in text."""
    parts = [f"# {title}", *notes, "## Perplexity on held-out text", render_markdown_table(*_list_epochs(epochs))]
    parts += ["## Masks", render_markdown_table(["", "share", "meaning"], _list_masks(masks), num_text=3)]
    for group, pairs in group_facts(facts):
        parts += [f"## {group}", render_markdown_table(["", ""], pairs, num_text=2)]
    return "\n\n".join(parts) + "\n"


def list_figures(epochs: Epochs) -> list[tuple[str, str, str]]:
    """(name, figure, remark) of what one looks for first."""
    before, last = epochs[0], epochs[-1]
    best = min(epochs[1:] or epochs, key=lambda row: float(row["held_out_perplexity"]))
    return [
        ("before training", f"{before['held_out_perplexity']:,.2f}", "perplexity on held-out text"),
        ("best epoch", f"{best['held_out_perplexity']:,.2f}", f"epoch {best['epoch']} of {last['epoch']}"),
        ("nats a hidden sub-token", f"{best['held_out_loss']:.3f}", f"{before['held_out_loss']:.3f} before"),
    ]


def _list_masks(masks: Mapping[str, float]) -> list[list[str]]:
    """Name, share and meaning of each."""
    return [[name.replace("_", ", "), f"{share:.2%}", MASK_MEANINGS[name]] for name, share in masks.items()]


def _list_epochs(epochs: Epochs) -> tuple[list[str], list[list[str]]]:
    tells_order = any("held_out_order_accuracy" in row for row in epochs)
    header = ["epoch", "steps", "perplexity", "nats", *(["order told rightly"] if tells_order else [])]
    rows = []
    for row in epochs:
        name = str(row["epoch"]) if row["epoch"] else "before"
        cells = [f"{row['step']:,}", f"{row['held_out_perplexity']:,.3f}", f"{row['held_out_loss']:.4f}"]
        rows.append([name, *cells, *([f"{row.get('held_out_order_accuracy', 0.0):.1%}"] if tells_order else [])])
    return header, rows
