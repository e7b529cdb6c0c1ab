"""Where a word stands in several sentences: the vectors of a contextual model, drawn in two dimensions.

A word's vector from a table is one point. A model such as ELMo gives it another point in every sentence, near to those
of sentences in which it means the same (Peters et al. 2018, arXiv 1802.05365, table 4).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from quatrain.core.errors import InputError
from quatrain.evaluation.charts import escaped


@dataclass(frozen=True)
class Occurrence:
    """A word in a sentence: the sentence's number, the word's place in it, and its vector (C,) in the last layer."""

    sentence: int
    place: int
    vector: Tensor


@torch.no_grad()
def occurrences(
    model: Any, encode: Callable[[str], Sequence[int]], sentences: Sequence[str], word: str, *, layer: int = -1
) -> list[Occurrence]:
    """All occurrences of a word in sentences, for a model with `layers` (ELMo); `encode` gives the ids of a text.

    Words are those between spaces. Raises InputError for a model without layers of words, and for sentences in which
    the word does not occur.
    """
    if not hasattr(model, "layers"):
        raise InputError(f"A {model.config.family} model gives words no vectors by sentence; take an elmo model.")
    found = []
    for number, sentence in enumerate(sentences):
        words = sentence.split()
        vectors = model.eval().layers(torch.tensor([list(encode(" ".join(words)))], device=model.device))[0][layer][0]
        for place, other in enumerate(words):
            if other.strip(".,;:!?\"'()").lower() == word.lower():
                found.append(Occurrence(number, place, vectors[place].cpu()))
    if not found:
        raise InputError(f"{word}: occurs in none of the {len(sentences)} sentences.")
    return found


def contextual_picture(
    model: Any, encode: Callable[[str], Sequence[int]], sentences: Sequence[str], word: str, *, layer: int = -1
) -> str:
    """An SVG of a word's vectors in its sentences, by their two largest principal components.

    Raises InputError as `occurrences`.
    """
    found = occurrences(model, encode, sentences, word, layer=layer)
    points = _flat(torch.stack([each.vector for each in found]))
    width, height, margin = 720, 90 + 46 * len(found), 40
    body = [f'<rect width="{width}" height="{height}" fill="#fffefc"/>']
    for number, (each, (x, y)) in enumerate(zip(found, points, strict=True)):
        across, down = margin + x * 240, margin + y * (height - 2 * margin)
        line = 40 + number * 46
        words = sentences[each.sentence].split()
        marked = " ".join(f"[{text}]" if place == each.place else text for place, text in enumerate(words))
        body.append(
            f'<line x1="{across:.1f}" y1="{down:.1f}" x2="330" y2="{line}" stroke="#c9c5bb" stroke-width="1"/>'
            f'<circle cx="{across:.1f}" cy="{down:.1f}" r="6" fill="#1f5fbf"/>'
            f'<text x="336" y="{line + 4}" font-family="sans-serif" font-size="13" fill="#1d1c1a">'
            f"{escaped(marked[:60])}</text>"
        )
    title = f"The word {word} in {len(found)} places"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="{escaped(title)}">{"".join(body)}</svg>'
    )


def _flat(vectors: Tensor) -> list[tuple[float, float]]:
    """The two largest principal components of vectors (N, C), each scaled to 0 … 1."""
    centred = vectors.double() - vectors.double().mean(0)
    _, _, axes = torch.linalg.svd(centred, full_matrices=False)
    spread = centred @ axes[:2].T
    if spread.shape[1] < 2:
        spread = torch.cat((spread, torch.zeros(len(spread), 2 - spread.shape[1], dtype=spread.dtype)), dim=1)
    low, high = spread.amin(0), spread.amax(0)
    scaled = (spread - low) / (high - low).clamp(min=1e-12)
    return [(float(x), float(y)) for x, y in scaled]
