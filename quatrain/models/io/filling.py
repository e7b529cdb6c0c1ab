"""From the tensors of a folder to the parameters of a model: what fills what, what is missing, what is too much."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from quatrain.core.errors import InputError
from quatrain.models.families import Family, Head
from quatrain.models.families.weights import Computed
from quatrain.models.io.tensors import RETRY_HINT, SafetensorsReader, first_problems
from quatrain.models.transformer.initialization import initialize
from quatrain.models.transformer.stack import Model


def fill(model: Model, names: Names, dtype: torch.dtype, device: torch.device, seed: int) -> list[str]:
    """Reads every parameter and persistent buffer through the family's operations; gives those that it drew fresh.

    Raises InputError with every tensor that is missing, unexpected, misshapen or contradicts config.json.
    """
    wanted = dict(model.state_dict(keep_vars=True))
    tied = model.lm_head is not None and model.config.tie_word_embeddings
    if tied:
        wanted.pop("lm_head.weight")
    plan: list[tuple[Any, dict[str, str]]] = []
    covered: set[str] = set()
    problems: list[str] = []
    for operation in weight_operations(names.kind, model):
        targets = [name for name in operation.targets if name in wanted]
        places = {source: names.find(source) for source in operation.sources}
        found = {source: place for source, place in places.items() if place is not None}
        if not targets:
            if isinstance(operation, Computed):
                names.used.update(found.values())
                problems += [
                    f"{place}: is not what config.json says; this model computes it"
                    for place in found.values()
                    if not operation.agrees(names.tensors.view(place))
                ]
            continue
        if len(found) == len(places):
            plan.append((operation, found))
            names.used.update(found.values())
        elif names.strict or not _is_of_head(targets):
            problems += [f"{source}: missing" for source, place in places.items() if place is None]
        else:
            continue
        covered.update(targets)
    fresh = sorted(name for name in wanted if name not in covered)
    problems += [
        f"{name}: no weight of this family fills it" for name in fresh if names.strict or not _is_of_head([name])
    ]
    problems += [
        f"{again}: differs from {name}, which config.json ties it to"
        for again, name in names.repeats()
        if not names.tensors.equal(again, name)
    ]
    problems += [f"{name}: unexpected" for name in names.unexpected()]
    if problems:
        raise InputError(f"{names.tensors.folder}: the weights do not fit config.json:", first_problems(problems))
    broken: list[str] = []
    for operation, found in plan:
        for name, view in operation.read(lambda source, found=found: names.tensors.view_whole(found[source])):
            expected = wanted[name]
            if tuple(view.shape) != tuple(expected.shape):
                if not names.strict and name.startswith("score."):
                    fresh.append(name)  # another number of labels
                    continue
                problems.append(f"{name}: has shape {tuple(view.shape)}, config.json says {tuple(expected.shape)}")
                continue
            kept = not view.is_floating_point() or _keeps_dtype(model, name)
            tensor = names.tensors.copy(view, None if kept else dtype, device)
            if _has_nan(tensor):
                broken += found.values()
            _assign(model, name, tensor)
    if problems:
        raise InputError(f"{names.tensors.folder}: the weights do not fit config.json:", first_problems(problems))
    if broken:
        raise InputError(
            f"{names.tensors.folder}: tensors hold NaN, from which only NaN would follow. {RETRY_HINT}",
            first_problems([f"{place}: holds NaN" for place in dict.fromkeys(broken)]),
        )
    fresh.sort()
    for name in fresh:
        _assign(model, name, torch.empty(wanted[name].shape, dtype=dtype, device=device))
    if tied and model.lm_head is not None:
        model.lm_head.weight = model.embed_tokens.weight
    initialize(model, model.config, seed, only=fresh)
    return fresh


def _has_nan(tensor: Tensor) -> bool:
    """Whether a number of a tensor is NaN. One pass: a sum is NaN where a term is, and hardly ever else."""
    if not tensor.is_floating_point() or not tensor.numel():
        return False
    return math.isnan(float(tensor.sum(dtype=torch.float32))) and bool(tensor.isnan().any())


def _is_of_head(names: Sequence[str]) -> bool:
    """Whether tensors belong to what stands on the last hidden states, which another head replaces."""
    return all(name.startswith(("lm_head.", "transform.", "pooler.", "score.", "logits_bias")) for name in names)


def _keeps_dtype(model: nn.Module, name: str) -> bool:
    """Whether the module that owns a tensor reads it in the file's dtype (scales of quantized weights)."""
    owner, _, leaf = name.rpartition(".")
    return leaf in getattr(model.get_submodule(owner), "fixed_dtype", ())


