"""Sequences of generated protein families, for a language model of residues."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from quatrain.data.proteins import generate

SEED, FAMILIES = 0, 600
"""Those of the recipe `contacts`: the same families."""


def rows(paths: Sequence[Path], part: str) -> Iterator[dict[str, Any]]:
    """{"text"}: one sequence each, family by family. The part "train" is all of them; there are no origins."""
    for family in generate(FAMILIES, seed=SEED):
        for sequence in family.sequences:
            yield {"text": sequence}
