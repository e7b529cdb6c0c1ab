"""Finds and replaces the modules of a model by path: what adapters, quantization and loading share."""

from __future__ import annotations

from torch import nn

HEAD_MODULES = ("lm_head", "score", "pooler")
"""Modules of a model's head; adapters and quantization leave them out unless they are named."""


def is_linear(module: nn.Module) -> bool:
    """Whether a module maps (…, in_features) to (…, out_features) and is not an adapter layer."""
    return hasattr(module, "in_features") and hasattr(module, "out_features") and not is_adapter(module)


def is_adapter(module: nn.Module) -> bool:
    """Whether a module is an adapter layer, which holds the layer that it adapts as its `base`."""
    marked: bool = getattr(module, "is_adapter", False)
    return marked


def is_in_head(name: str) -> bool:
    """Whether the path of a module belongs to the model's head."""
    return name.partition(".")[0] in HEAD_MODULES


def replace_module(model: nn.Module, name: str, module: nn.Module) -> None:
    """Puts `module` at the path `name` of the model, in the model's training mode."""
    owner, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(owner), leaf, module.train(model.training))


def weights_version(model: nn.Module) -> tuple[tuple[int, int], ...]:
    """Changes whenever the weights do: where each tensor is, and how often it was changed in place."""
    tensors = (*model.parameters(), *model.buffers())
    # A tensor that was made in inference mode counts no changes.
    return tuple((tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version) for tensor in tensors)
