"""`--explain`: how sure the model was of each token, and what it would have said instead.

In a terminal the text is coloured by the probability of its tokens, and a table lists the alternatives; in a pipe there
is the table alone.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from quatrain.core.wording import printable

if TYPE_CHECKING:
    from quatrain.generation.engine import Completion, Engine

ALTERNATIVES = 5
"""Tokens that are listed beside each token of the text."""

_SHADES = ((0.9, "\x1b[32m"), (0.5, "\x1b[36m"), (0.2, "\x1b[33m"), (0.05, "\x1b[35m"), (0.0, "\x1b[31m"))
"""The colour of a token of at least this probability: green, cyan, yellow, magenta, red."""

_PLAIN = "\x1b[0m"

LEGEND = "90 % and more, 50 %, 20 %, 5 %, less"


def explanation(engine: Engine, completion: Completion) -> list[dict[str, Any]]:
    """Each token of a completion with its id, text, probability and the most likely tokens at its place.

    The probabilities are the model's own, before temperature and all constraints.
    """
    from quatrain.evaluation.inspection.tokens import token as inspected

    tokenizer: Any = engine.target_tokenizer

    def described(token: int, logprob: float) -> dict[str, Any]:
        return {"id": token, "text": inspected(tokenizer, token).text, "probability": math.exp(logprob)}

    return [
        described(token, logprob) | {"alternatives": [described(other, value) for other, value in top]}
        for token, logprob, top in zip(completion.ids, completion.logprobs, completion.top_logprobs or [], strict=True)
    ]


def show_explanation(engine: Engine, completion: Completion) -> None:
    """Writes the coloured text (in a terminal) and the table of tokens and alternatives."""
    from quatrain.cli.output import show, show_table

    tokens = explanation(engine, completion)
    if coloured():
        for piece in _painted(tokens):
            sys.stdout.write(piece)
        parts = zip((shade for _, shade in _SHADES), LEGEND.split(", "), strict=True)
        shades = ", ".join(f"{shade}{part}{_PLAIN}" for shade, part in parts)
        sys.stdout.write(f"\n\nProbability: {shades}\n")
        sys.stdout.flush()
    rows = [
        [number, _quoted(token["text"]), f"{token['probability']:.1%}", _others(token)]
        for number, token in enumerate(tokens, 1)
    ]
    show()
    show_table(["#", "token", "probability", "alternatives"], rows)


def coloured() -> bool:
    """Whether standard output shows colours: a terminal, and NO_COLOR is not set."""
    import os

    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") not in ("dumb", "unknown")


def _painted(tokens: list[dict[str, Any]]) -> Iterator[str]:
    for token in tokens:
        shade = next(shade for least, shade in _SHADES if token["probability"] >= least)
        yield f"{shade}{printable(token['text'])}{_PLAIN}"


def _others(token: dict[str, Any]) -> str:
    return "  ".join(
        f"{_quoted(other['text'])} {other['probability']:.1%}"
        for other in token["alternatives"]
        if other["id"] != token["id"]
    )


def _quoted(text: str) -> str:
    return printable(text).replace("\n", "\\n").replace("\t", "\\t").replace(" ", "␣") or "(nothing)"
