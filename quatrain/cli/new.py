"""`quatrain new`: three questions, and a recipe to run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

if TYPE_CHECKING:
    from cyclopts.completion import CompletionContext


def _goals(context: CompletionContext) -> Iterator[tuple[str, str]]:
    from quatrain.runs.starters import GOALS

    yield from ((name, goal.purpose) for name, goal in GOALS.items())


def _sizes(context: CompletionContext) -> Iterator[tuple[str, str]]:
    from quatrain.runs.starters import SIZES

    yield from ((name, size.description) for name, size in SIZES.items())


def new(
    file: Path | None = None,
    *,
    goal: Annotated[str | None, Parameter(completer=_goals)] = None,
    data: str | None = None,
    size: Annotated[str | None, Parameter(completer=_sizes)] = None,
    force: bool = False,
    json_lines: Annotated[bool, Parameter(name="--json")] = False,
) -> int:
    """Write a recipe of your own: what for, which data, how large. What no option says is asked.

    Parameters
    ----------
    file
        The file to write; its name without .toml is the name of the run. By default my-GOAL.toml.
    goal
        What the model is for: text, database, classify, tag, answer, translate, summarize, embed, instruct or prefer.
    data
        A file or folder of yours, a name that `quatrain data list` shows, or hf:owner/name; "example" for example data.
    size
        small, medium or large.
    force
        Replace the file if it exists.
    json_lines
        Write one JSON object, for programs; then nothing is asked, and what is left out has its default.
    """
    import shlex

    from quatrain.cli.output import show, show_json
    from quatrain.core.atomic import disk_errors, write_text
    from quatrain.core.errors import InputError
    from quatrain.runs.starters import SIZES, file_name, starter

    if file is not None and file.suffix != ".toml":
        raise InputError(f"{file}: the file of a recipe must end in .toml, such as {file.name or 'my'}.toml")
    if json_lines and goal is None:
        raise InputError("--json asks nothing: it needs --goal")
    _refuse_existing(file, force)  # before the questions
    if json_lines and goal is not None:
        size = size or "medium"
    else:
        goal, data, size = _answers(goal, data, size)
    target = file or file_name(goal)
    _refuse_existing(target, force)
    text = starter(target.stem, goal, data=None if data in (None, "example") else data, size=size)
    with disk_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        write_text(target, text)
    commands = [f"quatrain {verb} {shlex.quote(str(target))}" for verb in ("check", "run")]
    if json_lines:
        show_json({"file": str(target), "goal": goal, "size": size, "next": commands})
        return 0
    width = max(map(len, commands))
    show(f"Wrote {target}: {goal}, {size} ({SIZES[size].description}).\nNext:")
    show(f"  {commands[0]:{width}}  # what each stage trains on, its memory and its time")
    show(f"  {commands[1]:{width}}  # runs it; the same command resumes")
    return 0


def _refuse_existing(file: Path | None, force: bool) -> None:
    """Raises InputError if a file would be overwritten without `--force`."""
    from quatrain.core.errors import InputError

    if file is not None and file.exists() and not force:
        raise InputError(f"{file} exists; name another file, or replace this one with --force")


def _answers(goal: str | None, data: str | None, size: str | None) -> tuple[str, str, str]:
    """The three answers; asks for those that are None, in order."""
    from quatrain.cli.process import typed_lines
    from quatrain.runs.starters import GOALS, SIZES, example_data, starter

    lines = typed_lines()
    if goal is None:
        purposes = {name: each.purpose for name, each in GOALS.items()}
        goal = _chosen("1. What is the model for?", purposes, "text", "--goal", lines)
    shown = example_data(goal)  # refuses an unknown goal before the next question
    if data is None:
        question = f"2. Which data? {GOALS[goal].data}, a catalog name or hf:owner/name"
        data = _answered(question, f"example data: {shown}", "example", "--data", lines, _usable(goal, starter))
    if size is None:
        sizes = {name: each.description for name, each in SIZES.items()}
        size = _chosen("3. How large, and how long?", sizes, "medium", "--size", lines)
    return goal, data, size


def _usable(goal: str, starter: Callable[..., str]) -> Callable[[str], str]:
    """A function that returns the name of usable data and raises InputError for any other."""

    def checked(answer: str) -> str:
        starter("new", goal, data=None if answer == "example" else answer)
        return answer

    return checked


def _chosen(question: str, choices: dict[str, str], default: str, option: str, lines: Iterator[str]) -> str:
    """The name of a choice, answered by its number or its name."""
    from quatrain.core.errors import InputError
    from quatrain.core.settings import did_you_mean
    from quatrain.core.wording import format_value

    names = list(choices)
    width = max(map(len, names))
    listed = "\n".join(f"  {number:2}  {name:{width}}  {choices[name]}" for number, name in enumerate(names, 1))

    def read(answer: str) -> str:
        if answer.isdecimal() and 1 <= int(answer[:9]) <= len(names):
            return names[int(answer) - 1]
        if answer in choices:
            return answer
        near = did_you_mean(answer, names)
        raise InputError(f"{format_value(answer)}: must be a number from 1 to {len(names)}, or a name{near}")

    return _answered(f"{question}\n{listed}", default, default, option, lines, read)


def _answered(
    question: str, shown: str, default: str, option: str, lines: Iterator[str], read: Callable[[str], str]
) -> str:
    """Ask until an answer can be used; an empty one is the default. Raises InputError at the end of the input."""
    from quatrain.cli.output import show
    from quatrain.core.errors import InputError

    show(question)
    while True:
        show(f"[{shown}] ", end="")
        line = next(lines, None)
        if line is None:
            raise InputError(f"no answer to question {question[0]}; type one, or give it with {option}")
        try:
            answer = read(line.strip() or default)
        except InputError as error:
            show(str(error))
            continue
        show()
        return answer
