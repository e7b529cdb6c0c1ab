"""Converts adapter layers to PEFT's tensors and back: names, fused layers, one pair of functions per method.

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


def write(layer: FileLayer, group: Mapping[str, AdapterLayer], base: Callable[[str], nn.Module]) -> LayerTensors:
    """The tensors of one layer of the files, from the adapters of its parts; a part without adapter does not change.

    `base` returns our layer at a path. Raises InputError for adapters that PEFT's files cannot hold.
    """
    first = next(iter(group.values()))
    if isinstance(first, LoRALinear):
        return _write_lora(layer, group, base)
    if isinstance(first, LoHaLinear):
        return _write_loha(layer, group, base)
    if isinstance(first, IA3Linear):
        return _write_ia3(layer, group, base)
    if isinstance(first, LoKrLinear):
        tensors = {f"lokr_{name}": tensor.detach() for name, tensor in first.adapter_parameters().items()}
        return LayerTensors(tensors, first.rank, first.alpha)
    if isinstance(first, BottleneckLinear):
        own = first.adapter_parameters()
        return LayerTensors({f"bottleneck_{name}": tensor.detach() for name, tensor in own.items()})
    raise InputError(f"PEFT has no files for the method {first.method}.")


def check_writable(layer: FileLayer, method: str) -> str | None:
    """Why PEFT's files cannot hold this method over a layer; None if they can."""
    if method in ("loha", "lokr") and layer.transposed:
        return f"PEFT has no {method} over {layer.path}, whose weight this family's files store transposed; use lora"
    if method in ("lokr", "bottleneck") and len(layer.parts) > 1:
        return f"{layer.path} fuses {len(layer.parts)} layers, which PEFT's files cannot hold for {method}; use lora"
    return None


def _size(base: nn.Module) -> int:
    return int(base.out_features)  # type: ignore[arg-type]


def _blocks(
    layer: FileLayer, outer: Mapping[str, Tensor], base: Callable[[str], nn.Module], factors: Mapping[str, float]
) -> Tensor:
    """The parts' outer matrices (out, rank) as one block-diagonal matrix, in the row order of the file."""
    width, column, rows = sum(tensor.shape[1] for tensor in outer.values()), 0, []
    for name in layer.parts:
        block = torch.zeros(_size(base(name)), width, device=next(iter(outer.values())).device)
        if (tensor := outer.get(name)) is not None:
            block[:, column : column + tensor.shape[1]] = tensor.detach() * factors[name]
            column += tensor.shape[1]
        rows.append(block)
    return layer.fuse(rows)


def _in_order(layer: FileLayer, group: Mapping[str, Any]) -> dict[str, Any]:
    return {name: group[name] for name in layer.parts if name in group}


def _write_lora(layer: FileLayer, found: Mapping[str, AdapterLayer], base: Callable[[str], nn.Module]) -> LayerTensors:
    group: dict[str, LoRALinear] = _in_order(layer, found)
    first = next(iter(group.values()))
    factors = {name: each.scaling / first.scaling for name, each in group.items()}
    inner = torch.cat([each.lora_A.detach() for each in group.values()])
    outer = first.lora_B.detach()
    if len(layer.parts) > 1:
        outer = _blocks(layer, {name: each.lora_B for name, each in group.items()}, base, factors)
    rank = inner.shape[0]
    tensors = {"lora_A.weight": inner, "lora_B.weight": outer}
    if isinstance(first, DoRALinear):
        lengths = [_length(group.get(name), base(name)) for name in layer.parts]
        tensors["lora_magnitude_vector"] = layer.fuse(lengths)
    return LayerTensors(tensors, rank, first.scaling * (math.sqrt(rank) if first.use_rslora else rank))


def _length(adapter: AdapterLayer | None, base: nn.Module) -> Tensor:
    """DoRA's magnitude of each row; for a part without adapter, the norms of its weight's rows."""
    if isinstance(adapter, DoRALinear):
        return adapter.magnitude.detach()
    return torch.linalg.vector_norm(dequantized(base).weight.detach().float(), dim=1)


def _write_loha(layer: FileLayer, found: Mapping[str, AdapterLayer], base: Callable[[str], nn.Module]) -> LayerTensors:
    group: dict[str, LoHaLinear] = _in_order(layer, found)
    first = next(iter(group.values()))
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


def _write_ia3(layer: FileLayer, found: Mapping[str, AdapterLayer], base: Callable[[str], nn.Module]) -> LayerTensors:
    group: dict[str, IA3Linear] = _in_order(layer, found)
    first = next(iter(group.values()))
    if first.inner:
        return LayerTensors({"ia3_l": first.scale.detach()[None]})
    rows = [group[name].scale.detach() if name in group else torch.ones(_size(base(name)), device=first.device)
            for name in layer.parts]  # fmt: skip
    return LayerTensors({"ia3_l": layer.fuse(rows)[:, None]})


