"""Applies adapters to a model, counts their parameters, and merges them; the settings choose the method."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from quatrain.adapters import bottleneck, ia3, prompts
from quatrain.adapters.bitfit import biases
from quatrain.adapters.bottleneck import BottleneckLinear
from quatrain.adapters.dora import DoRALinear
from quatrain.adapters.ia3 import IA3Linear
from quatrain.adapters.last_layers import last_layers
from quatrain.adapters.layer import AdapterLayer, adapter_layers, dequantized
from quatrain.adapters.loha import LoHaLinear
from quatrain.adapters.lokr import LoKrLinear
from quatrain.adapters.lora import LoRALinear
from quatrain.adapters.settings import AdapterSettings
from quatrain.adapters.targets import ALL_LINEAR, find_targets, near
from quatrain.adapters.trainable_tokens import merge_token_rows
from quatrain.compression.layer import QuantizedLinear
from quatrain.core.errors import InputError
from quatrain.models.modules import replace_module
from quatrain.models.transformer.stack import Model
from quatrain.models.transformer.trainable_tokens import PARTS
from quatrain.models.transformer.vocabulary import untie, untie_obstacle
from quatrain.planning.limits import check_bytes
from quatrain.tokenizers.tokenizer import Tokenizer

FEED_FORWARD_OUTPUT = "down_proj"
"""The output projection of a feed-forward network, whose input IA³ scales."""


def _lora(name: str, base: nn.Module, settings: AdapterSettings) -> AdapterLayer:
    layer = DoRALinear if settings.method == "dora" else LoRALinear
    return layer(base, settings.rank, settings.alpha, settings.dropout, use_rslora=settings.use_rslora)


def _last_layers(model: Model, settings: AdapterSettings) -> list[str]:
    _check_floats(model, [f"layers.{number}" for number in range(len(model.layers))][-settings.num_layers :])
    return last_layers(model, settings.num_layers)


LAYERS: dict[str, Callable[[str, nn.Module, AdapterSettings], AdapterLayer]] = {
    "lora": _lora,
    "dora": _lora,
    "loha": lambda name, base, settings: LoHaLinear(base, settings.rank, settings.alpha),
    "lokr": lambda name, base, settings: LoKrLinear(
        base,
        settings.rank,
        settings.alpha,
        decompose_factor=settings.decompose_factor,
        decompose_both=settings.decompose_both,
    ),
    "ia3": lambda name, base, settings: IA3Linear(base, inner=name.rpartition(".")[2] == FEED_FORWARD_OUTPUT),
    "bottleneck": lambda name, base, settings: BottleneckLinear(base, settings.bottleneck_dim),
}
"""Method -> constructor of its layer over a linear layer with a name."""
DEFAULT_TARGETS: dict[str, tuple[str, ...]] = {"ia3": ia3.TARGETS, "bottleneck": bottleneck.TARGETS}
"""Method -> default target modules, for methods whose default is not every linear layer."""
WEIGHTS: dict[str, Callable[[Model, AdapterSettings], list[str]]] = {
    "bitfit": lambda model, settings: biases(model),
    "last-layers": _last_layers,
}
"""Method -> the names of the model's own weights that it trains."""
REFUSED = "This adapter cannot be applied:"


def apply_adapter(
    model: Model, settings: AdapterSettings, seed: int = 0, *, tokenizer: Tokenizer | None = None
) -> list[str]:
    """Puts an adapter on a model and freezes everything else.

    Returns the paths of the adapted layers, or the names of the trained weights for methods without adapter layers.
    The same seed gives the same adapter. `tokenizer` encodes the `init_text` of a soft prompt. Raises InputError for
    target modules or modules to save that match nothing.
    """
    saved = modules_to_save(model, settings.modules_to_save)
    _check_floats(model, saved)
    if set(settings.modules_to_save) & set(PARTS):
        # As in PEFT, the embedding or the head trains and the other one keeps its values.
        if reason := untie_obstacle(model):
            raise InputError(REFUSED, [f"modules_to_save: {reason}; remove it"])
        untie(model)
    if settings.method in prompts.CLASSES:
        prompts.check(model, settings.method)
    model.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    trained: list[str] = []
    if settings.method in prompts.CLASSES:
        model.soft_prompt = prompts.make_prompt(model, settings, generator, tokenizer)
        changed = trained = [f"soft_prompt.{name}" for name, _ in model.soft_prompt.named_parameters()]
    elif settings.method in WEIGHTS:
        changed = trained = WEIGHTS[settings.method](model, settings)
    else:
        changed = _adapt_layers(model, settings, saved, generator)
    for name, parameter in model.named_parameters():
        if name in trained or _is_inside(name, saved):
            parameter.requires_grad_(True)
    return changed


def _adapt_layers(
    model: Model, settings: AdapterSettings, saved: Sequence[str], generator: torch.Generator
) -> list[str]:
    """Puts adapter layers over the target modules; returns their paths."""
    targets: str | Sequence[str] = DEFAULT_TARGETS.get(settings.method, ALL_LINEAR)
    names = find_targets(model, settings.target_modules or targets)
    both = [name for name in names if _is_inside(f"{name}.", saved)]
    if both:
        raise InputError(
            REFUSED,
            [f"modules_to_save: {name} is trained in full and would have an adapter too; remove it" for name in both],
        )
    _check_memory(model, settings, names)
    for name in names:
        layer = LAYERS[settings.method](name, model.get_submodule(name), settings)
        layer.reset_parameters(generator)
        replace_module(model, name, layer)
    return names


