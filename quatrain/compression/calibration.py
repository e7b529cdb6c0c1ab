"""Calibration: runs texts through a model block by block, and gives the inputs' statistics of each block's layers.

As in GPTQ (Frantar et al. 2022, arXiv 2210.17323) and SparseGPT (Frantar and Alistarh 2023, arXiv 2301.00774), each
block is compressed on the outputs of the compressed blocks before it, so that later blocks can correct earlier errors.
Only the hidden states of the texts and the statistics of one block are in memory.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from quatrain.core.errors import InputError
from quatrain.models.modules import is_in_head, is_linear
from quatrain.models.transformer.blocks import Block, Stack
from quatrain.models.transformer.stack import Model

Inputs = Mapping[str, Tensor]
"""The arguments of `Model.hidden_states` for one batch, such as {"input_ids": (B, T)}."""


class LayerInputs:
    """Statistics of the inputs x (N, in_features) of a linear layer, in float32.

    gram (in, in): x^T x. absmax and abssum (in): the largest and the summed |x|. count: N.
    """

    def __init__(self, in_features: int, device: torch.device | str = "cpu"):
        self.gram = torch.zeros(in_features, in_features, device=device)
        self.absmax = torch.zeros(in_features, device=device)
        self.abssum = torch.zeros(in_features, device=device)
        self.count = 0

    @torch.no_grad()
    def add(self, x: Tensor) -> None:
        """Adds inputs (…, in_features)."""
        x = x.detach().reshape(-1, x.shape[-1]).float()
        self.gram.addmm_(x.t(), x)
        magnitude = x.abs()
        self.absmax = torch.maximum(self.absmax, magnitude.amax(0))
        self.abssum += magnitude.sum(0)
        self.count += len(x)

    @property
    def norm(self) -> Tensor:
        """The Euclidean norm of each input channel (in,)."""
        return self.gram.diagonal().clamp(min=0).sqrt()

    @property
    def mean(self) -> Tensor:
        """The mean |x| of each input channel (in,)."""
        return self.abssum / max(1, self.count)

    def error(self, difference: Tensor) -> float:
        """The squared error of the outputs, sum over x of |difference x|², for a change (out, in) of the weight."""
        return float(((difference.float() @ self.gram) * difference.float()).sum())

    def permuted(self, order: Tensor) -> LayerInputs:
        """The statistics with the channels in another order."""
        other = LayerInputs(0)
        other.gram, other.count = self.gram[order][:, order], self.count
        other.absmax, other.abssum = self.absmax[order], self.abssum[order]
        return other

    def rescaled(self, factor: Tensor) -> LayerInputs:
        """The statistics of the inputs times a factor > 0 for each channel (in,)."""
        other = LayerInputs(0)
        other.gram, other.count = self.gram * factor * factor[:, None], self.count
        other.absmax, other.abssum = self.absmax * factor, self.abssum * factor
        return other

    def inverse_factor(self, damping: float) -> tuple[Tensor, Tensor]:
        """The upper Cholesky factor (in, in) of (2/N gram + damping)^-1, and which channels (in,) are always 0.

        `damping` is a share of the mean diagonal. It is raised tenfold until the matrix can be factored.
        """
        hessian = self.gram * (2 / max(1, self.count))
        dead = hessian.diagonal() == 0
        hessian.diagonal()[dead] = 1
        mean = float(hessian.diagonal().mean())
        for attempt in range(6):
            damped = hessian.clone()
            damped.diagonal().add_(damping * 10**attempt * mean)
            factor, failed = torch.linalg.cholesky_ex(damped)
            if not int(failed):
                inverse = torch.cholesky_inverse(factor)
                upper, failed = torch.linalg.cholesky_ex(inverse, upper=True)
                if not int(failed):
                    return upper, dead
        raise InputError("The inputs of a layer are not finite or too large, so that it cannot be calibrated.")


@dataclass
class CalibratedBlock:
    """One block of a model, with its linear layers by path and their inputs' statistics.

    states: the hidden states (B, T, C) of each batch before the block. run: the block on one of them.
    """

    name: str
    block: Block
    layers: dict[str, nn.Module]
    inputs: dict[str, LayerInputs]
    states: list[Tensor] = field(default_factory=list)
    contexts: list[Any] = field(default_factory=list)

    @torch.no_grad()
    def outputs(self) -> list[Tensor]:
        """The block's outputs (B, T, C) for its states, with its present weights."""
        return [self.block(state, context) for state, context in zip(self.states, self.contexts, strict=True)]


def block_linears(model: Model) -> dict[str, nn.Module]:
    """The linear layers of a model's blocks, by path; those of its head are left out."""
    return {
        name: module
        for name, module in model.named_modules()
        if is_linear(module) and ".layers." in f".{name}" and not is_in_head(name)
    }


@torch.no_grad()
def calibrated_blocks(model: Model, batches: Sequence[Inputs]) -> Iterator[CalibratedBlock]:
    """Yields the blocks from the first to the last, an encoder's before its decoder's.

    The caller changes the weights of a block, or replaces its layers, before it asks for the next one. The model is in
    evaluation mode meanwhile. Raises InputError without batches.
    """
    if not batches:
        raise InputError("Calibration needs at least one text.")
    if model.config.blocks:
        raise InputError(
            f"The layers of a {model.config.family} model share weights; it cannot be calibrated by layers."
        )
    was_training = model.training
    model.eval()
    for prefix, stack in _stacks(model):
        states, contexts = _first_inputs(model, stack, batches)
        for number, block in enumerate(stack.layers):
            name = f"{prefix}layers.{number}"
            layers = {f"{name}.{path}": module for path, module in block.named_modules() if is_linear(module)}
            inputs = {path: _empty(module) for path, module in layers.items()}
            hooks = [module.register_forward_hook(_recorder(inputs[path])) for path, module in layers.items()]
            found = CalibratedBlock(name, block, layers, inputs, states, contexts)  # type: ignore[arg-type]
            try:
                found.outputs()
            finally:
                for hook in hooks:
                    hook.remove()
            yield found
            states = found.outputs()
    model.train(was_training)


def _stacks(model: Model) -> Iterator[tuple[str, Stack]]:
    if model.encoder is not None:
        yield "encoder.", model.encoder
    yield "", model


def _empty(module: Any) -> LayerInputs:
    tensor = module.weight if isinstance(module, nn.Linear) else next(iter(module.buffers()))
    return LayerInputs(module.in_features, tensor.device)


def _recorder(inputs: LayerInputs) -> Callable[[nn.Module, Any, Any], None]:
    def record(module: nn.Module, arguments: Any, output: Any) -> None:
        inputs.add(arguments[0])

    return record


class _Reached(Exception):
    """The first block was reached."""


def _first_inputs(model: Model, stack: Stack, batches: Sequence[Inputs]) -> tuple[list[Tensor], list[Any]]:
    """The hidden states and contexts with which a stack's first block is called."""
    states: list[Tensor] = []
    contexts: list[Any] = []

    def catch(module: nn.Module, arguments: Any) -> None:
        states.append(arguments[0])
        contexts.append(arguments[1])
        raise _Reached

    hook = stack.layers[0].register_forward_pre_hook(catch)
    try:
        for batch in batches:
            with contextlib.suppress(_Reached):
                model.hidden_states(**batch)  # type: ignore[arg-type]
    finally:
        hook.remove()
    return states, contexts
