"""Single rows of the embedding that learn while the rest is frozen: new tokens, and the marks of a chat template.

A low-rank adapter leaves the embedding as it is. Tokens that pretraining never saw, such as the end of a turn, then
have no direction of their own to be said by: the model may rank the end first and still give it next to no probability.
PEFT's name for it is `trainable_token_indices`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from quatrain.errors import InputError
from quatrain.models.stack import Model

WEIGHT = "embed_tokens.weight"


@dataclass(frozen=True)
class TokenRows:
    """The ids whose rows learn, and the hook that keeps the gradient off all others."""

    ids: tuple[int, ...]
    hook: RemovableHandle


def learn_rows(model: Model, ids: Sequence[int]) -> None:
    """Lets the embedding's rows of these ids learn (the head's too, where it is tied); all others stay, to the bit.

    Raises InputError for ids that the embedding does not have.
    """
    stop_learning_rows(model)
    weight = model.embed_tokens.weight
    wrong = [token for token in ids if not 0 <= token < weight.shape[0]]
    if wrong:
        raise InputError(f"token ids {wrong}: the embedding has rows 0 to {weight.shape[0] - 1}")
    if not ids:
        return
    chosen = torch.zeros(weight.shape[0], 1, device=weight.device)
    chosen[list(ids)] = 1
    weight.requires_grad_(True)
    hook = weight.register_hook(lambda gradient: gradient * chosen.to(gradient))
    model.token_rows = TokenRows(tuple(sorted(set(ids))), hook)  # type: ignore[assignment]


def learned_rows(model: Model) -> tuple[int, ...]:
    """The ids whose rows learn; empty where none was asked for."""
    rows = getattr(model, "token_rows", None)
    return rows.ids if isinstance(rows, TokenRows) else ()


def stop_learning_rows(model: Model) -> None:
    """Ends it: the rows stay as they are now."""
    rows = getattr(model, "token_rows", None)
    if isinstance(rows, TokenRows):
        rows.hook.remove()
        del model.token_rows


@torch.no_grad()
def write_rows(model: Model, ids: Sequence[int], rows: Tensor) -> None:
    """Puts rows (len(ids), hidden_size) into the embedding. Raises InputError where they do not fit."""
    weight = model.embed_tokens.weight
    if rows.shape != (len(ids), weight.shape[1]) or any(not 0 <= token < weight.shape[0] for token in ids):
        raise InputError(f"learned token rows {tuple(rows.shape)} for ids {list(ids)} do not fit {tuple(weight.shape)}")
    weight[list(ids)] = rows.to(weight)
