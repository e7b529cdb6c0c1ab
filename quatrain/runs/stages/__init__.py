"""The kinds of stages: one module each, found by its place in this package, with a `SPEC` (`quatrain.runs.stage`).

Modules whose name begins with an underscore hold the implementation of the kind beside them, and import torch. Kinds of
another project are modules in the folders that the environment variable `QUATRAIN_STAGES` names.
"""

from __future__ import annotations

import os
import pkgutil
from functools import cache
from importlib import import_module

from quatrain.runs.settings import StageSettings
from quatrain.runs.stage import StageSpec

FOLDERS = "QUATRAIN_STAGES"
"""The environment variable with folders of further kinds, separated like those of PATH."""

__path__.extend(folder for folder in os.environ.get(FOLDERS, "").split(os.pathsep) if folder)


def child_environment() -> dict[str, str]:
    """The environment for a process that has to know the same kinds of stages as this one."""
    return os.environ | {FOLDERS: os.pathsep.join(__path__[1:])}


@cache
def specs() -> dict[str, StageSpec]:
    """The spec of every kind of stage, by the name of the kind."""
    names = sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))
    all_specs: list[StageSpec] = [import_module(f"{__name__}.{name}").SPEC for name in names]
    return {spec.kind: spec for spec in all_specs}


def spec_of(settings: StageSettings) -> StageSpec:
    """The spec of a stage's kind."""
    return specs()[settings.kind]
