"""Quatrain: the whole road of a language model in four lines: read, learn, adapt, speak.

Everything here is imported when it is first used, so that `import quatrain` costs milliseconds:

    import quatrain
    quatrain.run("quickstart")                        # a recipe by name, or the path of one
    model = quatrain.load("runs/quickstart/model")    # a model folder
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

__all__ = [
    "Engine",
    "InputError",
    "QuatrainError",
    "Recipe",
    "SamplingParams",
    "Tokenizer",
    "__version__",
    "load",
    "load_recipe",
    "run",
]

_LAZY = {
    "Engine": "quatrain.generation.engine:Engine",
    "InputError": "quatrain.errors:InputError",
    "QuatrainError": "quatrain.errors:QuatrainError",
    "Recipe": "quatrain.recipe:Recipe",
    "SamplingParams": "quatrain.generation.engine:SamplingParams",
    "Tokenizer": "quatrain.text.tokenizer:Tokenizer",
    "load": "quatrain.generation.loading:load_weights",
    "load_recipe": "quatrain.recipe:load",
}

if TYPE_CHECKING:
    from quatrain.errors import InputError, QuatrainError
    from quatrain.generation.engine import Engine, SamplingParams
    from quatrain.generation.loading import load_weights as load
    from quatrain.recipe import Recipe
    from quatrain.recipe import load as load_recipe
    from quatrain.run import run
    from quatrain.text.tokenizer import Tokenizer


def __getattr__(name: str) -> Any:
    if name == "run":  # the module itself is callable, so that quatrain.run(...) and quatrain.run.status(...) both hold
        return import_module("quatrain.run")
    if name not in _LAZY:
        raise AttributeError(f"module 'quatrain' has no attribute {name!r}")
    module, attribute = _LAZY[name].split(":")
    value = getattr(import_module(module), attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
