"""What prepares both sides of a model of pictures and texts: an image processor and a tokenizer, saved together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from quatrain.core.errors import InputError
from quatrain.data.image_processor import ImageProcessor
from quatrain.tokenizers.tokenizer import Tokenizer


@dataclass(frozen=True)
class ImageTextProcessor:
    """Pictures through `images`, texts through `tokenizer`."""

    images: ImageProcessor
    tokenizer: Tokenizer

    def save(self, folder: str | Path) -> None:
        """Writes `preprocessor_config.json` and the files of the tokenizer."""
        self.tokenizer.save(folder)
        self.images.save(folder)

    def ids(self, texts: Sequence[str], length: int) -> tuple[np.ndarray, np.ndarray]:
        """The ids (B, T) of texts, each with its end token and cut to `length`, and which of them are no padding.

        Raises InputError for a tokenizer without an end token, which CLIP reads.
        """
        end = self.tokenizer.eos_id
        if end is None:
            raise InputError("This tokenizer has no end token, and a text tower gives the state of that token.")
        begin = [self.tokenizer.bos_id] if self.tokenizer.bos_id not in (None, end) else []
        rows = []
        for text in texts:
            ids = [token for token in self.tokenizer.encode(text) if token not in (end, self.tokenizer.bos_id)]
            rows.append([*begin, *ids[: length - 1 - len(begin)], end])
        width = max(map(len, rows), default=1)
        table, mask = np.full((len(rows), width), end, np.int64), np.zeros((len(rows), width), np.int64)
        for place, row in enumerate(rows):
            table[place, : len(row)], mask[place, : len(row)] = row, 1
        return table, mask
