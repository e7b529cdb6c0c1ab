"""Exports to MLX, Apple's framework, in the layout of mlx-lm: float16, or 4 and 8 bits in groups of 64 weights.

A quantized linear layer or embedding is three tensors: `weight` with the numbers packed into uint32, `scales` and
`biases` of each group; weight = scale * number + bias (https://ml-explore.github.io/mlx, `mlx.core.quantize`).
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from quatrain.core.atomic import atomic_write, write_json
from quatrain.core.errors import QuatrainError
from quatrain.core.reading import read_json
from quatrain.export.exporter import Exporter, ExportSettings, Source, Written
from quatrain.export.proof import OwnReader, Runtime
from quatrain.models.families import get_family
from quatrain.models.io.model_folder import file_state_dict
from quatrain.models.io.safetensors_reader import WEIGHTS, SafetensorsReader
from quatrain.models.io.safetensors_writer import write_safetensors
from quatrain.models.io.weights import weight_operations
from quatrain.models.transformer.config import ModelConfig
from quatrain.tokenizers.tokenizer import Tokenizer

FAMILIES = (
    "llama", "mistral", "ministral3", "mixtral", "qwen2", "qwen3", "qwen2_moe", "qwen3_moe", "gemma2", "gemma3_text",
    "phi", "phi3", "gpt2", "gpt_neox", "gptj", "olmo2", "olmo3", "olmoe", "smollm3", "granite", "granitemoe", "glm4",
    "cohere2", "stablelm", "starcoder2", "deepseek_v3", "mamba2",
)  # fmt: skip
"""The families that mlx-lm knows."""
FLOAT_ONLY = ("qwen3_moe",)
"""Mixtures whose experts mlx-lm reads one by one in float alone."""
ROUTERS = ("mlp.gate.weight", "block_sparse_moe.gate.weight", "shared_expert_gate.weight", "router.weight")
"""Ends of the names of routers, which choose experts and stay float16."""
ADDED: dict[str, Callable[[ModelConfig], dict[str, Any]]] = {
    "mamba2": lambda config: {
        "intermediate_size": config.recurrent_heads * config.recurrent_head_dim,
        "time_step_limit": [0.0, 1e30],
        "time_step_rank": "auto",
    },
    "gpt2": lambda config: {"n_ctx": config.max_position_embeddings},
    "cohere2": lambda config: {"head_dim": config.head_dim},
}
"""Keys of config.json that mlx-lm needs where transformers has defaults."""
FOURFOLD = ("gpt2", "gpt_neox", "gptj")
"""Families whose feed-forward networks have four times the hidden size in mlx-lm."""
WINDOWED = ("gemma3_text", "olmo3", "cohere2", "ministral3")
"""Families whose sliding windows mlx-lm computes."""
PREFIXES = {"gpt2": "transformer."}
"""Beginnings of names that mlx-lm expects without them."""
GROUP = 64
BITS = {"4bit": 4, "8bit": 8}
TOLERANCES = {"float16": 0.01, "bfloat16": 0.05, "8bit": 0.1, "4bit": 0.6}
SMALLEST = 1e-7
"""The smallest scale, as in MLX."""


def problems(source: Source, settings: ExportSettings) -> Iterator[str]:
    """Why mlx-lm could not run the model."""
    config = source.model.config
    if config.family not in FAMILIES:
        yield f"family {config.family}: mlx-lm has {', '.join(FAMILIES)}"
    if config.family in FOURFOLD and config.intermediate_size != 4 * config.hidden_size:
        yield f"intermediate_size {config.intermediate_size}: mlx-lm computes 4 x hidden_size for {config.family}"
    window = config.sliding_window or 0
    if "sliding" in config.layer_types and config.family not in WINDOWED and window < config.context_length:
        yield (
            f"sliding_window {window}: mlx-lm computes full attention for {config.family}, which is equal up to "
            f"{window} tokens; export with --context {window}"
        )
    if config.family == "mamba2" and config.step_limits != (0.0, float("inf")):
        yield f"time_step_limit {config.step_limits}: mlx-lm has one key for it, which is not written"
    if config.family in FLOAT_ONLY and settings.format in BITS:
        yield (
            f"--format {settings.format}: mlx-lm reads the experts of {config.family} in float; choose float16, and "
            "quantize with mlx_lm.convert"
        )
    if config.head != "causal":
        yield f"head {config.head}: mlx-lm generates text, which needs the head causal"


def quantized(weight: Tensor, bits: int) -> dict[str, Tensor]:
    """A weight (out, in) in groups along the input: packed numbers, scales and biases, as MLX makes them."""
    top = 2**bits - 1
    groups = weight.float().reshape(weight.shape[0], -1, GROUP)
    low, high = groups.amin(-1), groups.amax(-1)
    negative = low.abs() > high.abs()
    scale = ((high - low) / top).clamp(min=SMALLEST)
    scale = torch.where(negative, scale, -scale)
    edge = torch.where(negative, low, high)
    zero = (edge / scale).round()
    scale = torch.where(zero != 0, edge / zero, scale)
    bias = torch.where(zero == 0, torch.zeros_like(edge), edge)
    numbers = ((groups - bias[..., None]) / scale[..., None]).round().clamp(0, top).to(torch.int64)
    each = 32 // bits
    shifts = torch.arange(each) * bits
    packed = (numbers.reshape(weight.shape[0], -1, each) << shifts).sum(-1)
    words = torch.where(packed >= 2**31, packed - 2**32, packed).to(torch.int32).view(torch.uint32)
    return {"weight": words, "scales": scale.to(torch.float16), "biases": bias.to(torch.float16)}


def dequantized(packed: Tensor, scales: Tensor, biases: Tensor, bits: int) -> Tensor:
    """The weight (out, in) of `quantized` in float32."""
    each = 32 // bits
    numbers = (packed.view(torch.int32).to(torch.int64)[..., None] >> (torch.arange(each) * bits)) & (2**bits - 1)
    groups = numbers.reshape(*scales.shape, GROUP).float()
    return (groups * scales.float()[..., None] + biases.float()[..., None]).flatten(1)


def write(source: Source, out: Path, settings: ExportSettings) -> Written:
    """Writes config.json, model.safetensors and the tokenizer."""
    form = str(settings.format)
    bits = BITS.get(form)
    dtype = torch.float16 if bits else getattr(torch, form)
    tensors: dict[str, Tensor] = {}
    kept = []
    for full, tensor in file_state_dict(source.model).items():
        name = full.removeprefix(PREFIXES.get(source.model.config.family, "-"))
        if bits is None or tensor.dim() != 2 or "wpe" in name or "position" in name or name.endswith(ROUTERS):
            tensors[name] = tensor.to(dtype)
        elif tensor.shape[-1] % GROUP or source.model.config.family == "gpt2":
            tensors[name] = tensor.to(dtype)
            kept.append(name)
        else:
            stem = name.removesuffix("weight")
            tensors |= {stem + part: value for part, value in quantized(tensor, bits).items()}
    more: dict[str, Any] = {"dtype": str(dtype).removeprefix("torch.")}
    if bits:
        more["quantization"] = {"group_size": GROUP, "bits": bits}
        more["quantization_config"] = more["quantization"]
    if (added := ADDED.get(source.model.config.family)) is not None:
        more |= added(source.model.config)
    write_json(out / "config.json", get_family(source.model.config.family).to_hf(source.model.config) | more)
    with atomic_write(out / WEIGHTS, "wb") as file:
        write_safetensors(file, tensors, {"format": "mlx"})
    if source.tokenizer is not None:
        source.tokenizer.save(out)
    notes = [f"{len(kept)} tensors stay float16: groups of {GROUP} do not divide their rows"] if kept else []
    files = sorted(path for path in out.iterdir() if path.is_file())

    def runtimes() -> Iterator[Runtime]:
        tokenizer = Tokenizer.find(out)
        yield OwnReader(read(out, source), tokenizer)
        if importlib.util.find_spec("mlx_lm") is not None:
            yield MlxLm(out)

    return Written(files, notes, runtimes, TOLERANCES[form], False)


def read(folder: Path, source: Source) -> Any:
    """The model of a written folder in float32: a copy of the source's with the weights of the files."""
    bits = (read_json(folder / "config.json").get("quantization") or {}).get("bits")
    model = deepcopy(source.model)
    prefix = PREFIXES.get(model.config.family, "-")
    with SafetensorsReader(folder) as files:

        def get(name: str) -> Tensor:
            name = name.removeprefix(prefix)
            stem = name.removesuffix("weight")
            if bits is not None and f"{stem}scales" in files:
                parts = (files.read(name), files.read(f"{stem}scales"), files.read(f"{stem}biases"))
                return dequantized(*parts, bits)
            return files.read(name, torch.float32)

        found: dict[str, Tensor] = {}
        ours = set(model.state_dict())
        for operation in weight_operations(get_family(model.config.family), model):
            if all(name.removeprefix(prefix) in files for name in operation.sources):
                found |= {name: value for name, value in operation.read(get) if name in ours}
    tied = {"lm_head.weight"} if model.config.tie_word_embeddings else set()
    missing = [name for name in model.load_state_dict(found, strict=False).missing_keys if name not in tied]
    if missing:
        raise KeyError(f"{folder}: {missing[:3]} are not in the files")
    return model.eval()