def _is_inside(name: str, modules: Sequence[str]) -> bool:
    return any(name.startswith(f"{module}.") for module in modules)


def _check_memory(model: Model, settings: AdapterSettings, names: Sequence[str]) -> None:
    """Raises InputError for a rank or width whose matrices do not fit in memory."""
    layers: list[Any] = [model.get_submodule(name) for name in names]
    features = sum(layer.in_features + layer.out_features for layer in layers)
    option = "bottleneck_dim" if settings.method == "bottleneck" else "rank"
    width = getattr(settings, option)
    matrices = {"lora": 1, "dora": 1, "loha": 2, "bottleneck": 1}.get(settings.method, 0)
    check_bytes(4 * matrices * width * features, f"An adapter of {option} {width:,}", "make it smaller", model.device)


def modules_to_save(model: Model, names: Sequence[str]) -> list[str]:
    """The paths of the modules that `names` match, by whole path or its end, and those of a newly initialized head.

    Raises InputError, with near names, for names that match no module.
    """
    known = [name for name, module in model.named_modules() if name and _has_weights(module)]
    paths = dict.fromkeys(name.rpartition(".")[0] for name in getattr(model, "newly_initialized", ()))
    problems = []
    for name in names:
        matching = [path for path in known if path == name or path.endswith(f".{name}")]
        if not matching:
            problems.append(f"modules_to_save: {name!r} names no module; did you mean {near(name, known)}?")
        paths.update(dict.fromkeys(matching))
    if problems:
        raise InputError(REFUSED, problems)
    return list(paths)


def _has_weights(module: nn.Module) -> bool:
    return any(True for _ in module.parameters()) or any(isinstance(each, QuantizedLinear) for each in module.modules())


def _check_floats(model: Model, modules: Sequence[str]) -> None:
    """Raises InputError for modules to be trained in full that contain quantized layers, which cannot be trained."""
    problems = [
        f"{name}: is quantized to {layer.method} and cannot be trained; put an adapter over it, or use a float base"
        for name, layer in model.named_modules()
        if isinstance(layer, QuantizedLinear) and _is_inside(f"{name}.", modules)
    ]
    if problems:
        raise InputError(REFUSED, problems[:10])


def fully_trained_parameters(model: Model) -> list[str]:
    """The names of the model's own weights that are trained, without adapters and single embedding rows."""
    own = {f"{name}.{each}" for name, layer in adapter_layers(model) for each in layer.adapter_parameters()}
    if model.trainable_tokens is not None:
        own |= {f"trainable_tokens.{name}" for name, _ in model.trainable_tokens.named_parameters()}
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad and name not in own]


def unmergeable_reason(model: Model) -> str | None:
    """The part of the model's adapter that cannot be merged into weights; None if all of it can."""
    if model.soft_prompt is not None:
        return "a soft prompt"
    if "lm_head" in dict(adapter_layers(model)) and untie_obstacle(model):
        return "an adapter over a head that is the embedding"
    return next((f"a {layer.method}" for _, layer in adapter_layers(model) if not layer.merges), None)


@contextmanager
def adapters_disabled(model: Model, *, dequantize: bool = True) -> Iterator[Model]:
    """A context in which the model has no adapters, soft prompt or trained token rows: the base model.

    A quantized base is converted to floats; without `dequantize` it stays as it is.
    """
    prompt, model.soft_prompt = model.soft_prompt, None
    rows, model.trainable_tokens = model.trainable_tokens, None
    layers = list(adapter_layers(model))
    for name, layer in layers:
        if dequantize:
            layer.base = dequantized(layer.base)
        replace_module(model, name, layer.base)
    try:
        yield model
    finally:
        model.soft_prompt, model.trainable_tokens = prompt, rows
        for name, layer in layers:
            replace_module(model, name, layer)


def merge_adapters(model: nn.Module) -> list[str]:
    """Merges every adapter into its base layer, in place, and makes all weights trainable; returns the layers' paths.

    Raises InputError for adapters that cannot be merged; the model is then unchanged.
    """
    merged = list(adapter_layers(model))
    for _, layer in merged:
        if not layer.merges:
            layer.merged_weight()
    if isinstance(model, Model):
        if any(name == "lm_head" for name, _ in merged):
            untie(model)  # The embedding keeps its values.
        merge_token_rows(model)
    for name, layer in merged:
        replace_module(model, name, layer.merge())
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    return [name for name, _ in merged]


def count_trainable_parameters(model: nn.Module) -> tuple[int, int, float]:
    """Trainable elements, all elements (quantized ones included, tied ones once), and their ratio in percent."""
    trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    total = sum(parameter.numel() for parameter in model.parameters())
    quantized = (module for module in model.modules() if isinstance(module, QuantizedLinear))
    total += sum(layer.in_features * layer.out_features for layer in quantized)
    return trainable, total, 100 * trainable / max(1, total)
