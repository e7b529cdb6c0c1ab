"""Adapter folders in PEFT's format: `adapter_config.json` and `adapter_model.safetensors`, written and read.

Methods without a PEFT format (BitFit, last layers, bottlenecks) use the same two files, with the names of the family's
tensors and a `peft_type` of their own, which PEFT refuses and Quatrain reads.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, Field
from torch import Tensor

from quatrain.adapters import peft_layers, peft_modules, peft_patterns, peft_prompts, peft_tokens, prompts
from quatrain.adapters.apply import fully_trained_parameters
from quatrain.adapters.gguf_adapter import is_gguf_adapter, read_layers
from quatrain.adapters.ia3 import IA3Linear
from quatrain.adapters.layer import AdapterLayer, adapter_layers
from quatrain.adapters.peft_config import PLAIN, TASKS, TYPES, method_of, read_config, written_base  # fmt: skip
from quatrain.adapters.peft_layers import FORMATS, PREFIX, FileLayer, LayerTensors, StoredLayer, file_layers
from quatrain.adapters.targets import linear_names
from quatrain.adapters.trainable_tokens import make_token_rows
from quatrain.core.atomic import atomic_write, write_json
from quatrain.core.errors import InputError
from quatrain.core.reading import read_json
from quatrain.models.hub import ADAPTER_CONFIG
from quatrain.models.modules import is_in_head, is_linear, replace_module
from quatrain.models.transformer.stack import Model
from quatrain.models.transformer.trainable_tokens import TokenRows
from quatrain.models.transformer.vocabulary import is_tied, resize_vocabulary, untie

WEIGHTS, LABELS = "adapter_model.safetensors", "labels.json"
MORE_TOKENS = 65_536
"""The most tokens that an adapter may add to the vocabulary of its base model."""


def save_adapter(model: Model, folder: str | Path, *, base_model: str | None = None) -> None:
    """Writes a model's adapter as a PEFT folder: everything that is trained beside the base model.

    `base_model` is the base model's folder or hub id. A folder is looked for beside `folder` and in the working
    directory, and written as an absolute path. Raises InputError for a model without adapter, or one that PEFT's files
    cannot hold.
    """
    adapters, prompt = dict(adapter_layers(model)), model.soft_prompt
    whole = [name for name in fully_trained_parameters(model) if not name.startswith("soft_prompt.")]
    if not adapters and prompt is None and not (whole and len(whole) < len(list(model.parameters()))):
        raise InputError("This model has no adapter to write.")
    layers = file_layers(model.config)
    grouped = group(layers, adapters)
    check_writable(layers, grouped)
    written = {path: peft_layers.write(layers[path], each, model.get_submodule) for path, each in grouped.items()}
    tensors = {
        f"{PREFIX}{path}.{end}": tensor for path, each in written.items() for end, tensor in each.tensors.items()
    }
    row_tensors, row_options = peft_tokens.write(model, layers)
    tensors |= row_tensors
    saved, whole_options = peft_modules.write(model, whole)
    tensors |= {f"{PREFIX}{name}": tensor for name, tensor in saved.items()}
    folder = Path(folder)
    config: dict[str, Any] = {
        "peft_type": PLAIN, "task_type": TASKS.get(model.config.head),
        "base_model_name_or_path": written_base(folder, base_model), "inference_mode": True,
    } | whole_options | row_options  # fmt: skip
    if prompt is not None:
        config |= peft_prompts.options(model, prompt)
        tensors[peft_prompts.TENSOR] = peft_prompts.rows_of(model, prompt)
    if adapters:
        every = {path for name in (*adapters, *linear_names(model)) for path in [_path_of(layers, name)] if path}
        config["target_modules"] = _short_names(set(grouped), every)
        config["fan_in_fan_out"] = any(layers[path].transposed for path in grouped)
        config |= _options(adapters, grouped, written, every)
    peft_modules.write_aliases(model, config, tensors)
    from safetensors.torch import save

    write_json(folder / ADAPTER_CONFIG, config)
    if model.config.labels:
        write_json(folder / LABELS, {"labels": list(model.config.labels), "problem_type": model.config.problem_type})
    with atomic_write(folder / WEIGHTS, "wb") as file:
        file.write(save({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, {"format": "pt"}))


def group(layers: Mapping[str, FileLayer], adapters: Mapping[str, AdapterLayer]) -> dict[str, dict[str, AdapterLayer]]:
    """The adapter layers by the layer of the model's files that contains them (several if the file fuses layers).

    Raises InputError for layers that the files do not hold as matrices of their own.
    """
    paths = {part: path for path, layer in layers.items() for part in layer.parts}
    if stacked := [name for name in adapters if name not in paths]:
        raise InputError(
            f"{stacked[0]}: this family's files store the experts of a layer as one tensor, and PEFT has no adapter "
            "of one expert. Train adapters on the attention (target_modules q_proj, k_proj, v_proj, o_proj), or merge."
        )
    grouped: dict[str, dict[str, AdapterLayer]] = defaultdict(dict)
    for name, layer in adapters.items():
        grouped[paths[name]][name] = layer
    return grouped


def check_writable(layers: Mapping[str, FileLayer], grouped: Mapping[str, Mapping[str, AdapterLayer]]) -> None:
    """Raises InputError naming every layer whose adapter PEFT's files cannot hold."""
    reasons = (peft_layers.check_writable(layers[path], next(iter(each.values())).method)
               for path, each in grouped.items())  # fmt: skip
    problems = list(dict.fromkeys(reason for reason in reasons if reason))
    if problems:
        raise InputError("This adapter cannot be written for PEFT:", problems)


