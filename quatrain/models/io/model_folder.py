"""Reads and writes model folders in Hugging Face's layout: `config.json` and safetensors, sharded or not.

Weights are copied from the memory-mapped file one tensor at a time. Names are checked in both directions: every missing
or unexpected tensor is reported. Nothing is ever unpickled.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from quatrain.core.allocation import large_apart
from quatrain.core.atomic import atomic_write, write_json
from quatrain.core.errors import InputError, QuatrainError
from quatrain.core.gguf_file import gguf_in
from quatrain.core.reading import read_json, user_path
from quatrain.core.wording import format_value
from quatrain.models import classic
from quatrain.models.families import Head, family_of, get_family
from quatrain.models.families.mapping import GENERATION, LABELLED
from quatrain.models.gguf.architectures import architecture_of
from quatrain.models.gguf.reader import GgufTensors, config_json
from quatrain.models.gguf.reader import model_config as gguf_config
from quatrain.models.io import sentence_transformers
from quatrain.models.io.safetensors_reader import INDEX, WEIGHTS, SafetensorsReader
from quatrain.models.io.safetensors_writer import write_safetensors
from quatrain.models.io.weights import TensorNames, load_weights, weight_operations
from quatrain.models.transformer.config import LANGUAGE_HEADS, ModelConfig
from quatrain.models.transformer.initialization import Uninitialized
from quatrain.models.transformer.stack import Model
from quatrain.planning.limits import check_weights, least_parameters

GENERATION_CONFIG = "generation_config.json"
SHARD_BYTES = 5_000_000_000


def read_config(folder: str | Path) -> dict[str, Any]:
    """The `config.json` of a model folder. Raises InputError if it is missing or not JSON."""
    if (file := gguf_in(user_path(folder, "the model"))) is not None:
        return config_json(file)
    path = user_path(folder, "the model") / "config.json"
    if not os.path.lexists(path):
        if not path.parent.exists():
            raise InputError(f"{folder}: there is no such model folder.")
        raise InputError(f"{folder}: contains no config.json, so it is not a model folder.")
    config: dict[str, Any] = read_json(path)
    return config


def load_config(folder: str | Path) -> ModelConfig:
    """The configuration of a model folder, without its weights."""
    if (file := gguf_in(user_path(folder, "the model"))) is not None:
        return gguf_config(file)
    config = read_config(folder)
    if (kind := classic.find(config.get("model_type"))) is not None:
        own: ModelConfig = kind.read_config(config, folder)
        return own
    return config_of(config)


def checkpoint_dtype(folder: str | Path) -> str:
    """The dtype of a model's weights as its config.json names it; float32 if it names none."""
    config = read_config(folder)
    dtype = config.get("dtype") or config.get("torch_dtype") or "float32"
    if not isinstance(dtype, str):
        raise InputError(f"dtype: {format_value(dtype)}; must be a text such as float32")
    return dtype.removeprefix("torch.")


def load(
    folder: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    head: str | None = None,
    labels: Sequence[str] | None = None,
    problem_type: str | None = None,
    seed: int = 0,
    prepare: Callable[[Model, dict[str, Any]], None] | None = None,
    bits: int | None = None,
) -> Model:
    """Loads a model folder, in evaluation mode, with weights in `dtype` on `device`.

    `head` selects another head than that of the files, `labels` names its classes, and `problem_type` is
    `single_label`, `multi_label` or `regression`. Weights of the head that the files lack, or have for another number
    of labels, are initialized from `seed`; the model's `newly_initialized` lists their names. A Sentence Transformers
    folder gets the head `embedding` with its own pooling.

    `prepare(model, config_json)` may replace modules before the weights are read, as quantized layers do; integer
    tensors keep their dtype. `bits` is the size of a weight then, if smaller than that of `dtype`.

    Raises InputError naming every missing, unexpected or misshapen tensor, and for a model that does not fit into
    memory.
    """
    folder = Path(folder)
    raw = read_config(folder)
    if (kind := classic.find(raw.get("model_type"))) is not None:
        options: dict[str, Any] = {"head": head, "labels": labels, "problem_type": problem_type, "seed": seed}
        given = {name: value for name, value in options.items() if value is not None}
        return cast(Model, kind.load(folder, raw, dtype=dtype, device=device, **given))
    if raw.get("quantization_config") and prepare is None:
        raise InputError(
            f"{folder}: a quantized model; load it with quatrain.loading.model.load_model. To train every weight, "
            "start from the float model; a finetune stage can put an adapter over this one."
        )
    family = family_of(raw)
    pooled = sentence_transformers.read(folder)
    file = gguf_in(folder)
    if file is not None and head is None:
        head = gguf_config(file).head
    if head is None and pooled is not None:
        head = "embedding"
    config = config_of(raw, head=head, labels=labels, problem_type=problem_type)
    if file is not None and config.head == gguf_config(file).head and labels is None:
        config = gguf_config(file)
    if config.head == "embedding" and pooled is not None:
        config = config.replace(**pooled)
    of_files = family.heads[family.head_of(raw)]
    with large_apart(), open_tensors(folder) as tensors:
        if file is not None:
            family = architecture_of(family.name).family(config)
            of_files = family.heads[family.head_of(raw)]
        check_weights(config, bits or (4 if raw.get("quantization_config") else 8 * dtype.itemsize), device)
        check_size(config, tensors)
        strict = labels is None and family.heads[config.head] == of_files
        names = TensorNames(family, of_files, tensors, strict=strict, ignored=family.heads[config.head].ignored)
        config = _without_absent(config, family.heads[config.head], names)
        config = _tied_as_in_files(config, names)
        with torch.device("meta"), Uninitialized():
            network = Model(config)
            if prepare is not None:
                prepare(network, raw)
        network.newly_initialized = load_weights(network, names, dtype, torch.device(device), seed)
    sentence_transformers.load_layers(network, folder, dtype, torch.device(device))
    network.generation_config = _generation(folder, raw)
    return network.eval()


