"""A model of sentence embeddings, such as MiniLM or what the recipe `embed` trains, with its prompts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from quatrain.core.errors import InputError
from quatrain.core.reading import sha256_of
from quatrain.retrieval.encoders import unit
from quatrain.retrieval.stores import Vectors

PRIORITY = 0
QUERY, PASSAGE = "query", ("document", "passage")
"""Names of prompts that models have for questions and for what answers them."""


def accepts(name: str) -> bool:
    """Any other name is a model's."""
    return True


def open_encoder(name: str, folder: Path, language: str) -> ModelEncoder:
    """The encoder of a model's folder, run or hub id. Raises InputError for a model of another kind."""
    return ModelEncoder(name)


class ModelEncoder:
    """The vectors of a model."""

    def __init__(self, name: str, *, batch_size: int = 32):
        """Raises InputError for a model that is missing or has another head."""
        from quatrain.tasks.pipelines import pipeline

        self._pipeline: Any = pipeline("sentence-embeddings", name, batch_size=batch_size)
        resolved = self._pipeline.subject.resolved
        if resolved is None:
            raise InputError(f"dense: {name!r} has no folder")
        files = sorted({*resolved.folder.glob("*.safetensors"), *resolved.base.glob("*.safetensors")})
        self.fingerprint = f"model {'-'.join(sha256_of(path)[:16] for path in files)}"

    def encode(self, texts: Sequence[str], *, is_query: bool = False) -> Vectors:
        prompts = self._pipeline.prompts
        wanted = (QUERY,) if is_query else PASSAGE
        name = next((each for each in wanted if each in prompts.texts), None)
        options = self._pipeline.Options.model_validate({"prompt_name": name})
        # A text without a token has nothing to pool.
        given = [each if each.strip() else "." for each in self._pipeline.prompted(texts, options)]
        return unit(self._pipeline.vectors(given, options).numpy())
