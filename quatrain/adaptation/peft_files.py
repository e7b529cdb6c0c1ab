"""Adapter folders in PEFT's format: `adapter_config.json` and `adapter_model.safetensors`, written and read.

What PEFT has no format for (BitFit, last layers, bottlenecks) is written in the same two files, with the names of the
family's tensors and a `peft_type` of its own, which PEFT refuses and Quatrain reads.
"""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from quatrain.adaptation import peft_layers, peft_prompts, peft_rows, prompts
from quatrain.adaptation.apply import learned_whole
from quatrain.adaptation.ia3 import IA3Linear
from quatrain.adaptation.layer import Adapted, adapters, is_linear, replace_module
from quatrain.adaptation.lokr import LoKrLinear
from quatrain.adaptation.lora import LoRALinear
from quatrain.adaptation.peft_layers import PREFIX, FileLayer, Written, file_layers
from quatrain.adaptation.targets import linear_names
from quatrain.adaptation.token_rows import make_rows
from quatrain.atomic import atomic_write, write_json
from quatrain.errors import InputError
from quatrain.models.families import family
from quatrain.models.families.weights import Rename, Split
from quatrain.models.repository import ADAPTER_CONFIG, BASE
from quatrain.models.stack import Model
from quatrain.models.token_rows import LearnedRows
from quatrain.models.vocabulary import resize_vocabulary

WEIGHTS, LABELS = "adapter_model.safetensors", "labels.json"
PLAIN, BOTTLENECK = "QUATRAIN_WEIGHTS", "QUATRAIN_BOTTLENECK"
"""Our own types: nothing but weights of the model that have learned; networks behind layers."""
TYPES = {"lora": "LORA", "dora": "LORA", "loha": "LOHA", "lokr": "LOKR", "ia3": "IA3", "bottleneck": BOTTLENECK}
TASKS = {
    "causal": "CAUSAL_LM",
    "seq2seq": "SEQ_2_SEQ_LM",
    "sequence_classification": "SEQ_CLS",
    "token_classification": "TOKEN_CLS",
    "question_answering": "QUESTION_ANS",
    "embedding": "FEATURE_EXTRACTION",
}
UNSUPPORTED = {
    "bias": "none", "layer_replication": None, "lora_bias": False, "use_effective_conv2d": False,
    "target_parameters": None, "alora_invocation_tokens": None, "use_qalora": False, "module_dropout": 0.0,
    "arrow_config": None, "use_bdlora": None, "corda_config": None, "eva_config": None, "exclude_modules": None,
}  # fmt: skip
"""Options of PEFT that change what an adapter computes or holds, at the values that Quatrain reads."""


