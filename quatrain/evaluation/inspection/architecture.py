"""A model's architecture as a tree of modules with shapes and parameter counts, from its configuration alone.

The network is built on the meta device, which allocates nothing: a model of 70 billion parameters takes as long as one
of a million. Equal layers are folded into one entry; a shared tensor is counted at its first module.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn

from quatrain.compression.layer import QuantizedLinear
from quatrain.models.transformer.attention import Attention
from quatrain.models.transformer.blocks import Block, Stack
from quatrain.models.transformer.config import ModelConfig
from quatrain.models.transformer.feed_forward import FeedForward
from quatrain.models.transformer.initialization import Uninitialized
from quatrain.models.transformer.stack import Model
from quatrain.planning.counts import built

ORDER = (
    "embed_tokens", "frontend", "embed_positions", "embed_token_types", "project_in", "embedding_norm", "encoder",
    "relative_bias", "layers", "norm", "project_out", "transform", "pooler", "projection", "score",
    "distillation_score", "lm_head", "image_tower",
)  # fmt: skip
"""The modules of a model and of a stack, in the order of the forward pass."""

FIXED = ("lora_A", "lora_B")
"""Tensors that keep their own dtype, independent of the model's."""

BLOCK_ORDER = {
    "pre": (
        "input_layernorm", "self_attn", "attention_output_layernorm", "cross_attn_layernorm", "cross_attn",
        "post_attention_layernorm", "mlp", "feed_forward_output_layernorm",
    ),
    "post": ("self_attn", "input_layernorm", "cross_attn", "cross_attn_layernorm", "mlp", "post_attention_layernorm"),
}  # fmt: skip
BLOCK_ORDER["sandwich"] = BLOCK_ORDER["output"] = BLOCK_ORDER["pre"]
"""The modules of a layer in the order of the forward pass, by norm position."""


@dataclass(frozen=True)
class ModulePart:
    """A module of a network, or `count` equal modules.

    `tensors` maps the names of the module's own tensors to their shapes. `parameters` counts one module with its
    children, and a tied tensor at its first occurrence only; `total` counts all equal modules in the whole model.
    `dtype` is the dtype of the weights, "" if they differ. `tied` is the path of the tensor that this one shares.
    """

    name: str
    path: str
    kind: str
    note: str
    tensors: dict[str, tuple[int, ...]]
    parameters: int
    total: int
    bytes: int
    dtype: str
    count: int = 1
    tied: str = ""
    children: tuple[ModulePart, ...] = ()

    def walk(self, depth: int = 0) -> Iterator[tuple[int, ModulePart]]:
        """This entry and all entries below it, each with its depth."""
        yield depth, self
        for child in self.children:
            yield from child.walk(depth + 1)

    def as_dict(self) -> dict[str, Any]:
        shapes = {name: list(shape) for name, shape in self.tensors.items()}
        fields = {"name": self.name, "path": self.path, "kind": self.kind, "note": self.note, "count": self.count}
        fields |= {"tensors": shapes, "parameters": self.parameters, "total": self.total, "bytes": self.bytes}
        fields |= {"dtype": self.dtype, "tied": self.tied or None}
        return fields | {"children": [child.as_dict() for child in self.children]}


@dataclass(frozen=True)
class Architecture:
    """The whole tree, with the number of parameters (tied tensors counted once) and their bytes."""

    config: ModelConfig
    root: ModulePart

    @property
    def parameters(self) -> int:
        """Elements of all parameters and quantized weights; tied tensors count once."""
        return self.root.total

    @property
    def bytes(self) -> int:
        """Bytes of all parameters and quantized weights."""
        return self.root.bytes


def architecture(
    config: ModelConfig, *, dtype: str = "float32", prepare: Callable[[Model], None] | None = None
) -> Architecture:
    """The architecture of a configuration; `dtype` is the dtype of its floating-point weights.

    `prepare(model)` may replace modules first, as quantized layers and adapters do.
    """
    model = built(config)
    if prepare is not None:
        with torch.device("meta"), Uninitialized():
            prepare(model)
    root = _Reader(model, dtype).part(config.family, "", model, 1)
    return Architecture(config, root)


