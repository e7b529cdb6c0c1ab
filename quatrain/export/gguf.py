"""Exports to GGUF, the format of llama.cpp, Ollama and LM Studio."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from quatrain.compression.ggml_blocks import ENCODERS, encode
from quatrain.core.atomic import atomic_write
from quatrain.core.errors import InputError
from quatrain.core.gguf_file import FORMATS, TensorToWrite, write_gguf
from quatrain.export.exporter import Exporter, ExportSettings, Source, Written
from quatrain.export.importance import importance
from quatrain.export.llama import LlamaCpp, LlamaCppEmbedding, LlamaCppSeq2seq, is_installed
from quatrain.export.proof import OwnReader, Runtime
from quatrain.loading.model import load_model
from quatrain.models.gguf.architecture import Architecture, scaling_tensors
from quatrain.models.gguf.architectures import architecture_of
from quatrain.tokenizers.gguf import to_metadata

TYPES = {
    "F16": 1, "F32": 0, "BF16": 32, "Q8_0": 7, "Q6_K": 18, "Q5_K": 16, "Q5_1": 9, "Q5_0": 8, "Q4_K": 14, "Q4_1": 3,
    "Q4_0": 2, "Q3_K": 11, "Q2_K": 10, "MXFP4": 38,
}  # fmt: skip
"""The formats of weights, and llama.cpp's `general.file_type`."""
FALLBACK = {"MXFP4": "Q8_0", "Q6_K": "Q8_0", "Q5_K": "Q5_1", "Q4_K": "Q5_0", "Q3_K": "Q4_0", "Q2_K": "Q4_0"}
"""What a K format becomes where 256 does not divide a row, as in llama.cpp; where 32 does not either, F16."""
TOLERANCES = {
    "F32": 1e-5, "F16": 0.02, "BF16": 0.05, "Q8_0": 0.1, "Q6_K": 0.15, "Q5_K": 0.3, "Q5_1": 0.3, "Q5_0": 0.3,
    "Q4_K": 0.5, "Q4_1": 0.5, "Q4_0": 0.5, "Q3_K": 0.8, "Q2_K": 1.0, "MXFP4": 0.5,
}  # fmt: skip
"""The largest allowed change of a logit, as a share of the largest: several times what these formats usually change."""
KEPT = (
    "position_embd", "token_types", "rel_b", "rope_", "cls", "ffn_gate_inp", ".bias", "_norm", "ssm_conv1d", "ssm_a",
    "ssm_d",
)  # fmt: skip
"""Parts of names of tensors that stay in float32, as in llama.cpp."""


def _architecture(source: Source) -> Architecture:
    return architecture_of(source.model.config.family)


def problems(source: Source, settings: ExportSettings) -> Iterator[str]:
    """Why llama.cpp could not compute the model."""
    try:
        yield from _architecture(source).problems(source.model.config)
    except InputError as error:
        yield str(error)
    if settings.format == "MXFP4" and source.model.config.experts is None:
        yield "--format MXFP4: is for the experts of a mixture, and this model has none; choose Q4_K or Q4_0"


def format_of(name: str, shape: tuple[int, ...], wanted: str) -> str:
    """The format of a tensor in a file of format `wanted`: vectors stay float32, narrow rows fall back."""
    if len(shape) < 2 or any(part in name for part in KEPT):
        return "F32"
    if wanted in FALLBACK and name in ("output.weight", "token_embd.weight"):
        wanted = "Q6_K"  # The head and the embedding suffer most; llama.cpp gives them 6 bits too.
    if wanted == "MXFP4" and "_exps" not in name:
        wanted = "Q8_0"  # As in llama.cpp: only experts have these four bits.
    while shape[-1] % FORMATS[wanted].weights:
        wanted = FALLBACK.get(wanted, "F16")
    return wanted


def tensors_of(source: Source) -> dict[str, Tensor]:
    """The tensors of a file by llama.cpp's names, in float32."""
    dropped = _architecture(source).dropped(source.model.config)
    ours = {
        name: tensor for name, tensor in source.model.state_dict().items() if not name.startswith(dropped or ("-",))
    }
    if source.model.config.tie_word_embeddings:
        ours.pop("lm_head.weight", None)
        ours |= _architecture(source).scaled_head(source.model.config, ours["embed_tokens.weight"])
    found: dict[str, Tensor] = {}
    covered: set[str] = set()
    for operation in _architecture(source).weights(source.model.config):
        if all(name in ours for name in operation.targets):
            found.update(operation.write(ours.__getitem__))
            covered.update(operation.targets)
    if lost := sorted(set(ours) - covered):
        raise InputError("llama.cpp has no place for these tensors:", lost[:10])
    return found | scaling_tensors(source.model.config)


