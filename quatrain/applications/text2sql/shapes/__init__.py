"""The shapes of questions, over any schema. `SHAPES` lists them all, by name."""

from __future__ import annotations

from quatrain.applications.text2sql.shapes.base import Combination, Filled, Shape
from quatrain.applications.text2sql.shapes.queries import QUERIES

SHAPES: dict[str, Shape] = {shape.name: shape for shape in QUERIES}

__all__ = ["SHAPES", "Combination", "Filled", "Shape"]
