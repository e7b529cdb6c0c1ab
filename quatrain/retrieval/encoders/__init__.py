"""Texts as vectors of length 1, for dense retrieval. Found by their place: a module with `accepts` and `ENCODER`.

Karpukhin et al. 2020 (arXiv 2004.04906) for encoders of questions and passages; Deerwester et al. 1990 for LSA.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from quatrain.core.errors import InputError
from quatrain.retrieval.readers import TEXT
from quatrain.retrieval.stores import Vectors

TextSource = Callable[[], Iterable[str]]
"""The texts of all chunks, to fit an encoder on."""


class Encoder(Protocol):
    """Gives texts their vectors."""

    @property
    def fingerprint(self) -> str:
        """Names the vectors: other vectors have another name."""

    def encode(self, texts: Sequence[str], *, is_query: bool = False) -> Vectors:
        """The vectors (N, D) of N texts, of length 1, or 0 for a text that has none."""


class FileEncoder(Encoder, Protocol):
    """Gives files that hold no text their vectors, in the space where `encode` puts questions."""

    modality: str
    """What it reads, as readers call it. Documents of other modalities get no vector."""

    def prepare(self, source: Any) -> np.ndarray:
        """What the model reads of a file. Raises InputError for one that cannot be read."""

    def encode_prepared(self, prepared: Sequence[np.ndarray]) -> Vectors:
        """The vectors (N, D) of N prepared files, of length 1."""


class EncoderKind(Protocol):
    """The module of an encoder. `MODALITY` is that of a `FileEncoder`; a module without it encodes texts."""

    def accepts(self, name: str) -> bool:
        """Whether a name in the settings means this encoder."""

    def open_encoder(self, name: str, folder: Path, language: str) -> Encoder | None:
        """The encoder of a name; None for one that is fitted on the chunks and has not been. Raises InputError."""


@cache
def encoder_kinds() -> list[Any]:
    """The modules of the encoders."""
    modules = [importlib.import_module(f"{__name__}.{found.name}") for found in pkgutil.iter_modules(__path__)]
    return sorted((each for each in modules if hasattr(each, "accepts")), key=lambda each: -each.PRIORITY)


def kind_of(name: str) -> Any:
    """The module that a name in the settings means. Raises InputError."""
    for kind in encoder_kinds():
        if kind.accepts(name):
            return kind
    raise InputError(
        f"dense: {name!r} is no encoder; must be lsa, a file of word vectors (.txt, .vec, .bin), or the folder, run or "
        "hub id of a model of sentence embeddings, or of pictures and texts"
    )


def encoder_modality(name: str) -> str:
    """What the encoder of a name reads, as readers call it. Raises InputError."""
    modality: str = getattr(kind_of(name), "MODALITY", TEXT)
    return modality


def modalities_of(names: Iterable[str]) -> set[str]:
    """What the encoders of these names read beside text, and text."""
    return {TEXT, *map(encoder_modality, names)}


def unit(vectors: np.ndarray) -> Vectors:
    """Vectors (N, D) with length 1; zeros stay."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    result: Vectors = (vectors / np.where(lengths > 0, lengths, 1)).astype(np.float32)
    return result
