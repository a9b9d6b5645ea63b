"""The report as one self-contained page, and as Markdown with the same tables."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from markupsafe import Markup, escape

from pipelines.evaluation.comparison import HEADER, list_comparison_rows
from pipelines.evaluation.examples import Segment, make_example
from pipelines.evaluation.matching import ERROR_KINDS, KINDS
from pipelines.evaluation.metrics import RATES, READINGS, Scored
from pipelines.evaluation.pages import EN_DASH, build_environment, flatten, render_markdown_table
from pipelines.evaluation.reliability import MIN_SHOWN, draw_reliability
from pipelines.ner.labels import OUTSIDE

KIND_MEANINGS = {
    "correct": "right label, right edges",
    "boundary": "right label, other edges",
    "type": "right edges, other label",
    "type+boundary": "overlaps, other label and edges",
    "missed": "gold without a counterpart",
    "spurious": "predicted without a counterpart",
}
FEW_DOCUMENTS = 30
_HUES = (212, 24, 150, 282, 48, 340, 186, 96)
_GOLDEN_ANGLE = 137.5
_THIN_SPACE = "\N{NARROW NO-BREAK SPACE}"


def render_html(
    result: Mapping[str, Any],
    title: str,
    facts: Mapping[str, Any],
    examples: Sequence[Scored],
    sections: Sequence[tuple[str, str]] = (),
) -> str:
    """The page. Everything is escaped except the HTML of `sections`, which must be our own."""
    environment = build_environment(lstrip_blocks=True)
    environment.filters.update(percent=format_percent, number=format_number, exact=_escape_exactly)
    labels = _list_labels(result)
    hues = {label: _HUES[i] if i < len(_HUES) else int(i * _GOLDEN_ANGLE) % 360 for i, label in enumerate(labels)}
    shown = [make_example(scored) for scored in examples]
    rows = list_score_rows(result)
    return environment.get_template("page.html.jinja").render(
        result=result,
        title=title,
        facts=group_facts(facts),
        rows=rows,
        axis=_find_axis(rows),
        labels=labels,
        hues=hues,
        kinds=[(kind, KIND_MEANINGS[kind], result["errors"][kind]) for kind in KINDS],
        confusion=_shade_confusion(result["confusion"], [*labels, OUTSIDE]),
        comparison_header=HEADER,
        comparison=list_comparison_rows(result["comparison"]) if result["comparison"] else [],
        min_shown=MIN_SHOWN,
        reliability=Markup(draw_reliability(result["calibration"])),
        notes=[*list_notes(result), *list_unannotated(result)],
        examples=shown,
        shown_sentence=describe_examples(result["examples"]),
        filter_kinds=[(kind, n) for kind in ERROR_KINDS if (n := sum(_has(e.findings, kind) for e in shown))],
        filter_labels=[x for x in labels if any(x in f.labels for e in shown for f in e.findings)],
        mark=lambda segment: _render_segment(segment, hues),
        sections=[(name, Markup(html)) for name, html in sections],
    )


def render_markdown(result: Mapping[str, Any], title: str, facts: Mapping[str, Any]) -> str:
    """The same tables in text."""
    parts = [f"# {flatten(title)}", *list_notes(result), *map(flatten, list_unannotated(result))]
    header = ["", "gold", "strict F1", "95 %", "P", "R", "lenient F1", "95 %", "P", "R"]
    body = [
        [row["name"], format_number(row["support"]), *_score_cells(row["strict"]), *_score_cells(row["lenient"])]
        for row in list_score_rows(result)
    ]
    parts += ["## Scores, in percent", render_markdown_table(header, body)]
    if result["comparison"]:
        parts += [
            f"## Compared to {flatten(result['comparison']['compared_to'])}",
            render_markdown_table(HEADER, list_comparison_rows(result["comparison"])),
        ]
    if result["seen"]:
        body = [
            [
                name,
                format_number(row["support"]),
                format_percent(row["recall"]) if row["support"] else EN_DASH,
                format_percent(row["precision"]),
                format_percent(row["f1"]),
            ]
            for name, row in (("seen in training", result["seen"]), ("unseen", result["unseen"]))
        ]
        parts += [
            "## Mentions seen and unseen in training",
            render_markdown_table(["", "gold", "recall", "precision", "F1"], body),
        ]
    body = [[kind, KIND_MEANINGS[kind], format_number(result["errors"][kind])] for kind in KINDS]
    parts += ["## Kinds of errors", render_markdown_table(["kind", "meaning", "mentions"], body, num_text=2)]
    names = [*_list_labels(result), OUTSIDE]
    body = [
        [gold, *(format_number(result["confusion"].get(gold, {}).get(name, 0)) for name in names)] for gold in names
    ]
    parts += ["## Gold (rows) against predicted (columns)", render_markdown_table(["", *names], body)]
    body = [
        [f"{row['min_score']:g}", format_number(row["num_predicted"]), *(format_percent(row[rate]) for rate in RATES)]
        for row in result["calibration"]["thresholds"]
    ]
    parts += [
        f"## Strict scores, in percent, of mentions with at least `min_score`\n\nExpected calibration error: "
        f"{result['calibration']['error']:.3f}",
        render_markdown_table(["min_score", "predicted", "P", "R", "F1"], body),
    ]
    for group, pairs in group_facts(facts):
        parts += [f"## {flatten(group or 'Run')}", render_markdown_table(["", ""], pairs, num_text=2)]
    parts.append(f"Examples are in `report.html`: {describe_examples(result['examples'])}")
    return "\n\n".join(parts) + "\n"


def list_score_rows(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Micro, macro, then the labels: both readings with their intervals; None where a label is not in a reading."""
    rows = []
    for name, is_label in [("micro", False), ("macro", False), *((label, True) for label in _list_labels(result))]:
        row: dict[str, Any] = {"name": name, "is_label": is_label}
        for reading in READINGS:
            place, bounds = result[reading], result["intervals"].get(reading)
            place, bounds = (place["labels"], bounds and bounds["labels"]) if is_label else (place, bounds)
            found = place.get(name)
            row[reading] = None if found is None else {**found, "interval": bounds[name]["f1"] if bounds else None}
        row["support"] = max(row[reading]["support"] if row[reading] else 0 for reading in READINGS)
        rows.append(row)
    return rows


