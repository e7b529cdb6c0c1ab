"""Which sound each word came from: word times from a decoder's cross-attention, by dynamic time warping.

As in OpenAI's Whisper: the weights of some heads are normalized over tokens, smoothed over time, averaged, and the
cheapest monotonic path through them (Sakoe and Chiba 1978) gives each token a time. Heads that follow the sound are
listed in a model's `generation_config.json` (`alignment_heads`); without a list, all heads of the upper half count.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from quatrain.core.errors import InputError
from quatrain.models.transformer.context import Trace

MEDIAN_WIDTH = 7
"""Encoder vectors of the median filter that smooths attention over time."""


@dataclass(frozen=True)
class Alignment:
    """How tokens lie in time. `weights` (tokens, vectors) is the smoothed attention of each, `times` (tokens + 1) the
    vector at which each begins, and at last where the text ends.
    """

    weights: Tensor
    times: tuple[int, ...]


def align(
    model: Any,
    features: Tensor,
    prompt: Sequence[int],
    tokens: Sequence[int],
    end: int,
    heads: Sequence[tuple[int, int]] | None = None,
    vectors: int | None = None,
) -> Alignment:
    """Aligns the tokens that follow `prompt` with the sound of `features` (bands, frames).

    `end` is the end token; `heads` are pairs of layer and head; only the first `vectors` encoder vectors are sound, the
    rest is padding. Raises InputError for heads that the model does not have.
    """
    heads = list(heads) if heads else default_heads(model.config)
    layers, count = model.config.num_hidden_layers, model.config.num_attention_heads
    if unknown := [pair for pair in heads if not (0 <= pair[0] < layers and 0 <= pair[1] < count)]:
        raise InputError(f"alignment_heads: {unknown}; the model has {layers} layers of {count} heads")
    trace = Trace()
    ids = torch.tensor([[*prompt, *tokens, end]], device=model.device)
    with torch.inference_mode():
        model.hidden_states(features=features[None].to(model.device), decoder_input_ids=ids, trace=trace)
    attention = torch.stack([trace.cross_attentions[layer][0, head] for layer, head in heads]).float().cpu()
    # The state after a token predicts the next one: the last prompt token's attention is that of the first token.
    attention = attention[:, len(prompt) - 1 : -1, :vectors]
    deviation, mean = torch.std_mean(attention, dim=1, keepdim=True, correction=0)
    smooth = median_filter((attention - mean) / deviation.clamp(min=1e-9), MEDIAN_WIDTH).mean(dim=0)
    rows, columns = warp(-smooth.double().numpy())
    begins = np.flatnonzero(np.diff(rows, prepend=-1))
    return Alignment(smooth[:-1], tuple(int(columns[place]) for place in begins))


def default_heads(config: Any) -> list[tuple[int, int]]:
    """All heads of the upper half of the layers."""
    layers = range(config.num_hidden_layers // 2, config.num_hidden_layers)
    return [(layer, head) for layer in layers for head in range(config.num_attention_heads)]


def median_filter(values: Tensor, width: int) -> Tensor:
    """The median of `width` neighbours along the last axis; edges are reflected. Shorter rows stay as they are."""
    half = width // 2
    if values.shape[-1] <= half:
        return values
    padded = torch.nn.functional.pad(values, (half, half), mode="reflect")
    return padded.unfold(-1, width, 1).sort().values[..., half]


def warp(cost: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The cheapest path through a matrix (rows, columns) from its first to its last cell, by steps right, down or both.

    Returns the row and the column of each cell of the path.
    """
    rows, columns = cost.shape
    total = np.full((rows + 1, columns + 1), np.inf)
    total[0, 0] = 0.0
    steps = np.zeros((rows + 1, columns + 1), dtype=np.int8)
    for row in range(1, rows + 1):
        above, own, moves, price = total[row - 1].tolist(), [np.inf] * (columns + 1), [2] * (columns + 1), cost[row - 1]
        prices = price.tolist()
        for column in range(1, columns + 1):
            both, down, right = above[column - 1], above[column], own[column - 1]
            if both < down and both < right:
                own[column], moves[column] = both + prices[column - 1], 0
            elif down < both and down < right:
                own[column], moves[column] = down + prices[column - 1], 1
            else:
                own[column] = right + prices[column - 1]
        total[row], steps[row] = own, moves
    steps[0, :], steps[:, 0] = 2, 1
    path, row, column = [], rows, columns
    while row > 0 or column > 0:
        path.append((row - 1, column - 1))
        move = steps[row, column]
        row, column = row - (move != 2), column - (move != 1)
    found = np.array(path[::-1])
    return found[:, 0], found[:, 1]
