"""The report of a compression: what `compression.json` holds, as a self-contained page and as Markdown."""

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from pipelines.evaluation.pages import (
    Table,
    build_environment,
    render_markdown_facts,
    render_markdown_table,
    render_markdown_tables,
)
from pipelines.evaluation.pictures import Line, draw_scatter

Variant = Mapping[str, Any]
SAME_SPEED = 0.9
PLOTS = (("tokens_per_s", "sub-tokens/s"), ("size_mib", "MiB on disk"), ("peak_memory_mib", "peak memory, MiB"))


def render_html(result: Mapping[str, Any], title: str) -> str:
    """The page."""
    template = build_environment(__file__).get_template("compression.html.jinja")
    return template.render(
        title=title,
        summary=describe(result),
        tables=list_tables(result["variants"]),
        pictures=[Markup(_draw(result, name, label)) for name, label in PLOTS],
        refused=_list_refused(result),
        facts=[(name, str(value)) for name, value in result["facts"].items()],
    )


def render_markdown(result: Mapping[str, Any], title: str) -> str:
    """The same tables in text."""
    parts = [f"# {title}", describe(result), *render_markdown_tables(list_tables(result["variants"]))]
    refused = [[name, "; ".join(reasons)] for name, reasons in _list_refused(result)]
    parts += ["## Not good enough", render_markdown_table(["", "why"], refused, num_text=2)] if refused else []
    return "\n\n".join([*parts, "## Notes", render_markdown_facts(result["facts"])]) + "\n"


def describe(result: Mapping[str, Any]) -> str:
    """What came of it: a sentence, and one on each int8 form that is not what its variant computes with here."""
    return " ".join(filter(None, [_describe_choice(result), *map(_describe_idle_int8, result["variants"])]))


def _describe_idle_int8(variant: Variant) -> str:
    left_out = (variant.get("details") or {}).get("left_out")
    if left_out is None or variant["precision"] == "int8":
        return ""
    told = f"{variant['name']} is computed in {variant['precision']} here, not in int8"
    if not left_out:
        return f"{told}."
    num_layers = len(variant["details"]["layers"])
    return f"{told}: {len(left_out)} of {num_layers} layers are left out for what they would cost."


def _describe_choice(result: Mapping[str, Any]) -> str:
    start, chosen = (find_variant(result, result[name]) for name in ("start", "chosen"))
    if chosen is start:
        if any(one["verdict"] and one["verdict"]["passes"] for one in result["variants"]):
            return "No variant that is good enough is faster or smaller: the model stays as it is."
        return "No variant is good enough: the model stays as it is."
    return (
        f"{chosen['name']} is {_times(chosen, start, 'tokens_per_s'):.2f} times as fast and has "
        f"{100 * _times(chosen, start, 'size_mib'):.0f} % of the bytes; strict F1 on dev {_points(chosen)} points."
    )


def choose_variant(variants: Sequence[Variant]) -> Variant:
    """The fastest of those that are good enough, and of those as fast the smallest; else the first, the start.

    Speeds nearer to each other than `SAME_SPEED` are taken for equal: so much do they differ from run to run.
    """
    start, *others = variants
    good = [one for one in others if one["verdict"]["passes"]]
    good = [
        one
        for one in good
        if one["tokens_per_s"] > start["tokens_per_s"] / SAME_SPEED
        or (one["tokens_per_s"] >= start["tokens_per_s"] * SAME_SPEED and one["size_mib"] < start["size_mib"])
    ]
    best = max((one["tokens_per_s"] for one in good), default=0.0)
    fast = [one for one in good if one["tokens_per_s"] >= best * SAME_SPEED]
    return min(fast, key=lambda one: (one["size_mib"], -one["tokens_per_s"]), default=start)


def find_variant(result: Mapping[str, Any], name: str) -> Variant:
    """The variant of a name."""
    return next(variant for variant in result["variants"] if variant["name"] == name)


