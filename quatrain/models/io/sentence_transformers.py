"""Sentence Transformers folders: reads and writes the pooling of an encoder, and computes sentence embeddings.

Reimers & Gurevych 2019 (arXiv 1908.10084). `modules.json` lists the modules: the encoder, a pooling, and optionally a
normalization to unit length. Unknown modules and poolings are refused by name.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from quatrain.core.atomic import atomic_write, write_json
from quatrain.core.errors import InputError
from quatrain.core.reading import read_json, user_path
from quatrain.core.wording import format_value, printable
from quatrain.models.families.value_types import TEXTS
from quatrain.models.io.safetensors_writer import write_safetensors
from quatrain.models.transformer.config import ModelConfig, is_size

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from quatrain.models.transformer.stack import Model

MODULES = "modules.json"
POOLING = "1_Pooling/config.json"
LENGTH = "sentence_bert_config.json"
TOKENIZER = "tokenizer_config.json"
SETTINGS = "config_sentence_transformers.json"

POOLINGS = {
    "cls": "first",
    "lasttoken": "last",
    "mean": "mean",
    "mean_sqrt_len_tokens": "mean_sqrt",
    "weightedmean": "weighted_mean",
    "max": "max",
}
"""Poolings: their names and ours."""

LAYER_WEIGHTS = "model.safetensors"
"""The weights of a Dense module, in its folder."""

ACTIVATIONS = {
    "torch.nn.modules.activation.Tanh": "tanh",
    "torch.nn.modules.linear.Identity": "none",
    "torch.nn.modules.activation.ReLU": "relu",
    "torch.nn.modules.activation.GELU": "gelu",
    "torch.nn.modules.activation.SiLU": "silu",
}
"""Activations of Dense modules: their names and ours."""

FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_lasttoken": "lasttoken",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_max_tokens": "max",
}
"""Keys of the older layout, exactly one of which is true."""

MAX_LENGTH = 1_000_000
"""A tokenizer's model_max_length above this means no limit."""

WIDTHS = ("word_embedding_dimension", "embedding_dimension")


class TextEncoder(Protocol):
    """The methods that `embed` needs of a tokenizer, such as `quatrain.tokenizers.tokenizer.Tokenizer`."""

    @property
    def pad_id(self) -> int | None:
        """The id of the padding token."""

    def encode(self, text: str, *, special_tokens: bool = False) -> list[int]:
        """The token ids of a text, with special tokens if requested."""


def read(folder: str | Path) -> dict[str, Any] | None:
    """The `ModelConfig` fields that the folder's pooling sets; None if it is not a Sentence Transformers folder.

    Raises InputError naming every unknown module, pooling and option.
    """
    folder = Path(folder)
    if not os.path.lexists(folder / MODULES):
        return None
    modules = _json(folder / MODULES, list)
    problems = [
        f"{MODULES}: path: {format_value(module['path'])}; must be the name of a subfolder"
        for module in modules
        if isinstance(module, dict) and not _is_inside(module.get("path", ""))
    ]
    kinds = [_kind(module) for module in modules]
    problems += [
        f"{MODULES}: {format_value(module.get('type') if isinstance(module, dict) else module)} is an unknown module; "
        "must be Transformer, Pooling, Dense or Normalize"
        for module, kind in zip(modules, kinds, strict=True)
        if kind not in ("Transformer", "Pooling", "Dense", "Normalize")
    ]
    dense = [module for module, kind in zip(modules, kinds, strict=True) if kind == "Dense"]
    between = ["Transformer", "Pooling", *["Dense"] * len(dense)]
    if not problems and kinds not in (between, [*between, "Normalize"]):
        problems.append(
            f"{MODULES}: {', '.join(kinds)}; must be Transformer, Pooling, any Dense and optionally Normalize, in this "
            "order"
        )
    fields: dict[str, Any] = {"normalize_embedding": kinds[-1:] == ["Normalize"]}
    if not problems:
        fields["pooling"] = _pooling(folder / modules[1].get("path", "") / "config.json", problems)
        fields["max_text_length"] = _length(folder / modules[0].get("path", ""), problems)
        fields["embedding_layers"] = tuple(_dense(folder / module.get("path", ""), problems) for module in dense)
        problems += prompt_problems(folder / SETTINGS)
    if problems:
        raise InputError(f"{folder}: this sentence embedding cannot be used:", problems)
    return fields


