"""What a pipeline works with: a model with its tokenizer, loaded from any folder or given in memory."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from quatrain.core.errors import InputError
from quatrain.core.wording import format_value
from quatrain.data.processors import find_processor
from quatrain.generation.engine import Engine
from quatrain.loading.model import ResolvedModel, load_weights
from quatrain.models.families import families
from quatrain.models.io import model_folder, sentence_transformers
from quatrain.models.run_folder import RUNS, model_of_run, run_folder
from quatrain.planning.machine import choose_device
from quatrain.tokenizers.tokenizer import Tokenizer

DTYPES = ("auto", "float32", "bfloat16", "float16")


@dataclass
class Subject:
    """A model with its tokenizer.

    `resolved` are its folders, and `config_json` the content of its config.json; None and {} for a model in memory.
    """

    model: Any
    tokenizer: Tokenizer | None
    resolved: ResolvedModel | None = None
    config_json: Mapping[str, Any] = field(default_factory=dict)
    engine: Engine | None = None
    """The engine of the model, where there already is one; a pipeline that generates makes its own otherwise."""

    @classmethod
    def of(cls, resolved: ResolvedModel, model: Any, tokenizer: Any, engine: Engine | None = None) -> Subject:
        """The subject of a model that was loaded from resolved folders."""
        raw = {} if resolved.is_adapter else model_folder.read_config(resolved.base)
        return cls(model, tokenizer, resolved, raw, engine)

    def processor(self) -> Any:
        """What prepares sound or pictures for the model, from its folder; None if there is none."""
        return None if self.resolved is None else find_processor(self.resolved.base)

    def target_tokenizer(self) -> Tokenizer | None:
        """The tokenizer of an encoder-decoder's answers, if it has one of its own (Marian)."""
        return None if self.resolved is None else self.resolved.tokenizer(target=True)


def engine_of(subject: Subject) -> Engine:
    """The subject's engine, or one for its model."""
    if subject.engine is None:
        subject.engine = Engine(subject.model, subject.tokenizer, target_tokenizer=subject.target_tokenizer())
        subject.engine.processor = subject.processor()
    return subject.engine


def load_subject(
    model: str | Path | ResolvedModel,
    *,
    head: str | None = None,
    device: Any = None,
    dtype: str | torch.dtype = "auto",
    quantize: str | None = None,
) -> Subject:
    """The model of a folder, a run, a hub id or an adapter, with its tokenizer.

    `head` replaces the folder's own. `device` is a name, a number of a GPU (-1: the CPU), or None for the best that
    there is. `dtype` = "auto" keeps the weights' own format, except that a CPU computes in float32. Raises InputError.
    """
    resolved = ResolvedModel.of(model)
    place = device_of(device)
    options = {} if head is None or resolved.is_adapter else {"head": head}
    network = load_weights(resolved, dtype=dtype_of(dtype, resolved, place), device=place, quantize=quantize, **options)
    return Subject.of(resolved, network, resolved.tokenizer())


def head_of(resolved: ResolvedModel) -> str:
    """The head that a folder is loaded with, from its files alone."""
    if resolved.is_adapter:
        from quatrain.adapters.peft_files import head_of as head_of_adapter

        if head := head_of_adapter(resolved.folder).get("head"):
            return str(head)
    elif sentence_transformers.read(resolved.base) is not None:
        return "embedding"
    return model_folder.load_config(resolved.base).head


def reads_of(config: Mapping[str, Any]) -> str:
    """What the family of a config.json reads beside or instead of text: pictures or sound; "" for text alone."""
    family = families().get(str(config.get("model_type")))
    return "" if family is None else family.features


def device_of(device: Any) -> torch.device:
    """The device of a name, a number, or None. Raises InputError for one that this machine does not have."""
    if device is None or device == "auto":
        return choose_device("auto")
    if isinstance(device, int) and not isinstance(device, bool):
        device = "cpu" if device < 0 else f"cuda:{device}"
    try:
        place = torch.device(device)
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError, TypeError) as error:
        raise InputError(
            f"device: {format_value(device)}; not available here; use auto or cpu, or see `quatrain doctor`"
        ) from error
    return place


def dtype_of(dtype: str | torch.dtype, resolved: ResolvedModel, device: torch.device) -> torch.dtype:
    """The format of the weights. Raises InputError for an unknown name."""
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype not in DTYPES:
        raise InputError(f"dtype: {format_value(dtype)}; must be one of {', '.join(DTYPES)}")
    if dtype == "auto":
        dtype = "float32" if device.type == "cpu" else model_folder.checkpoint_dtype(resolved.base)
    found = getattr(torch, dtype, torch.float32)
    return found if isinstance(found, torch.dtype) else torch.float32


def models_with(heads: Sequence[str]) -> str:
    """The transformers classes of all families with one of these heads, for messages."""
    names = {
        family.heads[head].architecture for family in families().values() for head in heads if head in family.heads
    }
    return ", ".join(sorted(names))


def newest_run(recipes: Sequence[str], heads: Sequence[str]) -> Path | None:
    """The model of the newest run of one of these recipes; without one, of any run whose model has one of these heads
    with labels, spans or vectors. None if there is none.
    """
    found: list[tuple[bool, float, Path]] = []
    for place in sorted(Path(RUNS).iterdir()) if Path(RUNS).is_dir() else []:
        folder = run_folder(place)
        if folder is None or not (folder / "model").is_dir():
            continue
        model = model_of_run(folder)
        if model is None:
            continue
        try:
            head = head_of(ResolvedModel.of(model))
        except (InputError, OSError):
            continue
        is_own = head in heads and any(
            name == recipe or name.startswith(f"{recipe}-")
            for recipe in recipes
            for name in (folder.name, _recipe_name(folder))
        )
        if is_own or (head in heads and head not in ("causal", "seq2seq", "masked")):
            found.append((is_own, (folder / "run.json").stat().st_mtime, model))
    return max(found)[2] if found else None


def _recipe_name(folder: Path) -> str:
    try:
        return str(tomllib.loads((folder / "recipe.toml").read_text(encoding="utf-8")).get("name", ""))
    except (OSError, ValueError):
        return ""
