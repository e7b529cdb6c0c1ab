"""How a mixture of experts spreads a text: the share of tokens that each expert of each layer gets."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from quatrain.core.errors import InputError
from quatrain.models.transformer.context import Routing
from quatrain.models.transformer.experts import expert_counts
from quatrain.models.transformer.stack import Model

DRAWN_EXPERTS = 128
"""Most experts of a layer for which the load is drawn."""


@torch.inference_mode()
def expert_load(model: Model, ids: Tensor) -> Tensor:
    """The load (L, E) of each expert in the L layers that have experts, for tokens (B, T): 1 is the mean load.

    Raises InputError for a model without experts.
    """
    experts = model.config.experts
    if experts is None:
        raise InputError(f"A {model.config.family} model has no experts.")
    routings: list[Routing] = []
    model.hidden_states(ids.to(model.device), routing=routings)
    counts = torch.stack([expert_counts(routing.experts, experts.num_experts) for routing in routings])
    return counts / counts.mean(1, keepdim=True)


def load_figure(model: Any, tokens: Any, *, rows: int = 16) -> dict[str, Any] | None:
    """A figure of the report: layers by experts, the darker the busier. None for a model that has none to draw."""
    config = getattr(model, "config", None)
    experts = getattr(config, "experts", None)
    if experts is None or config is None or experts.num_experts > DRAWN_EXPERTS:
        return None
    length = min(config.context_length, len(tokens), 512)
    count = max(1, min(rows, len(tokens) // max(1, length)))
    if not length:
        return None
    ids = torch.as_tensor([[int(token) for token in tokens[row * length : (row + 1) * length]] for row in range(count)])
    load = expert_load(model, ids)
    layers = [layer for layer in range(config.num_hidden_layers) if layer not in experts.dense_layers]
    busiest = float(load.max())
    return {
        "kind": "heat",
        "title": "Load of the experts",
        "note": f"Held-out text: each layer's tokens by expert. The busiest has {busiest:.1f} times the mean load, and "
        f"{int((load == 0).sum())} of {load.numel()} have no token.",
        "rows": [f"layer {layer}" for layer in layers],
        "columns": [str(expert) for expert in range(experts.num_experts)],
        "values": (load / max(busiest, 1e-9)).tolist(),
    }
