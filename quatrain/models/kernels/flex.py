"""Attention by FlexAttention (Dong et al. 2024, arXiv 2412.05496) on CUDA, where PyTorch's own has no fast pass.

A soft cap on the scores has none at all: without this its scores (B, H, T, S) exist in full. A window much shorter than
the text leaves most blocks of the mask empty, and those are skipped. All else is `scaled_dot_product_attention`'s.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

SHORTEST = 256
"""Queries from which blocks of 128 are worth their set-up."""


def supports(query: Tensor, softcap: float | None, window: int | None, keys: int) -> bool:
    """Whether attention of query (B, H, T, D) over `keys` slots is better taken here."""
    if query.device.type != "cuda" or query.shape[2] < SHORTEST or not _compiler():
        return False
    return softcap is not None or (window is not None and 4 * window <= keys)


@cache
def _compiler() -> bool:
    """Whether there is what FlexAttention is compiled with; uncompiled it is slower than the plain pass."""
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
    added: Tensor | None,
    mask: Tensor | None,
    causal: bool,
) -> Tensor:
    """softmax(softcap(scale q k^T) + added) v: query (B, H, T, D), key, value (B, G, S, D) with G dividing H.

    mask (B or 1, T, S): True where a key is seen; None: all, or where `causal` none later. added (1, H, T, S): what
    positions add to the scores. Gives (B, H, T, D).
    """
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    batch, _, length, _ = query.shape
    slots = key.shape[2]

    def score(value: Tensor, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        if softcap is not None:
            value = torch.tanh(value / softcap) * softcap
        return value if added is None else value + added[0, h, q, k]

    def seen(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        if mask is None:
            return k - q <= slots - length
        return mask[b if mask.shape[0] > 1 else 0, q, k]

    blocks = None
    if mask is not None or causal:
        rows = batch if mask is not None and mask.shape[0] > 1 else None
        blocks = create_block_mask(seen, rows, None, length, slots, device=str(query.device))
    uncompiled: Any = flex_attention
    run = _compiled() if query.device.type == "cuda" else uncompiled
    grouped = key.shape[1] != query.shape[1]
    mixed: Tensor = run(query, key, value, score_mod=score, block_mask=blocks, scale=scale, enable_gqa=grouped)
    return mixed
