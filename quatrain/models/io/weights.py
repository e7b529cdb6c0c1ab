"""Loads the tensors of a model folder into a model, and reports missing, unexpected and misshapen ones."""

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
from quatrain.models.gguf.reader import GgufTensors
from quatrain.models.io.safetensors_reader import RETRY_HINT, SafetensorsReader, first_problems
from quatrain.models.transformer.initialization import initialize
from quatrain.models.transformer.stack import Model


def load_weights(model: Model, names: TensorNames, dtype: torch.dtype, device: torch.device, seed: int) -> list[str]:
    """Loads every parameter and persistent buffer by the family's operations; returns the newly initialized ones.

    Only weights of a head that the files lack are initialized, from `seed`. Raises InputError with every tensor that is
    missing, unexpected, misshapen, contains NaN or contradicts config.json.
    """
    expected = {
        name: tensor
        for name, tensor in model.state_dict(keep_vars=True).items()
        if not name.startswith("embedding_layers.")  # They have files of their own: see `sentence_transformers`.
    }
    tied = model.lm_head is not None and model.config.tie_word_embeddings
    if tied:
        expected.pop("lm_head.weight")
    plan: list[tuple[Any, dict[str, str]]] = []
    covered: set[str] = set()
    problems: list[str] = []
    for operation in weight_operations(names.family, model):
        targets = [name for name in operation.targets if name in expected]
        located = {source: names.find(source) for source in operation.sources}
        sources = {source: name for source, name in located.items() if name is not None}
        if not targets:
            if isinstance(operation, Computed):
                names.used.update(sources.values())
                problems += [
                    f"{name}: differs from the values that the model computes from config.json"
                    for name in sources.values()
                    if not operation.agrees(names.tensors.view(name))
                ]
            continue
        if len(sources) == len(located):
            plan.append((operation, sources))
            names.used.update(sources.values())
            copies = map(names.find, getattr(operation, "copies", ()))
            names.used.update(name for name in copies if name is not None)
        elif names.strict or not _is_in_head(targets):
            problems += [f"{source}: missing" for source, name in located.items() if name is None]
        else:
            continue
        covered.update(targets)
    new = sorted(name for name in expected if name not in covered)
    problems += [
        f"{name}: no weight of this family provides it" for name in new if names.strict or not _is_in_head([name])
    ]
    problems += [
        f"{duplicate}: differs from {name}, to which config.json ties it"
        for duplicate, name in names.duplicates()
        if not names.tensors.equal(duplicate, name)
    ]
    kept = [name for name in names.unexpected() if names.family.kept and names.family.kept(name, model.config)]
    problems += [f"{name}: unexpected" for name in names.unexpected() if name not in kept]
    if problems:
        raise InputError(f"{names.tensors.folder}: the weights do not match config.json:", first_problems(problems))
    with_nan: list[str] = []
    for operation, sources in plan:
        for name, view in operation.read(lambda source, sources=sources: names.tensors.view_whole(sources[source])):
            shape = tuple(expected[name].shape)
            if tuple(view.shape) != shape:
                if not names.strict and name.startswith(("score.", "distillation_score.")):
                    new.append(name)  # The number of labels differs.
                    continue
                problems.append(f"{name}: has shape {tuple(view.shape)}, config.json says {shape}")
                continue
            keeps_dtype = not view.is_floating_point() or _keeps_dtype(model, name)
            tensor = names.tensors.copy(view, None if keeps_dtype else dtype, device)
            if _has_nan(tensor):
                with_nan += sources.values()
            _assign(model, name, tensor)
    if problems:
        raise InputError(f"{names.tensors.folder}: the weights do not match config.json:", first_problems(problems))
    if with_nan:
        raise InputError(
            f"{names.tensors.folder}: the weights contain NaN, so the model could only compute NaN. {RETRY_HINT}",
            first_problems([f"{name}: contains NaN" for name in dict.fromkeys(with_nan)]),
        )
    model.unused_tensors = {
        name: names.tensors.copy(names.tensors.view(name), None, torch.device("cpu")) for name in kept
    }
    new.sort()
    for name in new:
        _assign(model, name, torch.empty(expected[name].shape, dtype=dtype, device=device))
    if tied and model.lm_head is not None:
        model.lm_head.weight = model.embed_tokens.weight
    initialize(model, model.config, seed, only=new)
    return new


def _has_nan(tensor: Tensor) -> bool:
    """Whether a tensor contains NaN. The sum is checked first: it is NaN if any element is, and rarely otherwise."""
    if not tensor.is_floating_point() or not tensor.numel():
        return False
    if tensor.dtype.itemsize == 1:  # float8 has few operations.
        return bool(tensor.float().isnan().any())
    return math.isnan(float(tensor.sum(dtype=torch.float32))) and bool(tensor.isnan().any())


