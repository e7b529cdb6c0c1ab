"""`quatrain tokenize`: the tokens of a text."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter


def tokenize(
    model: Path,
    text: str,
    *,
    special_tokens: bool = False,
    json_lines: Annotated[bool, Parameter(name="--json")] = False,
) -> int:
    """Show how a tokenizer cuts a text.

    Parameters
    ----------
    model
        A model folder, or a tokenizer.json.
    text
        The text; - reads standard input.
    special_tokens
        Add the beginning and end tokens that the tokenizer puts around a text.
    json_lines
        Write one JSON object, for programs.
    """
    import sys

    from quatrain.cli.output import show, show_json, show_table
    from quatrain.text.tokenizer import Tokenizer

    tokenizer = Tokenizer.load(model)
    if text == "-":
        text = sys.stdin.read()
    ids = tokenizer.encode(text, special_tokens=special_tokens)
    tokens = [tokenizer.decode([token_id], skip_special_tokens=False) for token_id in ids]
    if json_lines:
        show_json({"ids": ids, "tokens": tokens})
        return 0
    show_table(["id", "token"], [[token_id, repr(token)[1:-1]] for token_id, token in zip(ids, tokens, strict=True)])
    per_token = f", {len(text) / len(ids):.2f} characters a token" if ids else ""
    show(f"{len(ids):,} tokens{per_token}")
    return 0
