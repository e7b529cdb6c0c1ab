"""Converts adapter layers to PEFT's tensors and back: names, fused layers, one `MethodFormat` per method.

A family's files may fuse several of our layers: GPT-2's `c_attn` is query, key and value. The adapter of a fused layer
is block-wise: its inner matrix stacks ours, its outer one is block-diagonal, and its rank and alpha are sums, so that
the scaling stays. Reading gives each part its rows of the outer matrix, and the rows of the inner one that it uses.
Both directions are exact. A Kronecker product has no such form.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from quatrain.adapters.bottleneck import BottleneckLinear
from quatrain.adapters.dora import DoRALinear
from quatrain.adapters.ia3 import IA3Linear
from quatrain.adapters.layer import AdapterLayer, dequantized
from quatrain.adapters.loha import LoHaLinear
from quatrain.adapters.lokr import LoKrLinear
from quatrain.adapters.lora import LoRALinear
from quatrain.core.errors import InputError
from quatrain.models.families import get_family
from quatrain.models.families.weights import Rename, Split
from quatrain.models.transformer.config import ModelConfig

PREFIX = "base_model.model."
"""What PEFT's files put before every path."""


@dataclass
class FileLayer:
    """A layer of a family's files: its path, and the operation that splits it into our layers (`parts`)."""

    path: str
    operation: Rename | Split

    @property
    def parts(self) -> list[str]:
        """The paths of our layers that the file's layer contains."""
        return [name.removesuffix(".weight") for name in self.operation.targets]

    @property
    def transposed(self) -> bool:
        """Whether the files store (in, out)."""
        return self.operation.transpose

    def fuse(self, rows: Sequence[Tensor]) -> Tensor:
        """Joins the parts' tensors along the output axis."""
        if len(rows) == 1:
            return rows[0]
        named = dict(zip(self.operation.targets, rows, strict=True))
        return next(tensor for _, tensor in replace(self.operation, transpose=False).write(named.__getitem__))

    def cut(self, rows: Tensor, sizes: Sequence[int]) -> list[Tensor]:
        """Splits a tensor into those of the parts along the output axis."""
        if len(sizes) == 1:
            return [rows]
        operation = replace(self.operation, transpose=False)
        return [tensor for _, tensor in operation.read(lambda name: rows)]


def file_layers(config: ModelConfig) -> dict[str, FileLayer]:
    """The linear layers and embeddings of a family's files by path."""
    return {
        operation.theirs.removesuffix(".weight"): FileLayer(operation.theirs.removesuffix(".weight"), operation)
        for operation in get_family(config.family).weights(config)
        if isinstance(operation, Rename | Split) and operation.theirs.endswith(".weight")
    }


@dataclass
class LayerTensors:
    """The tensors of one layer of the files, by the end of their name, with rank and alpha if the method has them."""

    tensors: dict[str, Tensor]
    rank: int | None = None
    alpha: float | None = None


Group = Mapping[str, Any]
"""The adapter layers of the parts of one layer of the files, by path; parts without adapter are absent."""
BaseLayer = Callable[[str], nn.Module]
"""Returns our layer at a path."""
Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class StoredLayer:
    """The adapter of one layer of the files: its tensors, our layers under it, and its options: scaling, rank, dropout
    and LoKr's options.
    """

    layer: FileLayer
    tensors: Mapping[str, Tensor]
    bases: Sequence[nn.Module]
    options: Mapping[str, Any]

    @property
    def sizes(self) -> list[int]:
        """The outputs of each of our layers."""
        return [_size(base) for base in self.bases]


@dataclass(frozen=True)
class MethodFormat:
    """How PEFT's files hold one method.

    `write(layer, group, base)` gives the tensors of a layer of the files, `read` our adapter layers by path. `shapes`
    gives the required shapes for given ones and the features in and out; None if the adapter layer itself checks them.
    `alpha` is the key of alpha in `adapter_config.json`; None for methods without rank. `options(first, layers)` are
    further entries there, given the adapter layers.
    """

    write: Callable[[FileLayer, Group, BaseLayer], LayerTensors]
    read: Callable[[StoredLayer], dict[str, AdapterLayer]]
    shapes: Callable[[Shapes, int, int], Shapes] | None = None
    alpha: str | None = None
    options: Callable[[Any, Sequence[AdapterLayer]], dict[str, Any]] = lambda first, layers: {}


