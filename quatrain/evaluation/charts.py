"""Charts as SVG text, in plain Python: line charts, bars with intervals, and shares of a whole.

Charts have no colours: every mark has a class, which the page's style sheet colours for light, dark and print. All text
is escaped and values that are not finite are omitted, so that any run can be drawn. Widths and heights are in units of
the chart's `viewBox`; the page scales it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from quatrain.core.wording import shorten

_LARGEST = 1e100
LONGEST_LABEL = 18
_CHARACTER = 6.7  # the mean width of a character at the charts' font size of 12


@dataclass(frozen=True)
class Series:
    """A line: `y[i]` over `x[i]`, with None (or a value that is not finite) where the line breaks.

    `mark` is the class that the style sheet colours: raw, smooth, validation or single.
    `dots` draws each point too.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float | None]
    mark: str = "single"
    dots: bool = False


@dataclass(frozen=True)
class Bar:
    """A bar: its label, its value, the value as text, and optionally an interval around the value.

    `mark` is the class that the style sheet colours: o1 (pale) to o6 (strong) for ordered bars.
    """

    label: str
    value: float
    text: str
    mark: str = "o6"
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Slice:
    """A slice of a whole: its name, its size and the size as text."""

    name: str
    value: float
    text: str


@dataclass(frozen=True)
class Distribution:
    """Numbers to count in bins; `mark` is the class that the style sheet colours: before or after."""

    name: str
    values: Sequence[float]
    mark: str = "after"


@dataclass(frozen=True)
class Point:
    """A labelled point; `detail` is shown when the mouse rests on it."""

    label: str
    x: float
    y: float
    detail: str = ""


@dataclass(frozen=True)
class Mark:
    """A vertical line in a chart, with the text that it shows when the mouse rests on it."""

    x: float
    text: str


