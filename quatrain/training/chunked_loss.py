"""Cross-entropy over a large vocabulary in chunks, so that the logits of a long batch never exist at once.

A language head turns hidden states (B, T, C) into logits (B, T, V). For a large vocabulary the logits and their
gradient are the largest tensors of a training step. Here the logits of one chunk of rows exist at a time, as in Wijmans
et al. 2024 (arXiv 2411.09009) and Liger (arXiv 2410.10989), and the gradients of hidden states and weight are added up
in the same pass. Rows without a label are skipped.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from quatrain.models.transformer.cross_entropy import CHUNK_ELEMENTS, row_chunks
from quatrain.models.transformer.heads import IGNORE_INDEX, check_token_labels, token_loss
from quatrain.models.transformer.stack import Model
from quatrain.models.transformer.trainable_tokens import TokenRows

Mode = bool | Literal["auto"]
Entropy = Literal["none", "value", "learned"]

LARGE = 1 << 24
"""From this many logits on (64 MiB in float32) "auto" computes them in chunks."""

CHUNK = {"cpu": 1 << 26, "else": 1 << 27}
"""Logits of one chunk. Smaller chunks add to the weight's gradient too often."""

TOKENS = {"cpu": 4096, "else": 1 << 30}
"""Tokens of the vocabulary in one matrix product. On a CPU a product that is 50,257 wide runs at two thirds of the rate
of narrower ones, and a part of the weight's gradient stays in the cache."""

_mode: ContextVar[Mode] = ContextVar("chunked_loss", default="auto")


@contextmanager
def chunking(mode: Mode) -> Iterator[None]:
    """In this context losses are computed in chunks always (True), never (False), or for large logits ("auto")."""
    token = _mode.set(mode)
    try:
        yield
    finally:
        _mode.reset(token)


def chunked(logits: int) -> bool:
    """Whether this many logits are computed in chunks, given the mode of `chunking`."""
    mode = _mode.get()
    return logits >= LARGE if mode == "auto" else bool(mode)


def summed_language_loss(model: Model, hidden: Tensor, labels: Tensor) -> Tensor:
    """The summed cross-entropy in nats of hidden states (B, T, C) under the language head, for labels (B, T); labels of
    -100 do not count.

    Computed in chunks where `chunking` says so. Raises InputError for labels that do not fit, as `Model.forward` does.
    """
    vocabulary = model.config.vocab_size
    if not chunked(labels.numel() * vocabulary):
        return token_loss(model.lm_logits(hidden), labels).sum()
    check_token_labels(labels, (*hidden.shape[:-1], vocabulary))
    rows = (labels.reshape(-1) != IGNORE_INDEX).nonzero()[:, 0]
    states, targets = hidden.reshape(-1, hidden.shape[-1]), labels.reshape(-1).long()
    if len(rows) < len(targets):
        states, targets = states[rows], targets[rows]
    if type(model.lm_head) is not nn.Linear or not isinstance(model.trainable_tokens, TokenRows | None):
        owners = rows // labels.shape[-1] if labels.dim() == 2 else None
        return _recomputed_losses(model, states, targets, owners).sum()
    head = _Head.of(model, states)
    return _SummedLoss.apply(*head.tensors(), targets, head.softcap, torch.is_grad_enabled())