def write(layer: FileLayer, group: Mapping[str, AdapterLayer], base: BaseLayer) -> LayerTensors:
    """The tensors of one layer of the files, from the adapters of its parts; a part without adapter does not change."""
    ordered = {name: group[name] for name in layer.parts if name in group}
    return FORMATS[next(iter(ordered.values())).method].write(layer, ordered, base)


def check_writable(layer: FileLayer, method: str) -> str | None:
    """Why PEFT's files cannot hold this method over a layer; None if they can."""
    if method in ("loha", "lokr") and layer.transposed:
        return f"PEFT has no {method} over {layer.path}, whose weight this family's files store transposed; use lora"
    if method in ("lokr", "bottleneck") and len(layer.parts) > 1:
        return f"{layer.path} fuses {len(layer.parts)} layers, which PEFT's files cannot hold for {method}; use lora"
    return None


def _size(base: nn.Module) -> int:
    return int(base.out_features)  # type: ignore[arg-type]


def _blocks(layer: FileLayer, outer: Mapping[str, Tensor], base: BaseLayer, factors: Mapping[str, float]) -> Tensor:
    """The parts' outer matrices (out, rank) as one block-diagonal matrix, in the row order of the file."""
    width, column, rows = sum(tensor.shape[1] for tensor in outer.values()), 0, []
    for name in layer.parts:
        block = torch.zeros(_size(base(name)), width, device=next(iter(outer.values())).device)
        if (tensor := outer.get(name)) is not None:
            block[:, column : column + tensor.shape[1]] = tensor.detach() * factors[name]
            column += tensor.shape[1]
        rows.append(block)
    return layer.fuse(rows)


def _write_lora(layer: FileLayer, group: Group, base: BaseLayer) -> LayerTensors:
    first: LoRALinear = next(iter(group.values()))
    factors = {name: each.scaling / first.scaling for name, each in group.items()}
    inner = torch.cat([each.lora_A.detach() for each in group.values()])
    outer = first.lora_B.detach()
    if len(layer.parts) > 1:
        outer = _blocks(layer, {name: each.lora_B for name, each in group.items()}, base, factors)
    rank = inner.shape[0]
    tensors = {"lora_A.weight": inner, "lora_B.weight": outer}
    if isinstance(first, DoRALinear):
        magnitudes = [_magnitude(group.get(name), base(name)) for name in layer.parts]
        tensors["lora_magnitude_vector"] = layer.fuse(magnitudes)
    return LayerTensors(tensors, rank, first.scaling * (math.sqrt(rank) if first.use_rslora else rank))


def _magnitude(adapter: AdapterLayer | None, base: nn.Module) -> Tensor:
    """DoRA's magnitude of each row; for a part without adapter, the norms of its weight's rows."""
    if isinstance(adapter, DoRALinear):
        return adapter.magnitude.detach()
    return torch.linalg.vector_norm(dequantized(base).weight.detach().float(), dim=1)


def _write_loha(layer: FileLayer, group: Group, base: BaseLayer) -> LayerTensors:
    first: LoHaLinear = next(iter(group.values()))
    factors = {name: each.scaling / first.scaling for name, each in group.items()}
    ones = dict.fromkeys(group, 1.0)
    parameters = [each.adapter_parameters() for each in group.values()]
    tensors = {f"hada_w{n}_b": torch.cat([own[f"b{n}"].detach() for own in parameters]) for n in (1, 2)}
    for n in (1, 2):
        outer: Tensor = first.adapter_parameters()[f"a{n}"].detach()
        if len(layer.parts) > 1:
            own = {name: each.adapter_parameters()[f"a{n}"] for name, each in group.items()}
            outer = _blocks(layer, own, base, factors if n == 1 else ones)
        tensors[f"hada_w{n}_a"] = outer
    rank = tensors["hada_w1_b"].shape[0]
    return LayerTensors(tensors, rank, first.scaling * rank)


def _write_ia3(layer: FileLayer, group: Group, base: BaseLayer) -> LayerTensors:
    first: IA3Linear = next(iter(group.values()))
    if first.inner:
        return LayerTensors({"ia3_l": first.scale.detach()[None]})
    rows = [group[name].scale.detach() if name in group else torch.ones(_size(base(name)), device=first.device)
            for name in layer.parts]  # fmt: skip
    return LayerTensors({"ia3_l": layer.fuse(rows)[:, None]})


