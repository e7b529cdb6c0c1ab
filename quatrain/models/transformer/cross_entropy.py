"""Cross-entropy that stores only the logits and two numbers per token for the backward pass.

PyTorch's cross-entropy stores a float32 copy of the logits and their log-probabilities, which for a large vocabulary
are the largest tensors of a training step. Here the logits are converted to float32 a few rows at a time, and the
backward pass recomputes the probabilities from the stored log-sum-exp.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

CHUNK_ELEMENTS = {"cpu": 1 << 19, "else": 1 << 26}
"""Elements per chunk by device type; on a CPU a chunk fits the cache, because several passes read it."""


class CrossEntropyFunction(torch.autograd.Function):
    """-log softmax(logits)[label], in nats: logits (N, V) and labels (N) to losses (N) in float32.

    Rows with the label `ignore` have loss and gradient 0.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor, ignore: int) -> Tensor:
        """Stores the logits, and per row the maximum and the log-sum-exp after subtracting it."""
        largest = torch.empty(logits.shape[0], dtype=torch.float32, device=logits.device)
        log_sum, at_label = torch.empty_like(largest), torch.empty_like(largest)
        counted = labels != ignore
        targets = torch.where(counted, labels, 0)
        for rows in row_chunks(logits):
            part = logits[rows].float()
            largest[rows] = part.amax(-1)
            at_label[rows] = part.gather(-1, targets[rows, None])[:, 0]
            log_sum[rows] = (part - largest[rows, None]).exp_().sum(-1).log_()
        ctx.save_for_backward(logits, largest, log_sum, targets, counted)
        return (largest - at_label + log_sum).masked_fill_(~counted, 0.0)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        """(softmax(logits) - one_hot(label)) times the gradient of the row."""
        logits, largest, log_sum, targets, counted = ctx.saved_tensors
        weight = gradients[0].float() * counted
        result = torch.empty_like(logits)
        for rows in row_chunks(logits):
            # In float32 the gradient is computed in place, otherwise in a float32 chunk that is then rounded.
            part = result[rows] if logits.dtype == torch.float32 else logits[rows].float()
            torch.sub(logits[rows], largest[rows, None], out=part)
            part.sub_(log_sum[rows, None]).exp_().mul_(weight[rows, None])
            part.scatter_add_(-1, targets[rows, None], -weight[rows, None])
            if logits.dtype != torch.float32:
                result[rows] = part
        return result, None, None


def row_chunks(x: Tensor) -> list[slice]:
    """Slices of the rows of x (N, C), each of at most `CHUNK_ELEMENTS` elements."""
    rows = max(1, CHUNK_ELEMENTS.get(x.device.type, CHUNK_ELEMENTS["else"]) // x.shape[-1])
    return [slice(start, start + rows) for start in range(0, x.shape[0], rows)]