def save_adapter(model: Model, folder: str | Path, *, base_model: str | None = None) -> None:
    """Writes what a model has learned beside its base as a PEFT adapter folder.

    `base_model` is where the base is: a folder (best relative to `folder`) or a name that PEFT's users know.
    Raises InputError where the model has no adapter, or one that PEFT's files cannot hold.
    """
    found, prompt = dict(adapters(model)), model.prompt
    whole = [name for name in learned_whole(model) if not name.startswith("prompt.")]
    if not found and prompt is None and not (whole and len(whole) < len(list(model.parameters()))):
        raise InputError("This model has no adapter to write.")
    layers = file_layers(model.config)
    grouped = group(layers, found)
    check_writable(layers, grouped)
    written = {path: peft_layers.write(layers[path], each, model.get_submodule) for path, each in grouped.items()}
    tensors = {
        f"{PREFIX}{path}.{end}": tensor for path, each in written.items() for end, tensor in each.tensors.items()
    }
    row_tensors, row_options = peft_rows.write(model, layers)
    tensors |= row_tensors
    saved = _whole_tensors(model, whole)
    tensors |= {f"{PREFIX}{name}": tensor for name, tensor in saved.items()}
    config: dict[str, Any] = {
        "peft_type": PLAIN, "task_type": TASKS.get(model.config.head), "base_model_name_or_path": base_model,
        "inference_mode": True, "modules_to_save": sorted({name.rpartition(".")[0] for name in saved}) or None,
    } | row_options  # fmt: skip
    if prompt is not None:
        config |= peft_prompts.options(model, prompt)
        tensors[peft_prompts.TENSOR] = peft_prompts.rows_of(model, prompt)
    if found:
        every = {path for name in (*found, *linear_names(model)) for path in [_path_of(layers, name)] if path}
        config["target_modules"] = _short_names(set(grouped), every)
        config["fan_in_fan_out"] = any(layers[path].transposed for path in grouped)
        config |= _options(found, grouped, written, every)
    from safetensors.torch import save

    folder = Path(folder)
    write_json(folder / ADAPTER_CONFIG, config)
    if model.config.labels:
        write_json(folder / LABELS, {"labels": list(model.config.labels), "problem": model.config.problem})
    with atomic_write(folder / WEIGHTS, "wb") as file:
        file.write(save({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, {"format": "pt"}))


def group(layers: Mapping[str, FileLayer], found: Mapping[str, Adapted]) -> dict[str, dict[str, Adapted]]:
    """The adapters by the layer of the files that they are part of."""
    paths = {part: path for path, layer in layers.items() for part in layer.parts}
    grouped: dict[str, dict[str, Adapted]] = defaultdict(dict)
    for name, layer in found.items():
        grouped[paths[name]][name] = layer
    return grouped


def check_writable(layers: Mapping[str, FileLayer], grouped: Mapping[str, Mapping[str, Adapted]]) -> None:
    """Raises InputError with every layer whose adapter PEFT's files cannot hold."""
    reasons = (peft_layers.check_writable(layers[path], next(iter(each.values())).method)
               for path, each in grouped.items())  # fmt: skip
    problems = list(dict.fromkeys(reason for reason in reasons if reason))
    if problems:
        raise InputError("This adapter cannot be written for PEFT:", problems)


def _path_of(layers: Mapping[str, FileLayer], name: str) -> str | None:
    return next((path for path, layer in layers.items() if name in layer.parts), None)


def _options(
    found: Mapping[str, Adapted], grouped: Mapping[str, Mapping[str, Adapted]], written: Mapping[str, Written],
    every: set[str],
) -> dict[str, Any]:  # fmt: skip
    """What the configuration says of the method."""
    first = next(iter(found.values()))
    options: dict[str, Any] = {"peft_type": TYPES[first.method]}
    if isinstance(first, IA3Linear):
        inner = {path for path, each in grouped.items() if any(getattr(one, "inner", False) for one in each.values())}
        names = [_short_names(paths, every) for paths in (inner, set(grouped) - inner)]
        return options | {"feedforward_modules": names[0], "target_modules": sorted({*names[0], *names[1]})}
    if first.method == "bottleneck":
        return options
    alpha = "lora_alpha" if isinstance(first, LoRALinear) else "alpha"
    options |= _with_pattern("r", "rank_pattern", {path: each.rank for path, each in written.items()})
    options |= _with_pattern(alpha, "alpha_pattern", {path: each.alpha for path, each in written.items()})
    if isinstance(first, LoRALinear):
        dropout = max(getattr(layer, "dropout", 0.0) for layer in found.values())
        options |= {"bias": "none", "lora_dropout": dropout, "use_rslora": first.stabilized}
        options["use_dora"] = first.method == "dora"
    elif isinstance(first, LoKrLinear):
        options |= {"decompose_factor": first.factor, "decompose_both": first.both}
    return options


def _whole_tensors(model: Model, names: list[str]) -> dict[str, Tensor]:
    """The family's tensors of weights that have learned whole; of a fused one, all parts."""
    state = {name: parameter.detach() for name, parameter in model.named_parameters()}
    wanted, tensors = set(names), dict[str, Tensor]()
    for operation in family(model.config.family).weights(model.config):
        if isinstance(operation, Rename | Split) and wanted & set(operation.targets):
            tensors |= dict(operation.write(state.__getitem__))
            wanted -= set(operation.targets)
    if wanted:
        raise InputError("These weights have no name in the family's files:", sorted(wanted))
    return tensors


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
    """The `adapter_config.json` of an adapter folder. Raises InputError, every option that is not known at once."""
    path = Path(folder) / ADAPTER_CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{folder}: no {ADAPTER_CONFIG} in it, so this is no adapter folder.") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not readable as JSON ({error}). Fetch or write the adapter again.") from error
    problems, known = [], sorted({*TYPES.values(), *peft_prompts.TYPES.values(), PLAIN})
    kind = config.get("peft_type")
    if kind not in known:
        problems.append(f"peft_type: {kind!r} is an adapter that Quatrain does not know; known: {', '.join(known)}")
    problems += [
        f"{key}: {config[key]!r} is an option of PEFT that Quatrain does not know; it reads {value!r}"
        for key, value in UNSUPPORTED.items()
        if key in config and config[key] != value and config[key] not in (None, False, [], {})
    ]
    needed = {"LORA": ("r", "lora_alpha"), "LOHA": ("r", "alpha"), "LOKR": ("r", "alpha")}.get(kind, ())
    problems += [f"{key}: missing" for key in needed if key not in config and not problems]
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
        raise InputError(f"{folder}: {ADAPTER_CONFIG} does not say its base model; set base_model_name_or_path in it.")
    places = [(folder / name).resolve(), Path(name), folder / BASE]
    for place in places:
        if (place / "config.json").is_file():
            return place
    raise InputError(f"{folder}: its base model {name!r} is no model folder here (looked in {places[0]} and {name}).")


