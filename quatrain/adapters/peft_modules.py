"""Weights of the model itself in PEFT's adapter folders: `modules_to_save`, resized embeddings, tied ones.

PEFT wraps each module of `modules_to_save` in a trained copy. In a model whose head is tied to the embedding, the copy
of one is no longer the other: the model becomes untied. Only `ensure_weight_tying`, or a resized embedding saved
together with its head, keeps them tied.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from quatrain.adapters.peft_config import PLAIN
from quatrain.adapters.peft_layers import PREFIX
from quatrain.adapters.trainable_tokens import token_rows
from quatrain.core.errors import InputError
from quatrain.models.families import Family, get_family
from quatrain.models.families.weights import Rename, Split
from quatrain.models.transformer.config import LANGUAGE_HEADS, ModelConfig
from quatrain.models.transformer.stack import Model
from quatrain.models.transformer.vocabulary import is_tied, untie_obstacle

EMBEDDING, HEAD = "embed_tokens.weight", "lm_head.weight"
COPIES = (
    ".modules_to_save.weight", ".token_adapter.base_layer.weight", ".base_layer.weight", ".original_module.weight",
)  # fmt: skip
"""Names that PEFT gives an embedding or head, beside or instead of its own, when it saves a resized one or an adapter
over one. The first one present counts."""


@dataclass
class SavedModules:
    """Fully trained weights by our names. Those in `frozen` replace the base model's and are not trained. `unties`
    tells whether the adapter makes head and embedding separate matrices.
    """

    tensors: dict[str, Tensor] = field(default_factory=dict)
    frozen: set[str] = field(default_factory=set)
    unties: bool = False


def operations(config: ModelConfig) -> list[Rename | Split]:
    """The operations that map the family's file tensors to our weights, a tied head's included."""
    kind = get_family(config.family)
    known_operations = [each for each in kind.weights(config) if isinstance(each, Rename | Split)]
    if config.tie_word_embeddings and config.head in LANGUAGE_HEADS:
        known = {each.theirs for each in known_operations}
        untied = kind.weights(config.replace(tie_word_embeddings=False))
        known_operations += [each for each in untied if isinstance(each, Rename | Split) and each.theirs not in known]
    return known_operations


def rename_aliases(config: ModelConfig, tensors: dict[str, Tensor]) -> dict[str, str]:
    """Renames a head stored under its newer name to the family's own, in place; returns the old path of each renamed
    one.
    """
    renamed = {}
    for alias, name in _head_aliases(get_family(config.family), operations(config)).items():
        before, after = (f"{PREFIX}{each.removesuffix('.weight')}." for each in (alias, name))
        if any(each.startswith(after) for each in tensors):  # LayerTensors under both names.
            for each in [each for each in tensors if each.startswith(before)]:
                del tensors[each]
            continue
        for each in [each for each in tensors if each.startswith(before)]:
            tensors[after + each.removeprefix(before)] = tensors.pop(each)
            renamed[name.removesuffix(".weight")] = alias.removesuffix(".weight")
    return renamed


def write_aliases(model: Model, config: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Adds the head's tensors under its other names, and those names to the configuration, in place.

    GPT-NeoX's head is `embed_out` in older releases of transformers and `lm_head` in newer ones; PEFT ignores the name
    that its model does not have.
    """
    for alias, name in _head_aliases(get_family(model.config.family), operations(model.config)).items():
        old, new = name.removesuffix(".weight"), alias.removesuffix(".weight")
        copies = {
            f"{PREFIX}{new}.{each.removeprefix(f'{PREFIX}{old}.')}": tensor.clone()
            for each, tensor in tensors.items()
            if each.startswith(f"{PREFIX}{old}.")
        }
        tensors |= copies
        for key in ("modules_to_save", "target_modules"):
            if copies and old in (config.get(key) or ()):
                config[key] = sorted({*config[key], new})
        for key in ("rank_pattern", "alpha_pattern", "trainable_token_indices"):
            if copies and isinstance(config.get(key), dict) and old in config[key]:
                config[key] = config[key] | {new: config[key][old]}


def _head_aliases(kind: Family, known: list[Rename | Split]) -> dict[str, str]:
    """Other names of the head's matrix. An embedding's aliases are left out: PEFT tells its copies apart by them."""
    heads = {each.theirs for each in known if each.targets == [HEAD]}
    return {alias: name for alias, name in kind.aliases.items() if name in heads}


def rename_copies(config: ModelConfig, tensors: dict[str, Tensor]) -> set[str]:
    """Renames PEFT's other names of an embedding or head to its own, in place; returns the names of those that are the
    base weights under an adapter.
    """
    frozen = set()
    for operation in operations(config):
        if operation.targets not in ([EMBEDDING], [HEAD]):
            continue
        own = f"{PREFIX}{operation.theirs}"
        for end in COPIES:
            copy = tensors.pop(own.removesuffix(".weight") + end, None)
            if copy is not None and own not in tensors:
                tensors[own] = copy
                frozen |= {own} if end == ".base_layer.weight" else set()
    return frozen


