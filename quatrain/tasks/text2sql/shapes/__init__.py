"""The shapes of questions, over any schema. `SHAPES` lists them all, by name."""

from __future__ import annotations

from quatrain.tasks.text2sql.shapes.base import Combination, Filled, Shape
from quatrain.tasks.text2sql.shapes.groups import GROUPS
from quatrain.tasks.text2sql.shapes.lookups import LOOKUPS
from quatrain.tasks.text2sql.shapes.queries import QUERIES
from quatrain.tasks.text2sql.shapes.ranking import RANKINGS
from quatrain.tasks.text2sql.shapes.relations import RELATIONS

_ALL: tuple[Shape, ...] = (*QUERIES, *LOOKUPS, *RANKINGS, *GROUPS, *RELATIONS)
SHAPES: dict[str, Shape] = {shape.name: shape for shape in _ALL}

__all__ = ["SHAPES", "Combination", "Filled", "Shape"]
