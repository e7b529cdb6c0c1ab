"""Quatrain: the whole road of a language model in four lines: read, learn, adapt, speak.

Everything here is imported when it is first used, so that `import quatrain` costs milliseconds:

    import quatrain
    quatrain.run("quickstart")                        # a recipe by name, or the path of one
    model = quatrain.load("runs/quickstart/model")    # a model folder
    classify = quatrain.pipeline("sentiment-analysis")    # a model in one line
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "1.0.0"

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
    "pipeline",
    "run",
]

_LAZY = {
    "Engine": "quatrain.generation.engine:Engine",
    "InputError": "quatrain.core.errors:InputError",
    "QuatrainError": "quatrain.core.errors:QuatrainError",
    "Recipe": "quatrain.runs.recipe:Recipe",
    "SamplingParams": "quatrain.generation.engine:SamplingParams",
    "Tokenizer": "quatrain.tokenizers.tokenizer:Tokenizer",
    "load": "quatrain.loading.model:load_weights",
    "load_recipe": "quatrain.runs.recipe:load",
    "pipeline": "quatrain.tasks.pipelines:pipeline",
    "run": "quatrain.runs.runner:run",
}

if TYPE_CHECKING:
    from quatrain.core.errors import InputError, QuatrainError
    from quatrain.generation.engine import Engine, SamplingParams
    from quatrain.loading.model import load_weights as load
    from quatrain.runs.recipe import Recipe
    from quatrain.runs.recipe import load as load_recipe
    from quatrain.runs.runner import run
    from quatrain.tasks.pipelines import pipeline
    from quatrain.tokenizers.tokenizer import Tokenizer


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'quatrain' has no attribute {name!r}")
    module, attribute = _LAZY[name].split(":")
    value = getattr(import_module(module), attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
