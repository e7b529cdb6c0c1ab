"""Augmentation: pictures that differ each time they are seen, so that a small set teaches more.

Every draw comes from the generator that is passed in, which belongs to (seed, epoch, example).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

Pixels = np.ndarray
"""(H, W, 3) in float32 from 0 to 255."""
Augmentation = Callable[[Pixels, np.random.Generator], Pixels]

SHIFT = 1 / 8
"""The furthest shift, as a share of a side."""
ERASED = (0.02, 0.2)
"""The share of a picture that `erase` covers (Zhong et al. 2017, arXiv 1708.04896)."""


def flip(pixels: Pixels, draw: np.random.Generator) -> Pixels:
    """Mirrors left and right, every other time. Not for digits and letters."""
    return pixels[:, ::-1] if draw.random() < 0.5 else pixels


def shift(pixels: Pixels, draw: np.random.Generator) -> Pixels:
    """Moves the picture by up to an eighth of its sides; the edge is repeated where it leaves a gap."""
    rows, columns = (max(1, round(side * SHIFT)) for side in pixels.shape[:2])
    padded = np.pad(pixels, ((rows, rows), (columns, columns), (0, 0)), mode="edge")
    top, left = draw.integers(0, 2 * rows + 1), draw.integers(0, 2 * columns + 1)
    return padded[top : top + pixels.shape[0], left : left + pixels.shape[1]]


def brightness(pixels: Pixels, draw: np.random.Generator) -> Pixels:
    """Brightness and contrast within a quarter."""
    factor, offset = 1 + (draw.random() - 0.5) / 2, (draw.random() - 0.5) * 64
    return ((pixels - 127.5) * factor + 127.5 + offset).clip(0, 255)


def erase(pixels: Pixels, draw: np.random.Generator) -> Pixels:
    """Covers a rectangle with its mean colour, every other time."""
    if draw.random() < 0.5:
        return pixels
    height, width = pixels.shape[:2]
    area, ratio = draw.uniform(*ERASED) * height * width, draw.uniform(0.5, 2)
    rows, columns = (max(1, round(side)) for side in ((area * ratio) ** 0.5, (area / ratio) ** 0.5))
    top, left = draw.integers(0, max(1, height - rows)), draw.integers(0, max(1, width - columns))
    pixels = pixels.copy()
    pixels[top : top + rows, left : left + columns] = pixels.mean((0, 1))
    return pixels


AUGMENTATIONS: dict[str, Augmentation] = {"flip": flip, "shift": shift, "brightness": brightness, "erase": erase}
"""The augmentations by the names that recipes have."""


def augmented(pixels: np.ndarray, names: Sequence[str], draw: np.random.Generator) -> Pixels:
    """Pixels (H, W, 3) after the named augmentations, in order."""
    changed = pixels.astype(np.float32)
    for name in names:
        changed = AUGMENTATIONS[name](changed, draw)
    return changed
