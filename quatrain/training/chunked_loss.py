"""Cross-entropy of a large vocabulary in chunks, so that the logits of a long batch never exist at once.

A language head turns hidden states (B, T, C) to logits (B, T, V); for a large vocabulary those and their gradient are
the largest tensors of a training step. Here a chunk of rows at a time is multiplied, measured and forgotten, as in
Wijmans et al. 2024 (arXiv 2411.09009) and Liger (arXiv 2410.10989): for a sum the gradients of hidden states and weight
are added up on the way, for losses per token the chunk is computed anew in the backward pass. Rows where nothing is
learned are left out altogether.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from quatrain.models.cross_entropy import PORTION, portions
from quatrain.models.heads import IGNORE, check_token_labels, token_loss
from quatrain.models.stack import Model

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
        loss = token_loss(model.say(hidden), labels)
        return loss.sum() if summed else loss
    check_token_labels(labels, (*hidden.shape[:-1], vocabulary))
    rows = (labels.reshape(-1) != IGNORE).nonzero()[:, 0]
    states, wanted = hidden.reshape(-1, hidden.shape[-1]), labels.reshape(-1).long()
    if len(rows) < len(wanted):
        states, wanted = states[rows], wanted[rows]
    if type(model.lm_head) is not nn.Linear:
        losses = _by_parts(model, states, wanted)
    else:
        head = _Head.of(model, states)
        if summed and states.dtype != torch.float16:
            return _Summed.apply(head.states, head.weight, head.bias, wanted, head.softcap, torch.is_grad_enabled())
        losses = _PerRow.apply(head.states, head.weight, head.bias, wanted, head.softcap)
    if summed:
        return losses.sum()
    return torch.zeros(labels.numel(), device=losses.device).index_put((rows,), losses).view(labels.shape)


@dataclass(frozen=True)
class _Head:
    """A plain language head: softcap(states W^T + bias), the model's own scale already in the states."""

    states: Tensor
    weight: Tensor
    bias: Tensor | None
    softcap: float | None

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
            fixed = model.logits_bias[0]
            bias = fixed if bias is None else bias + fixed
        return _Head(states, linear.weight, bias, config.logit_softcap)


def _by_parts(model: Model, states: Tensor, labels: Tensor) -> Tensor:
    """Losses (N) under any head at all (adapted, quantized): each part is said anew for the backward pass."""

    def said(part: Tensor, wanted: Tensor) -> Tensor:
        return token_loss(model.say(part), wanted)

    slices = _slices(len(labels), model.config.vocab_size, states.device)
    parts = [checkpoint(said, states[rows], labels[rows], use_reentrant=False) for rows in slices]
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


class _Chunks:
    """Logits of one chunk of rows after another before any soft cap, each in the memory of the one before."""

    def __init__(self, weight: Tensor, bias: Tensor | None):
        self.weight, self.bias = weight, bias
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
    """The gradients of hidden states, weight and bias, added up over chunks; narrow weights in float32."""

    def __init__(self, states: Tensor, weight: Tensor, bias: Tensor | None, needed: tuple[bool, bool, bool]):
        self.states = torch.empty_like(states) if needed[0] else None
        self.weight = torch.zeros_like(weight, dtype=torch.float32) if needed[1] else None
        self.bias = torch.zeros_like(bias, dtype=torch.float32) if needed[2] and bias is not None else None
        self._dtypes = weight.dtype, None if bias is None else bias.dtype

    def add(self, rows: slice, states: Tensor, weight: Tensor, logits: Tensor) -> None:
        """Takes in the gradient of a chunk's logits (n, V)."""
        if self.bias is not None:
            self.bias += logits.sum(0, dtype=torch.float32)
        if self.states is not None:
            torch.mm(logits, weight, out=self.states[rows])
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

    def ends(self, factor: Tensor | None = None) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """The three, times a factor, in the dtypes of what they are gradients of."""
        if factor is not None and float(factor) != 1.0:
            for gradient in (self.states, self.weight, self.bias):
                if gradient is not None:
                    gradient.mul_(factor)
        weight = None if self.weight is None else self.weight.to(self._dtypes[0])
        return self.states, weight, None if self.bias is None else self.bias.to(self._dtypes[1])


class _Summed(torch.autograd.Function):
    """The sum of the losses of rows (N, C) under a head; its gradients are at hand when the forward pass ends."""

    @staticmethod
    def forward(
        ctx: Any,
        states: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        labels: Tensor,
        softcap: float | None,
        learning: bool,
    ) -> Tensor:
        needed = ctx.needs_input_grad[:3] if learning else (False, False, False)
        gradients = _Gradients(states, weight, bias, needed)
        total, ones = torch.zeros((), device=states.device), torch.ones(len(labels), device=states.device)
        chunks = _Chunks(weight, bias)
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
        return (*found, None, None, None)


class _PerRow(torch.autograd.Function):
    """The losses (N) of rows (N, C) under a head; the backward pass computes the logits anew."""

    @staticmethod
    def forward(
        ctx: Any, states: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, softcap: float | None
    ) -> Tensor:
        found, chunks = torch.empty(len(labels), device=states.device), _Chunks(weight, bias)
        for rows in _slices(len(labels), weight.shape[0], states.device):
            found[rows] = _measure(chunks.of(states[rows]), labels[rows], softcap, None)
        ctx.save_for_backward(states, weight, bias, labels)
        ctx.softcap = softcap
        return found

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        states, weight, bias, labels = ctx.saved_tensors
        gradients, weights = _Gradients(states, weight, bias, ctx.needs_input_grad[:3]), outer[0].float()
        chunks = _Chunks(weight, bias)
        for rows in _slices(len(labels), weight.shape[0], states.device):
            logits = chunks.of(states[rows])
            _measure(logits, labels[rows], ctx.softcap, weights[rows])
            gradients.add(rows, states, weight, logits)
        return (*gradients.ends(), None, None)
