"""Learned token rows in PEFT's adapter folders: `trainable_token_indices`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from quatrain.adaptation.peft_layers import PREFIX, FileLayer
from quatrain.adaptation.token_rows import learned_rows
from quatrain.errors import InputError
from quatrain.models.stack import Model
from quatrain.models.token_rows import PARTS

Rows = tuple[list[int], dict[str, Tensor]]
"""Ids, and by our names of the parts the rows of these ids."""


def write(model: Model, layers: Mapping[str, FileLayer]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The rows of a model that learn, by the names of the files, and what the configuration says of them."""
    rows = learned_rows(model)
    if rows is None:
        return {}, {}
    paths = _paths(layers)
    tensors = {_key(paths[part]): table.detach() for part, table in rows.tables().items()}
    ids = {paths[part].rpartition(".")[2]: list(rows.ids) for part in rows.tables()}
    return tensors, {"trainable_token_indices": ids}


def _key(path: str) -> str:
    return f"{PREFIX}{path}.token_adapter.trainable_tokens_delta"


def _paths(layers: Mapping[str, FileLayer]) -> dict[str, str]:
    """Our names of what has a row for each token -> their paths in the files."""
    return {part: path for part in PARTS for path, layer in layers.items() if layer.parts == [part]}


def take(
    config: Mapping[str, Any], layers: Mapping[str, FileLayer], tensors: dict[str, Tensor]
) -> Rows | None:
    """The learned token rows of an adapter folder by our names, taken out of `tensors`; None where it has none."""
    wanted = config.get("trainable_token_indices")
    if not wanted:
        return None
    paths = _paths(layers)
    if not isinstance(wanted, dict):
        wanted = {paths["embed_tokens"].rpartition(".")[2]: wanted}
    found, every = dict[str, Tensor](), list(wanted.values())
    for end, ids in wanted.items():
        part = next((part for part, path in paths.items() if path.rpartition(".")[2] == end), None)
        rows = None if part is None else tensors.pop(_key(paths[part]), None)
        if rows is None or rows.shape[0] != len(ids) or ids != every[0]:
            raise InputError(f"trainable_token_indices: {wanted}; the adapter's weights hold no such rows of {end}")
        found[str(part)] = rows
    return list(every[0]), found


def needed(layers: Mapping[str, FileLayer], rows: Rows | None, tensors: Mapping[str, Tensor]) -> int:
    """How many tokens a vocabulary must have for these rows, and for an embedding that was saved whole."""
    names = [f"{PREFIX}{path}.weight" for path in _paths(layers).values()]
    whole = [tensors[name].shape[0] for name in names if name in tensors]
    return max([0, *whole, *(token + 1 for token in (rows[0] if rows else ()))])
