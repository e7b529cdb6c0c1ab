"""`quatrain check`: whether a recipe is right, and what it comes to, before it costs anything."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter


def check(recipe: str, *overrides: str, json_lines: Annotated[bool, Parameter(name="--json")] = False) -> int:
    """Check a recipe and the files that it names, and print it with every default filled in.

    Parameters
    ----------
    recipe
        The name of a shipped recipe, or the path of a recipe in TOML.
    overrides
        Settings to change, such as seed=1 or stage.pretrain.train.steps=100.
    json_lines
        Write one JSON object, for programs.
    """
    from quatrain.cli.output import show, show_json
    from quatrain.inputs import check_inputs
    from quatrain.planning.counts import parameters as count_parameters
    from quatrain.recipe import dumps, load, to_dict

    loaded = load(recipe, overrides)
    check_inputs(loaded)
    parameters = None
    if loaded.model.folder is None:
        parameters = count_parameters(loaded.model.config(loaded.tokenizer.vocab_size))
    if json_lines:
        show_json({"recipe": to_dict(loaded), "parameters": parameters})
        return 0
    show(dumps(loaded).rstrip())
    show()
    if parameters is not None:
        vocabulary = "at most " if loaded.tokenizer.kind in ("char", "word") else ""
        show(f"# The recipe is right. Its model has {vocabulary}{parameters:,} parameters.")
    else:
        show(f"# The recipe is right. It starts from the model in {loaded.model.folder}.")
    return 0
