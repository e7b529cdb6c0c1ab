"""`quatrain label`: two answers of a model side by side, a person's choice, a file that the dpo stage reads."""

from __future__ import annotations

import contextlib
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from quatrain.cli.arguments import MODEL
from quatrain.cli.sampling import MODEL_DEFAULTS, SAMPLING_DEFAULTS, ModelOptions, SamplingOptions

if TYPE_CHECKING:
    from quatrain.alignment.labelling import Comparison, Session
    from quatrain.generation.engine import Engine

MAX_NEW_TOKENS = 256
"""The most tokens of an answer where neither an option nor the model's settings say it."""

TEMPERATURE = 0.8
"""The temperature of the answers where neither an option nor the model's settings say it."""

KEYS = {"a": "a", "1": "a", "b": "b", "2": "b", "t": "tie", "n": "both_bad", "s": "skip"}
"""What is typed for each choice."""

HELP = "a or b: the better answer   t: tie   n: neither is good   s: skip   u: undo   q: quit"
WIDTH = 100
"""The width of the two answers where the output is no terminal."""


def label(
    model: Annotated[str, MODEL],
    *,
    prompts: str | None = None,
    out: Path = Path("preferences.jsonl"),
    rater: str = "",
    sampling: SamplingOptions = SAMPLING_DEFAULTS,
    loading: ModelOptions = MODEL_DEFAULTS,
    json_lines: Annotated[bool, Parameter(name="--json")] = False,
    page: bool = False,
    port: int = 8000,
) -> int:
    """Choose the better of two answers of a model, side by side; the choices are preferences to learn from.

    Each choice is written at once, so a session that was stopped goes on where it was. Another rater (--rater) sees the
    same answers, and the agreement of both is shown. Learn from the file with `data.preferences=FILE` and a dpo stage.

    Parameters
    ----------
    model
        A model folder, a run's folder or name, or an id of the Hugging Face hub.
    prompts
        A file of prompts, chats or preferences, or a catalog name. Without it, type the prompts.
    out
        The file of choices, JSON lines. An existing file is continued.
    rater
        Your name, if several people label.
    json_lines
        Write the counts and the agreement as one JSON object on the last line, for programs.
    page
        Label in a browser, at the address that is shown, until Ctrl-C.
    port
        The port of the page; 0 takes a free one.
    """
    from quatrain.alignment.labelling import Session, prompts_of, read_choices, sampled_answers

    given = [] if prompts is None else prompts_of(prompts)
    if prompts is None:
        own = {row["number"]: row["prompt"] for row in read_choices(out) if isinstance(row.get("number"), int)}
        # A prompt keeps its number; the ones between whose answers were the same are in no row.
        given = [own.get(number, []) for number in range(max(own, default=-1) + 1)]

    def session_of(engine: Engine) -> Session:
        more: dict[str, Any] = {"temperature": TEMPERATURE} if not engine.recommended.temperature else {}
        params = sampling.params(engine, max_new_tokens=MAX_NEW_TOKENS, **{**more, **_given_temperature(sampling)})
        answers = sampled_answers(engine, params, adapter=loading.adapter)
        return Session(out, given, answers, rater=rater, model=model, seed=params.seed or 0)

    if page:
        session = _labelled_in_browser(session_of, model, loading, port, typed=prompts is None)
    else:
        session = session_of(loading.load(model))
        _run(session, typed=prompts is None)
    if session is not None:
        _report(session, json_lines=json_lines)
    return 0


def _labelled_in_browser(
    session_of: Callable[[Engine], Session], model: str, loading: ModelOptions, port: int, *, typed: bool
) -> Session | None:
    """Serve the page until Ctrl-C; the session, None if nobody has opened the page."""
    from quatrain.cli.output import show
    from quatrain.cli.serve import server_of
    from quatrain.serving.labels import Labelling
    from quatrain.serving.settings import ServerSettings

    server = server_of((model,), loading.adapters, ServerSettings(port=port), loading)
    server.service.labelling = Labelling(session_of, typed=typed)
    show(f"Label at {server.address}/label  (Ctrl-C stops)")
    with contextlib.suppress(KeyboardInterrupt):
        server.run()
    return server.service.labelling.session