def open_tensors(folder: Path) -> SafetensorsReader | GgufTensors:
    """The tensors of a model folder: its safetensors files, or its GGUF file."""
    file = gguf_in(folder)
    return SafetensorsReader(folder) if file is None else GgufTensors(file)


def check_size(config: ModelConfig, tensors: SafetensorsReader | GgufTensors) -> None:
    """Raises InputError if config.json describes more weights than the files can contain, at one bit per weight."""
    described, stored = least_parameters(config), tensors.nbytes
    if described > 8 * stored:
        raise InputError(
            f"{tensors.folder}: config.json describes at least {described:,} weights (num_hidden_layers "
            f"{config.num_hidden_layers:,}, hidden_size {config.hidden_size:,}, vocab_size {config.vocab_size:,}), and "
            f"the files contain {stored:,} bytes of weights; one of them belongs to another model."
        )


def config_of(
    raw: dict[str, Any],
    *,
    head: str | None = None,
    labels: Sequence[str] | None = None,
    problem_type: str | None = None,
) -> ModelConfig:
    """The configuration of a config.json with `head`, `labels` and `problem_type` as for `load`.

    Raises InputError for a head that the family does not have, and for labels that cannot be used.
    """
    family = family_of(raw)
    raw = {key: value for key, value in raw.items() if key != "quantization_config"}
    if head is not None and head not in family.heads:
        raise InputError(f"head: {head!r} is not a head of {family.name}; must be one of {', '.join(family.heads)}")
    if labels is not None:
        problems = list(_label_problems(labels, head or family.head_of(raw)))
        if problems:
            raise InputError("These labels cannot be used:", problems)
        raw["id2label"] = {str(number): label for number, label in enumerate(labels)}
    config = family.from_hf(raw, head=head)
    return config if problem_type is None else config.replace(problem_type=problem_type)


def _label_problems(labels: Sequence[str], head: str) -> Iterator[str]:
    if head not in LABELLED:
        yield f"labels: the head {head} has none; leave them out, or choose one of the heads {', '.join(LABELLED)}"
    if not labels or isinstance(labels, str):
        yield f"labels: {labels!r}; must be a list of at least one name"
    elif twice := sorted({str(label) for label in labels if list(labels).count(label) > 1}):
        yield f"labels: {', '.join(twice)} more than once; names must be unique"


def _without_absent(config: ModelConfig, head: Head, names: TensorNames) -> ModelConfig:
    """The configuration without the optional parts of this head that these files lack."""
    for name, fields in head.absent.items():
        if names.find(name) is None:
            config = config.replace(**fields)
    return config


def _tied_as_in_files(config: ModelConfig, names: TensorNames) -> ModelConfig:
    """The configuration, untied if the files contain a head that differs from the embedding, as in transformers.

    Newer T5 files set tie_word_embeddings even if they contain a separate head. Of two tied tensors one is enough.
    """
    if config.head not in LANGUAGE_HEADS or not config.tie_word_embeddings:
        return config
    sources = {name: operation.sources[0] for operation in names.family.weights(config) for name in operation.targets}
    embedding, head = sources["embed_tokens.weight"], sources.get("lm_head.weight")
    if head is None:
        return config
    places = names.find(embedding), names.find(head)
    can_untie = "tie_word_embeddings" not in {**names.family.fixed, **names.family.required}
    if can_untie and places[0] and places[1] and not names.tensors.equal(places[0], places[1]):
        return config.replace(tie_word_embeddings=False)
    names.aliases.setdefault(names.without_prefix(embedding), []).append(head)
    return config


