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
from quatrain.adapters.settings import PROMPTS, AdapterSettings
from quatrain.adapters.targets import ALL_LINEAR, find_targets, near
from quatrain.adapters.trainable_tokens import merge_token_rows
from quatrain.compression.layer import QuantizedLinear
from quatrain.core.errors import InputError
from quatrain.models.modules import replace_module
from quatrain.models.transformer.soft_prompts import SoftPrompt
from quatrain.models.transformer.stack import Model
from quatrain.models.transformer.trainable_tokens import PARTS
from quatrain.models.transformer.vocabulary import untie, untie_obstacle
from quatrain.planning.limits import check_bytes
from quatrain.tokenizers.tokenizer import Tokenizer

INNER = "down_proj"
"""The projection out of a feed-forward part, whose input IA³ scales."""


def _lora(name: str, base: nn.Module, settings: AdapterSettings) -> AdapterLayer:
    kind = DoRALinear if settings.method == "dora" else LoRALinear
    return kind(base, settings.rank, settings.alpha, settings.dropout, use_rslora=settings.use_rslora)


OVER_LINEAR: dict[str, Callable[[str, nn.Module, AdapterSettings], AdapterLayer]] = {
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
    "ia3": lambda name, base, settings: IA3Linear(base, inner=name.rpartition(".")[2] == INNER),
    "bottleneck": lambda name, base, settings: BottleneckLinear(base, settings.bottleneck_dim),
}
"""Method -> constructor of its layer over a linear layer."""
DEFAULT_TARGETS: dict[str, tuple[str, ...]] = {"ia3": ia3.TARGETS, "bottleneck": bottleneck.TARGETS}
"""Method -> default target modules, for methods whose default is not every linear layer."""


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
            raise InputError("This adapter cannot be applied:", [f"modules_to_save: {reason}; remove it"])
        untie(model)
    if settings.method in PROMPTS:
        prompts.check(model, settings.method)
    model.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    if settings.method in PROMPTS:
        model.soft_prompt = _prompt(model, settings, generator, tokenizer)
        changed = [f"soft_prompt.{name}" for name, _ in model.soft_prompt.named_parameters()]
    elif settings.method == "bitfit":
        changed = biases(model)
    elif settings.method == "last-layers":
        _check_floats(model, [f"layers.{number}" for number in range(len(model.layers))][-settings.num_layers :])
        changed = last_layers(model, settings.num_layers)
    else:
        usual: str | tuple[str, ...] = DEFAULT_TARGETS.get(settings.method, ALL_LINEAR)
        changed = find_targets(model, settings.target_modules or usual)
        under = [name for name in changed if any(name == part or name.startswith(f"{part}.") for part in saved)]
        if under:
            raise InputError(
                "This adapter cannot be applied:",
                [f"modules_to_save: {name} learns whole, and would have an adapter too; remove it" for name in under],
            )
        _check_room(model, settings, changed)
        for name in changed:
            layer = OVER_LINEAR[settings.method](name, model.get_submodule(name), settings)
            layer.reset_parameters(generator)
            replace_module(model, name, layer)
    learned = set() if changed and settings.method in OVER_LINEAR else set(changed)
    for name, parameter in model.named_parameters():
        if name in learned or any(name.startswith(f"{part}.") for part in saved):
            parameter.requires_grad_(True)
    return changed


def _check_room(model: Model, settings: AdapterSettings, changed: Sequence[str]) -> None:
    """Refuse ranks and widths whose matrices beside the layers cannot be held."""
    layers: list[Any] = [model.get_submodule(name) for name in changed]
    sides = sum(layer.in_features + layer.out_features for layer in layers if hasattr(layer, "in_features"))
    width = {
        "lora": settings.rank,
        "dora": settings.rank,
        "loha": 2 * settings.rank,
        "bottleneck": settings.bottleneck_dim,
    }
    size = 4 * width.get(settings.method, 0) * sides
    name = "bottleneck_dim" if settings.method == "bottleneck" else "rank"
    check_bytes(size, f"An adapter of {name} {getattr(settings, name):,}", SMALLER, model.device)


SMALLER = "make it smaller"