class MlxLm:
    """A written folder in mlx-lm, which also runs on the processor of a Linux machine (`pip install mlx[cpu] mlx-lm`).

    Raises QuatrainError if mlx-lm cannot load it.
    """

    name = "mlx-lm"
    slack = 0.001

    def __init__(self, folder: Path):
        core, cache, utils = (
            importlib.import_module(f"mlx{name}") for name in (".core", "_lm.models.cache", "_lm.utils")
        )
        self._core, self._new_cache = core, cache.make_prompt_cache
        try:
            self._model: Any = utils.load_model(folder)[0]
            self._model.set_dtype(core.float32)  # On a processor it has products of experts in float32 alone.
        except Exception as error:
            raise QuatrainError(f"mlx-lm cannot load {folder}: {error}") from error

    def encode(self, text: str) -> list[int] | None:
        """None: mlx-lm reads the same tokenizer.json."""
        return None

    def _logits(self, ids: Sequence[int], cache: Any = None) -> Tensor:
        found = self._model(self._core.array([list(ids)]), cache=cache)[0].astype(self._core.float32)
        return torch.tensor(found.tolist())

    def outputs(self, ids: Sequence[int]) -> Tensor | None:
        """Logits (T, V)."""
        return self._logits(ids)

    def greedy(self, ids: Sequence[int], count: int) -> list[int] | None:
        """The likeliest ids, from a cache."""
        cache, found, new = self._new_cache(self._model), list[int](), list(ids)
        for _ in range(count):
            new = [int(self._logits(new, cache)[-1].argmax())]
            found += new
        return found

    def stop_ids(self) -> frozenset[int] | None:
        """None: they are in config.json, which our own reader compares."""
        return None


EXPORTER = Exporter("mlx", "a folder for mlx-lm on Apple silicon", tuple(TOLERANCES), write, problems)
