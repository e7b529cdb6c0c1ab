"""Attention maps as one self-contained HTML page: no script, no network request, light and dark themes.

Every map is a small image; a link enlarges it and shows its tokens, with CSS alone. All text is escaped, and a content
security policy forbids scripts as well.
"""

from __future__ import annotations

import base64
import struct
import unicodedata
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from html import escape
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from quatrain.core.wording import shorten
from quatrain.evaluation.inspection.attention import AttentionMaps
from quatrain.evaluation.inspection.tokens import Token

if TYPE_CHECKING:
    from jinja2 import Template

Hover = Callable[[AttentionMaps, int, int], Iterator[str]]

COLOUR = (47, 111, 208)
LEVELS = 64
SEEN = 0.005
"""The smallest weight that a hover text shows."""
MOST_HOVERED = 25_000
"""Most cells (or, beyond that, rows with their largest weights) of a page that have a hover text."""
LEGEND = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0)
FINE = 64
"""Length in tokens from which cells of a small map may be smaller than a pixel, so that pixels are blended."""
LONGEST_LABEL = 18
_CHARACTER = 0.66  # the mean width of a character of the labels, in their font size


def attention_page(maps: Sequence[AttentionMaps], *, title: str) -> str:
    """The page of all maps of one text. Colors follow the square root of a weight, to make small weights visible."""
    cells = sum(int((each.weights >= SEEN).sum()) for each in maps)
    rows = sum(each.layers * each.heads * len(each.queries) for each in maps)
    hover = _hover_cells if cells <= MOST_HOVERED else _hover_rows if rows <= MOST_HOVERED else _no_hover
    parts = [_part(each, hover) for each in maps]
    legend = [{"share": f"{share:.0%}", "opacity": round(share**0.5, 2)} for share in LEGEND]
    texts = {"".join(token.shown for token in each.keys): each.keys for each in maps if each.kind != "cross"}
    return _template().render(title=title, parts=parts, legend=legend, texts=list(texts.values()))


def _part(maps: AttentionMaps, hover: Hover) -> dict[str, Any]:
    """The template data of one kind of maps."""
    cell, font = _sizes(len(maps.queries), len(maps.keys))
    frame = _Frame(maps, cell, font)
    masks = [
        {
            "id": f"{maps.kind}-{layer}-{head}",
            "layer": layer,
            "head": head,
            "habits": _habits(maps, layer, head),
            "large": frame.large(layer, head, hover),
            "strongest": _strongest(maps, layer, head),
            "near": _near(maps, layer, head),
        }
        for layer in range(maps.layers)
        for head in range(maps.heads)
    ]
    return {
        "kind": maps.kind,
        "name": maps.name,
        "defs": "".join(frame.definitions()),
        "layers": [masks[layer * maps.heads : (layer + 1) * maps.heads] for layer in range(maps.layers)],
        "views": masks,
        "heads": maps.heads,
        "fine": max(len(maps.keys), len(maps.queries)) > FINE,
        "columns": _columns(maps.heads, 16),
        "few": _columns(maps.heads, 6),
        "box": f"0 0 {len(maps.keys)} {len(maps.queries)}",
    }


def _habits(maps: AttentionMaps, layer: int, head: int) -> str:
    shares = [f"{share:.0%} on {place}" for place, share in maps.habits(layer, head).items() if share >= SEEN]
    return ", ".join(shares) or "little on the first token or on adjacent ones"


def _columns(heads: int, most: int) -> int:
    """The number of columns for the heads of a layer: one row if at most `most` heads, otherwise full rows."""
    if heads <= most:
        return heads
    even = max(columns for columns in range(1, most + 1) if heads % columns == 0)
    return even if even > most // 2 else most


def _sizes(queries: int, keys: int) -> tuple[int, float]:
    """The cell size of a large map and the font size of its labels, in pixels."""
    longest = max(queries, keys)
    cell = 30 if longest <= 12 else 24 if longest <= 24 else 18 if longest <= 48 else 13
    return cell, 13 if cell >= 18 else 11