def head_of(folder: str | Path) -> dict[str, Any]:
    """The head that an adapter was taught with, its labels and problem, as `hub.load` takes them; {} for the base's.

    PEFT's folders do not name labels: they are then numbers, as many as the head has rows.
    """
    folder = Path(folder)
    config = read_config(folder)
    head = next((name for name, task in TASKS.items() if task == config.get("task_type")), None)
    if head is None or head in ("causal", "seq2seq"):
        return {}
    if (folder / LABELS).is_file():
        return {"head": head, **json.loads((folder / LABELS).read_text(encoding="utf-8"))}
    if head not in ("sequence_classification", "token_classification"):
        return {"head": head}
    saved = [tensor for name, tensor in _read_tensors(folder / WEIGHTS).items() if _is_of_scores(name)]
    return {"head": head} | ({"labels": [str(number) for number in range(saved[0].shape[0])]} if saved else {})


def _is_of_scores(name: str) -> bool:
    words = name.removesuffix(".weight").split(".")
    ends = words[-1] in ("score", "classifier") or words[-2:] == ["classifier", "out_proj"]
    return ends and name.endswith(".weight")


def method_of(config: Mapping[str, Any]) -> str:
    """Our name of the method that a configuration means."""
    if config["peft_type"] == "LORA":
        return "dora" if config.get("use_dora") else "lora"
    return next((name for name, kind in TYPES.items() if kind == config["peft_type"]), "")


@dataclass
class Found:
    """What an adapter folder holds for a model: layers by path, rows of tokens, a prompt, weights by our names, and how
    many tokens it knows.
    """

    layers: dict[str, Adapted]
    rows: LearnedRows | None
    prompt: Any
    whole: dict[str, Tensor]
    vocab_size: int


def load_adapter(model: Model, folder: str | Path) -> list[str]:
    """Puts a PEFT adapter over the layers of `model`, which is frozen; returns the layers' paths.

    Raises InputError as `read_adapter` does; the model is then as before.
    """
    found = read_adapter(model, folder)
    model.requires_grad_(False)
    state = dict(model.named_parameters())
    with torch.no_grad():
        for name, tensor in found.whole.items():
            state[name].requires_grad_(True).copy_(tensor)
    if found.rows is not None:
        model.token_rows = found.rows.requires_grad_(True)
    if found.prompt is not None:
        model.prompt = found.prompt.train(model.training)
    for name, layer in found.layers.items():
        for parameter in layer.own().values():
            parameter.requires_grad_(True)
        replace_module(model, name, layer)
    return list(found.layers)


