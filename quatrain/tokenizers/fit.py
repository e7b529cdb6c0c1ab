"""Checks that a tokenizer matches a model's embedding, before an id without a row is looked up."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from quatrain.core.errors import InputError

if TYPE_CHECKING:
    from quatrain.tokenizers.tokenizer import Tokenizer

_SHOWN = 5


def check_fits(tokenizer: Tokenizer, vocab_size: int, *, model: str = "the model") -> None:
    """Raise InputError if the tokenizer has ids beyond the `vocab_size` rows of a model's embedding.

    Rows without a token are allowed (embeddings are often padded to a round size). `model` names the model in the
    message, which has both counts, the tokens without a row, and the fix.
    """
    if tokenizer.vocab_size <= vocab_size:
        return
    beyond = range(vocab_size, tokenizer.vocab_size)
    examples = [f"{token!r} ({i:,})" for i in beyond[:_SHOWN] if (token := tokenizer.id_to_token(i)) is not None]
    more = f" and {len(beyond) - len(examples):,} more" if len(beyond) > len(examples) else ""
    raise InputError(
        f"the tokenizer has {tokenizer.vocab_size:,} tokens, the embedding of {model} {vocab_size:,} rows: they "
        f"do not fit. Without a row: {', '.join(examples)}{more}. Use the tokenizer that came with the model"
    )


def check_ids(ids: Iterable[int], vocab_size: int, *, what: str = "the text") -> None:
    """Raise InputError if one of `ids` has no row in an embedding of `vocab_size` rows; `what` names their source."""
    wrong = next(((place, i) for place, i in enumerate(ids) if not 0 <= i < vocab_size), None)
    if wrong is not None:
        raise InputError(
            f"{what}: token {wrong[0]} has id {wrong[1]:,}, the model's embedding rows 0 to {vocab_size - 1:,}; model "
            "and tokenizer do not fit. Use the tokenizer that came with the model"
        )
