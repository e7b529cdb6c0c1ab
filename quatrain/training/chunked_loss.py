"""Cross-entropy of a large vocabulary in chunks, so that the logits of a long batch never exist at once.

A language head turns hidden states (B, T, C) to logits (B, T, V); for a large vocabulary those and their gradient are
the largest tensors of a training step. Here a chunk of rows at a time is multiplied, measured and forgotten, as in
Wijmans et al. 2024 (arXiv 2411.09009) and Liger (arXiv 2410.10989): for a sum the gradients of hidden states and weight
are added up on the way, for losses per token the chunk is computed anew in the backward pass. Rows where nothing is
learned are left out altogether.
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

from quatrain.models.transformer.cross_entropy import PORTION, portions
from quatrain.models.transformer.heads import IGNORE, check_token_labels, token_loss
from quatrain.models.transformer.stack import Model
from quatrain.models.transformer.trainable_tokens import LearnedRows

Mode = bool | Literal["auto"]

LARGE = 1 << 24
"""From this many logits on, "auto" computes them in chunks, and they are gone before the backward pass: 64 MiB in
float32."""

CHUNK = {"cpu": 1 << 26, "else": 1 << 27}
"""Logits that exist at a time. Smaller ones add up the weight's gradient too often."""

TOKENS = {"cpu": 4096, "else": 1 << 30}
"""Tokens of the vocabulary that are multiplied at a time. On a CPU a product that is 50,257 wide runs at two thirds of
the rate of narrower ones, and what is added to the weight's gradient stays in the cache."""

_mode: ContextVar[Mode] = ContextVar("chunked_loss", default="auto")


@contextmanager
def chunking(mode: Mode) -> Iterator[None]:
    """Within it, losses are computed in chunks always (True), never (False), or where the logits are large ("auto")."""
    token = _mode.set(mode)
    try:
        yield
    finally:
        _mode.reset(token)


def chunked(logits: int) -> bool:
    """Whether this many logits are computed in chunks, as `chunking` says."""
    mode = _mode.get()
    return logits >= LARGE if mode == "auto" else bool(mode)


def language_loss(model: Model, hidden: Tensor, labels: Tensor) -> Tensor:
    """The loss per token (B, T) in nats, 0 where the label is -100, of hidden states (B, T, C): `model.say`'s logits.

    In chunks where `chunking` says so: the backward pass then computes them anew, for a quarter more of the head's
    time. Raises InputError for labels that do not fit, as `Model.forward` does.
    """
    return _loss(model, hidden, labels, summed=False)


def summed_language_loss(model: Model, hidden: Tensor, labels: Tensor) -> Tensor:
    """The sum of `language_loss`, a scalar; in chunks its gradients are made in the forward pass, at no extra cost."""
    return _loss(model, hidden, labels, summed=True)


def _loss(model: Model, hidden: Tensor, labels: Tensor, *, summed: bool) -> Tensor:
    vocabulary = model.config.vocab_size
    if not chunked(labels.numel() * vocabulary):
        loss = token_loss(model.lm_logits(hidden), labels)
        return loss.sum() if summed else loss
    check_token_labels(labels, (*hidden.shape[:-1], vocabulary))
    rows = (labels.reshape(-1) != IGNORE).nonzero()[:, 0]
    states, wanted = hidden.reshape(-1, hidden.shape[-1]), labels.reshape(-1).long()
    if len(rows) < len(wanted):
        states, wanted = states[rows], wanted[rows]
    if type(model.lm_head) is not nn.Linear or not isinstance(model.trainable_tokens, LearnedRows | None):
        owners = rows // labels.shape[-1] if labels.dim() == 2 else None
        losses = _by_parts(model, states, wanted, owners)
    else:
        head = _Head.of(model, states)
        if summed and states.dtype != torch.float16:
            return _Summed.apply(*head.tensors(), wanted, head.softcap, torch.is_grad_enabled())
        losses = _PerRow.apply(*head.tensors(), wanted, head.softcap)
    if summed:
        return losses.sum()
    return torch.zeros(labels.numel(), device=losses.device).index_put((rows,), losses).view(labels.shape)


