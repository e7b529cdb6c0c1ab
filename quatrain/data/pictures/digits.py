"""Handwritten digits, 8x8 pixels: the UCI set that scikit-learn brings along (Alpaydin & Kaynak 1998).

The last fifth is held out: the set is sorted by writer.
"""

from __future__ import annotations

import importlib

from quatrain.core.libraries import require
from quatrain.data.pictures import Picture, PictureSet

HELD = 360


def load(seed: int = 0) -> PictureSet:
    """1,437 digits to learn from, 360 held out. Raises InputError without scikit-learn."""
    with require("digits", "scikit-learn", "classic"):
        datasets = importlib.import_module("sklearn.datasets")
    found = datasets.load_digits()
    pictures = [
        Picture(image / 16, str(label), place=f"digits:{number}")
        for number, (image, label) in enumerate(zip(found.images, found.target, strict=True))
    ]
    return PictureSet(pictures[:-HELD], {"digits": pictures[-HELD:]})