def _path_of(layers: Mapping[str, FileLayer], name: str) -> str | None:
    return next((path for path, layer in layers.items() if name in layer.parts), None)


def _options(
    adapters: Mapping[str, AdapterLayer],
    grouped: Mapping[str, Mapping[str, AdapterLayer]],
    written: Mapping[str, LayerTensors],
    every: set[str],
) -> dict[str, Any]:  # fmt: skip
    """The method's options in `adapter_config.json`."""
    first = next(iter(adapters.values()))
    options: dict[str, Any] = {"peft_type": TYPES[first.method]}
    if isinstance(first, IA3Linear):
        inner = {path for path, each in grouped.items() if any(getattr(one, "inner", False) for one in each.values())}
        names = [_short_names(paths, every) for paths in (inner, set(grouped) - inner)]
        return options | {"feedforward_modules": names[0], "target_modules": sorted({*names[0], *names[1]})}
    method = FORMATS[first.method]
    if method.alpha is not None:
        options |= _with_pattern("r", "rank_pattern", {path: each.rank for path, each in written.items()})
        options |= _with_pattern(method.alpha, "alpha_pattern", {path: each.alpha for path, each in written.items()})
    return options | method.options(first, list(adapters.values()))


def _with_pattern(key: str, pattern: str, values: dict[str, Any]) -> dict[str, Any]:
    """The most common value, and a pattern of the layers that differ from it."""
    common = Counter(values.values()).most_common(1)[0][0]
    written = {name: _whole(value) for name, value in values.items() if value != common}
    return {key: _whole(common), pattern: written}


def _whole(value: float) -> float:
    return int(value) if value == int(value) else value


def _short_names(targeted: set[str], every: set[str]) -> list[str]:
    """The shortest path endings that match the targeted layers and no others."""
    short: set[str] = set()
    for name in targeted:
        words = name.split(".")
        ends = (".".join(words[-count:]) for count in range(1, len(words) + 1))
        short.add(next(end for end in ends if all(o in targeted for o in every if o == end or o.endswith(f".{end}"))))
    return sorted(short)


def head_of(folder: str | Path) -> dict[str, Any]:
    """The head an adapter was trained with, its labels and problem, as arguments of `model_folder.load`; {} for the
    base model's head.

    PEFT's folders do not name labels; they are then numbers, one for each row of the head.
    """
    folder = Path(folder)
    config = read_config(folder)
    head = next((name for name, task in TASKS.items() if task == config.get("task_type")), None)
    if head is None or head in ("causal", "seq2seq"):
        return {}
    if (folder / LABELS).is_file():
        return {"head": head, **read_json(folder / LABELS, _Labels).model_dump()}
    if head not in ("sequence_classification", "token_classification"):
        return {"head": head}
    saved = [
        tensor
        for name, tensor in _read_tensors(folder / WEIGHTS).items()
        if _is_of_scores(name) and tensor.dim() == 2 and len(tensor)
    ]
    return {"head": head} | ({"labels": [str(number) for number in range(saved[0].shape[0])]} if saved else {})


class _Labels(BaseModel):
    """The labels file of an adapter."""

    labels: Annotated[list[str], Field(min_length=1)]
    problem_type: Literal["single_label", "multi_label", "regression"] | None = None


