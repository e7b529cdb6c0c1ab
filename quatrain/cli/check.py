"""`quatrain check`: checks a recipe, shows its training data, and measures its memory, time and disk."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from quatrain.cli.arguments import RECIPE

if TYPE_CHECKING:
    from quatrain.runs.preflight import Preflight

WIDTH = 1200
"""Characters of a sample to show."""


def check(
    recipe: Annotated[str, RECIPE],
    *overrides: str,
    toml: bool = False,
    no_measure: bool = False,
    runs_dir: str = "runs",
    json_lines: Annotated[bool, Parameter(name="--json")] = False,
) -> int:
    """Check a recipe before running it: the data and labels of each stage, its memory, time and disk space.

    Samples are shown with what is learned of them in green, or, without colours, between ⟦ and ⟧.

    Parameters
    ----------
    recipe
        The name of a shipped recipe, or the path of a recipe in TOML.
    overrides
        Settings to change, such as seed=1 or stage.pretrain.train.steps=100.
    toml
        Only check the recipe and its files, and print it with all defaults.
    no_measure
        Take no training steps, so do not measure time and memory.
    runs_dir
        The folder of all runs.
    json_lines
        Write one JSON object, for programs.
    """
    from pathlib import Path

    from quatrain.cli.output import show_json, show_text
    from quatrain.core.progress import SilentReporter, create_reporter
    from quatrain.runs.inputs import check_inputs, left_out
    from quatrain.runs.recipe import dumps, load, to_dict

    silent = SilentReporter()
    loaded = load(recipe, overrides, say=(silent if json_lines or toml else create_reporter()).info)
    check_inputs(loaded)
    if toml:
        if json_lines:
            show_json({"recipe": to_dict(loaded)})
        else:
            show_text(dumps(loaded).rstrip())
        return 0
    from quatrain.runs.preflight import preflight

    reporter = silent if json_lines else create_reporter()
    result = preflight(loaded, folder=Path(runs_dir) / loaded.name, measure=not no_measure, reporter=reporter)
    left = left_out(loaded)
    if json_lines:
        show_json({"recipe": to_dict(loaded)} | result.as_dict() | {"left_out": left})
    else:
        _show(result, left)
    return 2 if result.problems else 0


def _show(result: Preflight, left: list[str]) -> None:
    from rich.console import Console
    from rich.text import Text

    from quatrain.cli.output import show
    from quatrain.core.wording import format_bytes, format_duration
    from quatrain.runs.preflight import rows_for_table

    console = Console(highlight=False, soft_wrap=True)
    for stage in result.stages:
        console.print(Text(f"\n{stage.stage}", style="bold"), Text(f"({stage.objective})"))
        for number, sample in enumerate(stage.data.samples, 1):
            console.print(Text(f"  sample {number}", style="bold"), _sample(sample, console.color_system is not None))
        rows = list(rows_for_table(stage))
        width = max(len(name) for name, _ in rows)
        for name, value in rows:
            show(f"  {name:{width}}  {value}")
        for warning in stage.data.warnings:
            show(f"  warning: {warning}")
    show()
    for line in left:
        show(f"warning: {line}")
    for line in result.skipped:
        show(line)
    if result.problems:
        console.print(Text("The run would fail:", style="bold red"))
        for problem in result.problems:
            show(f"  - {problem}")
        return
    time = f"about {format_duration(result.seconds)} of training, " if result.seconds is not None else ""
    free = f" of {format_bytes(result.free)} free" if result.free is not None else ""
    show(f"The recipe is valid: {time}{format_bytes(result.disk)} of disk at most{free}.")


def _sample(parts: list[tuple[str, bool]], colour: bool):  # type: ignore[no-untyped-def]
    """A sample with its labels in green, or in brackets."""
    from rich.text import Text

    from quatrain.core.wording import printable

    text, left = Text(), WIDTH
    for piece, learned in parts:
        excerpt = printable(piece[:left]) + ("…" if len(piece) > left else "")
        left -= len(piece)
        if learned:
            text.append(excerpt if colour else f"⟦{excerpt}⟧", style="green")
        else:
            text.append(excerpt)
        if left <= 0:
            break
    return text
