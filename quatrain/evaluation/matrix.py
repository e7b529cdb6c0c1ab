"""A confusion matrix as SVG: true labels by row, predicted labels by column; darker cells have larger shares."""

from __future__ import annotations

from collections.abc import Sequence

from quatrain.core.wording import shorten
from quatrain.evaluation.charts import escaped

CELL = 30
_CHARACTER = 6.7


def matrix_chart(counts: Sequence[Sequence[int]], labels: Sequence[str], *, label: str) -> str:
    """Draw a matrix of counts; each cell shows its count and has a hover text.

    Like all charts it holds no colors: cells have the classes `cell` and c0 (empty) to c6; the diagonal has `right`.
    """
    names = [shorten(name, 14) for name in labels]
    left = 12 + _CHARACTER * max(map(len, names), default=0)
    size = max(CELL, _CHARACTER * max((len(f"{count:,}") for row in counts for count in row), default=1) + 8)
    top = left * 0.75 + 6  # column names are slanted
    width, height = left + size * len(names) + left * 0.6, top + size * len(names) + 4
    body = []
    for place, name in enumerate(names):
        x, y = left + (place + 0.5) * size, top - 6
        body.append(f'<text class="row" transform="translate({x:.1f} {y:.1f}) rotate(-45)">{escaped(name)}</text>')
    for true, row in enumerate(counts):
        whole, y = sum(row), top + true * size
        body.append(f'<text class="row" x="{left - 8:.1f}" y="{y + size / 2 + 4:.1f}" text-anchor="end">'
                    f"{escaped(names[true])}</text>")  # fmt: skip
        for predicted, count in enumerate(row):
            share = count / whole if whole else 0.0
            mark = f"cell c{0 if not count else max(1, round(6 * share))}" + (" right" if true == predicted else "")
            x = left + predicted * size
            hover = f"{labels[true]}, predicted as {labels[predicted]}: {count:,} of {whole:,}"
            body.append(f"<g><title>{escaped(hover)}</title>")
            side = f'width="{size - 2:.1f}" height="{size - 2:.1f}" rx="3"'
            body.append(f'<rect class="{mark}" x="{x:.1f}" y="{y:.1f}" {side}/>')
            if count:
                strong = " strong" if share > 0.6 else ""
                body.append(f'<text class="count{strong}" x="{x + size / 2 - 1:.1f}" y="{y + size / 2 + 3:.1f}" '
                            f'text-anchor="middle">{count:,}</text>')  # fmt: skip
            body.append("</g>")
    return (
        f'<svg class="chart matrix" viewBox="0 0 {width:.0f} {height:.0f}" role="img" aria-label="{escaped(label)}" '
        f'style="max-width:{width:.0f}px">{"".join(body)}</svg>'
    )
