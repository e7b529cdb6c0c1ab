"""Initial weights, chosen for short training runs (K. Jordan et al., modded-nanogpt, 2024)."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from quatrain.models.transformer.config import ModelConfig
from quatrain.models.transformer.heads import LOG_SCALE
from quatrain.models.transformer.norms import RMSNorm

ZERO = ("o_proj.weight", "down_proj.weight")
"""Projections that write to the residual stream."""


def initialize(model: nn.Module, config: ModelConfig, seed: int = 0, *, only: Collection[str] | None = None) -> None:
    """Initializes all parameters of a model, or those named in `only`, reproducibly from `seed`.

    Projections that read the residual stream are uniform within 1 / sqrt(inputs); those that write to it are zero, so
    that each block starts as the identity. An untied vocabulary head is zero and its embedding has standard deviation
    0.5; a tied embedding has 0.05. Position and token-type tables and label layers have initializer_range. Norms start
    as the identity, attention sinks at 0.
    """
    generator = torch.Generator().manual_seed(seed)
    modules = dict(model.named_modules())
    norms = {
        name + "." if name else "": module
        for name, module in model.named_modules()
        if isinstance(module, RMSNorm | nn.LayerNorm)
    }
    with torch.no_grad():
        # The embedding comes first: the order of the draws determines the weights of a seed.
        for name, parameter in sorted(model.named_parameters(), key=lambda item: item[0] != "embed_tokens.weight"):
            if only is not None and name not in only:
                continue
            owner, leaf = name[: name.rfind(".") + 1], name.rpartition(".")[2]
            if owner in norms:
                offset = getattr(norms[owner], "offset", 0.0)
                parameter.fill_(0.0 if leaf == "bias" else 1.0 - offset)
            elif (value := _own_value(modules[owner.rstrip(".")], leaf, generator)) is not None:
                parameter.copy_(value)
            elif name == "log_scale":
                parameter.fill_(LOG_SCALE)
            elif leaf in ("bias", "sinks") or name.endswith(ZERO) or name == "lm_head.weight":
                parameter.zero_()
            elif (deviation := _deviation(name, config)) is not None:
                parameter.copy_(torch.empty(parameter.shape).normal_(0.0, 1.0, generator=generator) * deviation)
            else:
                bound = parameter[0].numel() ** -0.5  # Of a convolution the inputs are its whole kernel.
                parameter.copy_(torch.empty(parameter.shape).uniform_(-bound, bound, generator=generator))


def _own_value(module: nn.Module, leaf: str, generator: torch.Generator) -> Tensor | None:
    """The initial value that a module gives its parameter; None if it leaves the parameter to `initialize`."""
    initial: Callable[[str, torch.Generator], Tensor | None] | None = getattr(module, "initial", None)
    return None if initial is None else initial(leaf, generator)


def _deviation(name: str, config: ModelConfig) -> float | None:
    """The standard deviation of an embedding table or label layer; None for a projection."""
    if name in ("embed_tokens.weight", "embed_source_tokens.weight", "layer_embedding.table.weight"):
        return 0.05 if config.tie_word_embeddings else 0.5
    tables = ("embed_positions.weight", "embed_token_types.weight", "relative_bias.weight", "score.weight",
              "class_token", "distillation_token", "position_table", "distances.embedding.weight")  # fmt: skip
    return config.initializer_range if name.endswith(tables) else None


class Uninitialized(TorchFunctionMode):
    """Weights of new modules are not drawn within the block: on the meta device, or where loading replaces them.

    On the meta device torch draws them through decompositions, which import its compiler: seconds, and 100 MB.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if getattr(func, "__module__", "") == "torch.nn.init":
            return args[0] if args else (kwargs or {})["tensor"]
        return func(*args, **(kwargs or {}))