def token_logprobs(
    model: Model,
    states: Tensor,
    labels: Tensor,
    temperature: float = 1.0,
    *,
    owners: Tensor | None = None,
    entropy: Entropy = "none",
) -> tuple[Tensor, Tensor]:
    """Log-probabilities (M,) of the labels (M,) and entropies (M,), in nats and float32, for hidden states (M, C).

    The one definition of a token's log-probability: the log-softmax over the whole vocabulary of the logits divided by
    `temperature`. `owners` (M,) are the rows that the states are from, where the head differs between rows. Entropies
    are 0 with "none", have no gradient with "value" and one with "learned". A logit of -inf has no probability and
    adds nothing to the entropy. Where the logits are large (`chunking`) they are computed in chunks, and again in the
    backward pass. Raises InputError for labels that do not fit, as `Model.forward` does.
    """
    vocabulary = model.config.vocab_size
    check_token_labels(labels, (len(states), vocabulary))
    labels = labels.long()

    def part(rows: slice) -> tuple[Tensor, Tensor]:
        logits = model.lm_logits(states[rows], None if owners is None else owners[rows])
        if temperature != 1.0:
            logits = logits.float() / temperature
        logprobs = -token_loss(logits, labels[rows])
        if entropy == "none":
            return logprobs, logprobs.new_zeros(logprobs.shape)
        with torch.set_grad_enabled(entropy == "learned" and torch.is_grad_enabled()):
            return logprobs, _entropies(logits.float())

    if not len(labels) or not chunked(len(labels) * vocabulary):
        return part(slice(None))
    slices = logit_slices(len(labels), vocabulary, states.device)
    logprobs, entropies = zip(*(checkpoint(part, rows, use_reentrant=False) for rows in slices), strict=True)
    return torch.cat(logprobs), torch.cat(entropies)


def _entropies(logits: Tensor) -> Tensor:
    """The entropies (M,) in nats of logits (M, V)."""
    logprobs = logits.log_softmax(-1)
    # Not -inf * 0, which is NaN, as is its gradient.
    return -(logprobs.exp() * logprobs.masked_fill(logprobs == float("-inf"), 0.0)).sum(-1)


@dataclass(frozen=True)
class _Head:
    """A plain language head: softcap(states W^T + bias). The model's logit scale is in the states already.

    Where there is a `table` (K, C), it replaces the rows of W of the tokens `index` (K).
    """

    states: Tensor
    weight: Tensor
    bias: Tensor | None
    table: Tensor | None
    index: Tensor | None
    softcap: float | None

    def tensors(self) -> tuple[Tensor | None, ...]:
        """The inputs of the loss that have gradients, and the index."""
        return self.states, self.weight, self.bias, self.table, self.index

    @staticmethod
    def of(model: Model, states: Tensor) -> _Head:
        linear, config = model.lm_head, model.config
        if linear is None:
            raise ValueError("a model without a language head has no language loss")
        states = states if model.transform is None else model.transform(states)
        if config.logit_scale != 1.0:
            states = states * config.logit_scale
        bias: Tensor | None = linear.bias
        if isinstance(model.logits_bias, Tensor):
            fixed = model.logits_bias[0].to(states.dtype)
            bias = fixed if bias is None else bias + fixed
        rows = model.trainable_tokens
        table: Tensor | None = None
        index: Tensor | None = None
        if isinstance(rows, TokenRows) and rows.head_table is not None:
            table, index = rows.head_table.to(states.dtype), rows.index
        return _Head(states, linear.weight, bias, table, index, config.logit_softcap)


def _recomputed_losses(model: Model, states: Tensor, labels: Tensor, owners: Tensor | None) -> Tensor:
    """The losses (N) under any head (adapted, quantized); the backward pass computes each chunk's logits again."""

    def losses(rows: slice) -> Tensor:
        return token_loss(model.lm_logits(states[rows], None if owners is None else owners[rows]), labels[rows])

    slices = logit_slices(len(labels), model.config.vocab_size, states.device)
    chunks = [checkpoint(losses, rows, use_reentrant=False) for rows in slices]
    return torch.cat(chunks) if chunks else states.new_zeros(0, dtype=torch.float32)


