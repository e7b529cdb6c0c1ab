"""Moves a scale per channel between a layer and what feeds it, so that weights or activations quantize better.

The model computes the same: the layer's columns are multiplied by s, and the output of the norm or linear layer before
it is divided by s.

- AWQ (Lin et al. 2023, arXiv 2306.00978): s = mean|x|^a, with the a whose rounded weights have the least error.
- SmoothQuant (Xiao et al. 2022, arXiv 2211.10438): s = max|x|^a / max|w|^(1 - a), so that outliers of the activations
  move into the weights before both are rounded to 8 bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from quatrain.compression.calibration import CalibratedBlock, LayerInputs
from quatrain.models.transformer.attention import Attention
from quatrain.models.transformer.blocks import Block
from quatrain.models.transformer.feed_forward import FeedForward
from quatrain.models.transformer.norms import RMSNorm

STEPS = 20
"""Exponents that AWQ tries between 0 and 1."""
STRENGTH = 0.5
"""SmoothQuant's exponent: half of the difficulty moves into the weights."""
LEAST = 1e-5
"""The least statistic of a channel, so that no scale is 0."""

RoundTrip = Callable[[nn.Linear, Tensor], Tensor]
"""The weight (out, in) of a layer as it is after quantization."""


@dataclass(frozen=True)
class ScaleGroup:
    """Layers that read the same input, and the module whose output that is."""

    source: nn.Module
    consumers: tuple[nn.Linear, ...]


def scale_groups(block: Block) -> Iterator[ScaleGroup]:
    """The groups of a block whose source can take a scale per channel.

    Left out: inputs that are the residual stream (post-norm families), an attention output whose values are shared by
    several query heads, a feed-forward layer behind an activation alone, and blocks with a recurrent layer, experts or
    latent attention.
    """
    attention, mlp = block.self_attn, block.mlp
    if type(attention) is not Attention or not isinstance(mlp, FeedForward):
        return
    first = (attention.q_proj, attention.k_proj, attention.v_proj)
    second = (mlp.up_proj,) if mlp.gate_proj is None else (mlp.gate_proj, mlp.up_proj)
    if block.input_layernorm is not None and block.norm_position != "post":
        if block.post_attention_layernorm is None:
            yield from _after_norm(block.input_layernorm, (*first, *second))
        else:
            yield from _after_norm(block.input_layernorm, first)
            yield from _after_norm(block.post_attention_layernorm, second)
    if _all_linear(attention.v_proj, attention.o_proj) and attention.num_heads == attention.num_kv_heads:
        yield ScaleGroup(attention.v_proj, (attention.o_proj,))
    if mlp.gate_proj is not None and _all_linear(mlp.up_proj, mlp.down_proj):
        yield ScaleGroup(mlp.up_proj, (mlp.down_proj,))


def _after_norm(norm: nn.Module, consumers: tuple[nn.Linear, ...]) -> Iterator[ScaleGroup]:
    if getattr(norm, "weight", None) is not None and _all_linear(*consumers):
        yield ScaleGroup(norm, consumers)


def _all_linear(*modules: nn.Module) -> bool:
    return all(isinstance(module, nn.Linear) for module in modules)


@torch.no_grad()
def apply_scale(group: ScaleGroup, scale: Tensor) -> None:
    """Multiplies the consumers' columns by `scale` (in,), and divides the source's output by it."""
    source = group.source
    offset = source.offset if isinstance(source, RMSNorm) else 0.0
    weight: Any = source.weight
    divisor = scale if weight.dim() == 1 else scale[:, None]
    weight.copy_((weight + offset) / divisor - offset)
    bias = getattr(source, "bias", None)
    if bias is not None:
        bias.div_(scale)
    for consumer in group.consumers:
        consumer.weight.mul_(scale)


def smooth(block: CalibratedBlock, choose: Callable[[ScaleGroup, LayerInputs], Tensor]) -> None:
    """Applies the scale that `choose` returns for each group of a block, and adapts the inputs' statistics."""
    names = {id(module): name for name, module in block.layers.items()}
    for group in scale_groups(block.block):
        paths = [names[id(consumer)] for consumer in group.consumers]
        scale = choose(group, block.inputs[paths[0]])
        apply_scale(group, scale)
        for path in paths:
            block.inputs[path] = block.inputs[path].rescaled(1 / scale)


@torch.no_grad()
def awq_scale(group: ScaleGroup, inputs: LayerInputs, round_trip: RoundTrip) -> Tensor:
    """AWQ's scale (in,): of all exponents, the one with the least error of the outputs on the calibration texts."""
    mean = inputs.mean.clamp(min=LEAST)
    best, least = torch.ones_like(mean), float("inf")
    for step in range(STEPS):
        scale = mean.pow(step / STEPS)
        scale = scale / (scale.max() * scale.min()).sqrt()
        error = 0.0
        for consumer in group.consumers:
            weight = consumer.weight.float()
            error += inputs.error(round_trip(consumer, weight * scale) / scale - weight)
        if error < least:
            best, least = scale, error
    return best


def smoothquant_scale(group: ScaleGroup, inputs: LayerInputs, strength: float = STRENGTH) -> Tensor:
    """SmoothQuant's scale (in,)."""
    largest = torch.stack([consumer.weight.detach().float().abs().amax(0) for consumer in group.consumers]).amax(0)
    return inputs.absmax.clamp(min=LEAST).pow(strength) / largest.clamp(min=LEAST).pow(1 - strength)