def _is_of_scores(name: str) -> bool:
    words = name.removesuffix(".weight").split(".")
    ends = words[-1] in ("score", "classifier") or words[-2:] == ["classifier", "out_proj"]
    return ends and name.endswith(".weight")


@dataclass
class LoadedAdapter:
    """The content of an adapter folder, for one model: adapter layers by path, trained token rows, soft prompt, fully
    trained weights by our names, and the size of its vocabulary.
    """

    layers: dict[str, AdapterLayer]
    rows: TokenRows | None
    prompt: Any
    saved: peft_modules.SavedModules
    vocab_size: int


def load_adapter(model: Model, folder: str | Path) -> list[str]:
    """Puts a PEFT adapter on a model and freezes the rest; returns the paths of the adapted layers.

    Raises InputError as `read_adapter` does; the model is then unchanged.
    """
    adapter = read_adapter(model, folder)
    model.requires_grad_(False)
    if adapter.saved.unties:
        untie(model)
    peft_modules.load_into(model, adapter.saved)
    if adapter.rows is not None:
        model.trainable_tokens = adapter.rows.requires_grad_(True)
    if adapter.prompt is not None:
        model.soft_prompt = adapter.prompt.train(model.training)
    for name, layer in adapter.layers.items():
        for parameter in layer.adapter_parameters().values():
            parameter.requires_grad_(True)
        replace_module(model, name, layer)
    return list(adapter.layers)


def read_adapter(model: Model, folder: str | Path) -> LoadedAdapter:
    """Reads a PEFT adapter folder, or a LoRA in a GGUF file, for a model; its layers wrap the model's, and the model
    does not change.

    Only the vocabulary is extended if the adapter's is larger. Raises InputError naming every tensor that is missing,
    unexpected or of the wrong shape; the model is then unchanged.
    """
    folder = Path(folder)
    if is_gguf_adapter(folder):
        return LoadedAdapter(
            read_layers(model, folder), None, None, peft_modules.SavedModules(), model.config.vocab_size
        )
    config = read_config(folder)
    layers, method = file_layers(model.config), method_of(config)
    tensors = _read_tensors(folder / WEIGHTS)
    if not tensors:
        raise InputError(f"{folder / WEIGHTS}: the adapter does not fit the model:", ["it contains no tensor"])
    names = {path: path for path in layers} | peft_modules.rename_aliases(model.config, tensors)
    tied = is_tied(model) or model.untied_after_load
    ids_rows = peft_tokens.read(config, layers, tensors, tied=tied)
    frozen = peft_modules.rename_copies(model.config, tensors)
    size, needed = model.config.vocab_size, peft_tokens.needed(layers, ids_rows, tensors)
    if needed > size + MORE_TOKENS:
        raise InputError(
            f"{folder}: the adapter needs a vocabulary of at least {needed:,} tokens, the model has {size:,}; at most "
            f"{MORE_TOKENS:,} more are added. Is it an adapter of another base?"
        )
    resize_vocabulary(model, max(size, needed))
    problems = _unmatched_layers(model, config, layers, names, tensors)
    whole = peft_modules.read(model, config, tensors, frozen, problems)
    rows = None
    if ids_rows is not None:
        shared = tied and "embed_tokens" in ids_rows[1]
        whole.unties |= tied and not shared
        try:
            rows = make_token_rows(model, *ids_rows, tied=shared).requires_grad_(False)
        except InputError as error:
            problems.append(error.message)
    prompt = peft_prompts.read(model, config, tensors, problems)
    if prompt is not None:
        prompts.check(model, prompt.method)
    adapters: dict[str, AdapterLayer] = {}
    options = _layer_options(config, names)
    for path, own in _by_layer(layers, tensors, problems).items():
        bases = [model.get_submodule(name) for name in layers[path].parts]
        if not all(is_linear(base) for base in bases):
            problems.append(f"{path}: the model has no linear layer of this name without an adapter")
            continue
        if method not in FORMATS:
            problems.append(f"{PREFIX}{path}: unexpected; the configuration has no method over linear layers")
            continue
        out = sum(int(base.out_features) for base in bases)  # type: ignore[arg-type, misc]
        fault = peft_layers.check_shapes(method, own, int(bases[0].in_features), out)  # type: ignore[arg-type]
        if fault := fault or _wrong_rank(method, own, options[path]):
            problems.append(f"{PREFIX}{path}: {fault}")
            continue
        try:
            adapters |= FORMATS[method].read(StoredLayer(layers[path], own, bases, options[path]))
        except InputError as error:
            problems.append(f"{path}: {error.message}")
    if problems:
        resize_vocabulary(model, size)
        raise InputError(f"{folder / WEIGHTS}: the adapter does not fit the model:", problems)
    return LoadedAdapter(adapters, rows, prompt, whole, needed)


