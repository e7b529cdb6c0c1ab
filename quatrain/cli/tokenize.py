"""`quatrain tokenize`: the tokens of a text."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from quatrain.cli.arguments import TextArgument, read_text_argument


def tokenize(
    model: Path,
    text: TextArgument,
    *,
    pair: TextArgument | None = None,
    special_tokens: bool = False,
    target: bool = False,
    json_lines: Annotated[bool, Parameter(name="--json")] = False,
) -> int:
    """Show the tokens of a text.

    Parameters
    ----------
    model
        A model folder, a run's folder or name, or a tokenizer file: tokenizer.json, vocab.txt, tokenizer.model, …
    text
        The text; - reads standard input.
    pair
        A second text; both are shown as one input with special tokens and token types.
    special_tokens
        Add the special tokens that the tokenizer puts around a text.
    target
        Use the tokenizer of the target language, if the model has two.
    json_lines
        Write one JSON object, for programs.
    """
    from quatrain.cli.output import show, show_json, show_table
    from quatrain.models.run_folder import tokenizer_of_run
    from quatrain.tokenizers.tokenizer import Tokenizer

    tokenizer = Tokenizer.load(tokenizer_of_run(model) or model, target=target)
    text = read_text_argument(text)
    types = None
    if pair is None:
        ids = tokenizer.encode(text, special_tokens=special_tokens)
    else:
        encoded = tokenizer.encode_pair(text, pair)
        ids, types, text = encoded.ids, encoded.token_types, text + pair
    tokens = [tokenizer.token_text(token_id) for token_id in ids]
    if json_lines:
        show_json({"ids": ids, "tokens": tokens} | ({} if types is None else {"token_types": types}))
        return 0
    rows: list[list[object]] = [[token_id, repr(token)[1:-1]] for token_id, token in zip(ids, tokens, strict=True)]
    if types is not None:
        rows = [[token_id, kind, token] for (token_id, token), kind in zip(rows, types, strict=True)]
    show_table(["id", "token"] if types is None else ["id", "type", "token"], rows)
    per_token = f", {len(text) / len(ids):.2f} characters a token" if ids else ""
    show(f"{len(ids):,} tokens{per_token}")
    return 0