@dataclass(frozen=True)
class _Head:
    """A plain language head: softcap(states W^T + bias), the model's own scale already in the states; of the tokens
    `index` (K) the rows of W are those of `table` (K, C), where there is one.
    """

    states: Tensor
    weight: Tensor
    bias: Tensor | None
    table: Tensor | None
    index: Tensor | None
    softcap: float | None

    def tensors(self) -> tuple[Tensor | None, ...]:
        """What the losses have gradients of, and the index."""
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
        if isinstance(rows, LearnedRows) and rows.said is not None:
            table, index = rows.said.to(states.dtype), rows.index
        return _Head(states, linear.weight, bias, table, index, config.logit_softcap)


def _by_parts(model: Model, states: Tensor, labels: Tensor, owners: Tensor | None) -> Tensor:
    """Losses (N) under any head at all (adapted, quantized): each part is said anew for the backward pass."""

    def said(rows: slice) -> Tensor:
        return token_loss(model.lm_logits(states[rows], None if owners is None else owners[rows]), labels[rows])

    slices = _slices(len(labels), model.config.vocab_size, states.device)
    parts = [checkpoint(said, rows, use_reentrant=False) for rows in slices]
    return torch.cat(parts) if parts else states.new_zeros(0, dtype=torch.float32)


def _slices(rows: int, vocabulary: int, device: torch.device) -> list[slice]:
    """Equal parts of at most CHUNK logits."""
    most = max(1, CHUNK.get(device.type, CHUNK["else"]) // vocabulary)
    size = -(-rows // max(1, -(-rows // most)))
    return [slice(start, start + size) for start in range(0, rows, size)] if rows else []


def _tokens(weight: Tensor) -> list[slice]:
    """The rows of a head's weight (V, C) that are multiplied at a time."""
    size = TOKENS.get(weight.device.type, TOKENS["else"])
    return [slice(start, min(start + size, len(weight))) for start in range(0, len(weight), size)]


def products(tokens: int, vocabulary: int, device: torch.device) -> int:
    """How many matrix products the logits of so many tokens take where they are computed in chunks."""
    most = max(1, CHUNK.get(device.type, CHUNK["else"]) // vocabulary)
    return -(-tokens // most) * -(-vocabulary // TOKENS.get(device.type, TOKENS["else"]))


class _Chunks:
    """Logits of one chunk of rows after another before any soft cap, each in the memory of the one before."""

    def __init__(self, weight: Tensor, bias: Tensor | None, table: Tensor | None, index: Tensor | None):
        self.weight, self.bias, self.table, self.index = weight, bias, table, index
        self._logits = weight.new_empty(0)

    def of(self, states: Tensor) -> Tensor:
        """Logits (n, V) of states (n, C); those of the last call are gone."""
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
    """Losses (n) of a chunk's logits (n, V), used up: they become the gradient of the sum of outer (n) times losses.

    Without `outer` they become nothing of use. Portions of the chunk are float32 at a time, as small as a cache.
    """
    found = torch.empty(logits.shape[0], dtype=torch.float32, device=logits.device)
    for rows in portions(logits):
        wanted = labels[rows, None]
        part = logits[rows].float()
        bent = None
        if softcap is not None:
            bent = part.div_(softcap).tanh_()
            part = bent * softcap
        said, largest = part.gather(-1, wanted), part.amax(-1, keepdim=True)
        total = part.sub_(largest).exp_().sum(-1, keepdim=True)
        found[rows] = (largest - said + total.log())[:, 0]
        if outer is None:
            continue
        weight = outer[rows, None]
        part.mul_(weight / total).scatter_add_(-1, wanted, -weight)
        if bent is not None:
            part.mul_(1 - bent.square())
        if bent is not None or logits.dtype != torch.float32:  # then it is a tensor of its own
            logits[rows] = part
    return found


class _Gradients:
    """The gradients of hidden states, weight, bias and table, added up over chunks; narrow weights in float32."""

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
        """Takes in the gradient of a chunk's logits (n, V)."""
        if self.bias is not None:
            self.bias += logits.sum(0, dtype=torch.float32)
        own = None
        if self._rows is not None and self._index is not None:  # these columns are none of the weight's
            own = logits[:, self._index]
            logits.index_fill_(1, self._index, 0.0)
            if self.table is not None:
                self.table += own.mT @ states[rows]
        if self.states is not None:
            torch.mm(logits, weight, out=self.states[rows])
            if own is not None and self._rows is not None:
                self.states[rows].addmm_(own, self._rows)
        if self.weight is None:
            return
        for tokens in _tokens(weight):
            if weight.dtype == torch.float32:
                self.weight[tokens].addmm_(logits[:, tokens].mT, states[rows])
            else:
                self._add_wider(self.weight[tokens], logits[:, tokens].mT @ states[rows])

    @staticmethod
    def _add_wider(total: Tensor, found: Tensor) -> None:
        """Adds a narrower tensor in portions, since each is first made as wide as the total."""
        rows = max(1, PORTION.get(total.device.type, PORTION["else"]) // total.shape[-1])
        for into, part in zip(total.split(rows), found.split(rows), strict=True):
            into.add_(part)

    def ends(self, factor: Tensor | None = None) -> list[Tensor | None]:
        """The four, times a factor, in the dtypes of what they are gradients of."""
        parameters = (self.weight, self.bias, self.table)
        if factor is not None and float(factor) != 1.0:
            for gradient in (self.states, *parameters):
                if gradient is not None:
                    gradient.mul_(factor)
        made = zip(parameters, self._dtypes, strict=True)
        return [self.states, *(None if gradient is None else gradient.to(dtype) for gradient, dtype in made)]


class _Summed(torch.autograd.Function):
    """The sum of the losses of rows (N, C) under a head; its gradients are at hand when the forward pass ends."""

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
        gradients = _Gradients((states, weight, bias, table), index, needed)
        total, ones = torch.zeros((), device=states.device), torch.ones(len(labels), device=states.device)
        chunks = _Chunks(weight, bias, table, index)
        for rows in _slices(len(labels), weight.shape[0], states.device):
            logits = chunks.of(states[rows])
            total += _measure(logits, labels[rows], softcap, ones[rows] if any(needed) else None).sum()
            if any(needed):
                gradients.add(rows, states, weight, logits)
        ctx.gradients = gradients
        return total

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.gradients is None:
            raise RuntimeError("the gradients of a summed loss are there once; its graph cannot be gone through again")
        found = ctx.gradients.ends(outer[0])
        ctx.gradients = None
        return (*found, None, None, None, None)


class _PerRow(torch.autograd.Function):
    """The losses (N) of rows (N, C) under a head; the backward pass computes the logits anew."""

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
    ) -> Tensor:
        found, chunks = torch.empty(len(labels), device=states.device), _Chunks(weight, bias, table, index)
        for rows in _slices(len(labels), weight.shape[0], states.device):
            found[rows] = _measure(chunks.of(states[rows]), labels[rows], softcap, None)
        ctx.save_for_backward(states, weight, bias, table, index, labels)
        ctx.softcap = softcap
        return found

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        states, weight, bias, table, index, labels = ctx.saved_tensors
        gradients = _Gradients((states, weight, bias, table), index, ctx.needs_input_grad[:4])
        chunks, weights = _Chunks(weight, bias, table, index), outer[0].float()
        for rows in _slices(len(labels), weight.shape[0], states.device):
            logits = chunks.of(states[rows])
            _measure(logits, labels[rows], ctx.softcap, weights[rows])
            gradients.add(rows, states, weight, logits)
        return (*gradients.ends(), None, None, None)
