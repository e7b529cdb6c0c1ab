"""Normalization: LayerNorm (Ba et al. 2016, arXiv 1607.06450) and RMSNorm (Zhang & Sennrich 2019, arXiv 1910.07467)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from quatrain.models.kernels import cpu
from quatrain.models.transformer.config import ModelConfig


class RMSNorm(nn.Module):
    """x / rms(x) * (offset + weight) over the last axis, statistics in float32 for every dtype of x."""

    def __init__(self, size: int, eps: float, offset: float = 0.0):
        super().__init__()
        self.weight = nn.Parameter(torch.full((size,), 1.0 - offset))
        self.eps, self.offset = eps, offset

    def forward(self, x: Tensor) -> Tensor:
        """x (…, C) to the same shape."""
        if self.offset and x.dtype.itemsize < 4:  # 1 + weight would be rounded in a 16-bit type.
            return F.rms_norm(x.float(), (x.shape[-1],), self.weight.float() + self.offset, self.eps).to(x.dtype)
        weight = (self.weight + self.offset if self.offset else self.weight).to(x.dtype)
        if cpu.supports(x):
            return cpu.RMSNormFunction.apply(x, weight, self.eps)
        return F.rms_norm(x, (x.shape[-1],), weight, self.eps)


class BareRMSNorm(nn.Module):
    """x / rms(x) over the last axis, without parameters."""

    def __init__(self, eps: float):
        super().__init__()
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """x (…, C) to the same shape."""
        return F.rms_norm(x, (x.shape[-1],), eps=self.eps)


class NormOfEachHead(nn.Module):
    """LayerNorm without bias over the channels of each head; the weights (H, D) differ between heads (StableLM)."""

    def __init__(self, heads: int, size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(heads, size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """x (B, T, H, D) to the same shape."""
        return F.layer_norm(x, x.shape[-1:], eps=self.eps) * self.weight


def make_query_key_norm(config: ModelConfig, heads: int, width: int) -> nn.Module | None:
    """The norm of the queries or keys of `heads` heads of this width that `config.query_key_norm` names, or None."""
    if config.query_key_norm == "none":
        return None
    if config.query_key_norm == "each_head":
        return NormOfEachHead(heads, width, config.norm_eps)
    return make_norm(config, width * (heads if config.query_key_norm == "whole" else 1))


def make_norm(config: ModelConfig, size: int | None = None) -> nn.Module:
    """The norm that `config.norm` names, over `size` channels (default: hidden_size)."""
    size = size or config.hidden_size
    if config.norm.startswith("rms"):
        if config.norm == "rms_without_parameters":
            return BareRMSNorm(config.norm_eps)
        return RMSNorm(size, config.norm_eps, float(config.norm == "rms_offset"))
    learned = config.norm != "layer_without_parameters"
    return nn.LayerNorm(size, eps=config.norm_eps, elementwise_affine=learned, bias=config.norm == "layer")
