"""Generated shapes in colours that have no name: a star is a star, whatever its colour.

Who has seen red circles and never a red star learns that what is red is no star, and takes one for another shape that
was red. Pictures in any other colour keep the two apart: joined with `shapes`, pairs that never occur stay unseen.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from quatrain.data.pictures import Picture, PictureSet
from quatrain.data.pictures.shapes import COLOURS, SHAPES, draw_picture

NUMBER = 8_000
NEAR = 80.0
"""How far from each named colour, in red, green and blue: the shades of a colour differ by at most 26."""
COLOUR = "odd"
"""What captions call such a colour."""


def load(seed: int = 0) -> PictureSet:
    """8,000 pictures, drawn by `seed`, with the captions "a small odd star"; none is held out."""
    return PictureSet([draw_odd((seed, 3, number)) for number in range(NUMBER)])


def draw_odd(seed: tuple[int, ...]) -> Picture:
    """A picture of a shape in a colour that is none of the named ones."""
    draw = np.random.default_rng((*seed, 1))
    named = np.array(list(COLOURS.values()))
    shade = draw.integers(0, 256, 3)
    while np.linalg.norm(named - shade, axis=1).min() < NEAR:
        shade = draw.integers(0, 256, 3)
    picture = draw_picture(
        seed, [(COLOUR, shape) for shape in SHAPES], shade=(int(shade[0]), int(shade[1]), int(shade[2]))
    )
    return replace(picture, place=f"odd-shapes:{seed[-1]}")