@dataclass
class _Reader:
    """Builds entries from modules, and remembers the first path of each tensor."""

    model: Model
    dtype: str
    met: dict[int, str] = field(default_factory=dict)

    def part(self, name: str, path: str, module: nn.Module, times: int, count: int = 1) -> ModulePart:
        """The entry of a module that occurs `count` times here and `times` times in the whole model."""
        children = tuple(self._children(path, module, times))
        tensors, tied, own, size, dtypes = self._own(path, module)
        parameters = own + sum(child.total for child in children) // times
        size += sum(child.bytes for child in children) // times
        dtypes |= {child.dtype for child in children}
        kind = type(module).__name__
        return ModulePart(
            name, path, kind, _note(module, tensors), tensors, parameters, parameters * times, size * times,
            dtypes.pop() if len(dtypes) == 1 else "", count, tied, children,
        )  # fmt: skip

    def _own(self, path: str, module: nn.Module) -> tuple[dict[str, tuple[int, ...]], str, int, int, set[str]]:
        """A module's tensors, the tensor they are tied to, their untied elements and bytes, and their dtypes."""
        tensors: dict[str, tuple[int, ...]] = {}
        tied, elements, size, dtypes = "", 0, 0, set()
        for name, tensor in _tensors(module):
            tensors[name] = tuple(tensor.shape)
            where = f"{path}.{name}" if path else name
            first = self.met.setdefault(id(tensor), where)
            beside = name in getattr(module, "fixed_dtype", ())
            own_dtype = beside or name in FIXED or not tensor.is_floating_point()
            dtype = str(tensor.dtype).removeprefix("torch.") if own_dtype else self.dtype
            packed = module if isinstance(module, QuantizedLinear) and name == "weight" else None
            if packed is not None or not beside:
                dtypes.add(dtype if packed is None else packed.method)
            if first != where:
                tied = first
                continue
            if packed is not None:
                elements += packed.in_features * packed.out_features
            elif isinstance(tensor, nn.Parameter):
                elements += tensor.numel()
            size += tensor.numel() * getattr(torch, dtype, torch.float32).itemsize
        return tensors, tied, elements, size, dtypes

    def _children(self, path: str, module: nn.Module, times: int) -> Iterator[ModulePart]:
        for name, child in _in_order(module):
            where = f"{path}.{name}" if path else name
            if isinstance(child, nn.ModuleList):
                yield from self._layers(name, where, child, times)
            else:
                yield self.part(name, where, child, times)

    def _layers(self, name: str, path: str, layers: nn.ModuleList, times: int) -> Iterator[ModulePart]:
        """Runs of equal layers, each as one entry."""
        numbered = list(enumerate(layers))
        for _, group in groupby(numbered, key=lambda item: _signature(item[1])):
            equal_layers = list(group)
            first, count = equal_layers[0][0], len(equal_layers)
            whole = count == len(numbered)
            shown = name if whole else f"{name} {first}" + (f"–{first + count - 1}" if count > 1 else "")
            part = self.part(shown, f"{path}.{first}", equal_layers[0][1], times * count, count)
            for _, layer in equal_layers[1:]:
                for each in layer.parameters():
                    self.met.setdefault(id(each), part.path)
            of_decoder = self.model.encoder is not None and path == "layers"
            yield replace(
                part, note=_kinds([layer for _, layer in equal_layers]) or ("the decoder's" if of_decoder else "")
            )


def _in_order(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The children of a module that hold tensors, in the order of the forward pass."""
    named = dict(module.named_children())
    order: Sequence[str] = ORDER if isinstance(module, Stack) else ()
    order = BLOCK_ORDER[module.norm_position] if isinstance(module, Block) else order
    for name in (*(known for known in order if known in named), *(other for other in named if other not in order)):
        child = named[name]
        if any(True for _ in child.parameters()) or any(True for _ in child.buffers()):
            yield name, child


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """A module's own parameters and saved buffers."""
    yield from ((name, value) for name, value in module._parameters.items() if value is not None)
    unsaved = module._non_persistent_buffers_set
    yield from ((name, value) for name, value in module._buffers.items() if value is not None and name not in unsaved)


def _signature(module: nn.Module) -> list[tuple[str, str, tuple[int, ...], torch.dtype]]:
    """A signature that is equal for layers of the same modules and shapes."""
    return [
        (path, type(child).__name__, tuple(tensor.shape), tensor.dtype)
        for path, child in module.named_modules()
        for _, tensor in _tensors(child)
    ]


def _kinds(layers: Sequence[nn.Module]) -> str:
    """The kinds of a run of layers; empty if all layers use full attention."""
    kinds = Counter(layer.kind for layer in layers if isinstance(layer, Block))
    if set(kinds) <= {"full"}:
        return ""
    return ", ".join(f"{count} {kind}" for kind, count in kinds.items())


def _note(module: nn.Module, tensors: dict[str, tuple[int, ...]]) -> str:
    """A short description of a module's shape."""
    if isinstance(module, Attention):
        groups = "" if module.num_kv_heads == module.num_heads else f", {module.num_kv_heads} shared"
        return f"{module.num_heads} heads of {module.head_dim}{groups}"
    if isinstance(module, FeedForward):
        return "gated" if module.gate_proj is not None else "plain"
    weight = tensors.get("weight")
    if weight is None:
        return ", ".join(f"{name} {_by(shape)}" for name, shape in tensors.items())
    beside = ("weight", *getattr(module, "fixed_dtype", ()))
    extra = "".join(f" + {name}" for name in tensors if name not in beside)
    if hasattr(module, "in_features"):
        return f"{module.in_features} → {module.out_features}{extra}"
    return _by(weight) + extra


def _by(shape: Sequence[int]) -> str:
    return " × ".join(map(str, shape))
