"""Builds the command-line application from its verbs."""

from __future__ import annotations

import shutil

from cyclopts import App, Parameter

import quatrain
from quatrain.cli.agent import list_tools, replay_run, run_agent, serve_tools, show_run
from quatrain.cli.arguments import mistyped_option
from quatrain.cli.ask import ask
from quatrain.cli.chat import chat
from quatrain.cli.check import check
from quatrain.cli.compare import compare
from quatrain.cli.completion import completion_of
from quatrain.cli.data import check_data, crawl, curate, get_source, list_sources
from quatrain.cli.doctor import doctor
from quatrain.cli.evaluate import evaluate
from quatrain.cli.export import export
from quatrain.cli.generate import generate
from quatrain.cli.index import index
from quatrain.cli.inspect import inspect
from quatrain.cli.label import label
from quatrain.cli.merge import merge
from quatrain.cli.new import new
from quatrain.cli.numbers import numbers
from quatrain.cli.plan import plan
from quatrain.cli.predict import predict
from quatrain.cli.prompt import compare as compare_prompts
from quatrain.cli.prompt import preview as preview_prompt
from quatrain.cli.prompt import search as search_prompt
from quatrain.cli.prune import prune
from quatrain.cli.quantize import quantize
from quatrain.cli.recipes import recipes
from quatrain.cli.run import run
from quatrain.cli.serve import serve
from quatrain.cli.sweep import sweep
from quatrain.cli.tokenize import tokenize
from quatrain.core.errors import InputError

LEAST_WIDTH = 20
"""The minimal width of the help; a narrower terminal wraps its lines."""

EPILOGUE = """Start with: quatrain run quickstart

All verbs accept --debug, which shows the traceback of an error. Exit codes: 0 done, 1 failed, 2 wrong input."""


def build_app() -> App:
    """The application with all its verbs."""
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
    for verb in (
        run,
        recipes,
        new,
        check,
        plan,
        sweep,
        tokenize,
        inspect,
        generate,
        chat,
        serve,
        predict,
        evaluate,
        compare,
        label,
        index,
        ask,
        merge,
        prune,
        export,
        quantize,
        numbers,
        doctor,
        completion_of(app),
    ):
        app.command(verb)
    data = App(name="data", help="The catalog of named data sets: list it, get one, check a file.")
    data.command(list_sources, name="list")
    data.command(get_source, name="get")
    data.command(check_data, name="check")
    data.command(curate)
    data.command(crawl)
    app.command(data)
    agent = App(name="agent", help="A model that uses tools: run it on a task, show and replay its runs.")
    agent.command(run_agent, name="run")
    agent.command(show_run, name="show")
    agent.command(replay_run, name="replay")
    agent.command(serve_tools, name="serve")
    agent.command(list_tools, name="tools")
    app.command(agent)
    prompt = App(name="prompt", help="Prompts: show what a model reads, compare them on a task, search for the best.")
    prompt.command(preview_prompt, name="preview")
    prompt.command(compare_prompts, name="compare")
    prompt.command(search_prompt, name="search")
    app.command(prompt)
    return app


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
