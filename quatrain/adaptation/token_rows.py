"""Single rows of the embedding that learn while the rest is frozen: new tokens, and the marks of a chat template.

A low-rank adapter leaves the embedding as it is. Tokens that pretraining never saw, such as the end of a turn, then
have no direction of their own to be said by: the model may rank the end first and still give it next to no probability.
Where the head has a matrix of its own, its rows of these tokens learn too. PEFT's name for it is
`trainable_token_indices`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from quatrain.errors import InputError
from quatrain.models.stack import Model

PARTS = ("embed_tokens", "lm_head")
"""What has a row for each token."""


@dataclass(frozen=True)
class TokenRows:
    """The ids whose rows learn, and by the name of each weight the hook that keeps the gradient off all others."""

    ids: tuple[int, ...]
    hooks: dict[str, RemovableHandle]


def learn_rows(model: Model, ids: Sequence[int]) -> None:
    """Lets the rows of these ids learn, the embedding's and those of a head that is not tied; all others stay, to the
    bit. A matrix that learns whole already, or is under an adapter, does so further.

    Raises InputError for ids that the embedding does not have.
    """
    stop_learning_rows(model)
    size = model.embed_tokens.weight.shape[0]
    wrong = [token for token in ids if not 0 <= token < size]
    if wrong:
        raise InputError(f"token ids {wrong}: the embedding has rows 0 to {size - 1}")
    if not ids:
        return
    hooks = {}
    for name, weight in _matrices(model).items():
        if not weight.requires_grad:
            weight.requires_grad_(True)
            hooks[name] = weight.register_hook(_only(list(ids), weight))
    model.token_rows = TokenRows(tuple(sorted(set(ids))), hooks)  # type: ignore[assignment]


def _matrices(model: Model) -> dict[str, nn.Parameter]:
    """The distinct matrices with a row for each token, by name; those under an adapter are left out."""
    own = dict(model.named_parameters())
    return {name: own[name] for part in PARTS if (name := f"{part}.weight") in own}


def _only(ids: list[int], weight: Tensor) -> object:
    chosen = torch.zeros(weight.shape[0], 1, device=weight.device)
    chosen[ids] = 1
    return lambda gradient: gradient * chosen.to(gradient)


def learned_rows(model: Model) -> tuple[int, ...]:
    """The ids whose rows learn; empty where none was asked for."""
    rows = getattr(model, "token_rows", None)
    return rows.ids if isinstance(rows, TokenRows) else ()


def row_weights(model: Model) -> dict[str, nn.Parameter]:
    """The weights of which single rows learn, by name; empty where there are none."""
    rows = getattr(model, "token_rows", None)
    return {name: _matrices(model)[name] for name in rows.hooks} if isinstance(rows, TokenRows) else {}


def stop_learning_rows(model: Model) -> None:
    """Ends it: the rows stay as they are now, and their matrices are frozen."""
    rows = getattr(model, "token_rows", None)
    if isinstance(rows, TokenRows):
        for weight in row_weights(model).values():
            weight.requires_grad_(False)
        for hook in rows.hooks.values():
            hook.remove()
        del model.token_rows


@torch.no_grad()
def write_rows(model: Model, ids: Sequence[int], rows: Mapping[str, Tensor]) -> None:
    """Puts rows (len(ids), hidden_size) into weights by name. Raises InputError where they do not fit."""
    for name, values in rows.items():
        weight = _matrices(model).get(name)
        if (
            weight is None
            or values.shape != (len(ids), weight.shape[1])
            or any(not 0 <= token < weight.shape[0] for token in ids)
        ):
            shape = None if weight is None else tuple(weight.shape)
            raise InputError(f"learned rows {tuple(values.shape)} of {name} for ids {list(ids)} do not fit {shape}")
        weight[list(ids)] = values.to(weight)
