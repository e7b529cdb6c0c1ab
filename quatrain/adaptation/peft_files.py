"""Adapter folders in PEFT's format: `adapter_config.json` and `adapter_model.safetensors`, written and read.

Where a family's files fuse several of our layers in one (GPT-2's `c_attn` is our query, key and value projections),
the adapter of the fused layer is block-wise: its A stacks ours, its B holds ours on the diagonal, its rank and alpha
are the sums, so that the scaling stays. Reading splits such blocks again; a fused adapter of another origin gives
each part the whole A and its own rows of B. Both are exact.
"""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from quatrain.adaptation.lora import (
    LoRALinear,
    adapters,
    is_linear,
    linear_names,
    load_adapter_tensors,
    replace_module,
)
from quatrain.adaptation.token_rows import learn_rows, learned_rows, write_rows
from quatrain.atomic import atomic_write, write_json
from quatrain.errors import InputError
from quatrain.models.families import family
from quatrain.models.families.weights import Computed, Split
from quatrain.models.stack import Model

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
UNSUPPORTED = {
    "use_dora": False, "bias": "none", "modules_to_save": None, "layer_replication": None, "lora_bias": False,
    "target_parameters": None, "alora_invocation_tokens": None, "use_qalora": False,
    "arrow_config": None, "use_bdlora": None, "corda_config": None, "eva_config": None, "exclude_modules": None,
}  # fmt: skip
"""Options of PEFT that change what an adapter computes or holds, at the values that Quatrain reads."""


class _Layers:
    """Which layer of the family's files each of our linear layers is, and which part of it."""

    def __init__(self, model: Model):
        self.parts: dict[str, list[str]] = {}
        self.transposed: set[str] = set()
        for operation in family(model.config.family).weights(model.config):
            if isinstance(operation, Computed) or not operation.theirs.endswith(".weight"):
                continue
            ours = operation.ours if isinstance(operation, Split) else (operation.ours,)
            theirs = operation.theirs.removesuffix(".weight")
            self.parts[theirs] = [name.removesuffix(".weight") for name in ours]
            if operation.transpose:
                self.transposed.add(theirs)
        self.theirs = {ours: theirs for theirs, parts in self.parts.items() for ours in parts}


