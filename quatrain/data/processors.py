"""Finds the processor of a model folder: what prepares pictures or sound as `preprocessor_config.json` says."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from quatrain.core.reading import read_json

FILE = "preprocessor_config.json"

KINDS = {
    "image_processor_type": "quatrain.data.image_processor:ImageProcessor",
    "feature_extractor_type": "quatrain.models.audio.features:LogMel",
}
"""The key of the file that names a kind of processor, and the class that reads it."""


class Processor(Protocol):
    """What prepares inputs that are not text for a model, and is saved beside it."""

    def save(self, folder: str | Path) -> None:
        """Writes `preprocessor_config.json`."""
        ...

    @property
    def fingerprint(self) -> str:
        """What identifies the processor, for caches."""
        ...


def find_processor(folder: str | Path) -> Any:
    """The processor of a model folder; None if it has none. Raises InputError for a file that cannot be used."""
    path = Path(folder) / FILE
    if not path.is_file():
        return None
    raw = read_json(path)
    place = next((KINDS[key] for key in KINDS if key in raw), KINDS["image_processor_type"])
    module, name = place.split(":")
    return getattr(import_module(module), name).read(raw)