def shapes(method: str, tensors: Mapping[str, Tensor], in_features: int, out_features: int) -> str | None:
    """What is wrong with the tensors of a layer with these numbers of features; None if they fit."""
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if empty := [name for name, tensor in tensors.items() if tensor.dim() == 0 or not tensor.numel()]:
        return f"{', '.join(sorted(empty))}: empty, or a single number"
    if method in ("lora", "dora"):
        rank = found.get("lora_A.weight", (0,))[0]
        wanted: dict[str, tuple[int, ...]]
        wanted = {"lora_A.weight": (rank, in_features), "lora_B.weight": (out_features, rank)}
        if method == "dora":
            wanted["lora_magnitude_vector"] = (out_features,)
    elif method == "loha":
        rank = found.get("hada_w1_b", (0,))[0]
        wanted = {f"hada_w{n}_{side}": (out_features, rank) if side == "a" else (rank, in_features)
                  for n in (1, 2) for side in "ab"}  # fmt: skip
    elif method == "ia3":
        scale = found.get("ia3_l", ())
        wanted = {"ia3_l": (1, in_features) if scale[:1] == (1,) else (out_features, 1)}
    elif method == "bottleneck":
        hidden = found.get("bottleneck_down_bias", (0,))[0]
        wanted = {"bottleneck_down": (hidden, out_features), "bottleneck_down_bias": (hidden,),
                  "bottleneck_up": (out_features, hidden), "bottleneck_up_bias": (out_features,)}  # fmt: skip
    else:
        return None  # LoKrLinear itself checks the sides of a Kronecker product.
    if found.keys() != wanted.keys():
        missing, more = sorted(wanted.keys() - found.keys()), sorted(found.keys() - wanted.keys())
        problems = [f"{', '.join(missing)}: missing"] if missing else []
        return "; ".join(problems + ([f"{', '.join(more)}: unexpected"] if more else []))
    wrong = [f"{name} {found[name]}, must be {wanted[name]}" for name in wanted if found[name] != wanted[name]]
    return f"{', '.join(wrong)}: wrong shape" if wrong else None


def read(
    layer: FileLayer, method: str, tensors: Mapping[str, Tensor], bases: Sequence[nn.Module], how: Mapping[str, Any]
) -> dict[str, AdapterLayer]:
    """Our adapter layers of a layer of the files by path; `how` holds scaling, dropout and LoKr's options."""
    sizes = [_size(base) for base in bases]
    scaling = how.get("scaling", 1.0)
    if method in ("lora", "dora"):
        return _read_lora(layer, method, tensors, bases, scaling, how.get("dropout", 0.0))
    made: dict[str, AdapterLayer] = {}
    if method == "loha":
        outer = [layer.cut(tensors[f"hada_w{n}_a"], sizes) for n in (1, 2)]
        rank = tensors["hada_w1_b"].shape[0]
        for name, base, a1, a2 in zip(layer.parts, bases, *outer, strict=True):
            # On the files' device; the model may have no weights (`inspect`).
            every = torch.ones(rank, dtype=torch.bool, device=a1.device)
            used = a1.ne(0).any(0) & a2.ne(0).any(0) if len(sizes) > 1 else every
            if used.any():
                loha = LoHaLinear(base, int(used.sum()), scaling * int(used.sum()))
                b1, b2 = (tensors[f"hada_w{n}_b"][used] for n in (1, 2))
                made[name] = _filled(loha, {"a1": a1[:, used], "b1": b1, "a2": a2[:, used], "b2": b2})
    elif method == "ia3":
        scale = tensors["ia3_l"]
        if scale.shape[0] == 1:
            made[layer.parts[0]] = _filled(IA3Linear(bases[0], inner=True), {"scale": scale[0]})
        else:
            for name, base, part in zip(layer.parts, bases, layer.cut(scale[:, 0], sizes), strict=True):
                made[name] = _filled(IA3Linear(base), {"scale": part})
    elif method == "bottleneck":
        own = {name.removeprefix("bottleneck_"): value for name, value in tensors.items()}
        made[layer.parts[0]] = _filled(BottleneckLinear(bases[0], len(own["down_bias"])), own)
    else:
        rank = how["rank"]
        lokr = LoKrLinear(
            bases[0],
            rank,
            scaling * rank,
            decompose_factor=how["decompose_factor"],
            decompose_both=how["decompose_both"],
        )
        made[layer.parts[0]] = _filled(lokr, {name.removeprefix("lokr_"): value for name, value in tensors.items()})
    return made


def _read_lora(
    layer: FileLayer,
    method: str,
    tensors: Mapping[str, Tensor],
    bases: Sequence[nn.Module],
    scaling: float,
    dropout: float,
) -> dict[str, AdapterLayer]:
    first, second = tensors["lora_A.weight"], tensors["lora_B.weight"]
    sizes = [_size(base) for base in bases]
    parts = _split(first, layer.cut(second, sizes))
    lengths = layer.cut(tensors["lora_magnitude_vector"], sizes) if method == "dora" else [None] * len(sizes)
    made: dict[str, AdapterLayer] = {}
    for name, base, (inner, outer), length in zip(layer.parts, bases, parts, lengths, strict=True):
        if length is not None:
            # A length may have changed where nothing else has.
            rank = max(1, inner.shape[0])
            inner = inner if inner.shape[0] else first.new_zeros(1, first.shape[1])
            outer = outer if outer.shape[1] else second.new_zeros(len(outer), 1)
            dora = DoRALinear(base, rank, scaling * rank, dropout)
            made[name] = _filled(dora, {"lora_A": inner, "lora_B": outer, "magnitude": length})
        elif inner.shape[0]:
            lora = LoRALinear(base, inner.shape[0], scaling * inner.shape[0], dropout)
            made[name] = _filled(lora, {"lora_A": inner, "lora_B": outer})
    return made


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
    """The layer with these values. Raises InputError where they are not those that it has."""
    own = layer.adapter_parameters()
    found, wanted = ({name: tuple(t.shape) for name, t in each.items()} for each in (tensors, own))
    if found != wanted:
        raise InputError(f"has the tensors {found}, the layer needs {wanted}")
    for name, tensor in tensors.items():
        own[name].copy_(tensor)
    return layer
