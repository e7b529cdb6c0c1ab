"""Text arguments: they may begin with a hyphen, and a lone hyphen reads standard input."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

if TYPE_CHECKING:
    from cyclopts.completion import CompletionContext

TextArgument = Annotated[str, Parameter(allow_leading_hyphen=True)]
"""A text argument, which may begin with a hyphen."""


def _recipe_words(context: CompletionContext) -> Iterator[tuple[str, str]]:
    """The shipped recipes and the recipe files that an unfinished word may become, each with what it is."""
    from quatrain.runs.recipe import recipe_names

    yield from ((name, "a shipped recipe") for name in recipe_names())
    folder = context.incomplete.rpartition("/")[0]
    for path in sorted(Path(folder or ".").glob("*.toml")):
        yield (f"{folder}/{path.name}" if folder else path.name), "a file"


RECIPE = Parameter(completer=_recipe_words)
"""An argument that names a shipped recipe, or the file of one."""


def _model_words(context: CompletionContext) -> Iterator[tuple[str, str]]:
    """The runs here that have a model; a shell completes paths itself."""
    yield from ((path.parent.name, "the model of a run") for path in sorted(Path("runs").glob("*/model")))


MODEL = Parameter(completer=_model_words)
"""An argument that names a model."""

_OPTION = re.compile(r"--[A-Za-z][A-Za-z_-]*(=.*)?", re.DOTALL)


def read_text_argument(text: str) -> str:
    """The text of an argument; `-` reads standard input."""
    from quatrain.cli.process import read_input

    return read_input() if text == "-" else text


def mistyped_option(words: list[str], options: set[str], text_options: set[str]) -> str | None:
    """A message for a word that looks like a mistyped option but would be taken for a text; None if there is none.

    `options` are those of the verb, `text_options` those that take a text. Words after `--` are texts.
    """
    words = words[: words.index("--")] if "--" in words else words
    for before, word in zip(["", *words], words, strict=False):
        if not _OPTION.fullmatch(word):
            continue
        name, equals, _ = word.partition("=")
        if name.replace("_", "-") in options:
            if before in text_options and not equals:
                return f"{before} needs a text, but {name} is an option. To use it as the text, write {before}={name}."
            continue
        if before in text_options:
            continue
        if near := difflib.get_close_matches(name, options, n=1, cutoff=0.75):
            return f"Unknown option: {name}. Did you mean {near[0]}? To use it as a text, put -- before it."
    return None


def named_folders(option: str, texts: Sequence[str]) -> dict[str, str]:
    """The folders of an option that takes NAME=FOLDER, by name. Raises InputError with every text that is not so."""
    from quatrain.core.errors import InputError
    from quatrain.core.wording import format_value

    problems = [f"{option} {format_value(text)}" for text in texts if not all(text.partition("="))]
    if problems:
        raise InputError("An adapter is given as NAME=FOLDER:", problems)
    return dict(text.partition("=")[::2] for text in texts)
