"""Line charts: well-formed, inside their frame, round ticks, honest about missing points."""

import re
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.evaluation.curves import WIDTH, find_ticks, format_ticks, render_curves_svg

SVG = "{http://www.w3.org/2000/svg}"
NUMBERS = st.floats(-1e9, 1e9).map(lambda value: round(value, 4))
POINTS = st.lists(st.tuples(NUMBERS, NUMBERS), max_size=40)


def parse(series, **names):
    return ElementTree.fromstring(render_curves_svg(series, **{"x_label": "x", "y_label": "y", "title": "t", **names}))


def get_lines(svg):
    return [path for path in svg.iter(f"{SVG}path") if "L" in path.get("d")]


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.text("ab<&'\"é", max_size=30), POINTS, max_size=12))
def test_any_series_give_a_well_formed_chart_inside_its_frame(series):
    svg = parse(series)
    height = float(svg.get("viewBox").split()[3])
    for circle in svg.iter(f"{SVG}circle"):
        assert 0 <= float(circle.get("cx")) <= WIDTH
        assert 0 <= float(circle.get("cy")) <= height
    assert len(list(svg.iter(f"{SVG}text"))) >= 3 + len(series)
    assert all(float(text.get("y", "0")) < height for text in svg.iter(f"{SVG}text"))


def test_points_stand_where_their_values_say():
    (line,) = get_lines(parse({"loss": [(0, 10), (50, 5), (100, 0)]}))
    x1, y1, x2, y2, x3, y3 = map(float, re.findall(r"[\d.]+", line.get("d")))
    assert x2 - x1 == pytest.approx(x3 - x2, abs=0.2)
    assert y2 - y1 == pytest.approx(y3 - y2, abs=0.2)
    assert y1 < y3


def test_a_missing_value_is_a_gap():
    lines = get_lines(parse({"loss": [(0, 1), (1, 2), (2, float("nan")), (3, 1), (4, 2)]}))
    assert len(lines) == 2


def test_a_single_point_is_a_dot():
    svg = parse({"loss": [(3, 0.5)]})
    assert len(list(svg.iter(f"{SVG}circle"))) == 1


def test_names_are_escaped_and_in_the_legend():
    svg = parse({"<loss> & co": [(0, 1), (1, 2)]}, title="<t>", x_label="a&b", y_label='"y"')
    assert {"<loss> & co", "<t>", "a&b", '"y"'} <= {text.text for text in svg.iter(f"{SVG}text")}


@pytest.mark.parametrize(
    ("values", "texts"),
    [
        ([0, 100], ["0", "20", "40", "60", "80", "100"]),
        ([0.61, 0.89], ["0.6", "0.7", "0.8", "0.9"]),
        ([-1, 1], ["-1.0", "-0.5", "0.0", "0.5", "1.0"]),
        ([], ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]),
        ([1e-5, 5e-5], ["1e-05", "2e-05", "3e-05", "4e-05", "5e-05"]),
    ],
)
def test_ticks_are_round(values, texts):
    assert format_ticks(find_ticks(values)) == texts


@pytest.mark.parametrize("value", [0.0, 3.0, -2.5, 1e8])
def test_ticks_of_equal_values_surround_them(value):
    ticks = find_ticks([value, value])
    assert ticks[0] <= value <= ticks[-1]
    assert ticks[0] < ticks[-1]


def test_places_may_have_names_instead_of_numbers():
    svg = parse({"gain": [(0, 1.0), (2, 3.0)]}, x_names=["1 <", "5 %", "25 %"])
    texts = [text.text for text in svg.iter(f"{SVG}text")]
    assert {"1 <", "5 %", "25 %"} <= set(texts)
    assert "1.0" not in [text.text for text in svg.iter(f"{SVG}text") if text.get("text-anchor") == "middle"]
