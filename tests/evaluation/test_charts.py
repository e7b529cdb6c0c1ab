"""Charts are well-formed SVG of finite numbers, whatever they are given."""

from __future__ import annotations

import math
import re
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quatrain.evaluation.charts import (
    Bar,
    Distribution,
    Mark,
    Series,
    Slice,
    bar_chart,
    finite,
    histogram,
    line_chart,
    nice_ticks,
    ordered_mark,
    robust_range,
    share_chart,
    short,
    smooth,
    thin,
)

anything = st.one_of(st.none(), st.floats(), st.integers(-(10**6), 10**6))
SVG = "{http://www.w3.org/2000/svg}"


def parsed(svg: str) -> ElementTree.Element:
    """The chart as a tree; its geometry must hold numbers alone."""
    tree = ElementTree.fromstring(svg)
    for element in tree.iter():
        for key in ("x", "y", "x1", "x2", "y1", "y2", "width", "height", "d", "viewBox"):
            assert not re.search(r"nan|inf|None", element.get(key, "0")), (key, element.attrib)
    return tree


def texts(tree: ElementTree.Element, mark: str) -> list[str]:
    return [element.text or "" for element in tree.iter(f"{SVG}text") if element.get("class") == mark]


@given(st.lists(st.tuples(st.floats(-1e6, 1e6), anything), max_size=30))
def test_line_chart_of_anything(points):
    line = Series("loss", [x for x, _ in points], [y for _, y in points], dots=True)
    tree = parsed(line_chart([line], label="l", x_label="step", y_label="loss"))
    drawn = len([e for e in tree.iter(f"{SVG}circle")])
    assert drawn == sum(finite(y) is not None for _, y in points)
    if not drawn:
        assert "nothing to draw" in texts(tree, "axis-label")


def test_line_breaks_where_a_value_is_missing():
    svg = line_chart([Series("a", range(5), [1, 2, math.nan, 3, 4])], label="l", x_label="x", y_label="y")
    path = next(e for e in parsed(svg).iter(f"{SVG}path")).get("d")
    assert path.count("M") == 2 and path.count("L") == 2


def test_line_chart_names_its_lines_and_shows_values_when_hovered():
    lines = [
        Series("train", [0, 50, 100], [3, 2, 1]),
        Series("held <out>", [100], [1.25], mark="validation", dots=True),
    ]
    tree = parsed(line_chart(lines, label="loss & co", x_label="step", y_label="loss"))
    assert texts(tree, "legend") == ["train", "held <out>"]
    assert tree.get("aria-label") == "loss & co" and tree.get("role") == "img"
    titles = [element.text for element in tree.iter(f"{SVG}title")]
    assert titles[-1] == "step 100\ntrain: 1\nheld <out>: 1.25"


@given(st.floats(-1e9, 1e9), st.floats(0, 1e9), st.integers(2, 8))
def test_ticks_span_the_range_and_are_round(low, span, count):
    high = low + span
    ticks = nice_ticks(low, high, count)
    step = ticks[1] - ticks[0]
    slack = 1e-6 * max(abs(low), abs(high), step)
    assert ticks[0] <= low + slack and ticks[-1] >= high - slack
    assert 2 <= len(ticks) <= count + 3
    leading = step / 10 ** math.floor(math.log10(step) + 1e-9)
    assert min(abs(leading - size) for size in (1, 2, 5, 10)) < 1e-3


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.003, "0.003"),
        (3e-5, "3e-05"),
        (1.25, "1.25"),
        (1200, "1,200"),
        (45000, "45k"),
        (2.5e6, "2.5M"),
        (-7, "-7"),
    ],
)
def test_short_numbers(value, text):
    assert short(value) == text


def test_smoothing_is_a_mean_around_each_value_that_does_not_lag():
    straight = [float(i) for i in range(50)]
    assert smooth(straight, 11) == pytest.approx(straight)
    assert smooth([0, 3, 0, None, 6], 3) == [0, 1, 1.5, None, 6]


@given(st.lists(anything, max_size=300), st.integers(4, 60))
def test_thinning_keeps_the_ends_and_the_extremes(values, limit):
    x, y = thin(range(len(values)), values, limit)
    assert len(x) <= max(limit, 4) + 1 or len(x) == len(values)
    known = [value for value in map(finite, values) if value is not None]
    if values:
        assert x[0] == 0 and x[-1] == len(values) - 1
        assert [values[int(i)] for i in x] == y or any(v != v for v in y if v is not None)
    if known:
        kept = [value for value in map(finite, y) if value is not None]
        assert (min(kept), max(kept)) == (min(known), max(known))


