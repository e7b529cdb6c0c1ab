"""Reads and writes model folders in Hugging Face's layout: `config.json` and safetensors, sharded or not.

Weights go from the memory-mapped file straight into place, one tensor at a time. Keys are strict both ways:
each missing or unexpected name is shown. Nothing is ever unpickled.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from quatrain.atomic import atomic_write, write_json
from quatrain.errors import InputError, QuatrainError
from quatrain.models.config import ModelConfig
from quatrain.models.families import Family, family
from quatrain.models.families.weights import expand
from quatrain.models.stack import Model

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
SHARD_BYTES = 5_000_000_000


def read_config(folder: str | Path) -> dict[str, Any]:
    """The `config.json` of a model folder. Raises InputError where it is absent or no JSON."""
    path = Path(folder) / "config.json"
    if not path.is_file():
        if not path.parent.exists():
            raise InputError(f"{folder}: there is no such model folder.")
        raise InputError(f"{folder}: no config.json in it, so this is no model folder.")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not readable as JSON ({error}). Fetch or write the model folder again.") from error
    if not isinstance(config, dict):
        raise InputError(f"{path}: holds {type(config).__name__}, not a JSON object.")
    return config


def load_config(folder: str | Path) -> ModelConfig:
    """The configuration of a model folder, without its weights."""
    config = read_config(folder)
    return family(config.get("model_type")).from_hf(config)


def load(
    folder: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    prepare: Callable[[Model, dict[str, Any]], None] | None = None,
) -> Model:
    """The model of a folder, in evaluation mode, its weights in `dtype` on `device`.

    `prepare(model, config_json)` may replace modules before the weights are read (quantized linears do); a tensor
    of an integer dtype keeps it. Raises InputError naming every missing, unexpected or misshapen tensor.
    """
    folder = Path(folder)
    raw = read_config(folder)
    if raw.get("quantization_config") and prepare is None:
        raise InputError(f"{folder}: a quantized model; read it with quatrain.generation.loading.load_model.")
    kind = family(raw.get("model_type"))
    config = kind.from_hf({key: value for key, value in raw.items() if key != "quantization_config"})
    with torch.device("meta"):
        model = Model(config)
        if prepare is not None:
            prepare(model, raw)
    with ExitStack() as stack:
        tensors = _Tensors(folder, stack)
        _fill(model, kind, tensors, dtype, torch.device(device))
    return model.eval()


class _Tensors:
    """The tensors of a folder's safetensors files by name, read on demand."""

    def __init__(self, folder: Path, stack: ExitStack):
        from safetensors import SafetensorError, safe_open

        self.folder = folder
        self.files: dict[str, Any] = {}
        for path in _weight_files(folder):
            try:
                handle = stack.enter_context(safe_open(path, framework="pt"))
            except (SafetensorError, OSError) as error:
                raise InputError(
                    f"{path}: not a whole safetensors file ({error}). Fetch or write the model again."
                ) from error
            self.files.update(dict.fromkeys(handle.keys(), handle))

    def __call__(self, name: str) -> Tensor:
        return self.files[name].get_tensor(name)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.files[name].get_slice(name).get_shape())


def _weight_files(folder: Path) -> list[Path]:
    index = folder / INDEX
    if index.is_file():
        names = _shard_names(index)
        missing = [f"{name}: missing" for name in names if not (folder / name).is_file()]
        if missing:
            raise InputError(f"{folder}: {INDEX} names files that are not there:", missing)
        return [folder / name for name in names]
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    pickled = sorted(path.name for path in folder.glob("*.bin"))
    if pickled:
        raise InputError(
            f"{folder}: only pickled weights ({', '.join(pickled)}), which can run code when read. Convert them with "
            "transformers: AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(NEW)."
        )
    raise InputError(f"{folder}: no {WEIGHTS} in it. A model folder needs its weights in safetensors.")


def _shard_names(index: Path) -> list[str]:
    """The files that an index of shards names, all of them beside it."""
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        outside = [name for name in names if Path(name).name != name]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{index}: no index of shards ({error!r}). Fetch or write the model again.") from error
    if outside or not names:
        raise InputError(f"{index}: must name files of its own folder:", [f"{name}: outside of it" for name in outside])
    return names


