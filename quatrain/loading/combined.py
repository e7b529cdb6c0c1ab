"""Several adapters over one base, each by a weight, without touching the base's weights: what a merge must say.

What a linear adapter makes of an input is the base's result and what it adds; of several the additions are summed, each
by its weight. A merge computes the same by other means, so that one is a check of the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from quatrain.adapters.layer import AdapterLayer
from quatrain.adapters.peft_config import base_folder
from quatrain.adapters.peft_files import LoadedAdapter, head_of, read_adapter
from quatrain.compression import methods
from quatrain.loading.model import load_weights
from quatrain.models.hub import resolve
from quatrain.models.modules import replace_module
from quatrain.models.transformer.stack import Model
from quatrain.models.transformer.vocabulary import untie


class WeightedLinear(nn.Module):
    """base(x) + the sum of weight * (adapter(x) - base(x)), for x (…, in_features)."""

    def __init__(self, base: nn.Module, layers: Sequence[tuple[AdapterLayer, float]]):
        super().__init__()
        self.base, self.weights = base, [weight for _, weight in layers]
        self.layers = nn.ModuleList(layer for layer, _ in layers)

    def forward(self, x: Tensor) -> Tensor:
        """x (…, in_features) to (…, out_features)."""
        plain: Tensor = self.base(x)
        result = plain
        for layer, weight in zip(self.layers, self.weights, strict=True):
            result = result + weight * (layer(x) - plain)
        return result


@torch.no_grad()
def together(folders: Sequence[str | Path], weights: Sequence[float]) -> Model:
    """The base of some adapters with all of them over it, each by its weight; their base, head and labels are one.

    Raises InputError as `read_adapter` does.
    """
    places = [resolve(folder) for folder in folders]
    model = load_weights(base_folder(places[0]), **head_of(places[0]))
    methods.dequantize(model)
    model.requires_grad_(False)
    found = [read_adapter(model, place) for place in places]
    if any(each.whole.unties for each in found):
        untie(model)
    _move(model, found, weights)
    for path in dict.fromkeys(path for each in found for path in each.layers):
        own = [(each.layers[path], weight) for each, weight in zip(found, weights, strict=True) if path in each.layers]
        replace_module(model, path, WeightedLinear(own[0][0].base, own))
    return model.eval()


def _move(model: Model, found: Sequence[LoadedAdapter], weights: Sequence[float]) -> None:
    """Moves the model's own weights by what adapters have learned of them, whole or by rows."""
    state = dict(model.named_parameters())
    # what a head that the base does not have was drawn as is no beginning
    new = set(model.newly_initialized)
    start = {name: torch.zeros_like(each) if name in new else each.clone() for name, each in state.items()}
    for name in {name for name in model.newly_initialized if name in state}:
        state[name].zero_()
    for each, weight in zip(found, weights, strict=True):
        changed = {name: tensor.float() for name, tensor in each.whole.tensors.items() if name in state}
        if each.rows is not None:
            tables = {f"{part}.weight": table for part, table in each.rows.tables().items()}
            if each.rows.tied and "lm_head.weight" in state:
                tables["lm_head.weight"] = tables["embed_tokens.weight"]
            for name, table in tables.items():
                whole = changed.get(name, start[name]).clone()
                whole[list(each.rows.ids)] = table.to(whole)
                changed[name] = whole
        for name, tensor in changed.items():
            state[name].add_(tensor - start[name], alpha=weight)
