"""LoRA: a frozen linear layer plus a trained product of two thin matrices (Hu et al. 2021, arXiv 2106.09685).

The layer is replaced in place, whatever it is (a plain linear, an int8 one), and given back by `merge`.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from quatrain.adaptation.token_rows import learned_rows, stop_learning_rows
from quatrain.errors import InputError
from quatrain.models.stack import Model

ALL_LINEAR = "all-linear"
HEAD = "lm_head"


class LoRASettings(Protocol):
    """What `apply` reads of the recipe's adapter settings."""

    rank: int
    alpha: float
    dropout: float

    @property
    def targets(self) -> str | Sequence[str]:
        """Names of linear layers, or "all-linear"."""
        ...


class LoRALinear(nn.Module):
    """base(x) + alpha / rank * B A x, for x (…, in_features); A (rank, in_features), B (out_features, rank).

    B starts at zero, so that the layer starts as its base; A as in PEFT, uniform within 1 / sqrt(in_features).
    A and B are kept in float32 whatever the base's dtype.
    """

    def __init__(self, base: nn.Module, rank: int, alpha: float, dropout: float = 0.0):
        super().__init__()
        self.base = base
        self.in_features: int = base.in_features  # type: ignore[assignment]
        self.out_features: int = base.out_features  # type: ignore[assignment]
        self.rank, self.alpha, self.dropout = rank, alpha, dropout
        self.scaling = alpha / rank
        device = next(tensor for tensor in (*base.parameters(), *base.buffers())).device
        self.lora_A = nn.Parameter(torch.zeros(rank, self.in_features, device=device))
        self.lora_B = nn.Parameter(torch.zeros(self.out_features, rank, device=device))

    @classmethod
    def from_linear(
        cls,
        linear: nn.Module,
        rank: int,
        alpha: float,
        dropout: float = 0.0,
        *,
        generator: torch.Generator | None = None,
    ) -> LoRALinear:
        """The adapted layer over a linear one, which is frozen. Raises InputError where the base is no linear layer."""
        if not is_linear(linear):
            raise InputError(f"LoRA goes over linear layers; {type(linear).__name__} is none.")
        layer = cls(linear, rank, alpha, dropout)
        linear.requires_grad_(False)
        bound = 1 / math.sqrt(layer.in_features)
        drawn = torch.empty(layer.lora_A.shape).uniform_(-bound, bound, generator=generator)
        with torch.no_grad():
            layer.lora_A.copy_(drawn)
        return layer

    def forward(self, x: Tensor) -> Tensor:
        result = self.base(x)
        inputs = x if torch.is_autocast_enabled(x.device.type) else x.to(self.lora_A.dtype)
        if self.dropout:
            inputs = F.dropout(inputs, self.dropout, self.training)
        # Scaled while it is thin, and added by the product itself: no pass over the wide output more than needed.
        thin = F.linear(inputs, self.lora_A) * self.scaling
        flat = result.reshape(-1, self.out_features)
        added = torch.addmm(flat.to(thin.dtype), thin.reshape(-1, self.rank), self.lora_B.t().to(thin.dtype))
        return added.view(result.shape).to(result.dtype)

    def delta(self) -> Tensor:
        """What the adapter adds to the weight (out_features, in_features), in float32."""
        return self.scaling * (self.lora_B.detach().float() @ self.lora_A.detach().float())

    @torch.no_grad()
    def merge(self) -> nn.Linear:
        """A plain linear layer that does the same. An int8 base becomes a float one: rounding it again would lose.

        A plain base is changed in place and is what comes back.
        """
        dequantize = getattr(self.base, "dequantize", None)
        linear: Any = dequantize() if dequantize is not None else self.base
        linear.weight.copy_((linear.weight.float() + self.delta()).to(linear.weight.dtype))
        merged: nn.Linear = linear.requires_grad_(True)
        return merged

    def extra_repr(self) -> str:
        return f"rank={self.rank}, alpha={self.alpha}, dropout={self.dropout}"


def is_linear(module: nn.Module) -> bool:
    """Whether a module maps (…, in_features) to (…, out_features) and is no adapter itself."""
    sizes = hasattr(module, "in_features") and hasattr(module, "out_features")
    return sizes and not isinstance(module, LoRALinear)


def linear_names(model: nn.Module) -> list[str]:
    """The paths of a model's linear layers, those inside adapters left out."""
    inside = tuple(f"{name}.base" for name, module in model.named_modules() if isinstance(module, LoRALinear))
    return [name for name, module in model.named_modules() if name and is_linear(module) and name not in inside]