def read(
    model: Model, config: Mapping[str, Any], tensors: dict[str, Tensor], frozen: set[str], problems: list[str]
) -> SavedModules:
    """Removes the fully trained weights from `tensors` and returns them; the model does not change.

    `frozen` comes from `rename_copies`.
    """
    saved, state = SavedModules(), dict(model.named_parameters(remove_duplicate=False))
    for operation in operations(model.config):
        name = f"{PREFIX}{operation.theirs}"
        if name not in tensors:
            continue
        tensor = tensors.pop(name)
        try:
            weights = dict(operation.read(lambda theirs, tensor=tensor: tensor))  # type: ignore[misc]
        except (RuntimeError, IndexError, ValueError):
            weights = {}
        if not weights or any(own not in state or state[own].shape != each.shape for own, each in weights.items()):
            problems.append(f"{name}: its shape is not the model's: {tuple(tensor.shape)}")
            continue
        saved.tensors |= weights
        saved.frozen |= set(weights) if name in frozen else set()
    if config["peft_type"] != PLAIN:  # Our own format may hold only the biases of a module.
        problems += _missing(model, config, saved.tensors)
    _tie(model, config, saved, problems)
    return saved


def _tie(model: Model, config: Mapping[str, Any], modules: SavedModules, problems: list[str]) -> None:
    """Decides whether a tied model stays tied, and if so gives both names the same tensor."""
    given = {name: modules.tensors[name] for name in (EMBEDDING, HEAD) if name in modules.tensors}
    if not given or not (is_tied(model) or model.untied_after_load):
        return
    kind = get_family(model.config.family)
    saved = any(_names(kind, config, each) for each in operations(model.config) if given.keys() & set(each.targets))
    both = len(given) == 2
    equal = both and torch.equal(given[EMBEDDING], given[HEAD])
    if config.get("ensure_weight_tying") or not saved:
        if both and not equal:
            problems.append(
                "the embedding and the head, which the model ties, differ in the adapter's weights, and "
                "modules_to_save names neither"
            )
        one = next(iter(given.values()))
        if EMBEDDING in given or not modules.frozen:
            modules.tensors |= {EMBEDDING: one, HEAD: one}
        return
    modules.unties = True
    if reason := untie_obstacle(model):
        problems.append(f"modules_to_save: {reason}")


def _names(kind: Family, config: Mapping[str, Any], operation: Rename | Split) -> bool:
    """Whether `modules_to_save` names the module of an operation by the end of its path."""
    own = operation.theirs
    aliases = [alias for alias, name in _head_aliases(kind, [operation]).items() if name == own]
    paths = [each.removesuffix(".weight") for each in (own, *aliases)]
    saved = config.get("modules_to_save") or ()
    return any(path == name or path.endswith(f".{name}") for path in paths for name in saved)


def _missing(model: Model, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> list[str]:
    """Weights of `modules_to_save` that the adapter lacks. PEFT also lists heads that the model does not have."""
    state, kind = dict(model.named_parameters(remove_duplicate=False)), get_family(model.config.family)
    return [
        f"{PREFIX}{operation.theirs}: missing, and modules_to_save names it"
        for operation in kind.weights(model.config)
        if isinstance(operation, Rename | Split)
        and _names(kind, config, operation)
        and set(operation.targets) <= state.keys()
        and not set(operation.targets) <= tensors.keys()
    ]


def write(model: Model, names: list[str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The file tensors of fully trained weights (for fused ones, all their parts) by name, and their options in
    `adapter_config.json`.
    """
    state = {name: parameter.detach() for name, parameter in model.named_parameters(remove_duplicate=False)}
    remaining, tensors = set(names), dict[str, Tensor]()
    tied = is_tied(model) and bool(remaining & {EMBEDDING, HEAD})
    if tied:
        remaining |= {EMBEDDING, HEAD}
    state |= _with_rows(model, state, remaining)
    for operation in operations(model.config):
        if remaining & set(operation.targets):
            tensors |= dict(operation.write(state.__getitem__))
            remaining -= set(operation.targets)
    if remaining - ({HEAD} if tied else set()):
        raise InputError("These weights have no name in the family's files:", sorted(remaining))
    saved = sorted({name.rpartition(".")[0] for name in tensors}) or None
    if not tied:
        return tensors, {"modules_to_save": saved}
    head = [each.theirs.removesuffix(".weight") for each in operations(model.config) if HEAD in each.targets]
    tensors |= {f"{name}.weight": tensors[f"{name}.weight"].clone() for name in head}  # Files cannot share memory.
    return tensors, {
        "modules_to_save": [name for name in saved or () if name not in head],
        "ensure_weight_tying": True,
    }


def _with_rows(model: Model, state: Mapping[str, Tensor], wanted: set[str]) -> dict[str, Tensor]:
    """Matrices with the trained token rows merged in, where PEFT cannot hold both; adds their names to `wanted`.

    PEFT trains no module both in full and by rows; for a tied base it shares the embedding's rows with the head.
    """
    rows = token_rows(model)
    if rows is None or not writes_merged_rows(model, wanted):
        return {}
    tables = {f"{part}.weight": table for part, table in rows.tables().items()}
    if rows.tied and EMBEDDING in tables:
        tables[HEAD] = tables[EMBEDDING]
    folded = {}
    for name, table in tables.items():
        folded[name] = state[name].clone()
        folded[name][list(rows.ids)] = table.detach().to(folded[name])
    wanted |= set(folded)
    return folded


def writes_merged_rows(model: Model, whole: set[str]) -> bool:
    """Whether trained token rows are written as part of the whole embedding or head."""
    rows = token_rows(model)
    if rows is None:
        return False
    names = {f"{part}.weight" for part in rows.tables()}
    return bool(names & whole) or (model.untied_after_load and HEAD in whole and EMBEDDING in names)


def load_into(model: Model, saved: SavedModules) -> None:
    """Copies the weights into a frozen model and makes those that are not `frozen` trainable."""
    state = dict(model.named_parameters(remove_duplicate=False))
    with torch.no_grad():
        for name, tensor in saved.tensors.items():
            if name in state:
                state[name].requires_grad_(name not in saved.frozen).copy_(tensor)
