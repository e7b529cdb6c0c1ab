"""Which linear layers an adapter goes over: by name, by pattern, or all."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch import nn

from quatrain.adapters.layer import Adapted, is_linear
from quatrain.core.errors import InputError
from quatrain.models.transformer.stack import Model

ALL_LINEAR = "all-linear"
HEADS = ("lm_head", "score", "pooler")
"""The beginnings of the paths of what a task has on top: all-linear leaves them out."""


def linear_names(model: nn.Module) -> list[str]:
    """The paths of a model's linear layers, those inside adapters left out."""
    inside = tuple(f"{name}.base" for name, module in model.named_modules() if isinstance(module, Adapted))
    return [name for name, module in model.named_modules() if name and is_linear(module) and name not in inside]


def is_of_head(name: str) -> bool:
    """Whether a path is of what a task has on top of the network."""
    return name.partition(".")[0] in HEADS


def find_targets(model: Model, targets: str | Sequence[str]) -> list[str]:
    """The linear layers that the targets name: "all-linear" is all but the head.

    A target is the end of a path (`q_proj`, `mlp.up_proj`), a whole path, or a pattern with `*` for a whole path.
    Raises InputError with the nearest names for each target that matches nothing.
    """
    available = linear_names(model)
    if targets == ALL_LINEAR or tuple(targets) == (ALL_LINEAR,):
        return [name for name in available if not is_of_head(name)]
    wanted = (targets,) if isinstance(targets, str) else tuple(targets)
    chosen: dict[str, None] = {}
    problems = []
    for target in wanted:
        found = [name for name in available if _matches(name, target)]
        if not found:
            problems.append(f"targets: {target!r} names no linear layer; did you mean {near(target, available)}?")
        chosen.update(dict.fromkeys(found))
    if "lm_head" in chosen and model.config.tie_word_embeddings:
        problems.append(
            "targets: lm_head shares its weight with the embedding, which an adapter would change; remove it"
        )
    if not wanted:
        problems.append(f'targets: empty; name layers, or say "{ALL_LINEAR}"')
    if problems:
        raise InputError("This adapter cannot be applied:", problems)
    return [name for name in available if name in chosen]


def near(wanted: str, available: Sequence[str]) -> str:
    """The nearest of some paths and their last parts, or all last parts where none is near."""
    short = sorted({name.rpartition(".")[2] for name in available})
    return ", ".join(difflib.get_close_matches(wanted, [*short, *available], 3, cutoff=0.5) or short)


def _matches(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}") or fnmatchcase(name, target)
