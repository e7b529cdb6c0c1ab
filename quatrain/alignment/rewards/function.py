"""A function of the user's own as a reward."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from quatrain.alignment.rewards.base import Reward, RewardContext, RewardSettings
from quatrain.core.errors import InputError
from quatrain.core.reading import user_path
from quatrain.core.settings import Problem
from quatrain.core.wording import format_value


class FunctionReward(RewardSettings):
    """A function `(examples, completions) -> scores`: `"package.module:name"`, or `"my/rewards.py:name"` for a file.

    `arguments` are passed by keyword. The function runs in this process with all its rights.
    """

    kind: Literal["function"] = "function"
    function: str = Field(min_length=3, description="module:name, or file.py:name")
    arguments: dict[str, Any] = {}

    def conflicts(self) -> Iterator[Problem]:
        module, _, name = self.function.rpartition(":")
        if not module or not name.isidentifier():
            text = f'{format_value(self.function)}; must be "module:name" or "file.py:name"'
            yield Problem(("function",), text)

    def build(self, context: RewardContext) -> Reward:
        place, _, name = self.function.rpartition(":")
        module = _from_file(place) if place.endswith(".py") else _from_module(place)
        function = getattr(module, name, None)
        if not callable(function):
            kind = "has no" if function is None else "has, but cannot call,"
            raise InputError(f"rewards: function: {place} {kind} {name}.")
        return partial(function, **self.arguments) if self.arguments else function


def _from_file(place: str) -> Any:
    path = user_path(place, "rewards: function")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise InputError(f"rewards: function: {format_value(place)} is not a file of Python code.")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise InputError(f"rewards: function: {place} raised {type(error).__name__} on import: {error}") from error
    return module


def _from_module(place: str) -> Any:
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)
    try:
        return importlib.import_module(place)
    except Exception as error:
        raise InputError(
            f"rewards: function: {place} cannot be imported: {type(error).__name__}: {error}. A module is looked up "
            "among the installed ones and in the current folder."
        ) from error


SETTINGS = FunctionReward