def _dense(folder: Path, problems: list[str]) -> tuple[int, str, bool]:
    """Outputs, activation and bias of a Dense module."""
    config = _json(folder / "config.json", dict)
    named = config.get("activation_function", "torch.nn.modules.activation.Tanh")
    activation, size, bias = ACTIVATIONS.get(str(named)), config.get("out_features"), config.get("bias", True)
    known = {"in_features", "out_features", "bias", "activation_function", "module_input_name", "module_output_name"}
    unknown = sorted(key for key in config if key not in known and config[key])
    problems += [f"{folder.name}: {printable(key)} = {format_value(config[key])} is not supported" for key in unknown]
    if activation is None:
        problems.append(
            f"{folder.name}: activation_function = {format_value(named)}; must be one of {', '.join(ACTIVATIONS)}"
        )
    if not is_size(size):
        problems.append(f"{folder.name}: out_features = {format_value(size)}; must be a whole number of at least 1")
    if not isinstance(bias, bool):
        problems.append(f"{folder.name}: bias = {format_value(bias)}; must be true or false")
    if not (folder / LAYER_WEIGHTS).is_file():
        problems.append(
            f"{folder.name}/{LAYER_WEIGHTS}: missing; pickled weights are never read: save the model again with "
            "Sentence Transformers, as safetensors"
        )
    return size if is_size(size) else 1, activation or "none", bias is True


def load_layers(model: Model, folder: str | Path, dtype: torch.dtype, device: torch.device) -> None:
    """Loads the dense layers behind the pooling from the folders of their modules, if the model has any.

    Raises InputError for tensors that are missing or misshapen.
    """
    from torch import nn

    from quatrain.models.io.safetensors_reader import SafetensorsReader

    if model.embedding_layers is None:
        return
    folder = Path(folder)
    modules = [module for module in _json(folder / MODULES, list) if _kind(module) == "Dense"]
    problems: list[str] = []
    for layer, module in zip(model.embedding_layers, modules, strict=True):
        with SafetensorsReader(folder / module["path"]) as tensors:
            for name, parameter in list(layer.named_parameters()):
                place = f"{module['path']}/{LAYER_WEIGHTS}: linear.{name}"
                if f"linear.{name}" not in tensors:
                    problems.append(f"{place}: missing")
                    continue
                tensor = tensors.copy(tensors.view(f"linear.{name}"), dtype, device)
                if tensor.shape != parameter.shape:
                    problems.append(f"{place}: has shape {tuple(tensor.shape)}; must be {tuple(parameter.shape)}")
                    continue
                setattr(layer, name, nn.Parameter(tensor))
    if problems:
        raise InputError(f"{folder}: this sentence embedding cannot be used:", problems)


def write_layers(folder: str | Path, model: Model) -> None:
    """Writes the configuration and the weights of the dense layers behind the pooling, if the model has any."""
    names = {ours: theirs for theirs, ours in ACTIVATIONS.items()}
    layers = [] if model.embedding_layers is None else list(model.embedding_layers)
    for number, (layer, (_, activation, _)) in enumerate(zip(layers, model.config.embedding_layers, strict=True), 2):
        place = Path(folder) / f"{number}_Dense"
        place.mkdir(parents=True, exist_ok=True)
        linear: Any = layer
        write_json(place / "config.json", {
            "in_features": linear.in_features, "out_features": linear.out_features, "bias": linear.bias is not None,
            "activation_function": names[activation],
        })  # fmt: skip
        tensors = {f"linear.{name}": value.detach().cpu().contiguous() for name, value in linear.named_parameters()}
        with atomic_write(place / LAYER_WEIGHTS, "wb") as file:
            write_safetensors(file, tensors, {"format": "pt"})


