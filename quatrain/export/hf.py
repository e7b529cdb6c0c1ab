"""Exports to a plain Hugging Face folder: merged, not quantized, in one dtype, for transformers, vLLM and others."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path

import torch

from quatrain.export.exporter import Exporter, ExportSettings, Source, Written
from quatrain.export.proof import OwnReader, Runtime
from quatrain.loading.model import load_model
from quatrain.models.io import model_folder

TOLERANCES = {"float32": 1e-5, "bfloat16": 0.05, "float16": 0.01}
"""The dtypes, and the largest allowed change of a logit as a share of the largest."""
CARRIED = ("README.md", "recipe.toml")
"""Files that a model folder brings along."""


def write(source: Source, out: Path, settings: ExportSettings) -> Written:
    """Writes the model folder."""
    dtype: torch.dtype = getattr(torch, str(settings.format))
    # One tensor at a time would need a writer of its own; a copy in half precision is the smaller half of the memory.
    model = source.model if dtype == torch.float32 else deepcopy(source.model).to(dtype)
    model_folder.save(model, out)
    if source.tokenizer is not None:
        source.tokenizer.save(out)
    for name in CARRIED:
        if (source.resolved.folder / name).is_file():
            shutil.copyfile(source.resolved.folder / name, out / name)

    def runtimes() -> Iterator[Runtime]:
        yield OwnReader(*load_model(out))

    files = sorted(path for path in out.rglob("*") if path.is_file())
    return Written(files, runtimes=runtimes, tolerance=TOLERANCES[str(settings.format)], exact=dtype == torch.float32)


EXPORTER = Exporter("hf", "a plain Hugging Face folder for transformers, vLLM and others", tuple(TOLERANCES), write)
