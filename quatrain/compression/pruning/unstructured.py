"""Sets weights of linear layers to zero, by importance: magnitude, Wanda and SparseGPT; anywhere or as N of M.

- Magnitude (Han et al. 2015, arXiv 1506.02626): the smallest |w| of a layer, or of the whole model.
- Wanda (Sun et al. 2023, arXiv 2306.11695): the smallest |w| times the norm of its input, of each row.
- SparseGPT (Frantar and Alistarh 2023, arXiv 2301.00774): the weights whose removal costs least once the others of
  their row are corrected, by the inverse of the inputs' second moments.

The matrices keep their shapes: memory and time of dense products stay as they were, and processors with support for
2:4 sparsity, or a file format for sparse weights, turn the zeros into a gain. `structured` makes a model smaller.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from quatrain.compression.calibration import Inputs, LayerInputs, block_linears, calibrated_blocks
from quatrain.core.errors import InputError
from quatrain.core.wording import format_value
from quatrain.models.transformer.stack import Model

BLOCK = 128
"""Input columns whose masks SparseGPT chooses together."""
DAMPING = 0.01
"""Added to the diagonal of the second moments, as a share of its mean."""


@dataclass(frozen=True)
class Pattern:
    """At most `keep` of every `of` consecutive weights of a row are not zero: 2:4, 4:8."""

    keep: int
    of: int

    @classmethod
    def parse(cls, text: str) -> Pattern:
        """The pattern that a text such as "2:4" names. Raises InputError."""
        keep, _, of = text.partition(":")
        if not (keep.isdecimal() and of.isdecimal() and 0 < int(keep) < int(of) <= 64):
            raise InputError(f"pattern: {format_value(text)}; must be N:M with 0 < N < M <= 64, such as 2:4")
        return cls(int(keep), int(of))

    @property
    def sparsity(self) -> float:
        """The share of zeros."""
        return 1 - self.keep / self.of

    def __str__(self) -> str:
        return f"{self.keep}:{self.of}"


@dataclass(frozen=True)
class Request:
    """How many weights are to be zero: a share, or a pattern, which fixes the share."""

    sparsity: float
    pattern: Pattern | None = None


@dataclass(frozen=True)
class Method:
    """A way to choose the weights. `prune(weight, inputs, request)` returns the new weight (out, in)."""

    needs_inputs: bool
    prune: Callable[[Tensor, LayerInputs | None, Request], Tensor]
    whole_model: bool = False
    """Whether the share is of all layers together."""


def smallest(scores: Tensor, sparsity: float) -> Tensor:
    """True for the share `sparsity` of the smallest scores of each row (R, C); ties are broken by position."""
    count = round(scores.shape[1] * sparsity)
    mask = torch.zeros_like(scores, dtype=torch.bool)
    if count:
        mask.scatter_(1, scores.argsort(dim=1, stable=True)[:, :count], True)
    return mask


def pattern_mask(scores: Tensor, pattern: Pattern) -> Tensor:
    """True for the weights (out, in) that a pattern drops: the smallest scores of each group."""
    rows, columns = scores.shape
    whole = columns // pattern.of * pattern.of
    groups = scores[:, :whole].reshape(-1, pattern.of)
    mask = torch.zeros_like(scores, dtype=torch.bool)
    mask[:, :whole] = smallest(groups, pattern.sparsity).view(rows, whole)
    return mask


def _magnitude(weight: Tensor, inputs: LayerInputs | None, request: Request) -> Tensor:
    scores = weight.float().abs()
    if request.pattern is not None:
        return weight.masked_fill(pattern_mask(scores, request.pattern), 0.0)
    return weight.masked_fill(smallest(scores.view(1, -1), request.sparsity).view_as(weight), 0.0)


def _wanda(weight: Tensor, inputs: LayerInputs | None, request: Request) -> Tensor:
    scores = weight.float().abs() * _given(inputs).norm
    mask = smallest(scores, request.sparsity) if request.pattern is None else pattern_mask(scores, request.pattern)
    return weight.masked_fill(mask, 0.0)


def _sparsegpt(weight: Tensor, inputs: LayerInputs | None, request: Request) -> Tensor:
    """The columns are pruned from left to right; what each removal costs is put right in the columns behind it."""
    w = weight.detach().float().clone()
    factor, dead = _given(inputs).inverse_factor(DAMPING)
    w[:, dead] = 0.0
    diagonal, pattern = factor.diagonal(), request.pattern
    step = BLOCK if pattern is None else BLOCK // pattern.of * pattern.of
    for start in range(0, w.shape[1], step):
        stop = min(start + step, w.shape[1])
        block, inverse = w[:, start:stop], factor[start:stop, start:stop]
        errors = torch.zeros_like(block)
        mask = torch.zeros_like(block, dtype=torch.bool)
        if pattern is None:
            saliency = (block / diagonal[start:stop]).square()
            mask = smallest(saliency.reshape(1, -1), request.sparsity).view_as(block)
        for column in range(stop - start):
            if pattern is not None and column % pattern.of == 0:
                group = slice(column, column + pattern.of)
                saliency = (block[:, group] / diagonal[start:stop][group]).square()
                mask[:, group] = smallest(saliency, pattern.sparsity)
            kept = block[:, column].masked_fill(mask[:, column], 0.0)
            errors[:, column] = (block[:, column] - kept) / inverse[column, column]
            block[:, column] = kept
            block[:, column + 1 :] -= errors[:, column, None] * inverse[column, column + 1 :]
        w[:, stop:] -= errors @ factor[start:stop, stop:]
    return w.to(weight.dtype)


def _given(inputs: LayerInputs | None) -> LayerInputs:
    if inputs is None:
        raise InputError("This pruning method needs the inputs of the layer: calibrate on texts.")
    return inputs


METHODS = {
    "magnitude": Method(False, _magnitude),
    "magnitude-global": Method(False, _magnitude, whole_model=True),
    "wanda": Method(True, _wanda),
    "sparsegpt": Method(True, _sparsegpt),
}


def check_request(method: str, sparsity: float | None, pattern: str | None) -> tuple[Method, Request]:
    """The method and what is asked of it. Raises InputError, with all problems."""
    problems = []
    if method not in METHODS:
        problems.append(f"method: {format_value(method)}; must be one of {', '.join(METHODS)}")
    elif pattern is not None and METHODS[method].whole_model:
        problems.append(f"pattern: {pattern}; {method} has no pattern, for it compares all layers: use magnitude")
    if sparsity is not None and not 0 <= sparsity < 1:
        problems.append(f"sparsity: {sparsity}; must be at least 0 and below 1, such as 0.5")
    parsed = None
    if pattern is not None:
        try:
            parsed = Pattern.parse(pattern)
        except InputError as error:
            problems.append(str(error))
    elif sparsity is None:
        problems.append("sparsity: missing; name a share of zeros such as 0.5, or a pattern such as 2:4")
    if parsed is not None and sparsity is not None and abs(sparsity - parsed.sparsity) > 1e-9:
        problems.append(f"sparsity: {sparsity}; the pattern {parsed} makes it {parsed.sparsity:g}: leave it out")
    if problems:
        raise InputError("This model cannot be pruned so:", problems)
    return METHODS[method], Request(parsed.sparsity if parsed else float(sparsity or 0), parsed)


@torch.no_grad()
def prune(
    model: Model,
    method: str = "wanda",
    sparsity: float | None = None,
    *,
    pattern: str | None = None,
    batches: Sequence[Inputs] = (),
) -> list[str]:
    """Sets weights of the linear layers, except the head, to zero, in place; returns the paths of these layers.

    `sparsity` is the share of zeros; `pattern` such as "2:4" fixes it. `wanda` and `sparsegpt` read `batches`:
    arguments of `Model.hidden_states`; 128 windows of the model's context are usual. Raises InputError.
    """
    chosen, request = check_request(method, sparsity, pattern)
    linears = block_linears(model)
    if not all(isinstance(module, nn.Linear) for module in linears.values()):
        raise InputError("The model is quantized or has adapters: prune it before quantizing it, and merge adapters.")
    if request.pattern is not None:
        sizes: dict[str, Any] = {name: module.in_features for name, module in linears.items()}
        if wrong := [f"{name}: {size} inputs" for name, size in sizes.items() if size % request.pattern.of]:
            raise InputError(f"pattern: {request.pattern}; does not divide the inputs of these layers:", wrong[:5])
    if chosen.needs_inputs:
        for block in calibrated_blocks(model, batches):
            for name, module in block.layers.items():
                weight: Any = module.weight
                weight.copy_(chosen.prune(weight, block.inputs[name], request))
    elif chosen.whole_model:
        _prune_together([module.weight for module in linears.values()], request.sparsity)  # type: ignore[misc]
    else:
        for module in linears.values():
            weight = module.weight
            weight.copy_(chosen.prune(weight, None, request))
    return list(linears)


def _prune_together(weights: list[Tensor], sparsity: float) -> None:
    scores = torch.cat([weight.float().abs().view(-1) for weight in weights])
    mask = smallest(scores[None], sparsity)[0]
    for weight, part in zip(weights, mask.split([weight.numel() for weight in weights]), strict=True):
        weight.masked_fill_(part.view_as(weight), 0.0)


def masks_of(model: Model) -> dict[str, Tensor]:
    """Which weights (out, in) of the blocks' linear layers are not zero, by the path of the layer."""
    return {
        name: layer.weight.detach() != 0 for name, layer in block_linears(model).items() if isinstance(layer, nn.Linear)
    }


def sparsity_of(model: Model) -> float:
    """The share of zeros among the weights of the blocks' linear layers."""
    zeros, total = 0, 0
    for weight in _weights(model):
        zeros += int((weight == 0).sum())
        total += weight.numel()
    return zeros / max(1, total)


def _weights(model: Model) -> Iterator[Tensor]:
    yield from (module.weight for module in block_linears(model).values() if isinstance(module, nn.Linear))
