"""Cross-entropy that keeps the logits and one number for each token, not their log-probabilities.

PyTorch's keeps a float32 copy of the logits and their logarithms of probabilities, for a large vocabulary the largest
tensors of a training step. Here a portion of rows at a time is turned to float32, and the backward pass computes the
probabilities anew from the kept log-sum of exponentials.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

CHUNK_ELEMENTS = {"cpu": 1 << 19, "else": 1 << 26}
"""Numbers that several passes go over one after the other: on a CPU as many as stay in its cache."""


class CrossEntropyFunction(torch.autograd.Function):
    """-log softmax(logits)[label] for each row: logits (N, V), labels (N) to losses (N) in float32, in nats.

    Rows whose label is `ignore` have loss and gradient 0.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor, ignore: int) -> Tensor:
        """Keeps the logits as they are, each row's largest, and the logarithm of the sum of what is exponential in
        it.
        """
        largest = torch.empty(logits.shape[0], dtype=torch.float32, device=logits.device)
        spread, said = torch.empty_like(largest), torch.empty_like(largest)
        counted = labels != ignore
        targets = torch.where(counted, labels, 0)
        for rows in row_chunks(logits):
            part = logits[rows].float()
            largest[rows] = part.amax(-1)
            said[rows] = part.gather(-1, targets[rows, None])[:, 0]
            spread[rows] = (part - largest[rows, None]).exp_().sum(-1).log_()
        ctx.save_for_backward(logits, largest, spread, targets, counted)
        return (largest - said + spread).masked_fill_(~counted, 0.0)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        """(softmax(logits) - one at the label) times the row's gradient."""
        logits, largest, spread, targets, counted = ctx.saved_tensors
        weight = gradients[0].float() * counted
        found = torch.empty_like(logits)
        for rows in row_chunks(logits):
            # In float32 the gradient is computed in its own place, else in a portion that is rounded into it.
            part = found[rows] if logits.dtype == torch.float32 else logits[rows].float()
            torch.sub(logits[rows], largest[rows, None], out=part)
            part.sub_(spread[rows, None]).exp_().mul_(weight[rows, None])
            part.scatter_add_(-1, targets[rows, None], -weight[rows, None])
            if logits.dtype != torch.float32:
                found[rows] = part
        return found, None, None


def row_chunks(x: Tensor) -> list[slice]:
    """The rows of x (N, C) in parts that are gone over at a time."""
    rows = max(1, CHUNK_ELEMENTS.get(x.device.type, CHUNK_ELEMENTS["else"]) // x.shape[-1])
    return [slice(start, start + rows) for start in range(0, x.shape[0], rows)]
