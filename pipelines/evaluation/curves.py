"""Line charts as inline SVG, for learning curves; no plotting library, readable on a dark and on a light page."""

import math
from collections.abc import Callable, Mapping, Sequence
from html import escape

WIDTH = 640
_LEFT, _RIGHT, _TOP, _FLOOR = 72, 16, 34, 240
_MAX_DOTS = 30
_HUES = (212, 24, 150, 282, 48, 340, 186, 96)
_DASHES = ("", "6 3", "2 3")

Points = Sequence[tuple[float, float]]
Scale = Callable[[float], float]


def render_curves_svg(
    series: Mapping[str, Points], x_label: str, y_label: str, title: str, x_names: Sequence[str] = ()
) -> str:
    """A line chart of named series of (x, y). A point that is not finite is a gap in its line.

    Args:
        x_names: what is written at 0, 1, 2 … of x instead of numbers.
    """
    finite = [point for points in series.values() for point in points if _is_finite(point)]
    x_ticks, y_ticks = find_ticks([x for x, _ in finite]), find_ticks([y for _, y in finite])
    x_scale, y_scale = _make_scale(x_ticks, _LEFT, WIDTH - _RIGHT), _make_scale(y_ticks, _FLOOR, _TOP)
    legend, height = _draw_legend(list(series))
    lines = [_draw_line(points, x_scale, y_scale, number) for number, points in enumerate(series.values())]
    parts = [
        _draw_axes(x_ticks, y_ticks, x_scale, y_scale, dict(enumerate(x_names))),
        f'<text x="{WIDTH - _RIGHT}" y="{_FLOOR + 34}" text-anchor="end">{escape(x_label)}</text>',
        f'<text transform="translate(13 {(_TOP + _FLOOR) / 2}) rotate(-90)" text-anchor="middle">'
        f"{escape(y_label)}</text>",
        *lines,
        legend,
    ]
    return wrap_svg(parts, title, WIDTH, height, _LEFT, f"{title}: {', '.join(series)} by {x_label}")


def wrap_svg(parts: Sequence[str], title: str, width: int, height: int, left: int, summary: str) -> str:
    """A picture of these parts, whose title begins at `left`, in units of its size.

    Args:
        summary: what is read to whom does not see it.
    """
    return (
        f'<svg class="curves" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(summary)}"'
        ' xmlns="http://www.w3.org/2000/svg" font-family="inherit" font-size="12" fill="currentColor"'
        f' style="width:100%;max-width:{width}px;height:auto">'
        f'<text x="{left}" y="18" font-size="14" font-weight="600">{escape(title)}</text>'
        f"{''.join(parts)}</svg>"
    )


def _draw_axes(
    x_ticks: list[float], y_ticks: list[float], x_scale: Scale, y_scale: Scale, x_names: Mapping[float, str]
) -> str:
    parts = []
    for tick, text in zip(y_ticks, format_ticks(y_ticks), strict=True):
        y = y_scale(tick)
        parts.append(
            f'<path d="M{_LEFT} {y:.1f}H{WIDTH - _RIGHT}" stroke="currentColor" stroke-opacity=".14"/>'
            f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end" opacity=".75">{text}</text>'
        )
    x_texts = [escape(x_names.get(tick, "")) for tick in x_ticks] if x_names else format_ticks(x_ticks)
    for tick, text in zip(x_ticks, x_texts, strict=True):
        x = x_scale(tick)
        parts.append(
            f'<path d="M{x:.1f} {_FLOOR}v4" stroke="currentColor" stroke-opacity=".5"/>'
            f'<text x="{x:.1f}" y="{_FLOOR + 17}" text-anchor="middle" opacity=".75">{text}</text>'
        )
    floor = f'<path d="M{_LEFT} {_FLOOR}H{WIDTH - _RIGHT}" stroke="currentColor" stroke-opacity=".5"/>'
    return "".join([*parts, floor])


def _draw_line(points: Points, x_scale: Scale, y_scale: Scale, number: int) -> str:
    parts = []
    for run in _split_runs(points):
        places = [(x_scale(x), y_scale(y)) for x, y in run]
        path = "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
        parts.append(f'<path d="M{path}" {_style(number)}/>')
        if len(places) <= _MAX_DOTS:
            color = f'fill="{_color(number)}"'
            parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.6" {color}/>' for x, y in places]
    return "".join(parts)


def _draw_legend(names: list[str]) -> tuple[str, int]:
    """The legend, in as many rows as it needs, and the height of the chart with it."""
    parts, x, y = [], _LEFT, _FLOOR + 52
    for number, name in enumerate(names):
        width = 24 + 7 * len(name) + 20
        if x > _LEFT and x + width > WIDTH:
            x, y = _LEFT, y + 20
        parts.append(f'<path d="M{x} {y - 4}h18" {_style(number)}/><text x="{x + 24}" y="{y}">{escape(name)}</text>')
        x += width
    return "".join(parts), y + 12


def find_ticks(values: Sequence[float]) -> list[float]:
    """About five round numbers that span the values."""
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    if high - low <= 1e-9 * abs(high):
        low, high = (low - abs(low) / 2, high + abs(high) / 2) if low else (0.0, 1.0)
    step = _round_up((high - low) / 5)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [number * step for number in range(first, last + 1)]


def format_ticks(ticks: Sequence[float]) -> list[str]:
    """The ticks as texts with equally many decimals, the fewest that tell them apart; powers of ten where long."""
    step = ticks[1] - ticks[0] if len(ticks) > 1 else 1.0
    largest = max(abs(tick) for tick in ticks)
    if largest >= 1e6 or largest < 1e-4:
        return [f"{tick:.3g}" for tick in ticks]
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    return [f"{tick + 0.0:.{decimals}f}" for tick in ticks]


def _round_up(step: float) -> float:
    power = 10.0 ** math.floor(math.log10(step))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= step * (1 - 1e-9))


def _color(number: int) -> str:
    return f"hsl({_HUES[number % len(_HUES)]} 62% 52%)"


def _style(number: int) -> str:
    dash = _DASHES[number // len(_HUES) % len(_DASHES)]
    return f'fill="none" stroke="{_color(number)}" stroke-width="2" stroke-linejoin="round" stroke-dasharray="{dash}"'


def _make_scale(ticks: Sequence[float], start: float, end: float) -> Scale:
    low, high = ticks[0], ticks[-1]
    return lambda value: start + (value - low) / (high - low) * (end - start)


def _split_runs(points: Points) -> list[list[tuple[float, float]]]:
    runs: list[list[tuple[float, float]]] = [[]]
    for point in points:
        if _is_finite(point):
            runs[-1].append(point)
        elif runs[-1]:
            runs.append([])
    return [run for run in runs if run]


def _is_finite(point: tuple[float, float]) -> bool:
    return math.isfinite(point[0]) and math.isfinite(point[1])
