"""Where a vision transformer looks: attention rollout and patch maps, drawn over the picture.

Rollout: Abnar & Zuidema 2020 (arXiv 2005.00928). Each layer mixes its attention, averaged over heads, with the residual
that passes by; the product over the layers says how much of each patch reaches the pooled state.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from quatrain.core.errors import InputError
from quatrain.data.images import Pixels, pillow
from quatrain.evaluation.inspection.attention_picture import require_matplotlib
from quatrain.models.transformer.context import Trace
from quatrain.models.vision.patches import PatchEmbedding

DPI, COLUMNS = 110, 6
"""Dots per inch of a drawing, and its most panels in a row."""
OPACITY = 0.6
"""How much of the picture the strongest heat covers."""


@torch.no_grad()
def patch_maps(model: Any, processor: Any, picture: Any) -> tuple[Pixels, np.ndarray, list[np.ndarray]]:
    """The prepared picture (H, W, 3), the rollout over its patches (rows, columns), and each layer's map.

    A layer's map is what its pooled state attends to, the mean over the heads: the class token's row, or without one
    the mean of all rows. Every map is scaled to add up to 1. Raises InputError for a model that reads no pictures.
    """
    tower = model if model.frontend is not None else model.image_tower
    if tower is None or not isinstance(tower.frontend, PatchEmbedding):
        raise InputError(f"A {model.config.family} model reads no pictures, so it has no map of their patches.")
    pixels = processor.shape(picture)
    features = torch.from_numpy(processor.scale(pixels[None])).to(model.device)
    trace = Trace()
    tower.eval().hidden_states(features=features, trace=trace)
    extra, grid = tower.frontend.patches.num_extra, tower.frontend.grid_of(features)
    layers = [attention[0].float().mean(0).cpu() for attention in trace.attentions]
    flow = torch.eye(layers[0].shape[0])
    for attention in layers:
        flow = (attention + torch.eye(len(attention))) / 2 @ flow
    maps = [_pooled(each, extra, grid) for each in (flow, *layers)]
    return pixels, maps[0], maps[1:]


def _pooled(weights: torch.Tensor, extra: int, grid: tuple[int, int]) -> np.ndarray:
    """What the pooled state gets of each patch (rows, columns), from weights (T, T)."""
    row = (weights[0] if extra else weights.mean(0))[extra:]
    return (row / row.sum()).view(grid).numpy()


def over_picture(pixels: Pixels, weights: np.ndarray, *, side: int = 320) -> Pixels:
    """The picture (side, side', 3) with a map (rows, columns) over it: red where the weights are largest."""
    image = pillow()
    height, width = pixels.shape[:2]
    size = (round(side * width / height), side)
    span = float(weights.max() - weights.min()) or 1.0
    heat = ((weights - weights.min()) / span * 255).astype(np.uint8)
    smooth = np.asarray(image.fromarray(heat).resize(size, image.Resampling.BICUBIC)).astype(np.float32) / 255
    below = np.asarray(image.fromarray(pixels).resize(size, image.Resampling.NEAREST)).astype(np.float32)
    colour = np.stack([255 * smooth, 60 * smooth, 255 * (1 - smooth)], axis=-1)
    share = (OPACITY * smooth)[..., None]
    return (below * (1 - share) + colour * share).clip(0, 255).astype(np.uint8)


def maps_picture(pixels: Pixels, rollout: np.ndarray, layers: Sequence[np.ndarray], *, title: str) -> bytes:
    """A PNG: the picture, the rollout over it, and the map of each layer (`patch_maps`), named.

    Raises InputError if matplotlib is not installed.
    """
    require_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = [("picture", pixels), ("rollout", over_picture(pixels, rollout))]
    panels += [(f"layer {number}", over_picture(pixels, layer)) for number, layer in enumerate(layers)]
    columns = min(COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(2.2 * columns, 2.4 * rows + 0.4), dpi=DPI, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=10, parse_math=False)
    for place, (name, panel) in enumerate(panels, 1):
        axes = figure.add_subplot(rows, columns, place)
        axes.imshow(panel, interpolation="nearest")
        axes.set_title(name, fontsize=9)
        axes.set_axis_off()
    data = io.BytesIO()
    figure.savefig(data, format="png", metadata={"Software": "Quatrain"})
    return data.getvalue()


def side_by_side(pictures: Sequence[Pixels], *, gap: int = 8) -> Pixels:
    """Pictures of one height in a row, with white between them."""
    height = pictures[0].shape[0]
    white = np.full((height, gap, 3), 255, np.uint8)
    parts = [part for picture in pictures for part in (picture, white)]
    return np.concatenate(parts[:-1], axis=1)