def save_adapter(model: Model, folder: str | Path, *, base_model: str | None = None) -> None:
    """Writes the model's adapters as a PEFT adapter folder.

    `base_model` is where the base is: a folder (best relative to `folder`) or a name that PEFT's users know.
    Raises InputError where the model has no adapter.
    """
    found = dict(adapters(model))
    if not found:
        raise InputError("This model has no adapter to write.")
    layers = _Layers(model)
    grouped: dict[str, dict[str, LoRALinear]] = defaultdict(dict)
    for name, layer in found.items():
        grouped[layers.theirs[name]][name] = layer
    tensors: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    alphas: dict[str, float] = {}
    for theirs, group in grouped.items():
        first, second, scaling = _fuse(layers.parts[theirs], group, model)
        tensors[f"{PREFIX}{theirs}.lora_A.weight"] = first
        tensors[f"{PREFIX}{theirs}.lora_B.weight"] = second
        ranks[theirs], alphas[theirs] = first.shape[0], scaling * first.shape[0]
    rows = learned_rows(model)
    embedding = layers.theirs["embed_tokens"]
    if rows:
        tensors[_rows_key(embedding)] = model.embed_tokens.weight.detach()[list(rows)]
    every = {layers.theirs[name] for name in (*found, *linear_names(model))}
    task = "SEQ_2_SEQ_LM" if model.config.architecture == "encoder-decoder" else "CAUSAL_LM"
    config = {
        "peft_type": "LORA", "task_type": task, "base_model_name_or_path": base_model, "inference_mode": True,
        "target_modules": _short_names(set(grouped), every), "bias": "none", "use_rslora": False, "use_dora": False,
        "trainable_token_indices": {embedding.rpartition(".")[2]: list(rows)} if rows else None,
        "fan_in_fan_out": any(theirs in layers.transposed for theirs in grouped),
        "lora_dropout": max(layer.dropout for layer in found.values()),
        **_with_pattern("r", "rank_pattern", ranks), **_with_pattern("lora_alpha", "alpha_pattern", alphas),
    }  # fmt: skip
    from safetensors.torch import save

    folder = Path(folder)
    write_json(folder / CONFIG, config)
    with atomic_write(folder / WEIGHTS, "wb") as file:
        file.write(save({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, {"format": "pt"}))


def _rows_key(embedding: str) -> str:
    return f"{PREFIX}{embedding}.token_adapter.trainable_tokens_delta"


def _take_rows(config: dict[str, Any], layers: _Layers, tensors: dict[str, Tensor]) -> tuple[list[int], Tensor] | None:
    """The learned token rows of an adapter folder, taken out of `tensors`; None where it has none."""
    wanted = config.get("trainable_token_indices")
    if not wanted:
        return None
    embedding = layers.theirs["embed_tokens"]
    ids = wanted.get(embedding.rpartition(".")[2]) if isinstance(wanted, dict) else wanted
    rows = tensors.pop(_rows_key(embedding), None)
    if ids is None or rows is None or rows.shape[0] != len(ids):
        raise InputError(f"trainable_token_indices: {wanted}; the adapter's weights hold no such rows of {embedding}")
    return list(ids), rows


def _fuse(parts: list[str], group: dict[str, LoRALinear], model: Model) -> tuple[Tensor, Tensor, float]:
    """A, B and scaling of the file's layer, from the adapters of its parts (those without one contribute nothing)."""
    if len(parts) == 1:
        (only,) = group.values()
        return only.lora_A.detach(), only.lora_B.detach(), only.scaling
    present = [group[name] for name in parts if name in group]
    scaling = present[0].scaling
    first = torch.cat([layer.lora_A.detach() for layer in present])
    rows = []
    column = 0
    for name in parts:
        wide = int(model.get_submodule(name).out_features)  # type: ignore[arg-type]
        block = torch.zeros(wide, first.shape[0], device=first.device)
        if (layer := group.get(name)) is not None:
            block[:, column : column + layer.rank] = layer.lora_B.detach() * (layer.scaling / scaling)
            column += layer.rank
        rows.append(block)
    return first, torch.cat(rows), scaling


def _with_pattern(key: str, pattern: str, values: dict[str, Any]) -> dict[str, Any]:
    """The commonest value, and the layers that differ from it by name."""
    common = Counter(values.values()).most_common(1)[0][0]
    written = {name: _whole(value) for name, value in values.items() if value != common}
    return {key: _whole(common), pattern: written}


def _whole(value: float) -> float:
    return int(value) if value == int(value) else value


def _short_names(targeted: set[str], every: set[str]) -> list[str]:
    """The shortest ends of paths that name the targeted layers and no other."""
    short: set[str] = set()
    for name in targeted:
        words = name.split(".")
        ends = (".".join(words[-count:]) for count in range(1, len(words) + 1))
        short.add(next(end for end in ends if all(o in targeted for o in every if o == end or o.endswith(f".{end}"))))
    return sorted(short)


def read_config(folder: str | Path) -> dict[str, Any]:
    """The `adapter_config.json` of a LoRA adapter folder. Raises InputError, every option that is not known at once."""
    path = Path(folder) / CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{folder}: no {CONFIG} in it, so this is no adapter folder.") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not readable as JSON ({error}). Fetch or write the adapter again.") from error
    problems = []
    if config.get("peft_type") != "LORA":
        problems.append(
            f"peft_type: {config.get('peft_type')!r} is an adapter that Quatrain does not know; known: LORA"
        )
    problems += [
        f"{key}: {config[key]!r} is an option of PEFT that Quatrain does not know; it reads {value!r}"
        for key, value in UNSUPPORTED.items()
        if key in config and config[key] != value and config[key] not in (None, False, [], {})
    ]
    problems += [f"{key}: missing" for key in ("r", "lora_alpha") if key not in config and not problems]
    if problems:
        raise InputError(f"{path}: this adapter cannot be used:", problems)
    return config


def base_folder(folder: str | Path) -> Path:
    """Where the base model of an adapter is: beside the adapter first, then from where the user stands.

    Raises InputError where the adapter does not say, or no such folder is there.
    """
    folder = Path(folder)
    name = read_config(folder).get("base_model_name_or_path")
    if not name:
        raise InputError(f"{folder}: {CONFIG} does not say its base model; set base_model_name_or_path in it.")
    places = [(folder / name).resolve(), Path(name)]
    for place in places:
        if (place / "config.json").is_file():
            return place
    raise InputError(f"{folder}: its base model {name!r} is no model folder here (looked in {places[0]} and {name}).")


def load_adapter(model: Model, folder: str | Path) -> list[str]:
    """Puts a PEFT adapter over the layers of `model`, which is frozen; returns the layers' paths.

    Raises InputError naming each tensor that is missing, unexpected or of the wrong shape; the model is then as before.
    """
    folder = Path(folder)
    config = read_config(folder)
    layers = _Layers(model)
    tensors = _read_tensors(folder / WEIGHTS)
    rows = _take_rows(config, layers, tensors)
    problems: list[str] = []
    made: dict[str, LoRALinear] = {}
    for theirs, pair in _pairs(tensors, problems).items():
        parts = layers.parts.get(theirs)
        bases = [model.get_submodule(name) for name in parts] if parts else []
        if not parts or not all(is_linear(base) for base in bases):
            problems.append(f"{theirs}: the model has no linear layer of this name without an adapter")
            continue
        sizes = [int(base.out_features) for base in bases]  # type: ignore[arg-type]
        expected = (bases[0].in_features, sum(sizes), pair["A"].shape[0])
        if (pair["A"].shape[1], *pair["B"].shape) != expected:
            problems.append(f"{theirs}: A {tuple(pair['A'].shape)} and B {tuple(pair['B'].shape)} do not fit the layer")
            continue
        scaling = _scaling(config, theirs, pair["A"].shape[0])
        for name, base, (first, second) in zip(parts, bases, _split(pair["A"], pair["B"], sizes), strict=True):
            if first.shape[0]:
                made[name] = _layer(base, first, second, scaling, float(config.get("lora_dropout", 0.0)))
    if not tensors:
        problems.append("it holds no tensor")
    if problems:
        raise InputError(f"{folder / WEIGHTS}: the adapter does not fit the model:", problems)
    model.requires_grad_(False)
    if rows is not None:
        write_rows(model, *rows)
        learn_rows(model, rows[0])
    for name, layer in made.items():
        layer.lora_A.requires_grad_(True)
        layer.lora_B.requires_grad_(True)
        replace_module(model, name, layer)
    return list(made)


