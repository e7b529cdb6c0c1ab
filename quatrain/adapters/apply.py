"""Adapters put on a model, counted, and merged into it: one word chooses the method."""

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
from quatrain.adapters.layer import Adapted, adapters, plain, replace_module
from quatrain.adapters.loha import LoHaLinear
from quatrain.adapters.lokr import LoKrLinear
from quatrain.adapters.lora import LoRALinear
from quatrain.adapters.settings import PROMPTS, AdapterSettings
from quatrain.adapters.targets import ALL_LINEAR, find_targets, near
from quatrain.adapters.trainable_tokens import stop_learning_rows
from quatrain.compression.layer import QuantizedLinear
from quatrain.core.errors import InputError
from quatrain.models.transformer.soft_prompts import SoftPrompt
from quatrain.models.transformer.stack import Model
from quatrain.models.transformer.trainable_tokens import PARTS
from quatrain.models.transformer.vocabulary import cannot_untie, untie
from quatrain.planning.limits import check_bytes
from quatrain.tokenizers.tokenizer import Tokenizer

INNER = "down_proj"
"""The projection out of a feed-forward part, whose input IA³ scales."""


def _lora(name: str, base: nn.Module, settings: AdapterSettings) -> Adapted:
    kind = DoRALinear if settings.method == "dora" else LoRALinear
    return kind(base, settings.rank, settings.alpha, settings.dropout, use_rslora=settings.use_rslora)


OVER_LINEAR: dict[str, Callable[[str, nn.Module, AdapterSettings], Adapted]] = {
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
"""Method -> what makes its layer over a linear one."""
USUAL: dict[str, tuple[str, ...]] = {"ia3": ia3.TARGETS, "bottleneck": bottleneck.TARGETS}
"""Method -> its layers where none are named, if that is not all of them."""


def apply(model: Model, settings: AdapterSettings, seed: int = 0, *, tokenizer: Tokenizer | None = None) -> list[str]:
    """Puts an adapter on a model and freezes everything else; returns what changed: the paths of adapted layers, or the
    names of the weights that learn.

    The same seed gives the same adapter. `tokenizer` reads the `text` of a soft prompt. Raises InputError for targets
    or parts that match nothing.
    """
    saved = parts(model, settings.modules_to_save)
    _check_floats(model, saved)
    if set(settings.modules_to_save) & set(PARTS):
        # As PEFT has it: the embedding or the head learns, and the other stays what it was.
        if reason := cannot_untie(model):
            raise InputError("This adapter cannot be applied:", [f"modules_to_save: {reason}; remove it"])
        untie(model)
    if settings.method in PROMPTS:
        prompts.check(model, settings.method)
    model.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    if settings.method in PROMPTS:
        model.prompt = _prompt(model, settings, generator, tokenizer)
        changed = [f"prompt.{name}" for name, _ in model.prompt.named_parameters()]
    elif settings.method == "bitfit":
        changed = biases(model)
    elif settings.method == "last-layers":
        _check_floats(model, [f"layers.{number}" for number in range(len(model.layers))][-settings.num_layers :])
        changed = last_layers(model, settings.num_layers)
    else:
        usual: str | tuple[str, ...] = USUAL.get(settings.method, ALL_LINEAR)
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
            layer.draw(generator)
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
    """The soft prompt that the settings ask for."""
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
        prefix.draw(generator)
        return prefix
    if settings.method == "p-tuning":
        found: prompts.PromptTuning = prompts.PTuning(
            settings.num_virtual_tokens, width, settings.bottleneck_dim or width, device
        )
    else:
        found = prompts.PromptTuning(settings.num_virtual_tokens, width, device)
    found.draw(generator)
    if settings.init_text is not None:
        if tokenizer is None:
            raise InputError("init_text: needs a tokenizer to read it, and there is none; leave init_text out.")
        found.begin_as(model.embed_tokens.weight, tokenizer.encode(settings.init_text))
    return found


def parts(model: Model, wanted: Sequence[str]) -> list[str]:
    """The paths of the parts that these name, by whole paths or their ends, with those of a head that is fresh.

    Raises InputError with near names for what names no part.
    """
    known = [name for name, module in model.named_modules() if name and _has_weights(module)]
    found = dict.fromkeys(name.rpartition(".")[0] for name in getattr(model, "newly_initialized", ()))
    problems = []
    for want in wanted:
        matching = [name for name in known if name == want or name.endswith(f".{want}")]
        if not matching:
            problems.append(f"modules_to_save: {want!r} names no part; did you mean {near(want, known)}?")
        found.update(dict.fromkeys(matching))
    if problems:
        raise InputError("This adapter cannot be applied:", problems)
    return list(found)


def _has_weights(module: nn.Module) -> bool:
    return any(True for _ in module.parameters()) or any(isinstance(each, QuantizedLinear) for each in module.modules())


def _check_floats(model: Model, whole: Sequence[str]) -> None:
    """Raises InputError where parts that are to learn whole hold layers in few bits, which cannot."""
    held = [
        f"{name}: is held in {layer.method} and cannot learn; take an adapter over it, or a base in floats"
        for name, layer in model.named_modules()
        if isinstance(layer, QuantizedLinear) and any(f"{name}.".startswith(f"{part}.") for part in whole)
    ]
    if held:
        raise InputError("This adapter cannot be applied:", held[:10])


def learned_whole(model: Model) -> list[str]:
    """The names of the model's own weights that learn, beside adapters and single rows of an embedding."""
    own = {f"{name}.{each}" for name, layer in adapters(model) for each in layer.own()}
    if model.trainable_tokens is not None:
        own |= {f"trainable_tokens.{name}" for name, _ in model.trainable_tokens.named_parameters()}
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad and name not in own]