def _write_lokr(layer: FileLayer, group: Group, base: BaseLayer) -> LayerTensors:
    (adapter,) = group.values()
    tensors = {f"lokr_{name}": tensor.detach() for name, tensor in adapter.adapter_parameters().items()}
    return LayerTensors(tensors, adapter.rank, adapter.alpha)


def _write_bottleneck(layer: FileLayer, group: Group, base: BaseLayer) -> LayerTensors:
    (adapter,) = group.values()
    parameters = adapter.adapter_parameters().items()
    return LayerTensors({f"bottleneck_{name}": tensor.detach() for name, tensor in parameters})


def _lora_shapes(shapes: Shapes, in_features: int, out_features: int) -> Shapes:
    rank = shapes.get("lora_A.weight", (0,))[0]
    return {"lora_A.weight": (rank, in_features), "lora_B.weight": (out_features, rank)}


def _dora_shapes(shapes: Shapes, in_features: int, out_features: int) -> Shapes:
    return _lora_shapes(shapes, in_features, out_features) | {"lora_magnitude_vector": (out_features,)}


def _loha_shapes(shapes: Shapes, in_features: int, out_features: int) -> Shapes:
    rank = shapes.get("hada_w1_b", (0,))[0]
    sides = {"a": (out_features, rank), "b": (rank, in_features)}
    return {f"hada_w{n}_{side}": shape for n in (1, 2) for side, shape in sides.items()}


def _ia3_shapes(shapes: Shapes, in_features: int, out_features: int) -> Shapes:
    return {"ia3_l": (1, in_features) if shapes.get("ia3_l", ())[:1] == (1,) else (out_features, 1)}


def _bottleneck_shapes(shapes: Shapes, in_features: int, out_features: int) -> Shapes:
    width = shapes.get("bottleneck_down_bias", (0,))[0]
    return {"bottleneck_down": (width, out_features), "bottleneck_down_bias": (width,),
            "bottleneck_up": (out_features, width), "bottleneck_up_bias": (out_features,)}  # fmt: skip


def check_shapes(method: str, tensors: Mapping[str, Tensor], in_features: int, out_features: int) -> str | None:
    """What is wrong with the tensors of a layer with these numbers of features; None if they fit."""
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if empty := [name for name, tensor in tensors.items() if tensor.dim() == 0 or not tensor.numel()]:
        return f"{', '.join(sorted(empty))}: empty, or a single number"
    required_shapes = FORMATS[method].shapes
    if required_shapes is None:
        return None
    required = required_shapes(shapes, in_features, out_features)
    if shapes.keys() != required.keys():
        missing, more = sorted(required.keys() - shapes.keys()), sorted(shapes.keys() - required.keys())
        problems = [f"{', '.join(missing)}: missing"] if missing else []
        return "; ".join(problems + ([f"{', '.join(more)}: unexpected"] if more else []))
    wrong = [f"{name} {shapes[name]}, must be {required[name]}" for name in required if shapes[name] != required[name]]
    return f"{', '.join(wrong)}: wrong shape" if wrong else None


def _read_lora(source: StoredLayer) -> dict[str, AdapterLayer]:
    layer, scaling, dropout = source.layer, source.options["scaling"], source.options["dropout"]
    first, second = source.tensors["lora_A.weight"], source.tensors["lora_B.weight"]
    parts = _split(first, layer.cut(second, source.sizes))
    magnitude = source.tensors.get("lora_magnitude_vector")
    magnitudes = [None] * len(parts) if magnitude is None else layer.cut(magnitude, source.sizes)
    adapters: dict[str, AdapterLayer] = {}
    for name, base, (inner, outer), own in zip(layer.parts, source.bases, parts, magnitudes, strict=True):
        if own is not None:
            # The magnitude may have changed even if no row of A is used.
            rank = max(1, inner.shape[0])
            inner = inner if inner.shape[0] else first.new_zeros(1, first.shape[1])
            outer = outer if outer.shape[1] else second.new_zeros(len(outer), 1)
            dora = DoRALinear(base, rank, scaling * rank, dropout)
            adapters[name] = _filled(dora, {"lora_A": inner, "lora_B": outer, "magnitude": own})
        elif inner.shape[0]:
            lora = LoRALinear(base, inner.shape[0], scaling * inner.shape[0], dropout)
            adapters[name] = _filled(lora, {"lora_A": inner, "lora_B": outer})
    return adapters