def _unmatched_layers(
    model: Model, config: Mapping[str, Any], layers: Mapping[str, FileLayer], names: Mapping[str, str],
    tensors: Mapping[str, Tensor],
) -> list[str]:  # fmt: skip
    """Problems of layers that have weights but are not selected by the configuration, or the other way round.

    `names` maps the paths of layers to the adapter's names for them.
    """
    modules = dict(model.named_modules())
    linear = [
        path for path, layer in layers.items() if all(is_linear(modules.get(part, model)) for part in layer.parts)
    ]
    named = peft_patterns.targeted(config, [names[path] for path in linear])
    if named is None or config["peft_type"] not in TYPES.values():
        return []
    chosen = {path for path in linear if names[path] in named}
    inside = {name.removeprefix(PREFIX) for name in tensors if name.startswith(PREFIX)}
    own = {name for name in inside if not name.endswith((".weight", ".bias")) or ".lora_" in name}
    stored = {path for path in linear if any(name.startswith(f"{path}.") for name in own)}
    if str(config["target_modules"]).lower() == peft_patterns.ALL_LINEAR:
        chosen = {path for path in chosen if path in stored or not is_in_head(layers[path].parts[0])}
    problems = [
        f"{path}: its weights are in the file, but target_modules and related options leave it out"
        for path in linear
        if path in stored - chosen
    ]
    missing = [path for path in linear if path in chosen - stored]
    return problems + [f"{path}: target_modules names it, but its weights are missing" for path in missing]


def _by_layer(
    layers: Mapping[str, FileLayer], tensors: Mapping[str, Tensor], problems: list[str]
) -> dict[str, dict[str, Tensor]]:
    """The tensors of each layer of the files, by the ends of their names."""
    by_layer: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for name, tensor in tensors.items():
        inside = name.removeprefix(PREFIX)
        path = next((path for path in layers if inside.startswith(f"{path}.")), None)
        if not name.startswith(PREFIX) or path is None:
            problems.append(f"{name}: unexpected")
        else:
            by_layer[path][inside.removeprefix(f"{path}.")] = tensor
    return by_layer


def _layer_options(config: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Scaling, rank and dropout of each layer: alpha over the rank, or over its root with rank-stabilised LoRA."""
    kind = config["peft_type"]
    if kind not in ("LORA", "LOHA", "LOKR"):
        return {path: {} for path in names}
    alpha = config["lora_alpha" if kind == "LORA" else "alpha"]
    ranks = peft_patterns.first_matching(config.get("rank_pattern"), list(names.values()), config["r"])
    alphas = peft_patterns.first_matching(config.get("alpha_pattern"), list(names.values()), alpha)
    return {
        path: {
            "rank": ranks[name],
            "scaling": alphas[name] / (math.sqrt(ranks[name]) if config.get("use_rslora") else ranks[name]),
            "dropout": float(config.get("lora_dropout") or 0.0),
            "decompose_factor": int(config.get("decompose_factor") or -1),
            "decompose_both": bool(config.get("decompose_both")),
        }
        for path, name in names.items()
    }


def _wrong_rank(method: str, tensors: Mapping[str, Tensor], options: Mapping[str, Any]) -> str | None:
    """The fault of tensors whose rank differs from that of the configuration; None if it is the same."""
    inner = {"lora": "lora_A.weight", "dora": "lora_A.weight", "loha": "hada_w1_b"}.get(method)
    if inner is None or len(tensors[inner]) == options["rank"]:
        return None
    return f"{inner} has the rank {len(tensors[inner])}; r and rank_pattern say {options['rank']}"


def _read_tensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise InputError(f"{path}: missing. An adapter needs its weights in safetensors; pickled ones are not read.")
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(
            f"{path}: incomplete or invalid safetensors file ({error}). Fetch or write the adapter again."
        ) from error
    problems = [f"{name}: {tensor.dtype}; must be floating point" for name, tensor in tensors.items()
                if not tensor.is_floating_point()]  # fmt: skip
    problems += [f"{name}: has numbers that are not finite" for name, tensor in tensors.items()
                 if tensor.is_floating_point() and not torch.isfinite(tensor.float()).all()]  # fmt: skip
    if problems:
        raise InputError(f"{path}: these weights cannot be used:", problems)
    return tensors
