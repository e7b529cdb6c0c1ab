"""Adapters made part of their model, with a look at what that changed: nobody merges blindly.

Several adapters of one base are merged by weights: each adds its share of what it changes in the weights (task
arithmetic, Ilharco et al. 2022, arXiv 2212.04089). All of it is done in full precision, whatever the base is held in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from quatrain.adaptation.apply import merge_all, unmergeable
from quatrain.adaptation.peft_config import base_folder
from quatrain.compression import methods
from quatrain.errors import InputError
from quatrain.generation.loading import load_model
from quatrain.models.repository import resolve
from quatrain.models.stack import Model
from quatrain.models.vocabulary import resize_vocabulary


@dataclass
class Change:
    """What merging changed on a probe: the logits' largest difference, that as a share of their largest magnitude, and
    the loss in nats per token before and after, where the model says tokens.
    """

    largest: float
    share: float
    loss_before: float | None = None
    loss_after: float | None = None

    def check(self, tolerance: float) -> None:
        """Raises InputError where the logits changed by more than this share."""
        if not self.share <= tolerance:
            raise InputError(
                f"Merging changes the logits by {self.share:.2%} of the largest, {self.largest:.3g}; at most "
                f"{tolerance:.2%} is allowed. Nothing is written. Keep more bits, or allow more with --tolerance."
            )


def merge(folders: Sequence[str | Path], weights: Sequence[float] = (), *, quantize: str | None = None) -> Model:
    """The model of one base with adapters merged into it, each by its weight (1 unless given), perhaps quantized again.

    Raises InputError for folders that are no adapters, of several bases, or with what is no weight: soft prompts and
    bottlenecks.
    """
    problems = []
    weights = weights or [1.0] * len(folders)
    if len(weights) != len(folders):
        problems.append(f"weights: {len(weights)}; must be as many as adapters, {len(folders)}")
    if quantize is not None and quantize not in methods.METHODS:
        problems.append(f"quantize: {quantize!r}; must be one of {', '.join(methods.METHODS)}")
    bases = {str(base_folder(resolve(folder)).resolve()) for folder in folders}
    if len(bases) != 1:
        problems.append(f"the adapters are of {len(bases)} bases: {', '.join(sorted(bases))}; must be of one")
    if problems:
        raise InputError("These adapters cannot be merged:", problems)
    merged, start = _merged(folders[0])
    if len(folders) > 1 or weights[0] != 1:
        sums = {name: tensor.clone() for name, tensor in start.items()}
        for number, (folder, weight) in enumerate(zip(folders, weights, strict=True)):
            one = merged if number == 0 else _merged(folder)[0]
            if one.config.vocab_size != merged.config.vocab_size:
                raise InputError(
                    f"{folder}: its vocabulary has {one.config.vocab_size:,} tokens, the first one's "
                    f"{merged.config.vocab_size:,}; only adapters with the same new tokens can be merged."
                )
            for name, tensor in one.state_dict().items():
                if name in sums and sums[name].shape == tensor.shape and tensor.is_floating_point():
                    sums[name] += weight * (tensor.float() - start[name])
        for name, tensor in merged.state_dict().items():
            if name in sums and tensor.is_floating_point():
                tensor.copy_(sums[name])
    if quantize is not None:
        methods.quantize(merged, quantize)
    return merged.eval()


@torch.no_grad()
def _merged(folder: str | Path) -> tuple[Model, dict[str, Tensor]]:
    """A base of floats with one adapter in it, and the base's weights by name."""
    model, _ = load_model(folder)
    if what := unmergeable(model):
        raise InputError(f"{folder}: {what} is no weight and cannot be merged; use the folder as it is.")
    base, _ = load_model(base_folder(resolve(folder)))
    resize_vocabulary(base, model.config.vocab_size)
    for each in (model, base):
        merge_all(each)
        methods.dequantize(each)
    start = {name: tensor.float().clone() for name, tensor in base.state_dict().items()}
    for name, tensor in model.state_dict().items():
        # A head that the base does not have begins at nothing.
        if name not in start or start[name].shape != tensor.shape:
            start[name] = torch.zeros_like(tensor, dtype=torch.float32)
    return model, start


@torch.no_grad()
def change(before: Model, after: Model, ids: Tensor) -> Change:
    """What another model says of ids (1, T) than the one before."""
    first, second = (_logits(model, ids) for model in (before, after))
    largest = float((first - second).abs().max())
    share = largest / max(float(first.abs().max()), 1e-12)
    if before.config.head != "causal" or ids.shape[1] < 2:
        return Change(largest, share)
    losses = [
        float(torch.nn.functional.cross_entropy(logits[0, :-1], ids[0, 1:])) for logits in (first, second)
    ]
    return Change(largest, share, *losses)


def _logits(model: Model, ids: Tensor) -> Tensor:
    named = {} if model.encoder is None else {"decoder_input_ids": ids}
    found = model.eval()(ids, **named)[0]
    logits: Tensor = found[0] if isinstance(found, tuple) else found
    return logits.float()