def _assign(model: nn.Module, name: str, tensor: Tensor) -> None:
    owner, _, leaf = name.rpartition(".")
    module = model.get_submodule(owner)
    if leaf in module._parameters:
        old = module._parameters[leaf]
        trained = old is not None and old.requires_grad and tensor.is_floating_point()
        module._parameters[leaf] = nn.Parameter(tensor, requires_grad=trained)
    else:
        module._buffers[leaf] = tensor


def weight_operations(kind: Family, model: Model) -> Iterator[Any]:
    """The family's operations for this model; a replaced module brings the names of its own tensors."""
    replaced = {name: module for name, module in model.named_modules() if hasattr(module, "weight_operations")}
    for operation in kind.weights(model.config):
        owners = {target.rpartition(".")[0] for target in operation.targets if target.endswith(".weight")}
        modules = [replaced[owner] for owner in owners if owner in replaced]
        if modules:
            yield from modules[0].weight_operations(operation)
        else:
            yield operation


class Names:
    """Finds a tensor under the family's name for it, another that it goes by, or without the body's prefix.

    `head` is that of the files; where it is not the model's (`strict` is false), its prefix counts and what it has
    beyond the model's is left.
    """

    def __init__(
        self, kind: Family, head: Head, tensors: SafetensorsReader, *, strict: bool, ignored: Sequence[str] = ()
    ):
        self.kind, self.tensors, self.strict, self.ignored = kind, tensors, strict, ignored
        self.prefixes = {kind.prefix, *(head.prefix or "" for head in kind.heads.values())} - {""}
        self.own = kind.prefix if head.prefix is None else head.prefix
        self.others: dict[str, list[str]] = {}
        for other, name in kind.aliases.items():
            self.others.setdefault(self.bare(name), []).append(other)
        of_head = [name for operation in head.operations for name in operation.sources]
        self.of_head = [re.escape(way) for name in of_head for known in self._names(name) for way in self._ways(known)]
        self.used: set[str] = set()

    def find(self, name: str) -> str | None:
        """The name that the files have for a tensor, or None."""
        return next(self._places(*self._names(name)), None)

    def bare(self, name: str) -> str:
        """A name without the body's prefix."""
        return next((name.removeprefix(prefix) for prefix in self.prefixes if name.startswith(prefix)), name)

    def _names(self, name: str) -> tuple[str, ...]:
        return name, *self.others.get(self.bare(name), ())

    def repeats(self) -> Iterator[tuple[str, str]]:
        """The tensors of the files that are another one under a second name, each with that one."""
        for name, others in self.others.items():
            place = self.find(name)
            if place is not None and place in self.used:
                yield from ((again, place) for again in dict.fromkeys(self._places(*others)) if again not in self.used)

    def _places(self, *names: str) -> Iterator[str]:
        """Where the files have a tensor of one of these names."""
        for known in names:
            bare = self.bare(known)
            for candidate in (known, self.own + bare, bare, *(other + bare for other in self.kind.other_prefixes)):
                for way in self._ways(candidate):
                    if way in self.tensors:
                        yield way

    def _ways(self, name: str) -> Iterator[str]:
        """A name, and what old checkpoints call it."""
        yield name
        for old, new in self.kind.old_names:
            if name.endswith(new):
                yield name.removesuffix(new) + old

    def unexpected(self) -> list[str]:
        """The tensors of the files that nothing reads and that are no known leftovers."""
        others = {again for again, _ in self.repeats()}
        ignored = [*self.kind.ignored, *self.ignored, *([] if self.strict else self.of_head)]
        return [
            name
            for name in self.tensors.names
            if name not in self.used
            and name not in others
            and not any(re.fullmatch(pattern, name) for pattern in ignored)
        ]
