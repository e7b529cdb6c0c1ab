"""What makes the blocks of a model smaller or faster while it trains, without changing a weight's name.

Activation checkpointing (Chen et al. 2016, arXiv 1604.06174) keeps the input of each block alone and computes the rest
anew in the backward pass. torch.compile fuses each block's operations; blocks of one shape are compiled once.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def blocks(model: nn.Module) -> list[nn.Module]:
    """The repeated layers of a model: the modules whose class says `is_block = True`."""
    return [module for module in model.modules() if getattr(module, "is_block", False)]


@contextmanager
def activation_checkpointing(model: nn.Module, wanted: bool = True) -> Iterator[None]:
    """Within it, each block keeps only its input for the backward pass. Random draws are repeated as they were."""
    found = blocks(model) if wanted else []
    for block in found:
        block.forward = functools.partial(_recomputed, block.forward, block)
    try:
        yield
    finally:
        for block in found:
            del block.forward


def _recomputed(forward: Callable[..., Tensor], block: nn.Module, *given: Any) -> Tensor:
    if not torch.is_grad_enabled():
        return forward(*given)
    # What all blocks share and the first would make: made here, it belongs to no block that is computed anew.
    prepare = getattr(block, "before_recomputing", None)
    if prepare is not None:
        prepare(*given)
    draws = any(getattr(module, "dropout", 0) for module in block.modules())
    found: Tensor = checkpoint(forward, *given, use_reentrant=False, preserve_rng_state=draws)
    return found


class Compiled:
    """The blocks of a model under torch.compile; `give_up` and `close` put them back."""

    def __init__(self, model: nn.Module, wanted: bool):
        self._blocks = blocks(model) if wanted else []
        self.active = bool(self._blocks)
        self._calls: list[Any] = []
        for block in self._blocks:
            block.compile(dynamic=None)

    def give_up(self, error: BaseException, warn: Callable[[str], None]) -> None:
        """Goes on uncompiled, and says why."""
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        warn(
            f"train.compile: torch.compile cannot compile this model here ({type(error).__name__}: {reason[:200]}). "
            "Training goes on without it, with the same results; set train.compile = false to be spared this message."
        )
        self.close()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Within it the blocks run uncompiled: for validation, whose types and shapes are not those of training."""
        calls = [block._compiled_call_impl for block in self._blocks]
        for block in self._blocks:
            block._compiled_call_impl = None
        try:
            yield
        finally:
            for block, call in zip(self._blocks, calls, strict=True):
                block._compiled_call_impl = call

    def close(self) -> None:
        """Puts the blocks back as they were."""
        for block in self._blocks:
            block._compiled_call_impl = None
        self._blocks, self.active = [], False
