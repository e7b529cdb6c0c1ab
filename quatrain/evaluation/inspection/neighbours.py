"""Nearest neighbours of a token in a model's embedding, by cosine similarity, as for word vectors.

Mikolov et al. 2013 (arXiv 1301.3781).
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from quatrain.core.errors import InputError
from quatrain.core.wording import format_value
from quatrain.evaluation.inspection.tokens import Token, check_ids, token, tokens
from quatrain.models.transformer.stack import Model

if TYPE_CHECKING:
    from quatrain.tokenizers.tokenizer import Tokenizer

ROWS = 8192
"""Embedding rows compared at a time."""
NEAR = 5


@dataclass(frozen=True)
class Neighbour:
    """A token and the cosine similarity of its embedding to that of the query token, from -1 to 1."""

    token: Token
    similarity: float

    def as_dict(self) -> dict[str, Any]:
        return {"id": self.token.id, "text": self.token.text, "similarity": self.similarity}


def find_token(tokenizer: Tokenizer, text: str) -> Token:
    """The token that `text` names: as in the vocabulary, as plain text with or without a leading space, or as #ID.

    Raises InputError with similar tokens, and the tokens of the text, if it names none.
    """
    if not text:
        raise InputError("The token is empty: give its text, or its id, such as #42.")
    exact = tokenizer.token_to_id(text)
    if exact is not None:
        return token(tokenizer, exact)
    pieces: list[int] = []
    for form in (text, f" {text}"):
        try:
            ids = tokenizer.encode(form)
        except InputError:
            continue
        if len(ids) == 1 and ids[0] != tokenizer.unk_id:
            return token(tokenizer, ids[0])
        pieces = pieces or ids
    if re.fullmatch(r"#[0-9]+", text):
        return _by_id(tokenizer, text[1:])
    hints = _hints(tokenizer, text, pieces)
    raise InputError(f"{format_value(text)} is not a token of this vocabulary of {tokenizer.vocab_size:,}.", hints)


def _by_id(tokenizer: Tokenizer, digits: str) -> Token:
    number = digits.lstrip("0") or "0"
    if len(number) > 9 or tokenizer.id_to_token(int(number)) is None:
        raise InputError(f"#{digits[:40]}: no token has this id; ids go from 0 to {tokenizer.vocab_size - 1}.")
    return token(tokenizer, int(number))


def _hints(tokenizer: Tokenizer, text: str, pieces: list[int]) -> list[str]:
    """Hints for an unknown token: the tokens of the text, and tokens with similar spelling."""
    hints = []
    if len(pieces) > 1:
        shown = " ".join(each.shown for each in tokens(tokenizer, pieces[:12])) + (" …" if len(pieces) > 12 else "")
        hints.append(f"it is cut into {len(pieces)} tokens: {shown}; ask for one of them")
    vocabulary = tokenizer.backend.get_vocab(with_added_tokens=True)
    query = text.strip().lower()
    by_text: dict[str, int] = {}
    for written, token_id in sorted(vocabulary.items(), key=lambda item: item[1]):
        bare = written.lstrip("Ġ▁#").lower()
        if abs(len(bare) - len(query)) <= 3:
            by_text.setdefault(bare, token_id)
    near = difflib.get_close_matches(query, by_text, NEAR, cutoff=0.6)
    if near:
        named = (token(tokenizer, by_text[each]) for each in near)
        hints.append("near it: " + ", ".join(f"{each.shown} (#{each.id})" for each in named))
    return [*hints, "a token may also be named by its id, such as #42"]


def neighbours(model: Model, tokenizer: Tokenizer, token_id: int, *, top: int = 10) -> tuple[Neighbour, ...]:
    """The `top` tokens whose input embeddings have the highest cosine similarity to that of `token_id`, nearest first.

    Embedding rows without a token are omitted. Raises InputError for a token outside the model's vocabulary.
    """
    if top < 1:
        raise InputError(f"top: {top}; must be at least 1")
    check_ids([token_id], tokenizer, model.config)
    with torch.no_grad():
        all_ids = torch.arange(model.embed_tokens.num_embeddings, device=model.device)
        query = torch.nn.functional.normalize(model.embed(all_ids[token_id, None]).float(), dim=1)[0]
        similarities = torch.cat(
            [torch.nn.functional.normalize(model.embed(ids).float(), dim=1) @ query for ids in all_ids.split(ROWS)]
        ).cpu()
    similarities[token_id] = -torch.inf
    beyond = [row for row in range(len(similarities)) if tokenizer.id_to_token(row) is None]
    similarities[beyond] = -torch.inf
    values, ids = similarities.topk(min(top, len(similarities)))
    return tuple(
        Neighbour(token(tokenizer, int(each)), value)
        for value, each in zip(values.tolist(), ids, strict=True)
        if value > -torch.inf
    )