def data_of(tensor: Tensor, form: str, importance: np.ndarray | None) -> Any:
    """The bytes of a tensor in a format."""
    array = tensor.detach().to(torch.float32).contiguous().numpy()
    return memoryview(encode(array, form, importance).tobytes())


def write_file(source: Source, path: Path, settings: ExportSettings) -> list[str]:
    """Writes the GGUF file of a model; returns notes: what another format holds, what llama.cpp does otherwise."""
    config, form = source.model.config, str(settings.format)
    architecture = _architecture(source)
    metadata: dict[str, Any] = {
        "general.architecture": architecture.name,
        "general.type": "model",
        "general.name": _shown_name(source),
        "general.file_type": TYPES[form],
        "general.quantization_version": 2,
        **architecture.metadata(config),
    }
    notes = architecture.notes(config)
    if source.tokenizer is not None:
        tokenizer = to_metadata(source.tokenizer, config.vocab_size)
        metadata |= tokenizer.metadata
        notes += tokenizer.notes
    else:
        metadata |= {"tokenizer.ggml.model": "none"}
    if config.architecture == "encoder":
        metadata["tokenizer.ggml.token_type_count"] = max(1, config.type_vocab_size)
    tensors = tensors_of(source)
    chosen = {name: format_of(name, tuple(tensor.shape), form) for name, tensor in tensors.items()}
    notes += _fallbacks(tensors, chosen, form)
    weights = _importance(source, settings)
    to_write = [
        TensorToWrite(
            name, tuple(tensor.shape), chosen[name], partial(data_of, tensor, chosen[name], weights.get(name))
        )
        for name, tensor in tensors.items()
    ]
    with atomic_write(path, "wb") as file:
        write_gguf(file, metadata, to_write)
    return notes


def _importance(source: Source, settings: ExportSettings) -> dict[str, Any]:
    """The importance of the columns of the file's tensors, by their names; empty without a calibration text."""
    if settings.calibration is None:
        return {}
    by_layer = importance(source.model, source.tokenizer, settings.calibration)
    owners = {
        operation.sources[0]: operation.targets[0].rpartition(".")[0]
        for operation in _architecture(source).weights(source.model.config)
    }
    return {name: by_layer[owner] for name, owner in owners.items() if owner in by_layer and name.endswith(".weight")}


def _shown_name(source: Source) -> str:
    """The model's name. llama.cpp expects Phi-3's tokens in a vocabulary whose model is called so, and crashes else."""
    name = source.name
    if source.tokenizer is not None and source.tokenizer.token_to_id("<s>") is None:
        for written in ("phi-3", "phi3", "Phi-3", "Phi3"):
            name = name.replace(written, written[:3] + " 3")
    return name


def _fallbacks(tensors: dict[str, Tensor], chosen: dict[str, str], form: str) -> list[str]:
    """A note for the rows that the blocks of the format do not divide."""
    size = FORMATS[form].weights
    narrow = {
        name: tensor.shape[-1]
        for name, tensor in tensors.items()
        if tensor.dim() > 1 and not any(part in name for part in KEPT) and tensor.shape[-1] % size
    }
    if not narrow:
        return []
    widths = ", ".join(str(width) for width in sorted(set(narrow.values())))
    kinds = ", ".join(sorted({chosen[name] for name in narrow}))
    return [
        f"{len(narrow)} of {len(tensors)} tensors have rows of {widths} weights, which {form}'s blocks of {size} do "
        f"not divide: written in {kinds}"
    ]


def write(source: Source, out: Path, settings: ExportSettings) -> Written:
    """Writes NAME-FORMAT.gguf."""
    path = out / f"{source.name}-{settings.format}.gguf"
    notes = write_file(source, path, settings)
    return Written([path], notes, lambda: runtimes(source, path), TOLERANCES[str(settings.format)],
                   settings.format in ("F32", "F16"))  # fmt: skip


def runtimes(source: Source, path: Path) -> Iterator[Runtime]:
    """The file in our own reader, and in llama.cpp if it is installed and computes the head."""
    yield OwnReader(*load_model(path))
    config = source.model.config
    if config.head in IN_LLAMA_CPP and is_installed() and (config.head != "embedding" or config.normalize_embedding):
        yield IN_LLAMA_CPP[config.head](path, min(config.context_length, 512))


IN_LLAMA_CPP = {"causal": LlamaCpp, "embedding": LlamaCppEmbedding, "seq2seq": LlamaCppSeq2seq}
"""The heads that llama.cpp computes through its Python library."""


EXPORTER = Exporter(
    "gguf", "one file for llama.cpp, LM Studio, Ollama and others",
    tuple(name for name in TYPES if name in ENCODERS), write, problems,
)  # fmt: skip