def test_a_spike_does_not_flatten_the_rest():
    low, high = robust_range([1.0 + i / 1000 for i in range(1000)] + [1e6])
    assert (low, high) == (1.0, pytest.approx(2.15, abs=0.01))
    assert robust_range([1.0, 2.0, 3.0]) == (1.0, 3.0)
    assert robust_range([None, math.inf]) is None


def test_bars_are_as_long_as_their_values():
    bars = [Bar("half", 0.5, "50 %"), Bar("all", 1.0, "100 %", low=0.9, high=1.0), Bar("none", 0.0, "0 %")]
    tree = parsed(bar_chart(bars, label="scores", maximum=1.0))
    ends = [
        float(re.match(r"M([\d.]+) \d+h([\d.]+)", e.get("d")).group(2))
        for e in tree.iter(f"{SVG}path")
        if "bar" in e.get("class")
    ]
    assert len(ends) == 2 and (ends[0] + 4) * 2 == pytest.approx(ends[1] + 4, abs=0.3)
    assert texts(tree, "value") == ["50 %", "100 %", "0 %"]
    assert "95 % interval 90.0 to 100.0 %" in next(e.text for e in tree.iter(f"{SVG}title") if "interval" in e.text)


def test_shares_fill_the_width():
    tree = parsed(
        share_chart([Slice("a", 1, "1 s"), Slice("b", 3, "3 s"), Slice("gone", 0, "0 s")], label="time", width=100)
    )
    widths = [float(e.get("width")) for e in tree.iter(f"{SVG}rect")]
    assert widths == [23.0, 73.0]


def test_ordered_marks_end_at_the_strongest():
    assert [ordered_mark(i, 4) for i in range(4)] == ["o2", "o3", "o5", "o6"]
    assert ordered_mark(0, 1) == "o6"
    assert {ordered_mark(i, 9) for i in range(9)} <= {f"o{i}" for i in range(1, 7)}


def test_numbers_too_large_to_be_told_apart_still_make_a_chart():
    line = Series("loss", [9007199254740995.0], [0.0])
    assert "<svg" in line_chart([line], label="loss", x_label="step", y_label="loss")


@given(st.lists(anything, max_size=60), st.lists(anything, max_size=60))
def test_histogram_of_anything(before, after):
    pair = [Distribution("before", before, "before"), Distribution("after", after, "after")]
    tree = parsed(histogram(pair, label="rewards", x_label="reward"))
    if not any(finite(value) is not None for value in (*before, *after)):
        assert "nothing to draw" in texts(tree, "axis-label")
        return
    for each in pair:
        known = [value for value in map(finite, each.values) if value is not None]
        bars = [bar for bar in tree.iter(f"{SVG}rect") if bar.get("class") == f"bar {each.mark}"]
        lines = [line for line in tree.iter(f"{SVG}line") if line.get("class") == f"mean {each.mark}"]
        assert bool(bars) == bool(lines) == bool(known) and len(lines) <= 1


def test_a_histogram_counts_every_value_once_and_shows_the_mean():
    values = [-5.0, 0.1, 0.1, 0.6, 99.0]
    pair = [Distribution("before", values, "before"), Distribution("after", [0.6], "after")]
    svg = histogram(pair, label="l", x_label="x", x_range=(0.0, 1.0), bins=2)
    titles = [element.text or "" for element in parsed(svg).iter(f"{SVG}title")]
    assert titles[:2] == ["0 to 0.5: before 60.0%, after 0.0%", "0.5 to 1: before 40.0%, after 100.0%"]
    assert titles[2:] == ["mean before: 18.96", "mean after: 0.6"]


def test_marks_stand_where_they_belong_and_outside_ones_are_left_out():
    marks = [Mark(5, "reward <hacking>"), Mark(500, "elsewhere")]
    tree = parsed(line_chart([Series("r", range(11), range(11))], label="l", x_label="x", y_label="y", marks=marks))
    alarms = [line for line in tree.iter(f"{SVG}line") if line.get("class") == "alarm"]
    inner = next(e for e in tree.iter(f"{SVG}svg") if e is not tree)
    width = float(inner.get("width")) - 8
    assert [float(line.get("x1")) for line in alarms] == [pytest.approx(width / 2, abs=0.1)]
    assert "reward <hacking>" in [element.text for element in tree.iter(f"{SVG}title")]
