"""Exports a LoRA adapter to GGUF as it is, for llama.cpp's `--lora`: its base stays one file for many adapters."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from quatrain.adapters import gguf_adapter
from quatrain.adapters.peft_files import load_adapter
from quatrain.compression import methods
from quatrain.core.atomic import atomic_write
from quatrain.core.gguf_file import TensorToWrite, write_gguf
from quatrain.export.exporter import Exporter, ExportSettings, Source, Written
from quatrain.export.gguf import TOLERANCES, TYPES, data_of, write_file
from quatrain.export.gguf import problems as model_problems
from quatrain.export.llama import LlamaCpp, is_installed
from quatrain.export.proof import OwnReader, Runtime
from quatrain.loading.model import ResolvedModel, load_weights
from quatrain.models.transformer.stack import Model


def _adapted(source: Source) -> Model:
    """The base with its adapter, which is not merged."""
    return load_weights(source.resolved)


def problems(source: Source, settings: ExportSettings) -> Iterator[str]:
    """Why llama.cpp could not add the adapter."""
    if not source.resolved.is_adapter:
        yield "it is a model, and no adapter over one; name the folder of an adapter, or use --to gguf"
        return
    yield from model_problems(source, settings)
    yield from gguf_adapter.problems(_adapted(source))


def write(source: Source, out: Path, settings: ExportSettings) -> Written:
    """Writes NAME-lora-FORMAT.gguf."""
    path, form = out / f"{source.name}-lora-{settings.format}.gguf", str(settings.format)
    model = _adapted(source)
    metadata = gguf_adapter.metadata_of(model, source.name) | {"general.file_type": TYPES[form]}
    tensors = [
        TensorToWrite(name, tuple(tensor.shape), form, partial(data_of, tensor, form, None))
        for name, tensor in gguf_adapter.tensors_of(model).items()
    ]
    with atomic_write(path, "wb") as file:
        write_gguf(file, metadata, tensors)
    base = source.resolved.base
    note = f"llama-cli -m BASE.gguf --lora {path.name}; BASE.gguf is quatrain export {base} --to gguf"
    return Written([path], [note], lambda: runtimes(source, path), TOLERANCES[form], form == "F32")


def runtimes(source: Source, path: Path) -> Iterator[Runtime]:
    """The file over the base in our own reader, and over the base's own GGUF file in llama.cpp if it is installed."""
    base = load_weights(ResolvedModel(source.resolved.base, source.resolved.base))
    methods.dequantize(base)
    plain = Source(base, source.tokenizer, source.resolved, source.name)
    if base.config.head == "causal" and is_installed():
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "base.gguf"
            write_file(plain, file, ExportSettings(format="F32"))
            yield LlamaCpp(file, min(base.config.context_length, 512), lora=path)
    load_adapter(base, path)
    yield OwnReader(base.eval(), source.tokenizer)


EXPORTER = Exporter(
    "gguf-adapter", "a LoRA adapter for llama.cpp's --lora, not merged", ("F16", "F32", "BF16"), write, problems
)