def _prompt(
    model: Model, settings: AdapterSettings, generator: torch.Generator, tokenizer: Tokenizer | None
) -> SoftPrompt:
    """The soft prompt of the settings, initialized."""
    width, device = model.embed_tokens.embedding_dim, model.device
    hidden, config = settings.bottleneck_dim, model.config
    wide = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
    elements = {
        "prefix": settings.num_virtual_tokens * wide + hidden * wide,
        "p-tuning": (hidden or width) * (2 * width + (hidden or width)),
        "prompt": settings.num_virtual_tokens * width,
    }[settings.method]
    asked = f"A {settings.method} of num_virtual_tokens {settings.num_virtual_tokens:,} and bottleneck_dim {hidden:,}"
    check_bytes(4 * elements, asked, SMALLER, device)
    if settings.method == "prefix":
        prefix = prompts.PrefixTuning(settings.num_virtual_tokens, model.config, settings.bottleneck_dim, device)
        prefix.reset_parameters(generator)
        return prefix
    if settings.method == "p-tuning":
        prompt: prompts.PromptTuning = prompts.PTuning(
            settings.num_virtual_tokens, width, settings.bottleneck_dim or width, device
        )
    else:
        prompt = prompts.PromptTuning(settings.num_virtual_tokens, width, device)
    prompt.reset_parameters(generator)
    if settings.init_text is not None:
        if tokenizer is None:
            raise InputError("init_text: needs a tokenizer to read it, and there is none; leave init_text out.")
        prompt.init_from_tokens(model.embed_tokens.weight, tokenizer.encode(settings.init_text))
    return prompt


def modules_to_save(model: Model, names: Sequence[str]) -> list[str]:
    """The paths of the modules that `names` match, by whole path or its end, and those of a newly initialized head.

    Raises InputError, with near names, for names that match no module.
    """
    known = [name for name, module in model.named_modules() if name and _has_weights(module)]
    found = dict.fromkeys(name.rpartition(".")[0] for name in getattr(model, "newly_initialized", ()))
    problems = []
    for wanted in names:
        matching = [name for name in known if name == wanted or name.endswith(f".{wanted}")]
        if not matching:
            problems.append(f"modules_to_save: {wanted!r} names no module; did you mean {near(wanted, known)}?")
        found.update(dict.fromkeys(matching))
    if problems:
        raise InputError("This adapter cannot be applied:", problems)
    return list(found)


def _has_weights(module: nn.Module) -> bool:
    return any(True for _ in module.parameters()) or any(isinstance(each, QuantizedLinear) for each in module.modules())


def _check_floats(model: Model, whole: Sequence[str]) -> None:
    """Raises InputError for modules to be trained in full that contain quantized layers, which cannot be trained."""
    held = [
        f"{name}: is quantized to {layer.method} and cannot be trained; put an adapter over it, or use a float base"
        for name, layer in model.named_modules()
        if isinstance(layer, QuantizedLinear) and any(f"{name}.".startswith(f"{part}.") for part in whole)
    ]
    if held:
        raise InputError("This adapter cannot be applied:", held[:10])


def fully_trained_parameters(model: Model) -> list[str]:
    """The names of the model's own weights that are trained, without adapters and single embedding rows."""
    own = {f"{name}.{each}" for name, layer in adapter_layers(model) for each in layer.adapter_parameters()}
    if model.trainable_tokens is not None:
        own |= {f"trainable_tokens.{name}" for name, _ in model.trainable_tokens.named_parameters()}
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad and name not in own]


def unmergeable_reason(model: Model) -> str | None:
    """What of the model's adapter cannot be merged into weights; None if all of it can."""
    if model.soft_prompt is not None:
        return "a soft prompt"
    if "lm_head" in dict(adapter_layers(model)) and untie_obstacle(model):
        return "an adapter over a head that is the embedding"
    return next((f"a {layer.method}" for _, layer in adapter_layers(model) if not layer.merges), None)


@contextmanager
def adapters_disabled(model: Model) -> Iterator[Model]:
    """A context in which the model has no adapters, soft prompt or trained token rows: the base model in float."""
    prompt, model.soft_prompt = model.soft_prompt, None
    rows, model.trainable_tokens = model.trainable_tokens, None
    found = list(adapter_layers(model))
    for name, layer in found:
        layer.base = dequantized(layer.base)
        replace_module(model, name, layer.base)
    try:
        yield model
    finally:
        model.soft_prompt, model.trainable_tokens = prompt, rows
        for name, layer in found:
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