def write(folder: str | Path, config: ModelConfig) -> None:
    """Writes `modules.json` and the files that it names, for a model with the head `embedding`.

    Raises InputError for a pooling that Sentence Transformers do not support.
    """
    folder = Path(folder)
    name = next((theirs for theirs, ours in POOLINGS.items() if ours == config.pooling), None)
    if name is None:
        raise InputError(f"pooling: {config.pooling!r} is not supported by Sentence Transformers.")
    modules = [("Transformer", ""), ("Pooling", "1_Pooling")]
    modules += [("Dense", f"{number}_Dense") for number, _ in enumerate(config.embedding_layers, 2)]
    if config.normalize_embedding:
        modules.append(("Normalize", f"{len(modules)}_Normalize"))
    pooling = {
        WIDTHS[0]: config.output_hidden_size,
        **{key: mode == name for key, mode in FLAGS.items()},
        "include_prompt": True,
    }
    (folder / POOLING).parent.mkdir(parents=True, exist_ok=True)
    write_json(folder / POOLING, pooling)
    write_json(folder / LENGTH, {"max_seq_length": config.max_text_length or None, "do_lower_case": False})
    entries = [
        {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for number, (kind, path) in enumerate(modules)
    ]
    write_json(folder / MODULES, entries)


def embed(
    model: Model,
    tokenizer: TextEncoder,
    texts: Sequence[str],
    *,
    batch_size: int = 32,
    normalize: bool | None = None,
) -> Tensor:
    """Embeddings (N, hidden_size) of N texts, on the model's device.

    Texts are truncated to the model's `max_text_length` without losing special tokens, and batched by length.
    `normalize`: whether the vectors have length 1; None: as the model says. Raises InputError unless the model has the
    head `embedding`, and for a text without a token.
    """
    import torch

    from quatrain.models.transformer.heads import pool, through_layers

    config = model.config
    if config.head != "embedding":
        raise InputError(f"This model has the head {config.head}; load it with head='embedding'.")
    limit = min(config.max_text_length or config.context_length, config.context_length)
    ids = [_truncate(tokenizer, text, limit) for text in texts]
    if empty := [number for number, each in enumerate(ids, 1) if not each]:
        raise InputError(f"text {empty[0]}: empty; this tokenizer gives no token for it, so there is nothing to pool.")
    as_is = normalize is None or normalize == config.normalize_embedding
    padding = tokenizer.pad_id if config.pad_token_id is None else config.pad_token_id
    embeddings = torch.empty(len(ids), config.vector_size, dtype=model.embed_tokens.weight.dtype, device=model.device)
    by_length = sorted(range(len(ids)), key=lambda row: -len(ids[row]))
    for start in range(0, len(ids), batch_size):
        rows = by_length[start : start + batch_size]
        longest = len(ids[rows[0]])
        batch = torch.full((len(rows), longest), padding or 0)
        segments = torch.zeros(len(rows), longest, dtype=torch.long)
        for index, row in enumerate(rows):
            batch[index, : len(ids[row])] = torch.tensor(ids[row], dtype=torch.long)
            segments[index, : len(ids[row])] = 1
        batch, segments = batch.to(model.device), segments.to(model.device)
        with torch.inference_mode():
            if as_is:
                embeddings[rows] = model(batch, segments=segments)[0]
            else:
                pooled = pool(model.hidden_states(batch, segments=segments), config, batch, segments)
                embeddings[rows] = through_layers(pooled, getattr(model, "embedding_layers", None), config)
    return torch.nn.functional.normalize(embeddings, dim=-1) if normalize else embeddings


def text_tokens(model: Model, tokenizer: TextEncoder, texts: Sequence[str]) -> list[tuple[int, int]]:
    """For each text the number of its tokens, special ones included, and how many of them `embed` does not read."""
    limit = min(model.config.max_text_length or model.config.context_length, model.config.context_length)
    lengths = [len(tokenizer.encode(text, special_tokens=True)) for text in texts]
    return [(length, max(0, length - limit)) for length in lengths]


def _truncate(tokenizer: TextEncoder, text: str, limit: int) -> list[int]:
    """The token ids of a text, truncated to `limit` including special tokens."""
    ids = tokenizer.encode(text, special_tokens=True)
    if len(ids) <= limit:
        return ids
    plain = tokenizer.encode(text)
    num_special = len(ids) - len(plain)
    start = next((index for index in range(num_special + 1) if ids[index : index + len(plain)] == plain), 0)
    return [*ids[:start], *plain[: max(limit - num_special, 0)], *ids[start + len(plain) :]][:limit]


def _kind(module: Any) -> str:
    """The class name of a module, without its package."""
    return str(module.get("type", "")).rpartition(".")[2] if isinstance(module, dict) else ""


def _is_inside(path: Any) -> bool:
    """Whether the path of a module stays inside the model folder."""
    return isinstance(path, str) and "\0" not in path and not path.startswith(("/", "\\")) and ".." not in path


def _pooling(path: Path, problems: list[str]) -> str:
    config = _json(path, dict)
    flags = {key: config[key] for key in (*FLAGS, "include_prompt") if config.get(key) is not None}
    problems += [
        f"{path.name}: {key} = {format_value(value)}; must be true or false"
        for key, value in flags.items()
        if not isinstance(value, bool)
    ]
    named = config.get("pooling_mode")
    if named is not None and not isinstance(named, str) and not TEXTS.accepts(named):
        problems.append(f"{path.name}: pooling_mode = {format_value(named)}; must be a text or a list of texts")
        return "mean"
    named = [named] if isinstance(named, str) else list(named or [])
    chosen = [*named, *(mode for key, mode in FLAGS.items() if config.get(key))]
    known = {"pooling_mode", "include_prompt", *WIDTHS, *FLAGS}
    problems += [
        f"{path.name}: {printable(key)} = {format_value(config[key])} is not supported"
        for key in config
        if key not in known and config[key]
    ]
    if config.get("include_prompt") is False:
        problems.append(f"{path.name}: include_prompt = false, which excludes prompts from pooling; must be true")
    problems += [
        f"pooling: {format_value(mode)} is unknown; must be one of {', '.join(POOLINGS)}"
        for mode in named
        if mode not in POOLINGS
    ]
    if len(set(chosen)) != 1:
        problems.append(f"pooling: {', '.join(chosen) or 'none'}; must be exactly one of {', '.join(POOLINGS)}")
    return POOLINGS.get(chosen[0], "mean") if chosen else "mean"


def _length(folder: Path, problems: list[str]) -> int:
    """The maximum text length in tokens, 0 for the whole context; newer folders have it in the tokenizer's file."""
    path = folder / LENGTH
    config = _json(path, dict) if path.is_file() else {}
    length = config.get("max_seq_length")
    if length is None and (folder / TOKENIZER).is_file():
        length = _json(folder / TOKENIZER, dict).get("model_max_length")
        fits = isinstance(length, int | float) and not isinstance(length, bool) and 1 <= length < MAX_LENGTH
        length = int(length) if fits else None
    if config.get("do_lower_case"):
        problems.append(
            f"{path.name}: do_lower_case = true is not supported; lowercase the texts yourself and set it to false"
        )
    if length is not None and not is_size(length):
        problems.append(f"{path.name}: max_seq_length = {format_value(length)}; must be a whole number of at least 1")
        return 0
    return length or 0


def prompt_problems(path: Path) -> list[str]:
    """What is wrong with the prompts in a folder's settings; [] where there are none."""
    settings = _json(path, dict) if path.is_file() else {}
    prompts, name = settings.get("prompts") or {}, settings.get("default_prompt_name")
    if not isinstance(prompts, dict) or not all(isinstance(each, str) for each in prompts.values()):
        return [f"{path.name}: prompts = {format_value(prompts)}; must be an object of texts"]
    if name is not None and (not isinstance(name, str) or name not in prompts):
        known = ", ".join(prompts) or "none"
        return [f"{path.name}: default_prompt_name = {format_value(name)}; must be one of its prompts: {known}"]
    return []


@dataclass(frozen=True)
class Prompts:
    """The texts that stand before what is embedded: by name, such as "query", and the name of the default one."""

    texts: Mapping[str, str] = field(default_factory=dict)
    default: str | None = None

    @classmethod
    def of(cls, folder: str | Path) -> Prompts:
        """The prompts of a model folder. Raises InputError for settings that cannot be used."""
        path = Path(folder) / SETTINGS
        if problems := prompt_problems(path):
            raise InputError(f"{folder}: this sentence embedding cannot be used:", problems)
        settings = _json(path, dict) if path.is_file() else {}
        return cls(settings.get("prompts") or {}, settings.get("default_prompt_name"))

    def text(self, name: str | None = None) -> str:
        """The prompt of a name, or the default one; "" without. Raises InputError for an unknown name."""
        name = self.default if name is None else name
        if name is None:
            return ""
        if name not in self.texts:
            raise InputError(
                f"prompt_name: {format_value(name)}; the model has {', '.join(self.texts) or 'no prompts'}"
            )
        return self.texts[name]


def _json(path: Path, kind: type) -> Any:
    if not os.path.lexists(user_path(path)):
        raise InputError(f"{path}: missing, although {MODULES} names it.")
    return read_json(path, kind)