def _list_refused(result: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    """(variant, reasons) of those that the gate has stopped, or that could not be made."""
    judged = [one for one in result["variants"] if one["verdict"] and not one["verdict"]["passes"]]
    stopped = [(one["name"], list(one["verdict"]["reasons"])) for one in judged]
    return stopped + [(name, [f"not made: {reason}"]) for name, reason in result["not_made"].items()]


def find_front(variants: Sequence[Variant], name: str = "tokens_per_s") -> list[int]:
    """Those that no other one beats in both F1 and a figure (more is better for speed, less for the others)."""
    sign = 1 if name == "tokens_per_s" else -1

    def beats(one: Variant, other: Variant) -> bool:
        """Whether one is as good in both, and better in one."""
        pairs = [(one["f1"], other["f1"]), (sign * one[name], sign * other[name])]
        return all(a >= b for a, b in pairs) and any(a > b for a, b in pairs)

    front = [at for at, one in enumerate(variants) if not any(beats(other, one) for other in variants)]
    return sorted(front, key=lambda at: variants[at][name])


def list_tables(variants: Sequence[Variant]) -> list[Table]:
    """All tables of the report."""
    steps = [(one["name"], one["details"]) for one in variants if one["details"]]
    return [
        table_variants(variants),
        table_labels(variants),
        *(table_exits(name, details["exits"]) for name, details in steps if "exits" in details),
        *(table_layers(name, details) for name, details in steps if "layers" in details),
    ]


def table_exits(name: str, points: Sequence[Mapping[str, Any]]) -> Table:
    """What each confidence at which windows leave costs and gives; the first point is without exits."""
    whole = points[0]
    rows = [
        [
            "none leaves" if point is whole else f"{point['threshold']:g}",
            f"{100 * point['f1']:.2f}",
            f"{100 * (point['f1'] - whole['f1']):+.2f}",
            f"{point['layers']:.2f}",
            "yes" if point["accepted"] else "no",
        ]
        for point in points
    ]
    header = ["confidence", "strict F1, dev", "difference", "layers a sub-token takes", "good enough"]
    return f"{name}: how sure of its words a window must be to leave", header, rows


def table_layers(name: str, details: Mapping[str, Any]) -> Table:
    """How much each layer alone changes as int8, the most first, and which are left out."""
    rows = [
        [
            layer["name"],
            f"{layer['error']:.5f}",
            f"{100 * layer['changed']:.2f} %",
            "no" if layer["name"] in details["left_out"] else "yes",
        ]
        for layer in details["layers"]
    ]
    computed = f", computed by the runtime `{details['runtime']}`" if "runtime" in details else ""  # older ones lack it
    return f"{name}: the layers{computed}", ["layer", "error", "tags changed", "int8"], rows


def table_variants(variants: Sequence[Variant]) -> Table:
    """What each variant costs and gives."""
    start = variants[0]
    header = ["", "strict F1, dev", "95 % interval", "difference", "sub-tokens/s", "speed", "parameters"]
    header += ["MiB on disk", "peak MiB", "scores off by", "runtime"]
    has_price = any(variant["cost_per_million_documents"] is not None for variant in variants)
    header += ["a million documents"] if has_price else []
    rows = []
    for variant in variants:
        low, high = variant["f1_interval"]
        cells = [variant["name"] + _mark(variant), f"{100 * variant['f1']:.2f}", f"{100 * low:.1f} to {100 * high:.1f}"]
        cells += [_points(variant) if variant["verdict"] else ""]
        cells += [f"{variant['tokens_per_s']:,.0f}", f"{_times(variant, start, 'tokens_per_s'):.2f} ×"]
        cells += [f"{variant['num_parameters'] / 1e6:,.1f} M", f"{variant['size_mib']:,.1f}"]
        cells += [f"{variant['peak_memory_mib']:,}", " → ".join(f"{e:.3f}" for e in _list_errors(variant))]
        cells += [f"{variant['runtime']} {variant['precision']}"]
        cells += [f"{variant['cost_per_million_documents']:,.2f}"] if has_price else []
        rows.append(cells)
    return "Variants", header, rows


def table_labels(variants: Sequence[Variant]) -> Table:
    """What each label loses or gains, in points with its interval."""
    judged = [variant for variant in variants if variant["verdict"]]
    labels = sorted({label for variant in judged for label in variant["verdict"]["labels"]})
    rows = []
    for label in labels:
        found = [variant["verdict"]["labels"][label] for variant in judged]
        rows.append([label, *(f"{one['difference']:+.1f} ({one['low']:+.1f} to {one['high']:+.1f})" for one in found)])
    return "Labels, strict F1 against the start in points", ["", *(variant["name"] for variant in judged)], rows


def _list_errors(variant: Variant) -> list[float]:
    """The expected calibration error on dev, and of scores calibrated on the other half of it, if they are."""
    before, after = variant["calibration_error"]
    return [before] if before == after else [before, after]


def _mark(variant: Variant) -> str:
    return " (not good enough)" if variant["verdict"] and not variant["verdict"]["passes"] else ""


def _points(variant: Variant) -> str:
    return f"{variant['verdict']['overall']['difference']:+.2f}"


def _times(variant: Variant, start: Variant, name: str) -> float:
    return float(variant[name]) / max(1e-9, float(start[name]))


def _draw(result: Mapping[str, Any], name: str, label: str) -> str:
    variants = result["variants"]
    best, worst = (choose(variant["f1"] for variant in variants) for choose in (max, min))
    lines = [
        Line(
            f"{variant['name']}: F1 {100 * variant['f1']:.2f}, {variant[name]:,.0f} {label}",
            (variant["f1"] - worst) / ((best - worst) or 1.0),
            variant["name"] == result["chosen"],
            [(float(variant[name]), 100 * variant["f1"])],
            label=variant["name"],
        )
        for variant in variants
    ]
    return draw_scatter(
        lines,
        find_front(variants, name),
        f"F1 against {label}",
        label,
        "strict F1 on dev",
        least_height=1.0,
        more_is_better=name == "tokens_per_s",
    )