def list_notes(result: Mapping[str, Any]) -> list[str]:
    """Sentences on what was scored, and what a reader should be careful with."""
    notes = [
        f"{_count(result['num_records'], 'record')} in {_count(result['num_documents'], 'document')}, "
        f"{_count(result['num_gold'], 'gold mention')}, {format_number(result['num_predicted'])} predicted."
    ]
    illegal = result["num_gold"] - result["num_gold_strict"]
    if illegal:
        notes.append(
            f"{_count(illegal, 'gold mention')} of the corpus {'has' if illegal == 1 else 'have'} tags that the label "
            "scheme forbids: the lenient reading counts them, the strict one does not."
        )
    if result["num_documents"] < FEW_DOCUMENTS:
        notes.append(f"With {_count(result['num_documents'], 'document')} the intervals are rough.")
    return notes


def list_unannotated(result: Mapping[str, Any]) -> list[str]:
    """A sentence on labels that are predicted and that no gold mention has, where there are any."""
    labels = [label for label, score in result["lenient"]["labels"].items() if not score["support"]]
    if not labels:
        return []
    numbers = {label: sum(row.get(label, 0) for row in result["confusion"].values()) for label in labels}
    told = ", ".join(f"{label} ({format_number(number)})" for label, number in numbers.items())
    return [f"Predicted, but in no gold mention: {told}. All of them count as spurious, also if nobody annotated them."]


