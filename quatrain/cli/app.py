"""Builds the command-line application from its verbs."""

from __future__ import annotations

import shutil

from cyclopts import App, Parameter

import quatrain
from quatrain.cli.arguments import mistyped_option
from quatrain.cli.completion import completion_of
from quatrain.core.errors import InputError

LEAST_WIDTH = 20
"""The minimal width of the help; a narrower terminal wraps its lines."""

EPILOGUE = """Start with: quatrain run quickstart

All verbs accept --debug, which shows the traceback of an error. Exit codes: 0 done, 1 failed, 2 wrong input."""

VERBS = """run recipes new check plan sweep tokenize inspect generate chat serve predict evaluate compare label index
ask merge prune export quantize numbers doctor""".split()
"""Each is a function in the file of its name, which is imported when the verb is used."""

GROUPS = {
    "data": (
        "The catalog of named data sets: list it, get one, check a file.",
        {"list": "list_sources", "get": "get_source", "check": "check_data", "curate": "curate", "crawl": "crawl"},
    ),
    "agent": (
        "A model that uses tools: run it on a task, show and replay its runs.",
        {
            **{"run": "run_agent", "show": "show_run", "replay": "replay_run", "serve": "serve_tools"},
            "tools": "list_tools",
        },
    ),
    "prompt": (
        "Prompts: show what a model reads, compare them on a task, search for the best.",
        {"preview": "preview", "compare": "compare", "search": "search"},
    ),
}
"""Verbs of two words: the help of the first, and the functions of the second in the file of the first."""


def build_app() -> App:
    """The application with all its verbs, none of which is imported yet."""
    app = App(
        name="quatrain",
        help="The whole road of a language model: read, learn, adapt, speak.",
        help_epilogue=EPILOGUE,
        help_format="plaintext",
        version=quatrain.__version__,
        default_parameter=Parameter(negative=(), show_default=_show_default),
        suppress_keyboard_interrupt=False,
    )
    if shutil.get_terminal_size().columns < LEAST_WIDTH:
        from rich.console import Console

        app.console = Console(width=LEAST_WIDTH)
    for verb in VERBS:
        app.command(f"quatrain.cli.{verb}:{verb}", name=verb)
    app.command(completion_of(app))
    for group, (about, functions) in GROUPS.items():
        inner = App(name=group, help=about)
        for name, function in functions.items():
            inner.command(f"quatrain.cli.{group}:{function}", name=name)
        app.command(inner)
    return app


def load_listed(app: App, words: list[str]) -> None:
    """Imports the verbs that the help of these words lists, with the first line of each."""
    _, apps, _ = app.parse_commands([word for word in words if not word.startswith("-")])
    if apps[-1].default_command is None:
        for name in apps[-1]:
            apps[-1][name]


def check_words(app: App, words: list[str]) -> None:
    """Raises InputError for a mistyped option of a verb with a text argument, which would be taken for the text."""
    verb = next((word for word in words if not word.startswith("-")), None)
    if verb not in ("generate", "tokenize", "inspect", "predict", "evaluate", "ask"):
        return
    options = {"--help", "-h", "--version"}
    texts: set[str] = set()
    for argument in app[verb].assemble_argument_collection():
        options.update(argument.names)
        if argument.parameter.allow_leading_hyphen:
            texts.update(argument.names)
    problem = mistyped_option(words[words.index(verb) + 1 :], options, texts)
    if problem is not None:
        raise InputError(problem)


def _show_default(value: object) -> str | None:
    """A default value for the help; None, False and empty defaults are not shown."""
    return None if value is None or value is False or value == () else str(value)
