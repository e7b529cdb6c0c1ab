"""Single rows of the embedding that learn while the rest is frozen: new tokens, and the marks of a chat template.

A low-rank adapter leaves the embedding as it is. Tokens that pretraining never saw, such as the end of a turn, then
have no direction of their own to be said by: the model may rank the end first and still give it next to no probability.
Where the head has a matrix of its own, its rows of these tokens learn too. Only the rows have a gradient and states of
an optimizer (`quatrain.models.transformer.trainable_tokens`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from quatrain.core.errors import InputError
from quatrain.models.transformer.stack import Model
from quatrain.models.transformer.trainable_tokens import PARTS, LearnedRows


def train_tokens(model: Model, ids: Sequence[int]) -> None:
    """Lets the rows of these ids learn, the embedding's and those of a head that is not tied; all others stay, to the
    bit. A matrix that learns whole already, or is under an adapter, does so further.

    Raises InputError for ids that the embedding does not have.
    """
    stop_learning_rows(model)
    size = model.embed_tokens.weight.shape[0]
    wrong = [token for token in ids if not 0 <= token < size]
    if wrong:
        raise InputError(f"token ids {wrong}: the embedding has rows 0 to {size - 1}")
    rows = sorted(set(ids))
    frozen = {part: matrix[rows] for part, matrix in _matrices(model).items() if not matrix.requires_grad}
    if rows and frozen:
        model.trainable_tokens = make_rows(model, rows, frozen)


def make_rows(
    model: Model, ids: Sequence[int], tables: Mapping[str, Tensor], *, tied: bool | None = None
) -> LearnedRows:
    """Rows (len(ids), hidden_size) for `embed_tokens` and `lm_head` of a model, which does not change.

    `tied`: whether the head says by the embedding's rows; unless given, where it is tied to the embedding.
    Raises InputError where they do not fit.
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
            raise InputError(f"learned rows {tuple(values.shape)} of {part} for ids {list(ids)} do not fit {shape}")
    tied = model.config.tie_word_embeddings if tied is None else tied
    return LearnedRows(ids, tables, tied=tied, device=model.device)


def _matrices(model: Model) -> dict[str, nn.Parameter]:
    """The distinct matrices with a row for each token, by their parts; those under an adapter are left out."""
    own = dict(model.named_parameters())
    return {part: own[f"{part}.weight"] for part in PARTS if f"{part}.weight" in own}


def learned_rows(model: Model) -> LearnedRows | None:
    """The rows that learn beside an adapter; None where none was asked for."""
    return model.trainable_tokens if isinstance(model.trainable_tokens, LearnedRows) else None


@torch.no_grad()
def stop_learning_rows(model: Model) -> None:
    """Ends it: the rows are written into their matrices as they are now, and learn no more."""
    rows = learned_rows(model)
    if rows is not None:
        matrices, tables = _matrices(model), dict(rows.tables())
        if rows.tied and "lm_head" in matrices:  # untied since
            tables["lm_head"] = tables["embed_tokens"]
        for part, table in tables.items():
            matrices[part][list(rows.ids)] = table.to(matrices[part])
        model.trainable_tokens = None