def read_adapter(model: Model, folder: str | Path) -> Found:
    """What a PEFT adapter folder holds for a model, its layers over those of the model, which does not change.

    A vocabulary that was extended for it is extended here. Raises InputError naming each tensor that is missing,
    unexpected or of the wrong shape; the model is then as before.
    """
    folder = Path(folder)
    config = read_config(folder)
    layers, method = file_layers(model.config), method_of(config)
    tensors = _read_tensors(folder / WEIGHTS)
    if not tensors:
        raise InputError(f"{folder / WEIGHTS}: the adapter does not fit the model:", ["it holds no tensor"])
    ids_rows = peft_rows.take(config, layers, tensors)
    size, needed = model.config.vocab_size, peft_rows.needed(layers, ids_rows, tensors)
    resize_vocabulary(model, max(size, needed))
    problems: list[str] = []
    rows = None
    if ids_rows is not None:
        try:
            rows = make_rows(model, *ids_rows).requires_grad_(False)
        except InputError as error:
            problems.append(error.message)
    whole = _take_whole(model, tensors, problems)
    prompt = peft_prompts.take(model, config, tensors, problems)
    if prompt is not None:
        prompts.check(model, prompt.method)
    made: dict[str, Adapted] = {}
    for path, found in _by_layer(layers, tensors, problems).items():
        bases = [model.get_submodule(name) for name in layers[path].parts]
        if not all(is_linear(base) for base in bases):
            problems.append(f"{path}: the model has no linear layer of this name without an adapter")
            continue
        out = sum(int(base.out_features) for base in bases)  # type: ignore[arg-type, misc]
        if fault := peft_layers.shapes(method, found, int(bases[0].in_features), out):  # type: ignore[arg-type]
            problems.append(f"{PREFIX}{path}: {fault}")
            continue
        try:
            made |= peft_layers.read(layers[path], method, found, bases, _how(config, path, found))
        except InputError as error:
            problems.append(f"{path}: {error.message}")
    if problems:
        resize_vocabulary(model, size)
        raise InputError(f"{folder / WEIGHTS}: the adapter does not fit the model:", problems)
    return Found(made, rows, prompt, whole, needed)


def _take_whole(model: Model, tensors: dict[str, Tensor], problems: list[str]) -> dict[str, Tensor]:
    """The weights that were learned whole, by our names, taken out of `tensors`."""
    state, found = dict(model.named_parameters()), dict[str, Tensor]()
    for operation in family(model.config.family).weights(model.config):
        if not isinstance(operation, Rename | Split) or f"{PREFIX}{operation.theirs}" not in tensors:
            continue
        for name, tensor in operation.read(lambda theirs: tensors[f"{PREFIX}{theirs}"]):
            if name not in state or state[name].shape != tensor.shape:
                problems.append(f"{PREFIX}{operation.theirs}: of another shape than the model's")
            found[name] = tensor
        del tensors[f"{PREFIX}{operation.theirs}"]
    return found


def _by_layer(
    layers: Mapping[str, FileLayer], tensors: Mapping[str, Tensor], problems: list[str]
) -> dict[str, dict[str, Tensor]]:
    """The tensors of each layer of the files, by the ends of their names."""
    found: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for name, tensor in tensors.items():
        inside = name.removeprefix(PREFIX)
        path = next((path for path in layers if inside.startswith(f"{path}.")), None)
        if not name.startswith(PREFIX) or path is None:
            problems.append(f"{name}: unexpected")
        else:
            found[path][inside.removeprefix(f"{path}.")] = tensor
    return found


def _how(config: Mapping[str, Any], path: str, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Scaling, rank and dropout of a layer: alpha over the rank, or over its root with rank-stabilised LoRA."""
    kind = config["peft_type"]
    if kind in ("IA3", BOTTLENECK):
        return {}
    rank = int(_by_pattern(config, "rank_pattern", path, config["r"]))
    if kind == "LORA":
        rank = tensors["lora_A.weight"].shape[0]
    alpha = float(_by_pattern(config, "alpha_pattern", path, config["lora_alpha" if kind == "LORA" else "alpha"]))
    return {
        "rank": rank,
        "scaling": alpha / (math.sqrt(rank) if config.get("use_rslora") else rank),
        "dropout": float(config.get("lora_dropout", 0.0)),
        "factor": int(config.get("decompose_factor") or -1),
        "both": bool(config.get("decompose_both")),
    }


def _by_pattern(config: Mapping[str, Any], key: str, path: str, usual: Any) -> Any:
    patterns = (config.get(key) or {}).items()
    return next((value for end, value in patterns if path == end or path.endswith(f".{end}")), usual)


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
