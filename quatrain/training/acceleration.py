"""Activation checkpointing and torch.compile for the blocks of a model; the names of the weights do not change.

Activation checkpointing (Chen et al. 2016, arXiv 1604.06174) keeps only the input of each block and recomputes the rest
in the backward pass. torch.compile fuses the operations of each block; blocks of the same shape are compiled once.
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
    """The repeated layers of a model: the modules whose class sets `is_block = True`."""
    return [module for module in model.modules() if getattr(module, "is_block", False)]


@contextmanager
def activation_checkpointing(model: nn.Module, wanted: bool = True) -> Iterator[None]:
    """In this context each block keeps only its input for the backward pass. Recomputation repeats the random draws."""
    targets = blocks(model) if wanted else []
    for block in targets:
        block.forward = functools.partial(_recomputed, block.forward, block)
    try:
        yield
    finally:
        for block in targets:
            del block.forward


def _recomputed(forward: Callable[..., Tensor], block: nn.Module, *given: Any) -> Tensor:
    if not torch.is_grad_enabled():
        return forward(*given)
    # Prepare what all blocks share here; otherwise the first block would build it again when it is recomputed.
    prepare = getattr(block, "prepare_recomputation", None)
    if prepare is not None:
        prepare(*given)
    draws = any(getattr(module, "dropout", 0) for module in block.modules())
    output: Tensor = checkpoint(forward, *given, use_reentrant=False, preserve_rng_state=draws)
    return output


class Compiled:
    """The blocks of a model, compiled by torch.compile until `give_up` or `close`."""

    def __init__(self, model: nn.Module, wanted: bool):
        self._blocks = blocks(model) if wanted else []
        self.active = bool(self._blocks)
        for block in self._blocks:
            block.compile(dynamic=None)

    def give_up(self, error: BaseException, warn: Callable[[str], None]) -> None:
        """Warn about the reason and continue without compilation."""
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        warn(
            f"train.compile: torch.compile cannot compile this model here ({type(error).__name__}: {reason[:200]}). "
            "Training continues without it, with the same results; set train.compile = false to hide this message."
        )
        self.close()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """In this context the blocks run uncompiled: for validation, whose dtypes and shapes differ from training."""
        calls = [block._compiled_call_impl for block in self._blocks]
        for block in self._blocks:
            block._compiled_call_impl = None
        try:
            yield
        finally:
            for block, call in zip(self._blocks, calls, strict=True):
                block._compiled_call_impl = call

    def close(self) -> None:
        """Restore the uncompiled blocks."""
        for block in self._blocks:
            block._compiled_call_impl = None
        self._blocks, self.active = [], False
