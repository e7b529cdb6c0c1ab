"""A model of pictures and texts (CLIP, Radford et al. 2021, arXiv 2103.00020): words and pictures find pictures.

Pictures alone get vectors: two texts are nearer to each other than a text is to the picture it describes, so that
passages in the same space would always stand before pictures (Liang et al. 2022, arXiv 2203.02053).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from quatrain.core.errors import QuatrainError
from quatrain.core.reading import sha256_of
from quatrain.retrieval.encoders import unit
from quatrain.retrieval.stores import Vectors

PRIORITY = 1
MODALITY = "pictures"
TASK, HEAD = "zero-shot-image-classification", "contrastive"


def accepts(name: str) -> bool:
    """Whether a name is a model of pictures and texts, by its configuration."""
    from quatrain.models import hub
    from quatrain.models.families import families
    from quatrain.models.io.model_folder import read_config

    try:
        config = read_config(hub.resolve(name, files=hub.CONFIG))
    except QuatrainError:
        return False  # What is missing or broken is named by the kind that takes any model.
    family = families().get(str(config.get("model_type")))
    return family is not None and HEAD in family.heads


def open_encoder(name: str, folder: Path, language: str) -> PictureEncoder:
    """The encoder of a model's folder, run or hub id. Raises InputError for one without tokenizer or processor."""
    return PictureEncoder(name)


class PictureEncoder:
    """The vectors of a model's towers."""

    modality = MODALITY

    def __init__(self, name: str):
        """Raises InputError for a model that cannot be loaded, or has no tokenizer or no preprocessor_config.json."""
        from quatrain.data.image_text import ImageTextProcessor
        from quatrain.tasks.pipelines import pipeline

        pipe: Any = pipeline(TASK, name)
        self._model, self._both = pipe.model, ImageTextProcessor(pipe.processor, pipe.tokenizer)
        files = sorted(pipe.subject.resolved.base.glob("*.safetensors"))
        weights = "-".join(sha256_of(path)[:16] for path in files)
        self.fingerprint = f"pictures {weights} {pipe.processor.fingerprint}"

    def encode(self, texts: Sequence[str], *, is_query: bool = False) -> Vectors:
        from quatrain.training.objectives.image_text import text_vectors

        return unit(text_vectors(self._model, self._both, texts).numpy())

    def prepare(self, source: Any) -> np.ndarray:
        array: np.ndarray = self._both.images([source])[0]
        return array

    def encode_prepared(self, prepared: Sequence[np.ndarray]) -> Vectors:
        import torch

        from quatrain.training.objectives.image_text import image_vectors

        rows = [image_vectors(self._model, torch.from_numpy(each[None])).numpy()[0] for each in prepared]
        return unit(np.stack(rows))
