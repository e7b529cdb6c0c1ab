"""Several adapters over one base, each with a weight, without a change of the base's weights.

The output of an adapted layer is the base's output plus what the adapter adds. Here the additions of several adapters
are weighted and summed. A merge computes the same from the weights, so the two check each other.
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
    """The common base of some adapters with all of them over it, each with its weight. They share head and labels.

    Raises InputError as `read_adapter` does.
    """
    places = [resolve(folder) for folder in folders]
    model = load_weights(base_folder(places[0]), **head_of(places[0]))
    methods.dequantize(model)
    model.requires_grad_(False)
    adapters = [read_adapter(model, place) for place in places]
    if any(each.saved.unties for each in adapters):
        untie(model)
    _move(model, adapters, weights)
    for path in dict.fromkeys(path for each in adapters for path in each.layers):
        pairs = zip(adapters, weights, strict=True)
        own = [(each.layers[path], weight) for each, weight in pairs if path in each.layers]
        replace_module(model, path, WeightedLinear(own[0][0].base, own))
    return model.eval()


def _move(model: Model, adapters: Sequence[LoadedAdapter], weights: Sequence[float]) -> None:
    """Adds the weighted changes of the model's own weights, which adapters have trained whole or by rows."""
    state = dict(model.named_parameters())
    # A new head has random weights in the base: the change starts from zero.
    new = set(model.newly_initialized)
    start = {name: torch.zeros_like(each) if name in new else each.clone() for name, each in state.items()}
    for name in {name for name in model.newly_initialized if name in state}:
        state[name].zero_()
    for each, weight in zip(adapters, weights, strict=True):
        changed = {name: tensor.float() for name, tensor in each.saved.tensors.items() if name in state}
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
