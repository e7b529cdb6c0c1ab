"""FlexAttention (Dong et al. 2024, arXiv 2412.05496) on CUDA, for cases without a fast kernel in PyTorch.

With a soft cap, `scaled_dot_product_attention` cannot be used, and the scores (B, H, T, S) would be materialized. With
a window much shorter than the text, most blocks of the mask are empty, and FlexAttention skips them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

MIN_QUERIES = 256
"""Minimum number of queries: for shorter texts, building the block mask costs more than it saves."""


def supports(query: Tensor, softcap: float | None, window: int | None, keys: int) -> bool:
    """Whether FlexAttention is the better choice for query (B, H, T, D) and `keys` keys."""
    if query.device.type != "cuda" or query.shape[2] < MIN_QUERIES or not _can_compile():
        return False
    return softcap is not None or (window is not None and 4 * window <= keys)


@cache
def _can_compile() -> bool:
    """Whether Triton is installed, which compiles FlexAttention; uncompiled it is slower than explicit attention."""
    import importlib.util

    return importlib.util.find_spec("triton") is not None


@cache
def _compiled() -> Callable[..., Any]:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=True)


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    scale: float,
    softcap: float | None,
    bias: Tensor | None,
    mask: Tensor | None,
    causal: bool,
) -> Tensor:
    """softmax(softcap(scale q k^T) + bias) v: query (B, H, T, D), key, value (B, G, S, D) with G dividing H.

    mask (B or 1, T, S): True where a query attends to a key; None: everywhere, or for `causal` to no later key. bias
    (B or 1, H, T, S): positional bias of the scores, or None. Returns (B, H, T, D).
    """
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    batch, _, length, _ = query.shape
    slots = key.shape[2]

    def score(value: Tensor, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        if softcap is not None:
            value = torch.tanh(value / softcap) * softcap
        return value if bias is None else value + bias[b if bias.shape[0] > 1 else 0, h, q, k]

    def is_visible(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        if mask is None:
            return k - q <= slots - length
        return mask[b if mask.shape[0] > 1 else 0, q, k]

    blocks = None
    if mask is not None or causal:
        rows = batch if mask is not None and mask.shape[0] > 1 else None
        blocks = create_block_mask(is_visible, rows, None, length, slots, device=str(query.device))
    uncompiled: Any = flex_attention
    run = _compiled() if query.device.type == "cuda" else uncompiled
    grouped = key.shape[1] != query.shape[1]
    output: Tensor = run(query, key, value, score_mod=score, block_mask=blocks, scale=scale, enable_gqa=grouped)
    return output