def _is_in_head(names: Sequence[str]) -> bool:
    """Whether tensors belong to the head, which may be another than that of the files."""
    return all(
        name.startswith(("lm_head.", "transform.", "pooler.", "score.", "distillation_score.", "logits_bias"))
        for name in names
    )


def _keeps_dtype(model: nn.Module, name: str) -> bool:
    """Whether a module needs a tensor in the dtype of the file (scales of quantized weights)."""
    owner, _, leaf = name.rpartition(".")
    return leaf in getattr(model.get_submodule(owner), "fixed_dtype", ())


def _assign(model: nn.Module, name: str, tensor: Tensor) -> None:
    owner, _, leaf = name.rpartition(".")
    module = model.get_submodule(owner)
    if leaf in module._parameters:
        old = module._parameters[leaf]
        trainable = old is not None and old.requires_grad and tensor.is_floating_point()
        module._parameters[leaf] = nn.Parameter(tensor, requires_grad=trainable)
    else:
        module._buffers[leaf] = tensor


def weight_operations(family: Family, model: Model) -> Iterator[Any]:
    """The family's operations for this model; a replaced module provides those of its own tensors."""
    replaced = {name: module for name, module in model.named_modules() if hasattr(module, "weight_operations")}
    for operation in family.weights(model.config):
        owners = {target.rpartition(".")[0] for target in operation.targets if target.endswith(".weight")}
        modules = [replaced[owner] for owner in owners if owner in replaced]
        if modules:
            yield from modules[0].weight_operations(operation)
        else:
            yield operation


class TensorNames:
    """Finds the tensors of a model folder by the family's names, by their aliases, and without the body's prefix.

    `head` is the head of the files. If the model has another head (`strict` is false), the prefix of the files' head
    applies and its further tensors are ignored. `used` collects the names that were loaded.
    """

    def __init__(
        self,
        family: Family,
        head: Head,
        tensors: SafetensorsReader | GgufTensors,
        *,
        strict: bool,
        ignored: Sequence[str] = (),
    ):
        self.family, self.tensors, self.strict, self.ignored = family, tensors, strict, ignored
        self.prefixes = {family.prefix, *(head.prefix or "" for head in family.heads.values())} - {""}
        self.prefix = family.prefix if head.prefix is None else head.prefix
        self.aliases: dict[str, list[str]] = {}
        for alias, name in family.aliases.items():
            self.aliases.setdefault(self.without_prefix(name), []).append(alias)
        head_names = [name for operation in head.operations for name in operation.sources]
        self.head_patterns = [
            re.escape(spelling)
            for name in head_names
            for known in self._names(name)
            for spelling in self._spellings(known)
        ]
        self.used: set[str] = set()

    def find(self, name: str) -> str | None:
        """The name of a tensor in the files, or None if they do not have it."""
        return next(self._matches(*self._names(name)), None)

    def without_prefix(self, name: str) -> str:
        """A name without the body's prefix."""
        return next((name.removeprefix(prefix) for prefix in self.prefixes if name.startswith(prefix)), name)

    def _names(self, name: str) -> tuple[str, ...]:
        return name, *self.aliases.get(self.without_prefix(name), ())

    def duplicates(self) -> Iterator[tuple[str, str]]:
        """Tensors of the files under an alias of a loaded tensor, each with the name of that tensor."""
        for name, aliases in self.aliases.items():
            loaded = self.find(name)
            if loaded is not None and loaded in self.used:
                matches = dict.fromkeys(self._matches(*aliases))
                yield from ((match, loaded) for match in matches if match not in self.used)

    def _matches(self, *names: str) -> Iterator[str]:
        """The tensors of the files with one of these names, with or without a prefix."""
        for known in names:
            bare = self.without_prefix(known)
            for candidate in (
                known,
                self.prefix + bare,
                bare,
                *(prefix + bare for prefix in self.family.other_prefixes),
            ):
                for spelling in self._spellings(candidate):
                    if spelling in self.tensors:
                        yield spelling

    def _spellings(self, name: str) -> Iterator[str]:
        """A name, and its spellings in old and other checkpoints."""
        yield name
        for old, new in self.family.old_names:
            if name.endswith(new):
                yield name.removesuffix(new) + old
        for other, usual in self.family.other_beginnings:
            if name.startswith(usual):
                yield other + name.removeprefix(usual)

    def unexpected(self) -> list[str]:
        """The tensors of the files that are neither loaded nor duplicates nor known to be ignored."""
        duplicates = {name for name, _ in self.duplicates()}
        ignored = [*self.family.ignored, *self.ignored, *([] if self.strict else self.head_patterns)]
        return [
            name
            for name in self.tensors.names
            if name not in self.used
            and name not in duplicates
            and not any(re.fullmatch(pattern, name) for pattern in ignored)
        ]
