"""Trained token rows in PEFT's adapter folders: `trainable_token_indices`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from quatrain.adapters import peft_modules
from quatrain.adapters.apply import fully_trained_parameters
from quatrain.adapters.peft_layers import PREFIX, FileLayer
from quatrain.adapters.trainable_tokens import token_rows
from quatrain.core.errors import InputError
from quatrain.models.transformer.stack import Model
from quatrain.models.transformer.trainable_tokens import PARTS

Rows = tuple[list[int], dict[str, Tensor]]
"""Token ids, and their rows by our names of the matrices."""


def write(model: Model, layers: Mapping[str, FileLayer]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The model's trained token rows by their names in the files, and their options in `adapter_config.json`."""
    rows = token_rows(model)
    if rows is None or peft_modules.writes_merged_rows(model, set(fully_trained_parameters(model))):
        return {}, {}
    paths = _paths(layers)
    tensors = {_key(paths[part]): table.detach() for part, table in rows.tables().items()}
    ids = {paths[part].rpartition(".")[2]: list(rows.ids) for part in rows.tables()}
    return tensors, {"trainable_token_indices": ids}


def _key(path: str) -> str:
    return f"{PREFIX}{path}.token_adapter.trainable_tokens_delta"


def _paths(layers: Mapping[str, FileLayer]) -> dict[str, str]:
    """Our names of the matrices with a row for each token -> their paths in the files."""
    return {part: path for part in PARTS for path, layer in layers.items() if layer.parts == [part]}


def read(
    config: Mapping[str, Any], layers: Mapping[str, FileLayer], tensors: dict[str, Tensor], *, tied: bool
) -> Rows | None:
    """Removes the trained token rows of an adapter folder from `tensors` and returns them by our names; None without.

    `tied`: whether the base ties its head to the embedding; PEFT then shares the embedding's rows with the head. Raises
    InputError if the weights hold other rows than the configuration names.
    """
    indices = config.get("trainable_token_indices")
    if not indices:
        return None
    paths = _paths(layers)
    if not isinstance(indices, dict):
        indices = {paths["embed_tokens"].rpartition(".")[2]: indices}
    named, problems = dict[str, list[int]](), []
    for end, ids in indices.items():
        part = next((part for part, path in paths.items() if path == end or path.endswith(f".{end}")), None)
        if part is None:
            problems.append(f"{end!r} is neither the embedding nor the head of this model")
        elif len(set(ids)) != len(ids) or not ids:
            problems.append(f"{end}: must be different tokens, at least one")
        else:
            named[part] = ids
    if len({tuple(ids) for ids in named.values()}) > 1:
        problems.append("the embedding and the head name different tokens, which is not supported")
    if problems:
        raise InputError("trainable_token_indices:", problems)
    ids = next(iter(named.values()))
    stored = {part: tensors.pop(_key(path)) for part, path in paths.items() if _key(path) in tensors}
    if tied and "embed_tokens" in named:
        head = stored.pop("lm_head", None)
        if head is not None and not torch.equal(head, stored.get("embed_tokens", head)):
            problems.append("the rows of the embedding and the head, which the base ties, differ")
        named.pop("lm_head", None)
    problems += [f"{paths[part]}: its rows are missing" for part in named if part not in stored]
    problems += [f"{paths[part]}: rows that are not named" for part in stored if part not in named]
    problems += [
        f"{paths[part]}: {tuple(rows.shape)}; must be {len(ids)} rows"
        for part, rows in stored.items()
        if rows.dim() != 2 or len(rows) != len(ids)
    ]
    if problems:
        raise InputError("trainable_token_indices:", problems)
    return list(ids), stored


def needed(layers: Mapping[str, FileLayer], rows: Rows | None, tensors: Mapping[str, Tensor]) -> int:
    """How many tokens a vocabulary must have for these rows, and for an embedding that was saved whole."""
    names = [f"{PREFIX}{path}.weight" for path in _paths(layers).values()]
    whole = [tensors[name].shape[0] for name in names if name in tensors and tensors[name].dim() == 2]
    return max([0, *whole, *(token + 1 for token in (rows[0] if rows else ()))])