def _generation(folder: Path, raw: dict[str, Any]) -> dict[str, Any]:
    """The generation settings: from generation_config.json, or from config.json in older folders."""
    if os.path.lexists(folder / GENERATION_CONFIG):
        settings = read_json(folder / GENERATION_CONFIG)
    else:
        settings = {key: raw[key] for key in sorted(GENERATION & raw.keys())}
        if raw.get("force_bos_token_to_be_generated") and raw.get("bos_token_id") is not None:
            settings["forced_bos_token_id"] = raw["bos_token_id"]  # The key in old files of BART.
    return {key: value for key, value in settings.items() if key not in ("transformers_version", "_from_model_config")}


def file_state_dict(model: Model) -> dict[str, Tensor]:
    """The model's tensors under the family's own names, as its files hold them.

    Raises QuatrainError where a tensor has no such name (adapters that are not merged): a file would lack it.
    """
    ours = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("embedding_layers.")}
    if model.lm_head is not None and model.config.tie_word_embeddings:
        ours.pop("lm_head.weight")
    theirs: dict[str, Tensor] = {}
    covered: set[str] = set()
    for operation in weight_operations(get_family(model.config.family), model):
        if all(name in ours for name in operation.targets):
            theirs.update(operation.write(ours.__getitem__))
            covered.update(operation.targets)
    if lost := sorted(set(ours) - covered):
        raise QuatrainError(
            f"These tensors have no place in a {model.config.family} model folder; merge adapters first, "
            "or write them with quatrain.adapters.peft_files.save_adapter:",
            lost,
        )
    return theirs | model.unused_tensors


def save(
    model: Model, folder: str | Path, *, extra_config: dict[str, Any] | None = None, shard_bytes: int = SHARD_BYTES
) -> None:
    """Writes `config.json`, `generation_config.json` and the weights, each whole or not at all.

    Shards past `shard_bytes`, with an index. Raises QuatrainError on a full or unwritable disk.
    """
    folder = Path(folder)
    if classic.find(model.config.family) is not None:
        cast(Any, model).save(folder)
        return
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in file_state_dict(model).items()}
    dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
    config = get_family(model.config.family).to_hf(model.config) | {"dtype": dtype} | (extra_config or {})
    for module in model.modules():
        entries: Any = getattr(
            module, "config_entries", None
        )  # Replaced modules (quantized layers) add their own keys.
        if entries is not None:
            config |= entries(model)
            break
    write_json(folder / "config.json", config)
    if model.config.head == "embedding" and not model.config.projection_size:
        sentence_transformers.write(folder, model.config)
        sentence_transformers.write_layers(folder, model)
    asked = {key: config.get(key) for key in ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")}
    legacy = {key: model.config.extra[key] for key in sorted(GENERATION & model.config.extra.keys())}
    asked |= legacy if model.generation_config is None else model.generation_config
    write_json(folder / GENERATION_CONFIG, {key: value for key, value in asked.items() if value is not None})
    shards = _shards(tensors, shard_bytes)
    if len(shards) == 1:
        _write_tensors(folder / WEIGHTS, tensors)
        (folder / INDEX).unlink(missing_ok=True)
        _remove_shards(folder, keep=())
        return
    names = [f"model-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, len(shards) + 1)]
    for name, shard in zip(names, shards, strict=True):
        _write_tensors(folder / name, {key: tensors[key] for key in shard})
    total = sum(tensor.nbytes for tensor in tensors.values())
    weight_map = {key: name for name, shard in zip(names, shards, strict=True) for key in shard}
    write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})
    (folder / WEIGHTS).unlink(missing_ok=True)
    _remove_shards(folder, keep=names)


def _remove_shards(folder: Path, keep: Sequence[str]) -> None:
    """Removes the shards of an earlier model in the same folder."""
    for path in folder.glob("model-*-of-*.safetensors"):
        if path.name not in keep:
            path.unlink()


def _shards(tensors: dict[str, Tensor], limit: int) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    size = 0
    for name, tensor in tensors.items():
        if size and size + tensor.nbytes > limit:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += tensor.nbytes
    return shards


def _write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    with atomic_write(path, "wb") as file:
        write_safetensors(file, tensors, {"format": "pt"})
