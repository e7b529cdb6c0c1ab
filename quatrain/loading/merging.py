"""Merges adapters into their base model, and measures how far the logits change.

Several adapters of one base are merged by weights: each adds its share of what it changes in the weights (task
arithmetic, Ilharco et al. 2022, arXiv 2212.04089). A quantized base is dequantized first: all sums are in float32.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from quatrain.adapters.apply import merge_adapters, unmergeable_reason
from quatrain.adapters.peft_config import base_folder
from quatrain.compression import methods
from quatrain.core.errors import InputError
from quatrain.core.wording import format_value
from quatrain.loading.model import ResolvedModel, load_weights
from quatrain.models.hub import resolve
from quatrain.models.transformer.stack import Model
from quatrain.models.transformer.vocabulary import resize_vocabulary, untie

ROUNDING_ERROR = 0.001
"""The largest allowed change of a logit by a merge, as a share of the largest logit. Only rounding errors remain."""
OF_BITS = {"int8": 0.2, "w8a8": 0.3, "fp8": 0.3, "int4": 1.0, "nf4": 1.0}
"""The same for weights that are quantized after the merge: several times the usual change by this quantization."""


@dataclass
class Change:
    """The change by a merge on a probe text: the largest difference of a logit, and its share of the largest logit.

    For a causal model also the loss before and after, in nats per token.
    """

    largest: float
    share: float
    loss_before: float | None = None
    loss_after: float | None = None

    def check(self, tolerance: float, what: str = "Merging") -> None:
        """Raises InputError if the logits changed by more than the share `tolerance`, or are not finite."""
        if not math.isfinite(self.largest):
            raise InputError(f"{what} makes logits that are not finite. Nothing is written. Take smaller --weights.")
        if not self.share <= tolerance:
            raise InputError(
                f"{what} changes the logits by {self.share:.2%} of the largest, {self.largest:.3g}; at most "
                f"{tolerance:.2%} is allowed. Nothing is written. Keep more bits, or allow more with --tolerance."
            )


def argument_problems(
    folders: Sequence[str | Path], weights: Sequence[float], quantize: str | None, tolerance: float | None = None
) -> list[str]:
    """The problems of the arguments of a merge."""
    problems = [] if folders else ["no adapter is named: quatrain merge ADAPTER --out FOLDER"]
    if weights and len(weights) != len(folders):
        problems.append(f"weights: {len(weights)}; must be as many as adapters, {len(folders)}")
    problems += [f"weights: {weight}; must be a finite number" for weight in weights if not math.isfinite(weight)]
    if weights and not any(weights):
        problems.append("weights: all are 0, so that nothing would be merged")
    if quantize is not None and quantize not in methods.METHODS:
        problems.append(f"quantize: {format_value(quantize)}; must be one of {', '.join(methods.METHODS)}")
    if tolerance is not None and not (math.isfinite(tolerance) and tolerance >= 0):
        problems.append(f"tolerance: {tolerance}; must be a finite number, at least 0")
    return problems


def merge(folders: Sequence[str | Path], weights: Sequence[float] = (), *, quantize: str | None = None) -> Model:
    """The base model with adapters merged into it, each by its weight (1 by default), then quantized with `quantize`.

    Raises InputError for folders that are not adapters, for adapters of several bases or heads, for adapters that are
    not changes of weights (soft prompts and bottlenecks), and for weights or sums that are not finite.
    """
    problems = argument_problems(folders, weights, quantize)
    bases = {str(base_folder(resolve(folder)).resolve()) for folder in folders}
    if len(bases) > 1:
        problems.append(f"the adapters are of {len(bases)} bases: {', '.join(sorted(bases))}; must be of one")
    if problems:
        raise InputError("These adapters cannot be merged:", problems)
    weights = weights or [1.0] * len(folders)
    merged, start = _merged(folders[0])
    if len(folders) > 1 or weights[0] != 1:
        sums = {name: tensor.clone() for name, tensor in start.items()}
        for number, (folder, weight) in enumerate(zip(folders, weights, strict=True)):
            one = merged if number == 0 else _merged(folder)[0]
            _check_alike(folder, one, merged)
            if one.untied_after_load and not merged.untied_after_load:
                untie(merged)
            for name, tensor in one.state_dict().items():
                if name in sums and tensor.is_floating_point():
                    sums[name] += weight * (tensor.float() - start[name])
        for name, tensor in merged.state_dict().items():
            if name in sums and tensor.is_floating_point():
                tensor.copy_(sums[name])
    check_finite(merged)
    if quantize is not None:
        methods.quantize(merged, quantize)
    return merged.eval()


def check_finite(model: Model) -> None:
    """Raises InputError that names the weights with NaN or infinity."""
    wrong = [
        f"{name}: has numbers that are not finite"
        for name, tensor in model.state_dict().items()
        if tensor.is_floating_point() and not torch.isfinite(tensor).all()
    ]
    if wrong:
        raise InputError("The merged model cannot be used, and nothing is written. Take smaller --weights:", wrong[:10])


def _check_alike(folder: str | Path, one: Model, first: Model) -> None:
    """Raises InputError if two adapters have another vocabulary or head."""
    if one.config.vocab_size != first.config.vocab_size:
        raise InputError(
            f"{folder}: its vocabulary has {one.config.vocab_size:,} tokens, the first one's "
            f"{first.config.vocab_size:,}; only adapters with the same new tokens can be merged."
        )
    if one.config.head != first.config.head or tuple(one.config.labels) != tuple(first.config.labels):
        other, own = (f"{each.config.head} ({', '.join(each.config.labels) or 'no labels'})" for each in (first, one))
        raise InputError(f"{folder}: its head is {own}, the first one's {other}; only like heads can be merged.")


@torch.no_grad()
def _merged(folder: str | Path) -> tuple[Model, dict[str, Tensor]]:
    """The dequantized base with one adapter merged into it, and the weights of the base by name."""
    resolved = ResolvedModel.of(folder)
    model = load_weights(resolved)
    if what := unmergeable_reason(model):
        raise InputError(f"{folder}: {what} is no weight and cannot be merged; use the folder as it is.")
    base = load_weights(resolved.base)
    resize_vocabulary(base, model.config.vocab_size)
    for each in (model, base):
        merge_adapters(each)
        methods.dequantize(each)
    start = {name: tensor.float().clone() for name, tensor in base.state_dict().items()}
    for name, tensor in model.state_dict().items():
        # The base lacks the head of the adapter: the change starts from zero.
        if name not in start or start[name].shape != tensor.shape:
            start[name] = torch.zeros_like(tensor, dtype=torch.float32)
    return model, start


@torch.no_grad()
def change(before: Model, after: Model, ids: Tensor) -> Change:
    """The change of the logits between two models for ids (1, T)."""
    first, second = (_logits(model, ids) for model in (before, after))
    largest = float((first - second).abs().max())
    share = largest / max(float(first.abs().max()), 1e-12)
    if before.config.head != "causal" or ids.shape[1] < 2:
        return Change(largest, share)
    losses = [float(torch.nn.functional.cross_entropy(logits[0, :-1], ids[0, 1:])) for logits in (first, second)]
    return Change(largest, share, *losses)


def _logits(model: Model, ids: Tensor) -> Tensor:
    named = {} if model.encoder is None else {"decoder_input_ids": ids}
    output = model.eval()(ids, **named)[0]
    logits: Tensor = output[0] if isinstance(output, tuple) else output
    return logits.float()
