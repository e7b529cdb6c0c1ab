"""Which sound each word came from, as a PNG: a waveform, and the attention of each word under it. Needs matplotlib."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from quatrain.evaluation.inspection.attention_picture import require_matplotlib
from quatrain.generation.transcription import Word

DPI = 110


def word_picture(
    samples: NDArray[np.float32], rate: int, words: Sequence[Word], weights: Tensor, step: float, *, title: str = ""
) -> bytes:
    """The PNG of a sound's words: `weights` (words, vectors), each vector `step` seconds (`Transcriber.word_map`).

    A frame marks the time of each word. Raises InputError if matplotlib is not installed.
    """
    require_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    seconds = len(samples) / rate
    figure = Figure(figsize=(11, 2.0 + 0.2 * len(words)), dpi=DPI, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[1.2, 0.2 * len(words)])
    every = max(1, len(samples) // 4000)
    above.plot(np.arange(0, len(samples), every) / rate, samples[::every], color="#2f6fd0", linewidth=0.5)
    above.set_yticks([])
    above.set_title(title, fontsize=10, loc="left", parse_math=False)
    shown = (weights - weights.min()).numpy()
    shown = shown / np.maximum(shown.max(axis=1, keepdims=True), 1e-9)
    extent = (0.0, weights.shape[1] * step, len(words) - 0.5, -0.5)
    below.imshow(shown**2, cmap="Blues", aspect="auto", interpolation="nearest", extent=extent)
    below.set_yticks(range(len(words)), [word.text.strip() for word in words], fontsize=8)
    below.set_xlabel("seconds", fontsize=8)
    for row, word in enumerate(words):
        place = (word.start, row - 0.5)
        below.add_patch(Rectangle(place, max(word.end - word.start, step), 1, fill=False, edgecolor="#c2410c", lw=0.9))
    below.set_xlim(0, seconds)
    data = io.BytesIO()
    figure.savefig(data, format="png", metadata={"Software": "Quatrain"})
    return data.getvalue()