def logit_slices(rows: int, vocabulary: int, device: torch.device) -> list[slice]:
    """Row ranges of equal chunks of at most CHUNK logits."""
    most = max(1, CHUNK.get(device.type, CHUNK["else"]) // vocabulary)
    size = -(-rows // max(1, -(-rows // most)))
    return [slice(start, start + size) for start in range(0, rows, size)] if rows else []


def _tokens(weight: Tensor) -> list[slice]:
    """The rows of a head's weight (V, C) in parts for one matrix product each."""
    size = TOKENS.get(weight.device.type, TOKENS["else"])
    return [slice(start, min(start + size, len(weight))) for start in range(0, len(weight), size)]


def chunk_count(tokens: int, vocabulary: int, device: torch.device) -> tuple[int, int]:
    """How many chunks the logits of so many tokens are computed in, and how many matrix products these take."""
    most = max(1, CHUNK.get(device.type, CHUNK["else"]) // vocabulary)
    chunks = -(-tokens // most)
    return chunks, chunks * -(-vocabulary // TOKENS.get(device.type, TOKENS["else"]))


class _Chunks:
    """Computes logits before the soft cap, one chunk of rows at a time, reusing the same memory."""

    def __init__(self, weight: Tensor, bias: Tensor | None, table: Tensor | None, index: Tensor | None):
        self.weight, self.bias, self.table, self.index = weight, bias, table, index
        self._logits = weight.new_empty(0)

    def of(self, states: Tensor) -> Tensor:
        """Logits (n, V) of states (n, C); overwrites the result of the last call."""
        shape = states.shape[0], self.weight.shape[0]
        if shape[0] > self._logits.shape[0]:
            self._logits = torch.empty(shape, dtype=states.dtype, device=states.device)
        logits = self._logits[: shape[0]]
        for tokens in _tokens(self.weight):
            if self.bias is None:
                torch.mm(states, self.weight[tokens].mT, out=logits[:, tokens])
            else:
                torch.addmm(self.bias[tokens], states, self.weight[tokens].mT, out=logits[:, tokens])
        if self.table is not None and self.index is not None:
            bias = None if self.bias is None else self.bias[self.index]
            logits.index_copy_(1, self.index, F.linear(states, self.table, bias))
        return logits


def _measure(logits: Tensor, labels: Tensor, softcap: float | None, outer: Tensor | None) -> Tensor:
    """Losses (n) of a chunk's logits (n, V), which the gradient of the sum of outer (n) times losses overwrites.

    Without `outer` their new content has no meaning. Works in float32 on row_chunks that fit a cache.
    """
    losses = torch.empty(logits.shape[0], dtype=torch.float32, device=logits.device)
    for rows in row_chunks(logits):
        targets = labels[rows, None]
        part = logits[rows].float()
        tanh = None
        if softcap is not None:
            tanh = part.div_(softcap).tanh_()
            part = tanh * softcap
        target_logits, largest = part.gather(-1, targets), part.amax(-1, keepdim=True)
        total = part.sub_(largest).exp_().sum(-1, keepdim=True)
        losses[rows] = (largest - target_logits + total.log())[:, 0]
        if outer is None:
            continue
        weight = outer[rows, None]
        part.mul_(weight / total).scatter_add_(-1, targets, -weight)
        if tanh is not None:
            part.mul_(1 - tanh.square())
        if tanh is not None or logits.dtype != torch.float32:  # then `part` is a copy
            logits[rows] = part
    return losses


class _Gradients:
    """Accumulates the gradients of hidden states, weight, bias and table over chunks; parameters in float32."""

    def __init__(self, inputs: Sequence[Tensor | None], index: Tensor | None, needed: Sequence[bool]):
        states, *parameters = inputs
        self.states = torch.empty_like(states) if needed[0] and states is not None else None
        self.weight, self.bias, self.table = (
            torch.zeros_like(each, dtype=torch.float32) if need and each is not None else None
            for each, need in zip(parameters, needed[1:], strict=True)
        )
        self._dtypes = [None if each is None else each.dtype for each in parameters]
        self._rows, self._index = parameters[2], index

    def add(self, rows: slice, states: Tensor, weight: Tensor, logits: Tensor) -> None:
        """Add the gradient of a chunk's logits (n, V)."""
        if self.bias is not None:
            self.bias += logits.sum(0, dtype=torch.float32)
        columns = None
        if self._rows is not None and self._index is not None:  # the table's rows replace these of the weight
            columns = logits[:, self._index]
            logits.index_fill_(1, self._index, 0.0)
            if self.table is not None:
                self.table += columns.mT @ states[rows]
        if self.states is not None:
            torch.mm(logits, weight, out=self.states[rows])
            if columns is not None and self._rows is not None:
                self.states[rows].addmm_(columns, self._rows)
        if self.weight is None:
            return
        for tokens in _tokens(weight):
            if weight.dtype == torch.float32:
                self.weight[tokens].addmm_(logits[:, tokens].mT, states[rows])
            else:
                self._add_wider(self.weight[tokens], logits[:, tokens].mT @ states[rows])

    @staticmethod
    def _add_wider(total: Tensor, gradient: Tensor) -> None:
        """Add a tensor of a narrower dtype in row_chunks, because each portion is first converted."""
        rows = max(1, CHUNK_ELEMENTS.get(total.device.type, CHUNK_ELEMENTS["else"]) // total.shape[-1])
        for into, part in zip(total.split(rows), gradient.split(rows), strict=True):
            into.add_(part)

    def ends(self, factor: Tensor | None = None) -> list[Tensor | None]:
        """The four gradients times a factor, in the dtypes of their tensors."""
        parameters = (self.weight, self.bias, self.table)
        if factor is not None and float(factor) != 1.0:
            for gradient in (self.states, *parameters):
                if gradient is not None:
                    gradient.mul_(factor)
        pairs = zip(parameters, self._dtypes, strict=True)
        return [self.states, *(None if gradient is None else gradient.to(dtype) for gradient, dtype in pairs)]


class _SummedLoss(torch.autograd.Function):
    """The sum of the losses of rows (N, C) under a plain head.

    The forward pass computes the gradients too. In float16, whose small gradients would vanish before the loss scale
    multiplies them, the backward pass computes the logits again.
    """

    @staticmethod
    def forward(
        ctx: Any,
        states: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        table: Tensor | None,
        index: Tensor | None,
        labels: Tensor,
        softcap: float | None,
        learning: bool,
    ) -> Tensor:
        needed = ctx.needs_input_grad[:4] if learning else (False,) * 4
        at_once = any(needed) and states.dtype != torch.float16
        gradients = _Gradients((states, weight, bias, table), index, needed) if at_once else None
        total, ones = torch.zeros((), device=states.device), torch.ones(len(labels), device=states.device)
        chunks = _Chunks(weight, bias, table, index)
        for rows in logit_slices(len(labels), weight.shape[0], states.device):
            logits = chunks.of(states[rows])
            total += _measure(logits, labels[rows], softcap, None if gradients is None else ones[rows]).sum()
            if gradients is not None:
                gradients.add(rows, states, weight, logits)
        ctx.at_once, ctx.gradients, ctx.softcap = at_once, gradients, softcap
        if not at_once:
            ctx.save_for_backward(states, weight, bias, table, index, labels)
        return total

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        if not ctx.at_once:
            return (*_late_gradients(ctx, outer[0]).ends(), None, None, None, None)
        if ctx.gradients is None:
            raise RuntimeError("the gradients of a summed loss are there once; its graph cannot be gone through again")
        gradients = ctx.gradients.ends(outer[0])
        ctx.gradients = None
        return (*gradients, None, None, None, None)


def _late_gradients(ctx: Any, factor: Tensor) -> _Gradients:
    """The gradients of `factor` times the sum, from recomputed logits."""
    states, weight, bias, table, index, labels = ctx.saved_tensors
    gradients = _Gradients((states, weight, bias, table), index, ctx.needs_input_grad[:4])
    chunks, weights = _Chunks(weight, bias, table, index), factor.float().expand(len(labels))
    for rows in logit_slices(len(labels), weight.shape[0], states.device):
        logits = chunks.of(states[rows])
        _measure(logits, labels[rows], ctx.softcap, weights[rows])
        gradients.add(rows, states, weight, logits)
    return gradients