def unmergeable(model: Model) -> str | None:
    """What of a model's adapter is no weight, so that it cannot be merged; None where all of it can."""
    if model.prompt is not None:
        return "a soft prompt"
    if "lm_head" in dict(adapters(model)) and cannot_untie(model):
        return "an adapter over a head that is the embedding"
    return next((f"a {layer.method}" for _, layer in adapters(model) if not layer.merges), None)


@contextmanager
def taken_off(model: Model) -> Iterator[Model]:
    """The model without its adapters, soft prompt and learned rows, which come back: its base as floats, every weight
    of it.
    """
    prompt, model.prompt = model.prompt, None
    rows, model.trainable_tokens = model.trainable_tokens, None
    found = list(adapters(model))
    for name, layer in found:
        layer.base = plain(layer.base)
        replace_module(model, name, layer.base)
    try:
        yield model
    finally:
        model.prompt, model.trainable_tokens = prompt, rows
        for name, layer in found:
            replace_module(model, name, layer)


def merge_all(model: nn.Module) -> list[str]:
    """Merges every adapter into its base, in place; all weights train again. Returns the merged layers' paths.

    Raises InputError for adapters that are no weights; the model is then as before.
    """
    merged = list(adapters(model))
    for _, layer in merged:
        if not layer.merges:
            layer.merged()
    if isinstance(model, Model):
        if any(name == "lm_head" for name, _ in merged):
            untie(model)  # the embedding stays what it was
        stop_learning_rows(model)
    for name, layer in merged:
        replace_module(model, name, layer.merge())
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    return [name for name, _ in merged]


def trainable_report(model: nn.Module) -> tuple[int, int, float]:
    """Elements that train, all of them (quantized too, tied ones once), and the former in percent of the latter."""
    trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    total = sum(parameter.numel() for parameter in model.parameters())
    quantized = (module for module in model.modules() if isinstance(module, QuantizedLinear))
    total += sum(layer.in_features * layer.out_features for layer in quantized)
    return trainable, total, 100 * trainable / max(1, total)
