"""The model to inspect: a model folder, a hub id, an adapter or a run; files are read only when needed."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quatrain.core.errors import InputError
from quatrain.evaluation.inspection.unknown_family import UnknownFamily, unknown_family
from quatrain.loading.model import load_weights
from quatrain.models import classic, hub
from quatrain.models.families import family_of, is_family
from quatrain.models.hub import ADAPTER_CONFIG
from quatrain.models.io import sentence_transformers
from quatrain.models.io.model_folder import check_size, config_of, load_config, read_config
from quatrain.models.io.safetensors_reader import INDEX, WEIGHTS, SafetensorsReader, weight_files
from quatrain.models.transformer.config import ModelConfig
from quatrain.models.transformer.stack import Model

if TYPE_CHECKING:
    from quatrain.tokenizers.tokenizer import Tokenizer

PARTS = {
    "architecture": hub.CONFIG,
    "tokens": (*hub.CONFIG, *hub.TOKENIZER),
    "everything": hub.EVERYTHING,
}
"""The files of a hub repository that each kind of inspection needs."""


@dataclass(frozen=True)
class Weights:
    """A folder's weight files: bytes, number of files, elements by dtype; `problem` if they cannot be read."""

    bytes: int = 0
    files: int = 0
    dtypes: tuple[tuple[str, int], ...] = ()
    problem: str = ""


@dataclass(frozen=True)
class Subject:
    """A model to inspect. Each property reads its files on first access, and raises InputError if they are unusable."""

    name: str
    folder: Path

    @property
    def title(self) -> str:
        """A short name: the hub id, the name of the folder, or the name of the run."""
        if not Path(self.name).is_dir():
            return self.name
        folder = self.folder.resolve()
        return f"{folder.parent.name}/{folder.name}" if folder.name == "model" else folder.name

    @cached_property
    def base(self) -> Path:
        """The folder of the weights; for an adapter, the folder of its base model."""
        if not self.is_adapter:
            return self.folder
        from quatrain.adapters.peft_config import base_folder

        return base_folder(self.folder)

    @property
    def is_adapter(self) -> bool:
        """Whether the folder holds an adapter for another model."""
        return (self.folder / ADAPTER_CONFIG).is_file()

    @cached_property
    def raw_config(self) -> dict[str, Any]:
        return read_config(self.base)

    @cached_property
    def config(self) -> ModelConfig:
        """The configuration, with the head that the model is loaded with. Raises InputError for unknown options."""
        raw = {key: value for key, value in self.raw_config.items() if key != "quantization_config"}
        pooled = sentence_transformers.read(self.base)
        if self.is_adapter:
            from quatrain.adapters.peft_files import head_of

            if taught := head_of(self.folder):
                labels = tuple(taught.get("labels", ()))
                return config_of(
                    raw, head=taught["head"], labels=labels or None, problem_type=taught.get("problem_type")
                )
        if not self.is_planned:
            return load_config(self.base)
        config = family_of(raw).from_hf(raw, head=None if pooled is None else "embedding")
        return config if pooled is None else config.replace(**pooled)

    @property
    def is_planned(self) -> bool:
        """Whether the model is a transformer, whose architecture follows from its configuration; the classic models
        describe themselves (`facts`).
        """
        return classic.find(self.raw_config.get("model_type")) is None

    @property
    def unknown_family(self) -> UnknownFamily | None:
        """What its files say of a model whose family is not known here; None for a known one."""
        named = self.raw_config.get("model_type")
        if not isinstance(named, str) or not self.is_planned or is_family(named):
            return None
        return unknown_family(self.raw_config, self._weight_names())

    def _weight_names(self) -> list[str]:
        """The names of the weights, in the headers of their files; none without files."""
        try:
            with SafetensorsReader(self.base) as tensors:
                return list(tensors.names)
        except InputError:
            return []

    def facts(self) -> dict[str, Any]:
        """What a classic model says of itself: names to numbers, texts or rows."""
        model: Any = self.model
        described: dict[str, Any] = model.describe()
        return described

    def prepare(self, model: Model) -> None:
        """Replace layers of a model without weights by quantized layers and adapters."""
        from quatrain.compression.files import replace_layers

        replace_layers(model, self.raw_config)
        if self.is_adapter:
            from quatrain.adapters.peft_files import load_adapter

            load_adapter(model, self.folder)

    @cached_property
    def dtype(self) -> str:
        """The dtype of most weights in the files; without files, the dtype in config.json. Numbers of 8 bits are how
        quantized layers are stored, no dtype of a model.
        """
        floats = Counter({name: count for name, count in self.weights.dtypes if not name.startswith("float8")})
        if floats:
            return floats.most_common(1)[0][0]
        declared = self.raw_config.get("dtype") or self.raw_config.get("torch_dtype")
        return str(declared or "float32").removeprefix("torch.")

    @cached_property
    def weights(self) -> Weights:
        """The weight files; only their headers are read. Raises InputError if files are broken."""
        try:
            paths = list(weight_files(self.base))
            with SafetensorsReader(self.base) as tensors:
                if self.is_planned:
                    check_size(self.config, tensors)
                counts: Counter[str] = Counter()
                for name in tensors.names:
                    elements = 1
                    for size in tensors.shape(name):
                        elements *= size
                    counts[str(tensors.dtype(name)).removeprefix("torch.")] += elements
            floating = {name: count for name, count in counts.items() if "float" in name}
            return Weights(sum(path.stat().st_size for path in paths), len(paths), tuple(floating.items()))
        except InputError as error:
            if any(os.path.lexists(self.base / name) for name in (WEIGHTS, INDEX)):
                raise  # the files exist and are broken
            return Weights(problem=str(error))

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer. Raises InputError if the model has none."""
        return self._tokenizer(target=False)

    @cached_property
    def target_tokenizer(self) -> Tokenizer:
        """The tokenizer of the decoder's output; it differs from `tokenizer` for Marian only."""
        return self._tokenizer(target=True)

    @property
    def has_tokenizer(self) -> bool:
        """Whether the folder, or that of its base, has a tokenizer."""
        from quatrain.tokenizers.files import has_tokenizer

        return any(has_tokenizer(folder) for folder in (self.folder, self.base))

    def _tokenizer(self, *, target: bool) -> Tokenizer:
        from quatrain.tokenizers.files import has_tokenizer
        from quatrain.tokenizers.tokenizer import Tokenizer

        for folder in dict.fromkeys((self.folder, self.base)):
            if has_tokenizer(folder):
                return Tokenizer.load(folder, target=target)
        raise InputError(
            f"{self.folder}: no tokenizer in it (tokenizer.json, or the family's older files), so a text has no "
            "tokens. Copy the tokenizer of the model's repository beside its config.json."
        )

    @cached_property
    def model(self) -> Model:
        """The model in float32, in evaluation mode."""
        try:
            return load_weights(self.folder)
        except InputError as error:
            if self.weights.problem:
                raise InputError(
                    f"{error.message} Its architecture (`quatrain inspect {self.name}`) and the tokens of a text "
                    "need no weights; all else does.",
                    error.problems,
                ) from error
            raise


def open_subject(model: str | Path, need: str = "everything") -> Subject:
    """The model that `model` names: a model or adapter folder, a hub id, or a run (its final or newest model).

    `need` selects the files to fetch from a hub repository that is not in the cache: "architecture", "tokens" or
    "everything".
    """
    return Subject(str(model), hub.resolve(model, files=PARTS[need]))