class _Frame:
    """Shared by the large maps of one kind: row and column labels, and the origin of the cells."""

    def __init__(self, maps: AttentionMaps, cell: int, font: float):
        self.maps, self.cell, self.font = maps, cell, font
        self.rows = [_label(token) for token in maps.queries]
        self.columns = [_label(token) for token in maps.keys]
        self.left = 10 + font * _CHARACTER * max(map(_width, self.rows))
        self.top = 10 + font * _CHARACTER * max(map(_width, self.columns))
        self.width = self.left + cell * len(self.columns) + 6
        self.height = self.top + cell * len(self.rows) + 6

    def definitions(self) -> Iterator[str]:
        """SVG definitions used by several maps: the images, and the labels of large maps."""
        maps, down, across = self.maps, len(self.rows), len(self.columns)
        for layer in range(maps.layers):
            for head in range(maps.heads):
                data = base64.b64encode(png(maps.weights[layer, head])).decode()
                yield (
                    f'<image id="i-{maps.kind}-{layer}-{head}" width="{across}" height="{down}" '
                    f'preserveAspectRatio="none" href="data:image/png;base64,{data}"/>'
                )
        yield f'<g class="labels" id="labels-{maps.kind}" font-size="{self.font:g}">'
        for number, label in enumerate(self.rows):
            y = self.top + self.cell * (number + 0.5) + self.font * 0.35
            yield f'<text x="{self.left - 6:.1f}" y="{y:.1f}" text-anchor="end">{escape(label)}</text>'
        for number, label in enumerate(self.columns):
            x = self.left + self.cell * (number + 0.5) + self.font * 0.35
            yield f'<text transform="translate({x:.1f} {self.top - 6:.1f}) rotate(-90)">{escape(label)}</text>'
        right, bottom = self.left + self.cell * across, self.top + self.cell * down
        lines = [f"M{self.left:.1f} {self.top + self.cell * n:.1f}H{right:.1f}" for n in range(down + 1)]
        lines += [f"M{self.left + self.cell * n:.1f} {self.top:.1f}V{bottom:.1f}" for n in range(across + 1)]
        yield f'<path class="lines" d="{"".join(lines)}"/></g>'

    def large(self, layer: int, head: int, hover: Hover) -> str:
        """One enlarged map with its labels."""
        kind = self.maps.kind
        place = f'transform="translate({self.left:.1f} {self.top:.1f}) scale({self.cell})"'
        return (
            f'<svg class="large-map" role="img" aria-label="Attention of layer {layer}, head {head}" '
            f'width="{self.width:.0f}" height="{self.height:.0f}" viewBox="0 0 {self.width:.1f} {self.height:.1f}">'
            f'<g class="ink" {place}><use href="#i-{kind}-{layer}-{head}"/></g><use href="#labels-{kind}"/>'
            f'<g class="hit" {place}>{"".join(hover(self.maps, layer, head))}</g></svg>'
        )


def _hover_cells(maps: AttentionMaps, layer: int, head: int) -> Iterator[str]:
    weights = maps.weights[layer, head]
    for row, column in (weights >= SEEN).nonzero().tolist():
        hover_text = f"{maps.queries[row].shown} → {maps.keys[column].shown}: {float(weights[row, column]):.1%}"
        yield f'<path d="M{column} {row}h1v1h-1z"><title>{escape(hover_text)}</title></path>'


def _hover_rows(maps: AttentionMaps, layer: int, head: int) -> Iterator[str]:
    values, places = maps.weights[layer, head].topk(min(5, len(maps.keys)))
    for row, query in enumerate(maps.queries):
        links = [
            f"{maps.keys[place].shown} {share:.1%}"
            for share, place in zip(values[row].tolist(), places[row].tolist(), strict=True)
            if share >= SEEN
        ]
        hover_text = f"{query.shown} → {', '.join(links)}"
        yield f'<path d="M0 {row}h{len(maps.keys)}v1h-{len(maps.keys)}z"><title>{escape(hover_text)}</title></path>'


def _no_hover(maps: AttentionMaps, layer: int, head: int) -> Iterator[str]:
    return iter(())


def _strongest(maps: AttentionMaps, layer: int, head: int, count: int = 6) -> list[dict[str, str]]:
    """The largest weights of a head, without those on the first token, where many heads rest."""
    weights = maps.weights[layer, head][:, 1:] if len(maps.keys) > 1 else maps.weights[layer, head]
    skipped = len(maps.keys) - weights.shape[1]
    values, places = weights.flatten().topk(min(count, weights.numel()))
    entries = []
    for share, place in zip(values.tolist(), places.tolist(), strict=True):
        row, column = divmod(place, weights.shape[1])
        query, key = maps.queries[row], maps.keys[column + skipped]
        if share >= SEEN:
            entries.append({"query": _label(query), "key": _label(key), "share": f"{share:.0%}"})
    return entries


def _near(maps: AttentionMaps, layer: int, head: int) -> list[dict[str, str]]:
    """Links to the adjacent heads and layers."""
    entries = []
    places = {
        "← head": (layer, head - 1), "head →": (layer, head + 1),
        "↑ layer": (layer - 1, head), "↓ layer": (layer + 1, head),
    }  # fmt: skip
    for words, (row, column) in places.items():
        there = 0 <= row < maps.layers and 0 <= column < maps.heads
        entries.append({"words": words, "id": f"{maps.kind}-{row}-{column}" if there else ""})
    return entries


def _label(token: Token) -> str:
    return shorten(token.shown, LONGEST_LABEL)


def _width(label: str) -> float:
    """The width of a label in characters; East Asian characters are wide."""
    return sum(1.75 if unicodedata.east_asian_width(c) in "WF" else 1.0 for c in label)


def png(weights: Tensor) -> bytes:
    """Weights (T, S) as a PNG of one color, one pixel per weight; the opacity is the square root of the weight."""
    shades = (weights.clamp(0, 1).sqrt() * (LEVELS - 1)).round().to(torch.uint8).numpy()
    height, width = shades.shape
    lines = np.concatenate([np.zeros((height, 1), np.uint8), shades], axis=1).tobytes()
    alphas = bytes(round(255 * level / (LEVELS - 1)) for level in range(LEVELS))
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)),
        (b"PLTE", bytes(COLOUR) * LEVELS),
        (b"tRNS", alphas),
        (b"IDAT", zlib.compress(lines, 9)),
        (b"IEND", b""),
    ]
    packed = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


@cache
def _template() -> Template:
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    here = files("quatrain.evaluation.inspection")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.globals["style"] = Markup((here / "style.css").read_text(encoding="utf-8"))
    return environment.from_string((here / "attention.html.jinja").read_text(encoding="utf-8"))