def find_targets(model: Model, targets: str | Sequence[str]) -> list[str]:
    """The linear layers that the targets name: "all-linear" is all but the head.

    A target is the end of a path (`q_proj`, `mlp.up_proj`), a whole path, or a pattern with `*` for a whole path.
    Raises InputError with the nearest names for each target that matches nothing.
    """
    available = linear_names(model)
    if targets == ALL_LINEAR or tuple(targets) == (ALL_LINEAR,):
        return [name for name in available if name != HEAD]
    wanted = (targets,) if isinstance(targets, str) else tuple(targets)
    chosen: dict[str, None] = {}
    problems = []
    for target in wanted:
        found = [name for name in available if _matches(name, target)]
        if not found:
            short = sorted({name.rpartition(".")[2] for name in available})
            near = difflib.get_close_matches(target, [*short, *available], 3, cutoff=0.5) or short
            problems.append(f"targets: {target!r} names no linear layer; did you mean {', '.join(near)}?")
        chosen.update(dict.fromkeys(found))
    if HEAD in chosen and model.config.tie_word_embeddings:
        problems.append(
            f"targets: {HEAD} shares its weight with the embedding, which an adapter would change; remove it"
        )
    if not wanted:
        problems.append(f'targets: empty; name layers, or say "{ALL_LINEAR}"')
    if problems:
        raise InputError("This adapter cannot be applied:", problems)
    return [name for name in available if name in chosen]


def _matches(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}") or fnmatchcase(name, target)


def apply(model: Model, settings: LoRASettings, seed: int = 0) -> list[str]:
    """Puts LoRA over the layers that the settings target and freezes everything else; returns the layers' paths.

    The same seed gives the same adapter. Raises InputError for targets that match nothing.
    """
    names = find_targets(model, settings.targets)
    generator = torch.Generator().manual_seed(seed)
    model.requires_grad_(False)
    for name in names:
        layer = LoRALinear.from_linear(
            model.get_submodule(name), settings.rank, settings.alpha, settings.dropout, generator=generator
        )
        replace_module(model, name, layer)
    return names


def adapters(model: nn.Module) -> Iterator[tuple[str, LoRALinear]]:
    """The adapted layers of a model by path."""
    yield from ((name, module) for name, module in model.named_modules() if isinstance(module, LoRALinear))


def merge_all(model: nn.Module) -> list[str]:
    """Merges every adapter into its base, in place; all weights train again. Returns the merged layers' paths."""
    merged = list(adapters(model))
    if isinstance(model, Model):
        stop_learning_rows(model)
    for name, layer in merged:
        replace_module(model, name, layer.merge())
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    return [name for name, _ in merged]


def replace_module(model: nn.Module, name: str, module: nn.Module) -> None:
    """Puts a module at a path of the model, in the mode (training or not) of the model."""
    owner, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(owner), leaf, module.train(model.training))


def trainable_report(model: nn.Module) -> tuple[int, int, float]:
    """Elements that train, all of them (int8 weights too, tied ones once), and the former in percent of the latter."""
    trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    if isinstance(model, Model) and (rows := learned_rows(model)):
        weight = model.embed_tokens.weight
        trainable += (len(rows) - weight.shape[0]) * weight.shape[1]
    total = sum(parameter.numel() for parameter in model.parameters())
    total += sum(buffer.numel() for buffer in model.buffers() if buffer.dtype == torch.int8)
    return trainable, total, 100 * trainable / max(1, total)


def adapter_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The adapters' own tensors by our names, as a checkpoint holds them."""
    return {
        f"{name}.{kind}": getattr(layer, kind).detach()
        for name, layer in adapters(model)
        for kind in ("lora_A", "lora_B")
    }


def load_adapter_tensors(model: nn.Module, tensors: Mapping[str, Any]) -> None:
    """Puts back what `adapter_tensors` gave. Raises InputError where names or shapes differ."""
    ours = adapter_tensors(model)
    problems = [f"{name}: missing" for name in ours if name not in tensors]
    problems += [f"{name}: unexpected" for name in tensors if name not in ours]
    problems += [
        f"{name}: has shape {tuple(tensors[name].shape)}, the adapter {tuple(tensor.shape)}"
        for name, tensor in ours.items()
        if name in tensors and tensors[name].shape != tensor.shape
    ]
    if problems:
        raise InputError("These adapter weights do not fit the adapters of the model:", problems)
    for name, tensor in ours.items():
        tensor.copy_(tensors[name])
