"""Trains single rows of a frozen embedding: new tokens, and the special tokens of a chat template.

A low-rank adapter does not change the embedding. A token that pre-training never saw, such as the end of a turn, then
keeps its random row, and the model can hardly predict it. If the head is not tied, its rows of these tokens train too.
Only the rows have a gradient and optimizer states (`quatrain.models.transformer.trainable_tokens`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from quatrain.core.errors import InputError
from quatrain.models.transformer.stack import Model
from quatrain.models.transformer.trainable_tokens import PARTS, TokenRows


def train_tokens(model: Model, ids: Sequence[int]) -> None:
    """Makes the rows of these ids trainable, in the embedding and in a head that is not tied; no other row changes.

    A matrix that is trained in full, or is under an adapter, stays so. Raises InputError for ids beyond the embedding.
    """
    merge_token_rows(model)
    size = model.embed_tokens.weight.shape[0]
    wrong = [token for token in ids if not 0 <= token < size]
    if wrong:
        raise InputError(f"token ids {wrong}: the embedding has rows 0 to {size - 1}")
    rows = sorted(set(ids))
    frozen = {part: matrix[rows] for part, matrix in _matrices(model).items() if not matrix.requires_grad}
    if rows and frozen:
        model.trainable_tokens = make_token_rows(model, rows, frozen)


def make_token_rows(
    model: Model, ids: Sequence[int], tables: Mapping[str, Tensor], *, tied: bool | None = None
) -> TokenRows:
    """Token rows (len(ids), hidden_size) for `embed_tokens` and `lm_head` of a model, which does not change.

    `tied`: whether the head uses the embedding's rows; the default is whether it is tied to the embedding. Raises
    InputError for rows that do not fit the model.
    """
    own = dict(model.named_parameters(remove_duplicate=False))
    matrices = {part: own[f"{part}.weight"] for part in PARTS if f"{part}.weight" in own}
    for part, values in tables.items():
        matrix = matrices.get(part)
        if (
            matrix is None
            or values.shape != (len(ids), matrix.shape[1])
            or any(not 0 <= token < matrix.shape[0] for token in ids)
        ):
            shape = None if matrix is None else tuple(matrix.shape)
            raise InputError(f"trained rows {tuple(values.shape)} of {part} for ids {list(ids)} do not fit {shape}")
    tied = model.config.tie_word_embeddings if tied is None else tied
    return TokenRows(ids, tables, tied=tied, device=model.device)


def _matrices(model: Model) -> dict[str, nn.Parameter]:
    """The distinct matrices with a row for each token, by name; those under an adapter are left out."""
    own = dict(model.named_parameters())
    return {part: own[f"{part}.weight"] for part in PARTS if f"{part}.weight" in own}


def token_rows(model: Model) -> TokenRows | None:
    """The model's trained token rows; None without any."""
    return model.trainable_tokens if isinstance(model.trainable_tokens, TokenRows) else None


@torch.no_grad()
def merge_token_rows(model: Model) -> None:
    """Copies the trained token rows into their matrices; they are then no longer trained separately."""
    rows = token_rows(model)
    if rows is not None:
        matrices, tables = _matrices(model), dict(rows.tables())
        if rows.tied and "lm_head" in matrices:  # Untied since.
            tables["lm_head"] = tables["embed_tokens"]
        for part, table in tables.items():
            matrices[part][list(rows.ids)] = table.to(matrices[part])
        model.trainable_tokens = None
