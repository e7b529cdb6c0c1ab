"""`quatrain run`: runs or resumes a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from quatrain.cli.arguments import RECIPE


def run(
    recipe: Annotated[str | None, RECIPE] = None,
    *overrides: str,
    restart: bool = False,
    reuse: bool = False,
    runs_dir: Path = Path("runs"),
    json_lines: Annotated[bool, Parameter(name="--json")] = False,
    quiet: bool = False,
    list_recipes: Annotated[bool, Parameter(name="--list")] = False,
) -> int:
    """Run a recipe, or resume an interrupted run.

    Parameters
    ----------
    recipe
        The name of a shipped recipe, or the path of a recipe in TOML.
    overrides
        Settings to change, such as seed=1 or stage.pretrain.train.steps=100.
    restart
        Delete an earlier run of this name and start over.
    reuse
        After a change of the recipe: keep finished stages that are still valid, and redo the others.
    runs_dir
        The folder of all runs.
    json_lines
        Write JSON lines, for programs.
    quiet
        Write only errors.
    list_recipes
        List the shipped recipes and stop.
    """
    from quatrain.core.errors import InputError
    from quatrain.core.processes import process_number
    from quatrain.core.progress import create_reporter
    from quatrain.runs.recipe import load, recipe_names

    if list_recipes:
        from quatrain.cli.recipes import recipes

        return recipes(json_lines=json_lines)
    if recipe is None:
        raise InputError(f"run needs a recipe: one of {', '.join(recipe_names())}, or the path of your own")
    if restart and reuse:
        raise InputError("--restart and --reuse: must be at most one of them")
    reporter = create_reporter(json_lines=json_lines, quiet=quiet)
    loaded = load(recipe, overrides, say=reporter.info)
    from quatrain.runs.runner import run as run_recipe

    done = run_recipe(loaded, runs_dir=runs_dir, restart=restart, reuse=reuse, reporter=reporter)
    if json_lines and not process_number()[0]:
        from quatrain.cli.output import show_json

        scores = {result["name"]: result["scores"] for result in done.results if result.get("scores")}
        paths = {"folder": done.folder, "model": done.model, "report": done.report}
        show_json({"event": "finished", "done_before": done.done_before, **paths, "scores": scores})
    return 0