def _given_temperature(sampling: SamplingOptions) -> dict[str, float]:
    return {} if sampling.temperature is None else {"temperature": sampling.temperature}


def _run(session: Session, *, typed: bool) -> None:
    """Ask until the prompts or the input end, or the rater leaves."""
    from quatrain.cli.output import show
    from quatrain.cli.process import typed_lines

    lines = typed_lines()
    show(HELP)
    while True:
        shown = session.next()
        if shown is None and (not typed or not _asked(session, lines)):
            break
        if shown is not None:
            show_comparison(shown, f"{len(session.prompts) - session.remaining + 1} of {len(session.prompts)}")
            if not _chosen(session, lines):
                break


def _asked(session: Session, lines: Iterator[str]) -> bool:
    """Take a prompt that the rater types, or undo; False at the end of the input."""
    from quatrain.cli.output import show

    show("prompt (empty to quit): ", end="")
    text = next(lines, "").strip()
    if text == "u":
        _undo(session)
    elif text:
        session.add_prompt([{"role": "user", "content": text}])
    return bool(text)


def _chosen(session: Session, lines: Iterator[str]) -> bool:
    """Read until a choice is made or undone; False if the rater leaves."""
    from quatrain.cli.output import show

    while True:
        show("better [a/b/t/n/s/u/q]: ", end="")
        key = next(lines, "q").strip().lower()
        if key in ("q", "quit", "/quit"):
            return False
        if key == "u":
            return _undo(session)
        if key in KEYS:
            session.choose(KEYS[key])
            return True
        show(HELP)


def _undo(session: Session) -> bool:
    from quatrain.cli.output import show

    row = session.undo()
    show("There is no choice to take back." if row is None else f"Taken back: {row['choice']}.")
    return True


def show_comparison(shown: Comparison, place: str) -> None:
    """Write a prompt, and the two answers side by side."""
    from quatrain.alignment.labelling import shown_prompt
    from quatrain.cli.output import show

    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else WIDTH
    show(f"\n── {place} " + "─" * max(0, width - len(place) - 4))
    show(shown_prompt(shown.prompt) + "\n")
    show("\n".join(side_by_side(shown.answers, width)))


def side_by_side(answers: tuple[str, str], width: int) -> list[str]:
    """The lines of two texts in columns named A and B, or below each other in less than 40 columns."""
    from rich.cells import set_cell_size

    from quatrain.core.wording import printable

    column = (width - 3) // 2 if width >= 40 else width
    texts = [
        [f"{name}", "─" * column, *_wrapped(printable(text), column)] for name, text in zip("AB", answers, strict=True)
    ]
    if width < 40:
        return [*texts[0], "", *texts[1]]
    height = max(map(len, texts))
    left, right = (text + [""] * (height - len(text)) for text in texts)
    return [f"{set_cell_size(a, column)} │ {b}".rstrip() for a, b in zip(left, right, strict=True)]


def _wrapped(text: str, width: int) -> list[str]:
    lines = (
        textwrap.wrap(line, max(1, width), replace_whitespace=False) or [""] for line in text.expandtabs(4).split("\n")
    )
    return [part for line in lines for part in line] or ["(empty)"]


def _report(session: Session, *, json_lines: bool) -> None:
    """The counts of the choices, and the agreement with other raters."""
    from dataclasses import asdict

    from quatrain.cli.output import show, show_json

    found = session.agreements()
    if json_lines:
        show()
        show_json({
            "out": str(session.path), "rater": session.rater, "choices": session.done, "remaining": session.remaining,
            "identical": session.identical, "agreement": [asdict(each) for each in found],
        })  # fmt: skip
        return
    counts = ", ".join(f"{name} {count}" for name, count in session.done.items()) or "no choice"
    show(f"\n{session.path}: {counts}")
    if session.identical:
        show(f"{session.identical} prompts were passed over: both answers were the same.")
    for each in found:
        kappa = "no kappa: one choice throughout" if each.kappa is None else f"Cohen's kappa {each.kappa:.2f}"
        names = " and ".join(name or "(no name)" for name in (each.first, each.second))
        show(f"{names} agree on {each.raw:.0%} of {each.count} pairs, {kappa}")