def _layer(base: torch.nn.Module, first: Tensor, second: Tensor, scaling: float, dropout: float) -> LoRALinear:
    layer = LoRALinear(base, first.shape[0], scaling * first.shape[0], dropout)
    with torch.no_grad():
        layer.lora_A.copy_(first)
        layer.lora_B.copy_(second)
    return layer


def _read_tensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise InputError(f"{path}: missing. An adapter needs its weights in safetensors; pickled ones are not read.")
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"{path}: not a whole safetensors file ({error}). Fetch or write the adapter again."
        ) from error


def _pairs(tensors: dict[str, Tensor], problems: list[str]) -> dict[str, dict[str, Tensor]]:
    """The A and B of each layer of the files, by the layer's path."""
    pairs: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for name, tensor in tensors.items():
        path, _, kind = name.removesuffix(".weight").rpartition(".lora_")
        if not name.startswith(PREFIX) or kind not in ("A", "B") or tensor.dim() != 2:
            problems.append(f"{name}: unexpected")
            continue
        pairs[path.removeprefix(PREFIX)][kind] = tensor
    for path in [path for path, pair in pairs.items() if len(pair) == 1]:
        problems.append(f"{PREFIX}{path}.lora_{'B' if 'A' in pairs.pop(path) else 'A'}.weight: missing")
    return pairs


def _scaling(config: dict[str, Any], theirs: str, rank: int) -> float:
    """The factor of a layer's product: alpha over the rank, or over its root with rank-stabilised LoRA."""
    alpha = config["lora_alpha"]
    for pattern, value in (config.get("alpha_pattern") or {}).items():
        if theirs == pattern or theirs.endswith(f".{pattern}"):
            alpha = value
            break
    return float(alpha) / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _split(first: Tensor, second: Tensor, sizes: list[int]) -> list[tuple[Tensor, Tensor]]:
    """The A and B of each part of a fused layer; only the rows of A that a part's B uses, where B is block-wise."""
    rows = second.split(sizes)
    if len(sizes) == 1:
        return [(first, second)]
    used = [part.ne(0).any(dim=0) for part in rows]
    if second.any() and torch.stack(used).sum(dim=0).max() <= 1:
        return [(first[columns], part[:, columns]) for columns, part in zip(used, rows, strict=True)]
    return [(first, part) for part in rows]


def load_weights(model: Model, folder: str | Path) -> None:
    """Fills the adapters that `model` already has from what `save_adapter` wrote for them, bit for bit (a checkpoint).

    Raises InputError where the files and the adapters differ in names or shapes.
    """
    tensors = _read_tensors(Path(folder) / WEIGHTS)
    layers = _Layers(model)
    rows = _take_rows(read_config(folder), layers, tensors)
    found = dict(adapters(model))
    grouped: dict[str, dict[str, LoRALinear]] = defaultdict(dict)
    for name, layer in found.items():
        grouped[layers.theirs[name]][name] = layer
    filled: dict[str, Tensor] = {}
    problems: list[str] = []
    pairs = _pairs(tensors, problems)
    problems += [
        f"{theirs}: {'missing' if theirs in grouped else 'unexpected'}" for theirs in pairs.keys() ^ grouped.keys()
    ]
    for theirs in pairs.keys() & grouped.keys():
        column = row = 0
        for name in layers.parts[theirs]:
            module = model.get_submodule(name)
            end = row + int(module.out_features)  # type: ignore[arg-type]
            if name in grouped[theirs]:
                rank = grouped[theirs][name].rank
                filled[f"{name}.lora_A"] = pairs[theirs]["A"][column : column + rank]
                filled[f"{name}.lora_B"] = pairs[theirs]["B"][row:end, column : column + rank]
                column += rank
            row = end
        if pairs[theirs]["A"].shape[0] != column:
            problems.append(f"{theirs}: rank {pairs[theirs]['A'].shape[0]}, the adapter has {column}")
    if problems:
        raise InputError(f"{Path(folder) / WEIGHTS}: does not fit the model's adapters:", problems)
    load_adapter_tensors(model, filled)
    if rows is not None:
        write_rows(model, *rows)