def _fill(model: Model, kind: Family, tensors: _Tensors, dtype: torch.dtype, device: torch.device) -> None:
    """Reads every parameter and persistent buffer of `model` through the family's operations."""
    wanted = dict(model.state_dict(keep_vars=True))
    wanted.pop("lm_head.weight" if model.config.tie_word_embeddings else "", None)
    names = _Names(kind, tensors.files)
    problems: list[str] = []
    used: set[str] = set()
    plan: list[tuple[Any, dict[str, str]]] = []
    covered: set[str] = set()
    for operation in _operations(kind, model):
        targets = [name for name in operation.targets if name in wanted]
        if not targets:
            continue
        covered.update(targets)
        places = {source: names.find(source) for source in operation.sources}
        problems += [f"{source}: missing" for source, place in places.items() if place is None]
        found = {source: place for source, place in places.items() if place is not None}
        if len(found) == len(places):
            used.update(found.values())
            plan.append((operation, found))
    problems += [f"{name}: no weight of this family fills it" for name in wanted if name not in covered]
    if model.config.tie_word_embeddings:
        used.update(filter(None, [names.find("lm_head.weight")]))
    problems += [f"{name}: unexpected" for name in tensors.files if name not in used and not names.ignored(name)]
    if problems:
        raise InputError(f"{tensors.folder}: the weights do not fit config.json:", problems)
    for operation, found in plan:
        for name, tensor in operation.read(lambda source, found=found: tensors(found[source])):
            expected = wanted[name]
            if tuple(tensor.shape) != tuple(expected.shape):
                problems.append(f"{name}: has shape {tuple(tensor.shape)}, config.json says {tuple(expected.shape)}")
                continue
            target = dtype if tensor.is_floating_point() and not _keeps_dtype(model, name) else tensor.dtype
            # safetensors may hand out a view of the mapped file: copy=True makes the tensor our own.
            _assign(model, name, tensor.to(device=device, dtype=target, copy=True))
    if problems:
        raise InputError(f"{tensors.folder}: the weights do not fit config.json:", problems)
    if model.config.tie_word_embeddings:
        model.lm_head.weight = model.embed_tokens.weight


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


def _operations(kind: Family, model: Model) -> Iterator[Any]:
    """The family's operations for this model; a replaced module brings the names of its own tensors."""
    replaced = {name: module for name, module in model.named_modules() if hasattr(module, "file_names")}
    for operation in expand(kind.operations, model.config.num_hidden_layers):
        owners = {target.rpartition(".")[0] for target in operation.targets if target.endswith(".weight")}
        modules = [replaced[owner] for owner in owners if owner in replaced]
        if modules:
            yield from modules[0].file_names(operation)
        else:
            yield operation


class _Names:
    """Finds a tensor under the family's canonical name, or without the prefix that some checkpoints leave out."""

    def __init__(self, kind: Family, available: dict[str, Any]):
        self.kind, self.available = kind, available

    def find(self, name: str) -> str | None:
        if name in self.available:
            return name
        short = name.removeprefix(self.kind.prefix)
        return short if short in self.available else None

    def ignored(self, name: str) -> bool:
        return any(re.fullmatch(pattern, name) for pattern in self.kind.ignored)


def state_dict_for_files(model: Model) -> dict[str, Tensor]:
    """The model's tensors under the family's own names, as its files hold them.

    Raises QuatrainError where a tensor has no such name (adapters that are not merged): a file would lack it.
    """
    ours = model.state_dict()
    if model.config.tie_word_embeddings:
        ours.pop("lm_head.weight", None)
    theirs: dict[str, Tensor] = {}
    covered: set[str] = set()
    for operation in _operations(family(model.config.family), model):
        if all(name in ours for name in operation.targets):
            theirs.update(operation.write(ours.__getitem__))
            covered.update(operation.targets)
    if lost := sorted(set(ours) - covered):
        raise QuatrainError(
            f"These tensors have no place in a {model.config.family} model folder; merge adapters first, "
            "or write them with quatrain.adaptation.peft_files.save_adapter:",
            lost,
        )
    return theirs


def save(
    model: Model, folder: str | Path, *, extra_config: dict[str, Any] | None = None, shard_bytes: int = SHARD_BYTES
) -> None:
    """Writes `config.json`, `generation_config.json` and the weights, each whole or not at all.

    Shards past `shard_bytes`, with an index. Raises QuatrainError on a full or unwritable disk.
    """
    folder = Path(folder)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state_dict_for_files(model).items()}
    dtype = str(model.embed_tokens.weight.dtype).removeprefix("torch.")
    config = family(model.config.family).to_hf(model.config) | {"dtype": dtype} | (extra_config or {})
    for module in model.modules():
        entries: Any = getattr(module, "config_entries", None)  # what a replaced module has to say of the files
        if entries is not None:
            config |= entries(model)
            break
    write_json(folder / "config.json", config)
    tokens = {key: config.get(key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    write_json(folder / "generation_config.json", {key: value for key, value in tokens.items() if value is not None})
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
    from safetensors.torch import save

    with atomic_write(path, "wb") as file:
        file.write(save(tensors, metadata={"format": "pt"}))
