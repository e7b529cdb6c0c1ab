"""Attention maps as a PNG: the heads of all layers in a grid, for a paper or a slide. Needs matplotlib."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from quatrain.core.libraries import require
from quatrain.core.wording import shorten
from quatrain.evaluation.inspection.attention import AttentionMaps

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DPI = 150
HEADER = 50
"""Height of the title in pixels."""
WIDEST = 2400
"""Target width of one row of maps in pixels."""
LABELLED = 12
"""Smallest cell size in pixels at which tokens are written beside the map."""


def attention_picture(maps: Sequence[AttentionMaps], *, title: str) -> bytes:
    """The maps of one text as a PNG, one row per layer and one column per head; tokens are shown if there is room.

    Colours grow with the square root of a weight. Raises InputError if matplotlib is not installed.
    """
    require_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import PowerNorm
    from matplotlib.figure import Figure

    sheets = [_Sheet(each) for each in maps]
    width = max(sheet.left + sheet.across + 130 for sheet in sheets)
    height = HEADER + sum(sheet.top + sheet.down + sheet.below for sheet in sheets)
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    heading = _fitted(title, width, 10)
    figure.text(24 / width, 1 - 38 / height, heading, fontsize=10, fontweight="bold", parse_math=False)
    norm, colours = PowerNorm(0.5, 0, 1), _colours()
    used = HEADER
    for sheet in sheets:
        used += sheet.top
        box = (sheet.left / width, 1 - (used + sheet.down) / height, sheet.across / width, sheet.down / height)
        axes = figure.add_axes(box)
        axes.imshow(sheet.mosaic(), cmap=colours, norm=norm, interpolation="nearest", aspect="auto")
        sheet.label(axes)
        used += sheet.down + sheet.below
    first = sheets[0]
    tall = min(300, first.down)
    bar = figure.add_axes(
        ((first.left + first.across + 30) / width, 1 - (HEADER + first.top + tall) / height, 16 / width, tall / height)
    )
    figure.colorbar(ScalarMappable(norm, colours), cax=bar, ticks=[0, 0.01, 0.1, 0.25, 0.5, 1])
    bar.set_yticklabels(["0", "1 %", "10 %", "25 %", "50 %", "100 %"], fontsize=6)
    data = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # a box stands for it
        figure.savefig(data, format="png", metadata={"Software": "Quatrain"})
    return data.getvalue()


def require_matplotlib() -> None:
    """Raises InputError with installation instructions if matplotlib is missing."""
    with require(
        "The picture of the attention maps",
        "matplotlib",
        "plot",
        ". The HTML page (a folder, or a name that ends in .html) does not need it.",
    ):
        import matplotlib  # noqa: F401


def _colours() -> Any:
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("attention", ["#ffffff", "#a9c3e8", "#2f6fd0", "#0f2f66"])


def _fitted(title: str, width: float, points: float) -> str:
    """A title, truncated to a width in pixels."""
    return shorten(title, max(20, int(width / (points * DPI / 72 * 0.66))))


def _text(maps: AttentionMaps) -> str:
    """The text of the maps, shown if there is no room for tokens beside the maps."""
    texts = dict.fromkeys(" ".join(token.shown for token in each) for each in (maps.queries, maps.keys))
    return " over ".join(texts)


class _Sheet:
    """The layout of the maps of one kind; every cell is a whole number of pixels."""

    def __init__(self, maps: AttentionMaps):
        self.maps = maps
        keys, queries = len(maps.keys), len(maps.queries)
        self.cell = max(1, min(24, WIDEST // (maps.heads * (keys + 1)), 400 // max(keys, queries)))
        self.labelled = self.cell >= LABELLED
        self.gap = max(1, round(8 / self.cell))
        self.tall, self.wide = queries + self.gap, keys + self.gap
        self.across = self.cell * (maps.heads * self.wide - self.gap)
        self.down = self.cell * (maps.layers * self.tall - self.gap)
        self.font = min(9.0, self.cell * 0.9 * 72 / DPI) if self.labelled else 7.0
        pixels = self.font * DPI / 72 * 0.62
        longest = max(len(token.shown[:14]) for token in (*maps.keys, *maps.queries))
        room = int(pixels * longest) if self.labelled else 0
        self.left, self.top, self.below = 100 + room, 84, 30 + room

    def mosaic(self) -> NDArray[np.float32]:
        """All maps as one image of weights, with NaN between them."""
        maps = self.maps
        rows, columns = maps.layers * self.tall - self.gap, maps.heads * self.wide - self.gap
        image = np.full((rows, columns), np.nan, np.float32)
        weights = maps.weights.numpy()
        for layer in range(maps.layers):
            for head in range(maps.heads):
                down, across = layer * self.tall, head * self.wide
                image[down : down + len(maps.queries), across : across + len(maps.keys)] = weights[layer, head]
        return image

    def label(self, axes: Axes) -> None:
        """Draw names of layers and heads, tokens if there is room, and a frame around every map."""
        from matplotlib.collections import PatchCollection
        from matplotlib.patches import Rectangle

        maps, keys, queries = self.maps, len(self.maps.keys), len(self.maps.queries)
        name = maps.name if self.labelled else f"{maps.name}: {_text(maps)}"
        axes.set_title(_fitted(name, self.across, 8), loc="left", fontsize=9, pad=26, parse_math=False)
        axes.set_axis_off()
        corners = [
            (head * self.wide - 0.5, layer * self.tall - 0.5)
            for layer in range(maps.layers)
            for head in range(maps.heads)
        ]
        frames = [Rectangle(corner, keys, queries) for corner in corners]
        edges: dict[str, Any] = {"facecolor": "none", "edgecolor": "#b8b4aa", "linewidth": 0.5}
        axes.add_collection(PatchCollection(frames, clip_on=False, **edges))
        pixel = 1 / self.cell
        for head in range(maps.heads):
            middle = head * self.wide + (keys - 1) / 2
            name = f"{_word('head', self.across, maps.heads)}{head}"
            axes.text(middle, -0.5 - 8 * pixel, name, ha="center", va="bottom", fontsize=7)
        for layer in range(maps.layers):
            middle = layer * self.tall + (queries - 1) / 2
            x = -0.5 - (self.left - 24) * pixel
            axes.text(x, middle, f"layer {layer}", ha="left", va="center", fontsize=7, rotation=0)
        if self.labelled:
            self._name_tokens(axes)

    def _name_tokens(self, axes: Axes) -> None:
        """Write query tokens to the left of every layer, and key tokens under the last one."""
        maps, pixel = self.maps, 1 / self.cell
        style: dict[str, Any] = {"fontsize": self.font, "color": "#44423d", "parse_math": False}
        for layer in range(maps.layers):
            for number, token in enumerate(maps.queries):
                y = layer * self.tall + number
                axes.text(-0.5 - 6 * pixel, y, token.shown[:14], ha="right", va="center_baseline", **style)
        bottom = maps.layers * self.tall - self.gap - 0.5 + 6 * pixel
        for head in range(maps.heads):
            for number, token in enumerate(maps.keys):
                x = head * self.wide + number
                axes.text(x, bottom, token.shown[:14], ha="center", va="top", rotation=90, **style)


def _word(word: str, pixels: int, count: int) -> str:
    return f"{word} " if pixels / count >= 70 else ""