def describe_examples(meta: Mapping[str, int]) -> str:
    """How many of how many records are shown."""
    total, shown = meta["num_erroneous_records"], meta["num_erroneous_shown"]
    if not total:
        wrong = "No record has an error"
    elif shown == total:
        wrong = "The one record with errors" if total == 1 else f"All {format_number(total)} records with errors"
    else:
        wrong = f"A random {format_number(shown)} of {format_number(total)} records with errors"
    correct_total, correct_shown = meta["num_correct_records"], meta["num_correct_shown"]
    if not correct_shown:
        return f"{wrong}."
    amount = "all" if correct_shown == correct_total else f"a random {format_number(correct_shown)} of"
    return f"{wrong}, and {amount} {_count(correct_total, 'record')} with mentions and no error."


def group_facts(facts: Mapping[str, Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Facts as (group, [(name, value)]); those without a group come first, under an empty name."""
    flat = [(str(name), _format_fact(value)) for name, value in facts.items() if not isinstance(value, Mapping)]
    groups = [
        (str(name), [(str(key), _format_fact(item)) for key, item in value.items()])
        for name, value in facts.items()
        if isinstance(value, Mapping)
    ]
    return [group for group in [("", flat), *groups] if group[1]]


def format_percent(share: float) -> str:
    """0.9123 → `91.2`."""
    return f"{100 * share:.1f}"


def format_number(number: int) -> str:
    """3411 → `3 411`, with a narrow space that does not break."""
    return f"{number:,}".replace(",", _THIN_SPACE)


def _render_segment(segment: Segment, hues: Mapping[str, int]) -> Markup:
    text = _escape_exactly(segment.text)
    if not segment.gold and not segment.predicted:
        return text
    flags = {
        "g": segment.gold,
        "p": segment.predicted,
        "gs": segment.starts_gold,
        "ps": segment.starts_predicted,
        "pe": segment.ends_predicted,
    }
    classes = " ".join(name for name, on in flags.items() if on)
    style = ";".join(
        f"--{side}:{hues[spans[0].label]}" for side, spans in (("g", segment.gold), ("p", segment.predicted)) if spans
    )
    return Markup('<span class="m {}" style="{}" title="{}">{}</span>').format(classes, style, segment.title, text)


def _escape_exactly(text: str) -> Markup:
    """Escape; a carriage return needs a reference, or the browser's parser turns it into a line feed."""
    return Markup(str(escape(text)).replace("\r", "&#13;"))


def _find_axis(rows: Sequence[Mapping[str, Any]]) -> tuple[int, int]:
    """The range of percents, in tens, that the interval chart has to show."""
    strict = [row["strict"] for row in rows if row["strict"]]
    found = [bound for score in strict for bound in (score["f1"], *(score["interval"] or ()))]
    low = min(90, math.floor(10 * min(found)) * 10)
    return low, max(low + 10, math.ceil(10 * max(found)) * 10)


def _shade_confusion(confusion: Mapping[str, Mapping[str, int]], names: list[str]) -> list[dict[str, Any]]:
    """Rows of cells with their number and its share of the row."""
    rows = []
    for gold in names:
        numbers = [confusion.get(gold, {}).get(name, 0) for name in names]
        total = sum(numbers) or 1
        cells = [
            {"predicted": name, "number": number, "share": number / total, "agrees": gold == name}
            for name, number in zip(names, numbers, strict=True)
        ]
        rows.append({"gold": gold, "cells": cells})
    return rows


def _list_labels(result: Mapping[str, Any]) -> list[str]:
    return sorted({label for reading in READINGS for label in result[reading]["labels"]})


def _has(findings: Iterable[Any], kind: str) -> bool:
    return any(finding.kind == kind for finding in findings)


def _score_cells(score: Mapping[str, Any] | None) -> list[str]:
    if score is None:
        return [EN_DASH] * 4
    bounds = score["interval"]
    interval = f"{format_percent(bounds[0])}{EN_DASH}{format_percent(bounds[1])}" if bounds else EN_DASH
    return [format_percent(score["f1"]), interval, format_percent(score["precision"]), format_percent(score["recall"])]


def _count(number: int, noun: str) -> str:
    return f"{format_number(number)} {noun}{'' if number == 1 else 's'}"


def _format_fact(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, int):
        return format_number(value)
    if isinstance(value, list | tuple):
        return ", ".join(_format_fact(item) for item in value)
    return EN_DASH if value is None else str(value)