def _read_loha(source: StoredLayer) -> dict[str, AdapterLayer]:
    tensors, adapters = source.tensors, dict[str, AdapterLayer]()
    outer = [source.layer.cut(tensors[f"hada_w{n}_a"], source.sizes) for n in (1, 2)]
    for name, base, a1, a2 in zip(source.layer.parts, source.bases, *outer, strict=True):
        # On the files' device: the model may have no weights (`inspect`).
        used = torch.ones(tensors["hada_w1_b"].shape[0], dtype=torch.bool, device=a1.device)
        if len(source.bases) > 1:
            used = a1.ne(0).any(0) & a2.ne(0).any(0)
        if rank := int(used.sum()):
            loha = LoHaLinear(base, rank, source.options["scaling"] * rank)
            b1, b2 = (tensors[f"hada_w{n}_b"][used] for n in (1, 2))
            adapters[name] = _filled(loha, {"a1": a1[:, used], "b1": b1, "a2": a2[:, used], "b2": b2})
    return adapters


def _read_ia3(source: StoredLayer) -> dict[str, AdapterLayer]:
    scale, names = source.tensors["ia3_l"], source.layer.parts
    if scale.shape[0] == 1:
        return {names[0]: _filled(IA3Linear(source.bases[0], inner=True), {"scale": scale[0]})}
    parts = zip(names, source.bases, source.layer.cut(scale[:, 0], source.sizes), strict=True)
    return {name: _filled(IA3Linear(base), {"scale": own}) for name, base, own in parts}


def _read_bottleneck(source: StoredLayer) -> dict[str, AdapterLayer]:
    own = {name.removeprefix("bottleneck_"): value for name, value in source.tensors.items()}
    return {source.layer.parts[0]: _filled(BottleneckLinear(source.bases[0], len(own["down_bias"])), own)}


def _read_lokr(source: StoredLayer) -> dict[str, AdapterLayer]:
    rank, scaling = source.options["rank"], source.options["scaling"]
    decompose = {key: source.options[key] for key in ("decompose_factor", "decompose_both")}
    lokr = LoKrLinear(source.bases[0], rank, scaling * rank, **decompose)
    own = {name.removeprefix("lokr_"): value for name, value in source.tensors.items()}
    return {source.layer.parts[0]: _filled(lokr, own)}


def _split(first: Tensor, rows: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """The A and B of each part of a fused layer; only the rows of A that a part's B uses, where B is block-wise."""
    if len(rows) == 1:
        return [(first, rows[0])]
    used = [part.ne(0).any(dim=0) for part in rows]
    if torch.stack(used).any() and torch.stack(used).sum(dim=0).max() <= 1:
        return [(first[columns], part[:, columns]) for columns, part in zip(used, rows, strict=True)]
    return [(first, part) for part in rows]


@torch.no_grad()
def _filled(layer: AdapterLayer, tensors: Mapping[str, Tensor]) -> AdapterLayer:
    """The layer with these values. Raises InputError if names or shapes differ from the layer's."""
    parameters = layer.adapter_parameters()
    given, required = ({name: tuple(t.shape) for name, t in each.items()} for each in (tensors, parameters))
    if given != required:
        raise InputError(f"has the tensors {given}, the layer needs {required}")
    for name, tensor in tensors.items():
        parameters[name].copy_(tensor)
    return layer


def _lora_options(first: LoRALinear, layers: Sequence[AdapterLayer]) -> dict[str, Any]:
    dropout = max(getattr(layer, "dropout", 0.0) for layer in layers)
    return {"bias": "none", "lora_dropout": dropout, "use_rslora": first.use_rslora, "use_dora": first.method == "dora"}


def _lokr_options(first: LoKrLinear, layers: Sequence[AdapterLayer]) -> dict[str, Any]:
    return {"decompose_factor": first.decompose_factor, "decompose_both": first.decompose_both}


FORMATS: dict[str, MethodFormat] = {
    "lora": MethodFormat(_write_lora, _read_lora, _lora_shapes, "lora_alpha", _lora_options),
    "dora": MethodFormat(_write_lora, _read_lora, _dora_shapes, "lora_alpha", _lora_options),
    "loha": MethodFormat(_write_loha, _read_loha, _loha_shapes, "alpha"),
    "lokr": MethodFormat(_write_lokr, _read_lokr, None, "alpha", _lokr_options),
    "ia3": MethodFormat(_write_ia3, _read_ia3, _ia3_shapes),
    "bottleneck": MethodFormat(_write_bottleneck, _read_bottleneck, _bottleneck_shapes),
}
"""The format of each method over linear layers."""
