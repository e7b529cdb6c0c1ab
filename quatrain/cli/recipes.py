"""`quatrain recipes`: the recipes that ship with the package."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter


def recipes(*, json_lines: Annotated[bool, Parameter(name="--json")] = False) -> int:
    """List the shipped recipes.

    Parameters
    ----------
    json_lines
        Write JSON lines, for programs.
    """
    from quatrain.cli.output import show_table
    from quatrain.runs.recipe import load, recipe_names

    loaded = [load(name) for name in recipe_names()]
    rows = [[recipe.name, " > ".join(stage.kind for stage in recipe.stage), recipe.description] for recipe in loaded]
    show_table(["name", "stages", "description"], rows, json_lines=json_lines)
    return 0
