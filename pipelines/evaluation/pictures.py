"""Pictures of a search as inline SVG: curves of trials, parallel coordinates, F1 against cost."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from pipelines.evaluation.curves import find_ticks, format_ticks, wrap_svg

WIDTH = 760
_LEFT, _RIGHT, _TOP, _FLOOR = 64, 20, 34, 270
_LOW_HUE, _HIGH_HUE = 232, 28
_AXIS_FLOOR = 300
_MAX_LABEL = 16
_LABEL_WIDTH, _LINE_HEIGHT = 80, 14
"""Of a label beside a dot, about."""
_LAST = "dev F1"
_HALO = 'stroke="var(--page)" stroke-width="3" paint-order="stroke"'
"""Text that lies on lines stays readable."""


@dataclass(frozen=True)
class Line:
    """A trial in a picture."""

    name: str
    """Shown where one points at it."""
    score: float
    """By which it is coloured, in [0, 1]."""
    is_leader: bool
    points: Sequence[tuple[float, float]] = ()
    values: Mapping[str, Any] | None = None
    """Setting → value."""
    label: str = ""
    """Written beside its dot."""


def draw_curves(lines: Sequence[Line], title: str, x_label: str, y_label: str) -> str:
    """Lines of (x, y), coloured by score, leaders broader."""
    points = [point for line in lines for point in line.points]
    x_ticks, y_ticks = find_ticks([x for x, _ in points]), find_ticks([y for _, y in points])
    x_ticks = [tick for tick in x_ticks if tick == round(tick)] or x_ticks  # epochs
    parts = [_draw_frame(x_ticks, y_ticks, x_label, y_label)]
    for line in _order(lines):
        places = [_place(point, x_ticks, y_ticks) for point in line.points]
        path = "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
        parts.append(f'<path d="M{path}" {_stroke(line)}><title>{escape(line.name)}</title></path>')
        x, y = places[-1]
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{_color(line.score)}"/>')
    return wrap_svg(parts, title, WIDTH, _FLOOR + 44, _LEFT, f"{title}: {len(lines)} trials by {x_label}")


def draw_scatter(
    lines: Sequence[Line],
    front: Sequence[int],
    title: str,
    x_label: str,
    y_label: str,
    *,
    least_height: float = 0.0,
    more_is_better: bool = False,
) -> str:
    """A dot for each line's last point; those of the front, by their places in `lines`, are joined by steps.

    Args:
        least_height: so much of y is shown at least, for equal points to look equal.
        more_is_better: x is a gain and not a cost, so that a point reaches what lies left of it.
    """
    points = [line.points[-1] for line in lines]
    low, high = min(y for _, y in points), max(y for _, y in points)
    room = max(0.0, least_height - (high - low)) / 2
    x_ticks, y_ticks = find_ticks([0.0, *(x for x, _ in points)]), find_ticks([low - room, high + room])
    parts = [_draw_frame(x_ticks, y_ticks, x_label, y_label)]
    places = [_place(point, x_ticks, y_ticks) for point in points]
    if front:
        first, *rest = (places[number] for number in front)
        steps = "".join(f"V{y:.1f}H{x:.1f}" if more_is_better else f"H{x:.1f}V{y:.1f}" for x, y in rest)
        style = 'fill="none" stroke="currentColor" stroke-opacity=".45" stroke-width="1.5"'
        parts.append(f'<path d="M{first[0]:.1f} {first[1]:.1f}{steps}" {style}/>')
    labels: list[tuple[float, float]] = []
    for line, (x, y) in zip(lines, places, strict=True):
        radius = 6 if line.is_leader else 4
        dot = f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius}" fill="{_color(line.score)}">'
        parts.append(f"{dot}<title>{escape(line.name)}</title></circle>")
        if line.label:
            end = ' text-anchor="end"' if x > WIDTH * 0.75 else ""
            at = x - radius - 4 if end else x + radius + 4
            height = _find_height(at, y - 6, labels)
            labels.append((at, height))
            parts.append(f'<text x="{at:.1f}" y="{height:.1f}"{end} {_HALO}>{escape(line.label)}</text>')
    return wrap_svg(parts, title, WIDTH, _FLOOR + 44, _LEFT, f"{title}: {len(lines)} trials")


def _find_height(x: float, y: float, others: Sequence[tuple[float, float]]) -> float:
    """Where a label at `y` can be read that is not to lie over others: there, or above them."""
    while any(abs(x - other_x) < _LABEL_WIDTH and abs(y - other_y) < _LINE_HEIGHT for other_x, other_y in others):
        y -= _LINE_HEIGHT
    return y


def draw_parallel(lines: Sequence[Line], axes: Sequence[Mapping[str, Any]], title: str) -> str:
    """An axis for each setting and one for the score; a line for each trial that has a value on all of them.

    Args:
        axes: of each setting `path`, `is_log`, `choices` (texts; empty for numbers), `low`, `high`.
    """
    shown = [line for line in lines if line.values is not None and all(_fits(line, axis) for axis in axes)]
    scores = [line.points[-1][1] for line in shown if line.points]
    ticks = find_ticks(scores)
    columns = [*axes, {"path": _LAST, "is_log": False, "choices": [], "low": ticks[0], "high": ticks[-1]}]
    step = (WIDTH - 2 * _LEFT) / max(1, len(columns) - 1)
    parts, labels = [], []
    for number, axis in enumerate(columns):
        x = _LEFT + number * step
        name = axis["path"].rsplit(".", 1)[-1]
        parts.append(
            f'<path d="M{x:.1f} {_TOP + 20}V{_AXIS_FLOOR}" stroke="currentColor" stroke-opacity=".4"/>'
            f'<text x="{x:.1f}" y="{_AXIS_FLOOR + (20 if number % 2 == 0 else 36)}" text-anchor="middle">'
            f"<title>{escape(axis['path'])}</title>{escape(name)}</text>"
        )
        for share, text in _mark_axis(axis):
            y = _AXIS_FLOOR - share * (_AXIS_FLOOR - _TOP - 20)
            short = text if len(text) <= _MAX_LABEL else f"{text[: _MAX_LABEL - 1]}…"
            labels.append(
                f'<path d="M{x - 3:.1f} {y:.1f}h6" stroke="currentColor" stroke-opacity=".5"/>'
                f'<text x="{x - 6:.1f}" y="{y + 4:.1f}" text-anchor="end" font-size="11" {_HALO}>{escape(short)}</text>'
            )
    for line in _order(shown):
        values = [*((line.values or {})[axis["path"]] for axis in axes), line.points[-1][1]]
        places = []
        for number, (axis, value) in enumerate(zip(columns, values, strict=True)):
            y = _AXIS_FLOOR - _find_share(axis, value) * (_AXIS_FLOOR - _TOP - 20)
            places.append(f"{_LEFT + number * step:.1f} {y:.1f}")
        parts.append(f'<path d="M{"L".join(places)}" {_stroke(line)}><title>{escape(line.name)}</title></path>')
    summary = f"{title}: {', '.join(axis['path'] for axis in axes)}"
    return wrap_svg([*parts, *labels], title, WIDTH, _AXIS_FLOOR + 46, _LEFT, summary)


def _draw_frame(x_ticks: list[float], y_ticks: list[float], x_label: str, y_label: str) -> str:
    parts = []
    for tick, text in zip(y_ticks, format_ticks(y_ticks), strict=True):
        _, y = _place((x_ticks[0], tick), x_ticks, y_ticks)
        parts.append(
            f'<path d="M{_LEFT} {y:.1f}H{WIDTH - _RIGHT}" stroke="currentColor" stroke-opacity=".14"/>'
            f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end" opacity=".75">{text}</text>'
        )
    for tick, text in zip(x_ticks, format_ticks(x_ticks), strict=True):
        x, _ = _place((tick, y_ticks[0]), x_ticks, y_ticks)
        parts.append(f'<text x="{x:.1f}" y="{_FLOOR + 17}" text-anchor="middle" opacity=".75">{text}</text>')
    return "".join(
        [
            *parts,
            f'<path d="M{_LEFT} {_FLOOR}H{WIDTH - _RIGHT}" stroke="currentColor" stroke-opacity=".5"/>',
            f'<text x="{WIDTH - _RIGHT}" y="{_FLOOR + 34}" text-anchor="end">{escape(x_label)}</text>',
            f'<text transform="translate(13 {(_TOP + _FLOOR) / 2}) rotate(-90)" text-anchor="middle">',
            f"{escape(y_label)}</text>",
        ]
    )


def _place(point: tuple[float, float], x_ticks: list[float], y_ticks: list[float]) -> tuple[float, float]:
    x = (point[0] - x_ticks[0]) / ((x_ticks[-1] - x_ticks[0]) or 1.0)
    y = (point[1] - y_ticks[0]) / ((y_ticks[-1] - y_ticks[0]) or 1.0)
    return _LEFT + x * (WIDTH - _RIGHT - _LEFT), _FLOOR - y * (_FLOOR - _TOP)


def _order(lines: Sequence[Line]) -> list[Line]:
    """The best last, so that they lie on top."""
    return sorted(lines, key=lambda line: (line.is_leader, line.score))


def _fits(line: Line, axis: Mapping[str, Any]) -> bool:
    value = (line.values or {}).get(axis["path"])
    if axis["choices"]:
        return str(value) in axis["choices"]
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and axis["low"] <= float(value or 0) <= axis["high"] and bool(line.points)


def _find_share(axis: Mapping[str, Any], value: Any) -> float:
    if axis["choices"]:
        return (list(axis["choices"]).index(str(value)) + 0.5) / len(axis["choices"])
    low, high, at = float(axis["low"]), float(axis["high"]), float(value)
    if axis["is_log"]:
        low, high, at = math.log(low), math.log(high), math.log(at)
    return (at - low) / ((high - low) or 1.0)


def _mark_axis(axis: Mapping[str, Any]) -> list[tuple[float, str]]:
    """(place from 0 to 1, text) of what is written along an axis."""
    if axis["choices"]:
        return [(_find_share(axis, choice), choice) for choice in axis["choices"]]
    low, high = float(axis["low"]), float(axis["high"])
    middle = math.sqrt(low * high) if axis["is_log"] else (low + high) / 2
    return [
        (_find_share(axis, value), f"{value:,.0f}" if value >= 100 else f"{value:.3g}") for value in (low, middle, high)
    ]


def _color(score: float) -> str:
    return f"hsl({_LOW_HUE + (_HIGH_HUE - _LOW_HUE) * min(1.0, max(0.0, score)):.0f} 68% 54%)"


def _stroke(line: Line) -> str:
    width, opacity = (3, 1) if line.is_leader else (1.4, 0.75)
    return (
        f'fill="none" stroke="{_color(line.score)}" stroke-width="{width}" stroke-opacity="{opacity}"'
        ' stroke-linejoin="round"'
    )
