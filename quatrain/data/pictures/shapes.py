"""Generated pictures of one shape each, with a caption and questions: what size, colour and shape, and on which side.

Some pairs of colour and shape never occur in the training pictures, though their colours and their shapes do: who
reads them has learned what the words mean, not which captions there are.
"""

from __future__ import annotations

import importlib
import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from quatrain.data.images import pillow
from quatrain.data.pictures import Picture, PictureSet, Question

COLOURS = {
    "red": (215, 40, 40), "green": (50, 165, 60), "blue": (45, 80, 215), "yellow": (235, 215, 50),
    "purple": (140, 50, 175), "orange": (240, 140, 30), "cyan": (60, 200, 215), "pink": (245, 140, 190),
}  # fmt: skip
SHAPES = ("circle", "square", "triangle", "diamond", "cross", "ring", "star", "bar")
SIZES = {"small": (5.0, 6.5), "large": (9.0, 11.5)}
"""Half the width in pixels, from and to."""
SIDE, FINE = 32, 4
"""Pixels of a side, and how much finer they are drawn before they are averaged."""
TRAIN, HELD = 8_000, 480

UNSEEN = frozenset(
    (colour, SHAPES[(place + shift) % len(SHAPES)]) for place, colour in enumerate(COLOURS) for shift in (0, 3)
)
"""A quarter of the pairs of colour and shape, each colour and each shape twice."""
PAIRS = tuple(itertools.product(COLOURS, SHAPES))


def load(seed: int = 0) -> PictureSet:
    """8,000 pictures of 48 pairs, and 480 each of these pairs and of the 16 that are never learned, drawn by `seed`."""
    seen, unseen = ([pair for pair in PAIRS if (pair in UNSEEN) == held] for held in (False, True))
    train = [draw_picture((seed, 0, number), seen) for number in range(TRAIN)]
    known = [draw_picture((seed, 1, number), seen) for number in range(HELD)]
    new = [draw_picture((seed, 2, number), unseen) for number in range(HELD)]
    return PictureSet(train, {"combinations never seen": new, "combinations seen": known})


def captions() -> list[str]:
    """Every caption, those of unseen pairs among them."""
    return [caption(size, colour, shape) for size in SIZES for colour, shape in PAIRS]


def caption(size: str, colour: str, shape: str) -> str:
    """The caption of a picture."""
    return f"a {size} {colour} {shape}"


def draw_picture(
    seed: tuple[int, ...], pairs: Sequence[tuple[str, str]], *, shade: tuple[int, int, int] | None = None
) -> Picture:
    """A picture of one of these pairs of colour and shape; everything in it follows from `seed`.

    `shade` is the red, green and blue of a colour that has no name in `COLOURS`.
    """
    draw = np.random.default_rng(seed)
    colour, shape = pairs[int(draw.integers(len(pairs)))]
    size = list(SIZES)[draw.integers(len(SIZES))]
    radius = draw.uniform(*SIZES[size])
    side = "left" if draw.random() < 0.5 else "right"
    offset = draw.uniform(1.5, max(1.6, SIDE / 2 - radius - 0.5))
    centre = (SIDE / 2 + (offset if side == "right" else -offset), draw.uniform(radius + 1, SIDE - radius - 1))
    questions = tuple(
        Question(text, answer, kind)
        for text, answer, kind in (("what colour is it?", colour, "colour"), ("what shape is it?", shape, "shape"),
                                   ("what size is it?", size, "size"), ("where is it?", side, "position"))
    )  # fmt: skip
    pixels = _paint(draw, shape, COLOURS[colour] if shade is None else shade, centre, radius)
    parts = (f"a {colour} shape", f"a {shape}", f"a {size} shape", f"a {colour} {shape}", f"a {size} {shape}",
             f"a {size} {colour} shape")  # fmt: skip
    whole = caption(size, colour, shape)
    return Picture(pixels, shape, whole, parts, questions, place=f"shapes:{seed[-1]}")


def _paint(
    draw: np.random.Generator, shape: str, colour: tuple[int, int, int], centre: tuple[float, float], radius: float
) -> np.ndarray:
    """The pixels (32, 32, 3): a shape in a shade of its colour on a grey, noisy ground."""
    ground = int(draw.integers(70, 200))
    return finished(draw, shape_on(blank(ground), draw, shape, colour, centre, radius))


def blank(ground: int) -> Any:
    """A canvas of one grey, finer than the picture."""
    image: Any = pillow()
    return image.new("RGB", (SIDE * FINE, SIDE * FINE), (ground, ground, ground))


def finished(draw: np.random.Generator, canvas: Any) -> np.ndarray:
    """The pixels (32, 32, 3) of a canvas, with noise."""
    image: Any = pillow()
    pixels = np.asarray(canvas.resize((SIDE, SIDE), image.Resampling.BOX)).astype(np.float32)
    return (pixels + draw.normal(0, 6, pixels.shape)).clip(0, 255).astype(np.uint8)


def shape_on(
    canvas: Any,
    draw: np.random.Generator,
    shape: str,
    colour: tuple[int, int, int],
    centre: tuple[float, float],
    radius: float,
) -> Any:
    """The canvas with a shape on it in a shade of its colour, turned a little; `centre` and `radius` in pixels."""
    drawing: Any = importlib.import_module("PIL.ImageDraw")
    shade = tuple(int(np.clip(part + draw.integers(-15, 16), 0, 255)) for part in colour)
    pen = drawing.Draw(canvas)
    (x, y), r = (part * FINE for part in centre), radius * FINE
    angle = draw.uniform(-0.2, 0.2)

    def turned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
        cos, sin = math.cos(angle), math.sin(angle)
        return [(x + r * (cos * a - sin * b), y + r * (sin * a + cos * b)) for a, b in points]

    if shape == "circle":
        pen.ellipse((x - r, y - r, x + r, y + r), fill=shade)
    elif shape == "ring":
        pen.ellipse((x - r, y - r, x + r, y + r), outline=shade, width=max(1, round(r * 0.35)))
    else:
        for points in OUTLINES[shape]:
            pen.polygon(turned(points), fill=shade)
    return canvas


_STAR = [
    ((1.0 if number % 2 == 0 else 0.42) * math.sin(number * math.pi / 5),
     -(1.0 if number % 2 == 0 else 0.42) * math.cos(number * math.pi / 5))
    for number in range(10)
]  # fmt: skip
OUTLINES: dict[str, list[list[tuple[float, float]]]] = {
    "square": [[(-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)]],
    "triangle": [[(0.0, -1.0), (0.95, 0.75), (-0.95, 0.75)]],
    "diamond": [[(0.0, -1.0), (0.7, 0.0), (0.0, 1.0), (-0.7, 0.0)]],
    "cross": [[(-0.3, -1), (0.3, -1), (0.3, 1), (-0.3, 1)], [(-1, -0.3), (1, -0.3), (1, 0.3), (-1, 0.3)]],
    "star": [_STAR],
    "bar": [[(-1.0, -0.32), (1.0, -0.32), (1.0, 0.32), (-1.0, 0.32)]],
}
"""Polygons within a square from -1 to 1."""
