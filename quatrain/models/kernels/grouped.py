"""A linear layer for each group of rows: the product of a mixture of experts, whose tokens are sorted by expert.

Each group is one matrix product, written into its rows of one result, so that what follows works on all rows at once.
A weight is read once in each pass, and a group without rows costs nothing (Gale et al. 2022, MegaBlocks, arXiv
2211.15841, for the same on a GPU).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


class GroupedLinearFunction(torch.autograd.Function):
    """y[rows of group g] = x[rows of group g] W_g^T + b_g, for x (M, in) whose groups follow each other."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, counts: Sequence[int], *parameters: Tensor) -> Tensor:
        """Rows of each group, none of them empty; then its weights (out, in), and after all of them its biases."""
        weights, biases = parameters[: len(counts)], parameters[len(counts) :]
        ctx.save_for_backward(x, *weights)
        ctx.counts, ctx.has_bias = counts, bool(biases)
        y = x.new_empty(len(x), weights[0].shape[0])
        for number, (rows, into) in enumerate(zip(x.split(counts), y.split(counts), strict=True)):
            if biases:
                torch.addmm(biases[number], rows, weights[number].t(), out=into)
            else:
                torch.mm(rows, weights[number].t(), out=into)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        """The gradients of x, and of each weight and bias that needs one."""
        x, *weights = ctx.saved_tensors
        counts, gradient = ctx.counts, gradients[0].contiguous()
        needed = ctx.needs_input_grad
        groups = list(zip(gradient.split(counts), x.split(counts), weights, strict=True))
        of_x = None
        if needed[0]:
            of_x = torch.empty_like(x)
            for (outer, _, weight), into in zip(groups, of_x.split(counts), strict=True):
                torch.mm(outer, weight, out=into)
        wanted, last = needed[2 : 2 + len(counts)], needed[2 + len(counts) :]
        of_weights = [outer.t() @ rows if need else None for (outer, rows, _), need in zip(groups, wanted, strict=True)]
        of_biases = [outer.sum(0) if need else None for (outer, *_), need in zip(groups, last, strict=False)]
        return (of_x, None, *of_weights, *of_biases)


def grouped_linear(x: Tensor, counts: Sequence[int], layers: Sequence[nn.Linear]) -> Tensor:
    """The outputs (M, out) of rows x (M, in): the first counts[0] of the first layer, and so on."""
    biases = [layer.bias for layer in layers if layer.bias is not None]
    y: Tensor = GroupedLinearFunction.apply(x, counts, *(layer.weight for layer in layers), *biases)
    return y


def are_plain(layers: Sequence[nn.Module], x: Tensor) -> bool:
    """Whether layers are plain linear ones of x's dtype without hooks, so that `grouped_linear` computes the same."""
    return not torch.is_autocast_enabled(x.device.type) and all(
        type(layer) is nn.Linear
        and layer.weight.dtype == x.dtype
        and not (layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks)
        for layer in layers
    )
