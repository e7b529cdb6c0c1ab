"""`quatrain agent`: a model that uses tools; its runs are recorded, shown and replayed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from quatrain.cli.arguments import TextArgument, read_text_argument
from quatrain.cli.sampling import SAMPLING_DEFAULTS, SamplingOptions

if TYPE_CHECKING:
    from quatrain.agents.permission import Question

SHOWN = 300
"""Characters of a result that a terminal shows."""


def run_agent(
    model: str,
    task: TextArgument | None = None,
    *,
    tool: tuple[str, ...] = (),
    style: Literal["auto", "tools", "react", "code"] = "auto",
    system: TextArgument = "",
    allow: tuple[str, ...] = (),
    steps: int = 12,
    tokens: int | None = None,
    seconds: float = 600.0,
    money: float | None = None,
    prices: tuple[float, float] = (0.0, 0.0),
    record: Path | None = None,
    sampling: SamplingOptions = SAMPLING_DEFAULTS,
    json_lines: Annotated[bool, Parameter(name="--json")] = False,
    quiet: bool = False,
) -> int:
    """Let a model work on a task with tools, and record every step.

    Parameters
    ----------
    model
        A model folder, run or hub id, or an OpenAI-compatible address such as http://localhost:8000/v1#NAME.
    task
        What to do; - reads standard input. Without a task, tasks are read line by line in one conversation.
    tool
        A tool, as NAME or NAME=VALUE; may be given several times. `quatrain agent tools` lists them.
    style
        How the model calls tools: in its own form (tools), as lines of text (react), or as Python (code).
    system
        A system message of your own.
    allow
        A tool that runs without asking, whatever texts have been read; may be given several times.
    steps
        The most turns of the model.
    tokens
        The most tokens, read and written.
    seconds
        The most seconds of the model and the tools.
    money
        The most money, in the currency of --prices.
    prices
        The prices of a million tokens: read, written.
    record
        Where the record is written; by default agent-DATE.jsonl in the folder `runs/agents`.
    json_lines
        Write each event as one JSON object.
    quiet
        Write the answer alone.
    """
    import sys
    from contextlib import ExitStack

    from quatrain.agents.loop import Agent, AgentSettings
    from quatrain.agents.model import open_chat_model
    from quatrain.agents.permission import Permission
    from quatrain.agents.recorder import Budget
    from quatrain.agents.toolbox import open_tools
    from quatrain.core.errors import InputError

    if style == "code" or "python" in tool:
        _say_what_is_open()
    settings = AgentSettings(style, system, Budget(steps, tokens, seconds, money, prices))
    if task is None and not sys.stdin.isatty():
        raise InputError('No task is given: quatrain agent run MODEL "TASK", or - to read it from standard input.')
    with ExitStack() as stack:
        tools = open_tools(tool, stack)
        opened = open_chat_model(model, _params(model, sampling))
        ask = _asked if sys.stdin.isatty() and not json_lines else None
        agent = Agent(opened, tools, settings, Permission(allow, ask))
        tasks = None if task is None else [read_text_argument(task)]
        return _work(agent, tasks, record, json_lines=json_lines, quiet=quiet)


def _params(model: str, sampling: SamplingOptions) -> Any:
    """The parameters that the options give; None where the model's own apply."""
    given = sampling.given()
    if not given:
        return None
    from quatrain.agents.model import MAX_NEW_TOKENS
    from quatrain.generation.engine import SamplingParams

    return SamplingParams(**{"max_new_tokens": MAX_NEW_TOKENS} | given)


def _work(agent: Any, tasks: list[str] | None, record: Path | None, *, json_lines: bool, quiet: bool) -> int:
    """Run the tasks in one conversation; without tasks, those that are typed. Returns the exit code."""
    import sys
    from datetime import datetime

    from quatrain.agents.recorder import Recorder
    from quatrain.cli.output import show, show_error, show_json, show_text

    conversation, code = None, 0
    path = record or Path("runs", "agents", f"agent-{datetime.now():%Y%m%d-%H%M%S-%f}.jsonl")
    number = 0
    while tasks is None or number < len(tasks):
        if tasks is not None:
            task = tasks[number]
        else:
            try:
                task = input("task> ")
            except EOFError:
                break
            if not task.strip():
                continue
        number += 1
        own = path if number == 1 else path.with_stem(f"{path.stem}-{number}")
        recorder = Recorder(own)
        try:
            watch = show_json if json_lines else None if quiet else _show_event
            outcome = agent.run(task, conversation=conversation, recorder=recorder, watch=watch)
        finally:
            recorder.close()
        conversation, code = outcome.conversation, 0 if outcome.stop in ("answer", "handed_over") else 1
        if outcome.stop == "handed_over" and sys.stdin.isatty():
            tasks = None  # The person answers, and the conversation goes on.
        if not json_lines:
            if outcome.answer is not None:
                show_text(outcome.answer)
            if outcome.stop != "answer":
                show_error(f"Stopped: {STOPS[outcome.stop]}")
            if not quiet:
                show(f"(record: {own})")
    return code