def finite(value: object) -> float | None:
    """The value as a float if it can be drawn; otherwise None, also beyond 1e100, where differences may overflow."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if abs(value) <= _LARGEST else None  # NaN compares false


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """The ticks of an axis: about `count` multiples of 1, 2 or 5 times a power of ten, from at or below `low` to at or
    above `high`.
    """
    if high - low <= 1e-12 * max(1.0, abs(low), abs(high)):
        pad = abs(low) * 0.1 or 1.0
        low, high = low - pad, high + pad
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(size * power for size in (1, 2, 5, 10) if size * power >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [index * step for index in range(first, last + 1)]


def short(value: float) -> str:
    """A number as an axis shows it: 0.003, 1.25, 1,200, 45k, 3e-05."""
    if value == 0:
        return "0"
    size = abs(value)
    if size >= 1e15 or size < 1e-4:
        return f"{value:.3g}"
    for limit, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k")):
        if size >= limit:
            return f"{value / {'T': 1e12, 'G': 1e9, 'M': 1e6, 'k': 1e3}[unit]:.4g}{unit}"
    if size >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def line_chart(
    series: Sequence[Series],
    *,
    label: str,
    x_label: str,
    y_label: str,
    y_range: tuple[float, float] | None = None,
    marks: Sequence[Mark] = (),
    width: int = 400,
    height: int = 250,
    columns: int = 90,
) -> str:
    """A line chart with axes, grid, legend and, in `columns` bands across it, the values as hover titles.

    Lines are clipped to `y_range`; without it, all finite values fit. A chart without finite values shows a note
    instead. `label` describes the chart for screen readers. `marks` are drawn above the bands.
    """
    series = [_only_finite_x(line) for line in series]
    xs = [x for line in series for x, y in zip(line.x, line.y, strict=True) if finite(y) is not None]
    ys = [y for line in series for y in map(finite, line.y) if y is not None]
    if not ys:
        return _empty_chart(label, width, height)
    x_low, x_high = min(xs), max(xs)
    if 0 < x_low < 0.1 * x_high:
        x_low = 0.0
    if x_low == x_high:
        pad = max(1.0, abs(x_low) * 1e-12)  # numbers beyond 2^53 do not change by 1
        x_low, x_high = x_low - pad, x_high + pad
    y_ticks = nice_ticks(*(y_range or (min(ys), max(ys))))
    y_texts = [short(tick) for tick in y_ticks]
    left, right, top, bottom = 24 + _CHARACTER * max(map(len, y_texts)), 14, 34, 44
    plot = _Plot(left, top, width - left - right, height - top - bottom, (x_low, x_high), (y_ticks[0], y_ticks[-1]))

    body = [_legend(series, left) if len(series) > 1 else ""]
    for tick, text in zip(y_ticks, y_texts, strict=True):
        y = top + plot.y(tick)
        body.append(f'<line class="grid" x1="{left:.1f}" x2="{width - right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        body.append(f'<text class="tick" x="{left - 7:.1f}" y="{y + 4:.1f}" text-anchor="end">{escape(text)}</text>')
    floor = top + plot.height
    for tick in nice_ticks(x_low, x_high):
        if x_low <= tick <= x_high:
            x = left + plot.x(tick)
            body.append(f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{floor:.1f}" y2="{floor + 4:.1f}"/>')
            body.append(_text("tick", x, floor + 17, short(tick), "middle"))
    body.append(f'<line class="axis" x1="{left:.1f}" x2="{width - right}" y1="{floor:.1f}" y2="{floor:.1f}"/>')
    body.append(_text("axis-label", left + plot.width / 2, height - 6, x_label, "middle"))
    middle = top + plot.height / 2
    body.append(
        f'<text class="axis-label" text-anchor="middle" transform="translate(12 {middle:.1f}) rotate(-90)">'
        f"{escape(y_label)}</text>"
    )
    lines = "".join(_line(line, plot) for line in series)
    bands = _hover_bands(series, plot, x_label, columns)
    rim = 4  # keeps dots on the edge of the plot whole
    across, down = f"{plot.width + 2 * rim:.1f}", f"{plot.height + 2 * rim:.1f}"
    body.append(
        f'<svg x="{left - rim:.1f}" y="{top - rim}" width="{across}" height="{down}" '
        f'viewBox="{-rim} {-rim} {across} {down}">{lines}{bands}{_marks(marks, plot)}</svg>'
    )
    return _svg(label, width, height, body)


def point_chart(
    points: Sequence[Point], *, label: str, x_label: str, y_label: str, width: int = 640, height: int = 340
) -> str:
    """Labelled points over a logarithmic x axis. Points whose x is not above 0 stand at its left end.

    A label stands to the right of its point, or where it hides no other label and no other point.
    """
    drawn = [point for point in points if finite(point.x) is not None and finite(point.y) is not None]
    if not drawn:
        return _empty_chart(label, width, height)
    least = min((point.x for point in drawn if point.x > 0), default=1.0)
    spots = [(math.log10(max(point.x, least)), point) for point in drawn]
    low, high = math.floor(min(x for x, _ in spots)), math.ceil(max(x for x, _ in spots))
    high = max(high, low + 1)
    y_ticks = nice_ticks(min(point.y for point in drawn), max(point.y for point in drawn))
    left, right, top, bottom = 24 + _CHARACTER * max(len(short(tick)) for tick in y_ticks), 14, 14, 44
    plot = _Plot(left, top, width - left - right, height - top - bottom, (low, high), (y_ticks[0], y_ticks[-1]))
    body = []
    for tick in y_ticks:
        y = top + plot.y(tick)
        body.append(f'<line class="grid" x1="{left:.1f}" x2="{width - right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        body.append(_text("tick", left - 7, y + 4, short(tick), "end"))
    floor = top + plot.height
    for exponent in range(low, high + 1):
        x = left + plot.x(exponent)
        body.append(f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{floor:.1f}" y2="{floor + 4:.1f}"/>')
        body.append(_text("tick", x, floor + 17, short(10.0**exponent), "middle"))
    body.append(f'<line class="axis" x1="{left:.1f}" x2="{width - right}" y1="{floor:.1f}" y2="{floor:.1f}"/>')
    body.append(_text("axis-label", left + plot.width / 2, height - 6, x_label, "middle"))
    middle = top + plot.height / 2
    body.append(
        f'<text class="axis-label" text-anchor="middle" transform="translate(12 {middle:.1f}) rotate(-90)">'
        f"{escaped(y_label)}</text>"
    )
    places = [(left + plot.x(power), top + plot.y(point.y), point) for power, point in spots]
    taken: list[tuple[float, float, float]] = []
    for x, y, point in sorted(places, key=lambda place: (-place[1], place[0])):
        name = shorten(point.label, LONGEST_LABEL)
        size = _CHARACTER * len(name)
        dots = [(other, beside) for other, beside, _ in places if (other, beside) != (x, y)]
        start, line = _label_place(x, y, size, (left, width - right), taken, dots)
        taken.append((start, start + size, line))
        title = f"<title>{escaped(point.detail or point.label)}</title>"
        body.append(f'<g>{title}<circle class="dot single" cx="{x:.1f}" cy="{y:.1f}" r="4"/></g>')
        body.append(_text("legend", start, line, name, "start"))
    return _svg(label, width, height, body)


def _label_place(
    x: float,
    y: float,
    size: float,
    room: tuple[float, float],
    taken: Sequence[tuple[float, float, float]],
    dots: Sequence[tuple[float, float]],
) -> tuple[float, float]:
    """Where the label of a point begins, and its line: beside the point, clear of other labels and points if it can.

    `taken` are the begin, end and line of other labels, `room` the left and right end of the chart.
    """
    best: tuple[int, float, float] | None = None
    for shift in (0, -13, 13, -26, 26):
        for start in (x + 8, x - 12 - size):
            if start < room[0] or start + size > room[1]:
                continue
            line = y + 4 + shift
            hits = sum(abs(line - other) < 13 and start < end and begin < start + size for begin, end, other in taken)
            hits += sum(abs(line - 4 - other) < 9 and start - 5 < dot < start + size + 5 for dot, other in dots)
            if best is None or hits < best[0]:
                best = (hits, start, line)
            if not hits:
                return start, line
    return (x + 8, y + 4) if best is None else best[1:]


def heat_chart(rows: Sequence[str], columns: Sequence[str], values: Sequence[Sequence[float]], *, label: str) -> str:
    """Cells from 0 (empty) to 1 (dark), with a label for each row and column; the values are hover titles."""
    if not rows or not columns:
        return _empty_chart(label, 300, 100)
    names, heads = ([shorten(text, LONGEST_LABEL) for text in side] for side in (rows, columns))
    cell, left = 22.0, 12 + _CHARACTER * max(map(len, names))
    # The page stretches a chart to its card: a small table of cells gets room at both sides instead.
    width = max(620.0, left + cell * len(columns) + 10)
    left += max(0.0, width - left - cell * len(columns) - 10) / 2
    top = 12 + _CHARACTER * max(map(len, heads))
    body = []
    for number, text in enumerate(heads):
        x = left + (number + 0.65) * cell
        body.append(
            f'<text class="tick" text-anchor="start" transform="translate({x:.1f} {top - 6:.1f}) rotate(-90)">'
            f"{escaped(text)}</text>"
        )
    for row, (text, own) in enumerate(zip(names, values, strict=True)):
        y = top + row * cell
        body.append(_text("tick", left - 6, y + 15, text, "end"))
        for column, value in enumerate(own):
            share = min(1.0, max(0.0, finite(value) or 0.0))
            title = f"{rows[row]}, {columns[column]}: {share:.2f}"
            body.append(
                f'<rect class="heat" x="{left + column * cell:.1f}" y="{y:.1f}" width="{cell - 1:.1f}" '
                f'height="{cell - 1:.1f}" fill-opacity="{share:.3f}"><title>{escaped(title)}</title></rect>'
            )
    return _svg(label, width, top + cell * len(rows) + 10, body)


def histogram(
    distributions: Sequence[Distribution],
    *,
    label: str,
    x_label: str,
    x_range: tuple[float, float] | None = None,
    bins: int = 20,
    width: int = 400,
    height: int = 230,
) -> str:
    """Distributions beside each other: in each bin a bar for each, as a share of its values; means as dashed lines.

    Values outside `x_range` count in the bins at the ends; without it, all values fit. A chart without finite values
    shows a note instead.
    """
    known = [[value for value in map(finite, each.values) if value is not None] for each in distributions]
    together = [value for values in known for value in values]
    if not together:
        return _empty_chart(label, width, height)
    ticks = nice_ticks(*(x_range or (min(together), max(together))))
    low, high = ticks[0], ticks[-1]
    shares = [_binned(values, low, high, bins) for values in known]
    y_ticks = nice_ticks(0.0, max(map(max, shares)), 4)
    y_texts = [f"{100 * tick:.3g} %" for tick in y_ticks]
    left, right, top, bottom = 24 + _CHARACTER * max(map(len, y_texts)), 14, 34, 44
    plot = _Plot(left, top, width - left - right, height - top - bottom, (low, high), (0.0, y_ticks[-1]))
    body = [_legend([Series(each.name, [], [], each.mark) for each in distributions], left)]
    for tick, text in zip(y_ticks, y_texts, strict=True):
        y = top + plot.y(tick)
        body.append(f'<line class="grid" x1="{left:.1f}" x2="{width - right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        body.append(_text("tick", left - 7, y + 4, text, "end"))
    span = plot.width / bins
    for place in range(bins):
        start = low + place * (high - low) / bins
        counts = ", ".join(f"{each.name} {share[place]:.1%}" for each, share in zip(distributions, shares, strict=True))
        body.append(f"<g><title>{escaped(f'{short(start)} to {short(start + (high - low) / bins)}: {counts}')}</title>")
        body.append(f'<rect class="hit" x="{left + place * span:.1f}" y="{top}" width="{span:.1f}" '
                    f'height="{plot.height:.1f}"/>')  # fmt: skip
        for number, (each, share) in enumerate(zip(distributions, shares, strict=True)):
            part = (span - 2) / len(distributions)
            y, x = top + plot.y(share[place]), left + place * span + 1 + number * part
            if share[place]:
                body.append(f'<rect class="bar {escape(each.mark)}" x="{x:.1f}" y="{y:.1f}" width="{part:.1f}" '
                            f'height="{top + plot.height - y:.1f}"/>')  # fmt: skip
        body.append("</g>")
    for each, values in zip(distributions, known, strict=True):
        if values:
            mean = sum(values) / len(values)
            x = left + plot.x(min(high, max(low, mean)))
            hover = escaped(f"mean {each.name}: {mean:.4g}")
            body.append(
                f'<g><title>{hover}</title><line class="mean {escape(each.mark)}" x1="{x:.1f}" x2="{x:.1f}" '
                f'y1="{top}" y2="{top + plot.height:.1f}"/></g>'
            )
    floor = top + plot.height
    for tick in ticks:
        body.append(_text("tick", left + plot.x(tick), floor + 17, short(tick), "middle"))
    body.append(f'<line class="axis" x1="{left:.1f}" x2="{width - right}" y1="{floor:.1f}" y2="{floor:.1f}"/>')
    body.append(_text("axis-label", left + plot.width / 2, height - 6, x_label, "middle"))
    return _svg(label, width, height, body)


def _binned(values: Sequence[float], low: float, high: float, bins: int) -> list[float]:
    """The share of the values in each bin; all 0 without values."""
    counts = [0] * bins
    for value in values:
        counts[min(bins - 1, max(0, int((value - low) / (high - low) * bins)))] += 1
    return [count / max(1, len(values)) for count in counts]


def bar_chart(bars: Sequence[Bar], *, label: str, maximum: float | None = None, width: int = 340) -> str:
    """Horizontal bars from zero to `maximum` (without it, the largest value), their values at the right edge.

    A bar with `low` and `high` shows that interval as a whisker.
    """
    top = maximum or max((max(bar.value, bar.high or 0) for bar in bars), default=0) or 1.0
    row, left = 30, 14 + _CHARACTER * max((len(shorten(bar.label, LONGEST_LABEL)) for bar in bars), default=0)
    right = 16 + 1.15 * _CHARACTER * max((len(bar.text) for bar in bars), default=0)
    span, height = max(40.0, width - left - right), row * len(bars) + 8

    def at(value: float) -> float:
        return left + span * min(1.0, max(0.0, value / top))

    body = [
        f'<line class="grid" x1="{at(top * share):.1f}" x2="{at(top * share):.1f}" y1="2" y2="{height - 6}"/>'
        for share in (0.5, 1.0)
    ]
    for index, bar in enumerate(bars):
        y = 4 + index * row
        hover = f"{bar.label}: {bar.text}"
        if bar.low is not None and bar.high is not None:
            hover += f" (95 % interval {100 * bar.low:.1f} to {100 * bar.high:.1f} %)" if top == 1.0 else ""
        body.append(f"<g><title>{escaped(hover)}</title>")
        body.append(_text("row", left - 8, y + 15, shorten(bar.label, LONGEST_LABEL), "end"))
        length = at(bar.value) - left
        if length > 0.5:
            body.append(f'<path class="bar {escape(bar.mark)}" d="{_rounded(left, y, length, 22)}"/>')
        if bar.low is not None and bar.high is not None:
            a, b, middle = at(bar.low), at(bar.high), y + 11
            body.append(
                f'<path class="whisker" d="M{a:.1f} {middle}H{b:.1f}M{a:.1f} {middle - 4}v8M{b:.1f} {middle - 4}v8"/>'
            )
        body.append(_text("value", width - 2, y + 15, bar.text, "end"))
        body.append("</g>")
    body.append(f'<line class="axis" x1="{left:.1f}" x2="{left:.1f}" y1="2" y2="{height - 6}"/>')
    return _svg(label, width, height, body)


def share_chart(parts: Sequence[Slice], *, label: str, width: int = 960, height: int = 46) -> str:
    """One bar divided into slices, in order; slices too narrow for their name show it as a hover text."""
    parts = [part for part in parts if part.value > 0]
    whole, x, body = sum(part.value for part in parts), 0.0, []
    gap = 2.0
    for index, part in enumerate(parts):
        span = part.value / whole * width
        mark = ordered_mark(index, len(parts))
        body.append(f"<g><title>{escaped(f'{part.name}: {part.text} ({part.value / whole:.0%})')}</title>")
        body.append(
            f'<rect class="bar {mark}" x="{x:.1f}" y="0" width="{max(1.0, span - gap):.1f}" height="22" rx="3"/>'
        )
        if span > _CHARACTER * (max(len(part.name), len(part.text)) + 1):
            body.append(_text("row", x + 2, 39, f"{part.name}", "start"))
        body.append("</g>")
        x += span
    return _svg(label, width, height, body)


def ordered_mark(index: int, count: int) -> str:
    """The class of bar `index` of `count` ordered ones, from pale (o1) to strong (o6); the last is always o6."""
    return f"o{6 if count <= 1 else round(6 - (count - 1 - index) * min(1.4, 5 / (count - 1)))}"


def smooth(values: Sequence[float | None], window: int) -> list[float | None]:
    """The centred moving average over about `window` values.

    The window shrinks symmetrically at both ends. Values that are not finite are ignored, and stay None.
    """
    known = [finite(value) for value in values]
    sums, counts = [0.0], [0]
    for value in known:
        sums.append(sums[-1] + (value or 0.0))
        counts.append(counts[-1] + (value is not None))
    smoothed: list[float | None] = []
    for index, value in enumerate(known):
        side = min(max(1, window) // 2, index, len(known) - 1 - index)
        low, high = index - side, index + side + 1
        smoothed.append(None if value is None else (sums[high] - sums[low]) / (counts[high] - counts[low]))
    return smoothed


def thin(x: Sequence[float], y: Sequence[float | None], limit: int) -> tuple[list[float], list[float | None]]:
    """At most about `limit` points that keep the shape: the lowest and the highest of each stretch, first and last.

    A stretch without a finite value keeps one gap. Short lines are returned unchanged.
    """
    if len(x) <= limit:
        return list(x), list(y)
    stretch = math.ceil(2 * len(x) / max(2, limit - 2))
    chosen = {0, len(x) - 1}
    for start in range(0, len(x), stretch):
        known = [(value, i) for i in range(start, min(start + stretch, len(x))) if (value := finite(y[i])) is not None]
        chosen.update((min(known)[1], max(known)[1]) if known else (start,))
    order = sorted(chosen)
    return [x[i] for i in order], [y[i] for i in order]


def robust_range(values: Sequence[float | None], share: float = 0.995) -> tuple[float, float] | None:
    """The range from the lowest value to the `share` quantile, so that spikes do not flatten the rest of the curve.

    All values fit if the highest is not far above. None without finite values.
    """
    known = sorted(value for value in map(finite, values) if value is not None)
    if not known:
        return None
    low, high, top = known[0], known[min(len(known) - 1, int(share * len(known)))], known[-1]
    return (low, top) if top - low <= 1.5 * (high - low) else (low, low + 1.15 * ((high - low) or abs(low) or 1.0))


# The pieces


@dataclass(frozen=True)
class _Plot:
    """The area inside the axes, and the mapping of values to coordinates."""

    left: float
    top: float
    width: float
    height: float
    x_range: tuple[float, float]
    y_range: tuple[float, float]

    def x(self, value: float) -> float:
        low, high = self.x_range
        return (value - low) / (high - low) * self.width

    def y(self, value: float) -> float:
        """The y coordinate of a value, clamped to the neighbourhood of the plot."""
        low, high = self.y_range
        return min(2.0, max(-1.0, (high - value) / (high - low))) * self.height


def _svg(label: str, width: float, height: float, body: Sequence[str]) -> str:
    return (
        f'<svg class="chart" role="img" aria-label="{escaped(label)}" viewBox="0 0 {width:g} {height:g}" '
        f'xmlns="http://www.w3.org/2000/svg">{"".join(body)}</svg>'
    )


def escaped(text: str) -> str:
    """Escape a text for SVG and HTML; unprintable characters become spaces."""
    return escape("".join(c if c.isprintable() or c == "\n" else " " for c in text), quote=True)


def _text(mark: str, x: float, y: float, text: str, anchor: str) -> str:
    return f'<text class="{mark}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escaped(text)}</text>'


def _empty_chart(label: str, width: int, height: int) -> str:
    return _svg(label, width, height, [_text("axis-label", width / 2, height / 2, "nothing to draw", "middle")])


def _only_finite_x(line: Series) -> Series:
    pairs = [(x, y) for x, y in zip(line.x, line.y, strict=False) if finite(x) is not None]
    return Series(line.name, [x for x, _ in pairs], [y for _, y in pairs], line.mark, line.dots)


def _legend(series: Sequence[Series], left: float) -> str:
    items, x = [], left
    for line in series:
        name = escape(line.mark)
        items.append(f'<line class="line {name}" x1="{x:.1f}" x2="{x + 16:.1f}" y1="14" y2="14"/>')
        if line.dots:
            items.append(f'<circle class="dot {name}" cx="{x + 8:.1f}" cy="14" r="3"/>')
        items.append(_text("legend", x + 22, 18, shorten(line.name, 24), "start"))
        x += 22 + _CHARACTER * len(shorten(line.name, 24)) + 18
    return "".join(items)


def _line(line: Series, plot: _Plot) -> str:
    path, dots, pen_down = [], [], False
    for x, value in zip(line.x, line.y, strict=True):
        y = finite(value)
        if y is None:
            pen_down = False
            continue
        place = f"{plot.x(x):.1f} {plot.y(y):.1f}"
        path.append(("L" if pen_down else "M") + place)
        pen_down = True
        if line.dots or len(line.x) == 1:
            cx, cy = place.split()
            dots.append(f'<circle class="dot {escape(line.mark)}" cx="{cx}" cy="{cy}" r="3"/>')
    return f'<path class="line {escape(line.mark)}" d="{"".join(path)}"/>{"".join(dots)}'


def _hover_bands(series: Sequence[Series], plot: _Plot, x_label: str, columns: int) -> str:
    """Invisible bands over the plot; the hover text of each is the last value of every line within it."""
    low, high = plot.x_range
    seen: dict[int, dict[str, tuple[float, float]]] = {}
    for line in series:
        for x, value in zip(line.x, line.y, strict=True):
            y = finite(value)
            if y is not None:
                seen.setdefault(min(columns - 1, int((x - low) / (high - low) * columns)), {})[line.name] = (x, y)
    span = plot.width / columns
    bands = []
    for column, values in sorted(seen.items()):
        title = f"{x_label} {max(x for x, _ in values.values()):,.6g}\n"
        title += "\n".join(f"{name}: {y:.4g}" for name, (_, y) in values.items())
        bands.append(
            f'<rect class="hit" x="{column * span:.1f}" y="0" width="{span:.1f}" height="{plot.height:.1f}">'
            f"<title>{escaped(title)}</title></rect>"
        )
    return "".join(bands)


def _marks(marks: Sequence[Mark], plot: _Plot) -> str:
    """Vertical lines with a flag at the top, inside the axes."""
    drawn = []
    for mark in marks:
        low, high = plot.x_range
        if low <= mark.x <= high:
            x = plot.x(mark.x)
            drawn.append(
                f'<g><title>{escaped(mark.text)}</title><line class="alarm" x1="{x:.1f}" x2="{x:.1f}" y1="0" '
                f'y2="{plot.height:.1f}"/><path class="alarm" d="M{x:.1f} 0h9l-3 4l3 4h-9z"/></g>'
            )
    return "".join(drawn)


def _rounded(x: float, y: float, width: float, height: float) -> str:
    """A bar square at its start and rounded at its end."""
    radius = min(4.0, width)
    return (
        f"M{x:.1f} {y}h{width - radius:.1f}a{radius:g} {radius:g} 0 0 1 {radius:g} {radius:g}"
        f"v{height - 2 * radius:g}a{radius:g} {radius:g} 0 0 1 -{radius:g} {radius:g}H{x:.1f}z"
    )
