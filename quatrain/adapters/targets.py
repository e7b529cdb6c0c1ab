"""Chooses the linear layers under an adapter: by name, by pattern, or all of them."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch import nn

from quatrain.adapters.layer import AdapterLayer
from quatrain.core.errors import InputError
from quatrain.models.modules import is_in_head, is_linear
from quatrain.models.transformer.stack import Model

ALL_LINEAR = "all-linear"


def linear_names(model: nn.Module) -> list[str]:
    """The paths of a model's linear layers, without the base layers inside adapters."""
    inside = tuple(f"{name}.base" for name, module in model.named_modules() if isinstance(module, AdapterLayer))
    return [name for name, module in model.named_modules() if name and is_linear(module) and name not in inside]


def find_targets(model: Model, targets: str | Sequence[str]) -> list[str]:
    """The paths of the linear layers that `targets` match; "all-linear" matches all but the head's.

    A target is the end of a path (`q_proj`, `mlp.up_proj`), a whole path, or a pattern with `*` for a whole path.
    Raises InputError, with the nearest names, for targets that match nothing.
    """
    available = linear_names(model)
    if targets == ALL_LINEAR or tuple(targets) == (ALL_LINEAR,):
        return [name for name in available if not is_in_head(name)]
    patterns = (targets,) if isinstance(targets, str) else tuple(targets)
    chosen: dict[str, None] = {}
    problems = []
    for target in patterns:
        matching = [name for name in available if _matches(name, target)]
        if not matching:
            problems.append(
                f"target_modules: {target!r} matches no linear layer; did you mean {near(target, available)}?"
            )
        chosen.update(dict.fromkeys(matching))
    if "lm_head" in chosen and model.config.tie_word_embeddings:
        problems.append(
            "target_modules: lm_head shares its weight with the embedding, which an adapter would change; remove it"
        )
    if not patterns:
        problems.append(f'target_modules: empty; name layers, or use "{ALL_LINEAR}"')
    if problems:
        raise InputError("This adapter cannot be applied:", problems)
    return [name for name in available if name in chosen]


def near(wanted: str, available: Sequence[str]) -> str:
    """The nearest paths or last parts of paths, or all last parts if none is near."""
    short = sorted({name.rpartition(".")[2] for name in available})
    return ", ".join(difflib.get_close_matches(wanted, [*short, *available], 3, cutoff=0.5) or short)


def _matches(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}") or fnmatchcase(name, target)