STOPS = {
    "handed_over": "the agent asks you.",
    "repeated_call": "the same call came again and again.",
    "no_answer": "the model wrote nothing that can be read as a call or an answer.",
    "context": "the conversation no longer fits into the model's context.",
    "steps": "the budget of steps is used up (--steps).",
    "tokens": "the budget of tokens is used up (--tokens).",
    "seconds": "the budget of seconds is used up (--seconds).",
    "money": "the budget of money is used up (--money).",
    "cancelled": "cancelled.",
}


def _show_event(event: dict[str, Any]) -> None:
    """A line for people about a call and its result."""
    from quatrain.cli.output import show
    from quatrain.core.wording import shorten

    if event["event"] == "call":
        result = shorten(" ".join(event["result"].split()), SHOWN) or event["decision"]
        show(f"  {event['name']} {shorten(event['arguments'], SHOWN)}\n    → {result}")


def _asked(question: Question) -> bool:
    """Ask the person at the terminal."""
    import json

    from quatrain.cli.output import show

    show(f"\n{question.reason[0].upper()}{question.reason[1:]}.")
    show(f"Run {question.tool.name} {json.dumps(dict(question.arguments), ensure_ascii=False, default=str)}?", end=" ")
    return input("[y/N] ").strip().lower() in ("y", "yes")


def list_tools(*, json_lines: Annotated[bool, Parameter(name="--json")] = False) -> int:
    """List the tools that an agent can be given."""
    from quatrain.agents.toolbox import specs
    from quatrain.cli.output import show_table

    rows = [
        (spec.name if spec.takes is None else f"{spec.name}=VALUE", spec.takes or "", spec.description)
        for spec in specs().values()
    ]
    show_table(("tool", "value", "what it does"), rows, json_lines=json_lines)
    return 0


def _say_what_is_open() -> None:
    """Say what the sandbox cannot enforce on this machine."""
    from quatrain.agents.sandbox import missing_here
    from quatrain.cli.output import show_error

    if missing := missing_here():
        show_error(f"The sandbox does not enforce here: {'; '.join(missing)}.")


def show_run(record: Path, *, page: Path | None = None) -> int:
    """Show a recorded run: the page of all its steps.

    Parameters
    ----------
    record
        The record of a run.
    page
        Where the page is written; by default beside the record, as .html.
    """
    from quatrain.agents.recorder import read_record
    from quatrain.agents.run_page import write_page
    from quatrain.cli.output import show

    recorded = read_record(record)
    place = page or record.with_suffix(".html")
    write_page(recorded, place)
    show(str(place))
    return 0


def replay_run(record: Path, *, quiet: bool = False) -> int:
    """Replay a recorded run: the same steps again, without a model and without running a tool.

    Parameters
    ----------
    record
        The record of a run.
    quiet
        Write nothing if the replay is equal.
    """
    from quatrain.agents.recorder import read_record
    from quatrain.agents.replay import replay
    from quatrain.cli.output import show

    events = replay(read_record(record))
    if not quiet:
        show(f"{len(events)} events, all equal.")
    return 0


def serve_tools(*, tool: tuple[str, ...], allow: tuple[str, ...] = ()) -> int:
    """Serve tools to other programs by the Model Context Protocol, over standard input and output.

    Parameters
    ----------
    tool
        A tool, as NAME or NAME=VALUE; may be given several times. `quatrain agent tools` lists them.
    allow
        A tool that acts and is offered too; may be given several times.
    """
    from contextlib import ExitStack

    from quatrain.agents.mcp import serve
    from quatrain.agents.toolbox import open_tools

    with ExitStack() as stack:
        serve(open_tools(tool, stack), allow=allow)
    return 0
