"""The models before the transformer: n-grams, word vectors, bags of words, recurrent networks.

One module each, found by its place: the `model_type` in `config.json`, with "_" for "-", names a module of this
package, or of `quatrain.models.protein`, that has a `MODEL`, a subclass of `quatrain.models.classic.base.ClassicModel`.
Nothing else knows the kinds:
`quatrain.models.io.model_folder` loads and saves them, and every verb works through the interface of `ClassicModel`.
"""

from __future__ import annotations

import pkgutil
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from quatrain.models.classic.base import ClassicModel


PLACES = (__name__, "quatrain.models.protein")
"""The packages with modules of models."""


@cache
def _places() -> dict[str, str]:
    """Each model type and the module of its class."""
    found = {
        module.name.replace("_", "-"): f"{place}.{module.name}"
        for place in PLACES
        for module in pkgutil.iter_modules(import_module(place).__path__)
        if not module.name.startswith("_") and module.name != "base"
    }
    return dict(sorted(found.items()))


def model_types() -> tuple[str, ...]:
    """The names of all model types, sorted. No module is imported but those that are looked at."""
    return tuple(_places())


def find(model_type: object) -> type[ClassicModel] | None:
    """The class of a `model_type`; None if it names no classic model."""
    if not isinstance(model_type, str) or model_type not in model_types():
        return None
    model: type[ClassicModel] | None = getattr(import_module(_places()[model_type]), "MODEL", None)
    return model
