"""Sizes of models that are not the package's transformers: by formula from a configuration, or counted on the network.

Vision transformers (Dosovitskiy et al. 2021, arXiv 2010.11929) and Whisper (Radford et al. 2022, arXiv 2212.04356) are
counted by formula from the keys of their `config.json`. Classic networks are built without memory and counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from quatrain.core.errors import InputError
from quatrain.models import classic


@dataclass(frozen=True)
class Sizes:
    """Parameters by part, and what follows from them.

    `active` are the parameters that one token passes through. `flops` is a function from the length of the context to
    the operations of a forward pass for one `unit`; `cache` are the elements of the KV cache of a token, `state` the
    bytes that a text needs whatever its length.
    """

    parts: Mapping[str, int]
    active: int
    flops: Callable[[int], float]
    unit: str = "token"
    formula: str = ""
    context: int = 0
    cache: int = 0
    state: int = 0

    @property
    def parameters(self) -> int:
        """All parameters."""
        return sum(self.parts.values())


def sizes_of(config: Mapping[str, Any]) -> Sizes | None:
    """The sizes of a `config.json` by formula; None for a `model_type` without one.

    Raises InputError for a key that is missing.
    """
    formula = FORMULAS.get(str(config.get("model_type")))
    if formula is None:
        return None
    try:
        return formula(config)
    except KeyError as error:
        raise InputError(f"config.json of type {config['model_type']}: {error.args[0]}: missing") from None


def classic_sizes(config: Any) -> Sizes:
    """The sizes of a classic network. Raises InputError for one whose size follows from its data, such as an n-gram."""
    kind = classic.find(config.model_type)
    if kind is None:
        raise InputError(f"{config.model_type}: no such kind of model")
    try:
        with torch.device("meta"):
            network: Any = kind(config)
    except Exception as error:
        raise InputError(
            f"a model of type {config.model_type} cannot be counted from its configuration ({error})"
        ) from error
    parts: Counter[str] = Counter()
    for name, weight in network.named_parameters():
        parts[name.partition(".")[0]] += weight.numel()
    if not parts:
        raise InputError(f"a model of type {config.model_type} has the size of its data: train it, then inspect it.")
    state = network.state_bytes() if network.carries_state else 0
    total = sum(parts.values())
    return Sizes(
        dict(parts), total, lambda context: config.flops_per_token(training=False),
        formula="2 x weights of matrix products", state=state,
    )  # fmt: skip


def vit(config: Mapping[str, Any]) -> Sizes:
    """A vision transformer with a class token and learned positions; the unit is an image."""
    d, layers, f = config["hidden_size"], config["num_hidden_layers"], config["intermediate_size"]
    patch, image, channels = config["patch_size"], config["image_size"], config.get("num_channels", 3)
    classes = config.get("num_labels", 1000)
    patches = (image // patch) ** 2
    attention, feed_forward = 4 * d * d, 2 * d * f
    parts = {
        "patches and positions": channels * patch**2 * d + d + d + (patches + 1) * d,
        "attention": layers * (attention + 4 * d),
        "feed-forward": layers * (feed_forward + f + d),
        "norms": layers * 4 * d + 2 * d,
        "head": d * classes + classes,
    }
    tokens = patches + 1

    def flops(_: int) -> float:
        blocks = layers * tokens * (2 * (attention + feed_forward) + 4 * d * tokens)
        return float(2 * patches * channels * patch**2 * d + blocks + 2 * d * classes)

    total = sum(parts.values())
    return Sizes(parts, total, flops, "image", f"{tokens} tokens x layers x (2 N_layer + 4 D T)")


def whisper(config: Mapping[str, Any]) -> Sizes:
    """Whisper: two convolutions and an encoder over 30 s of sound, a decoder with a tied head. The unit is 30 s."""
    d, vocabulary = config["d_model"], config["vocab_size"]
    bands = config.get("num_mel_bins", 80)
    frames, targets = config.get("max_source_positions", 1500), config.get("max_target_positions", 448)
    encoder, decoder = config["encoder_layers"], config["decoder_layers"]
    attention = 4 * d * d + 3 * d  # keys have no bias

    def feed_forward(width: int) -> int:
        return 2 * d * width + width + d

    convolutions = 3 * bands * d + d + 3 * d * d + d
    layer = attention + feed_forward(config["encoder_ffn_dim"]) + 4 * d
    written = 2 * attention + feed_forward(config["decoder_ffn_dim"]) + 6 * d
    parts = {
        "convolutions": convolutions,
        "encoder": encoder * layer + frames * d + 2 * d,
        "decoder": decoder * written + targets * d + 2 * d,
        "embeddings": vocabulary * d,
    }

    def flops(_: int) -> float:
        sound = 2 * (2 * frames * 3 * bands * d + frames * 3 * d * d)
        blocks = encoder * frames * (2 * (4 * d * d + 2 * d * config["encoder_ffn_dim"]) + 4 * d * frames)
        return float(sound + blocks)

    total = sum(parts.values())
    cache = 2 * decoder * d
    return Sizes(parts, total, flops, "recording of 30 s", "the encoder's", targets, cache)


FORMULAS: dict[str, Callable[[Mapping[str, Any]], Sizes]] = {
    "vit": vit, "whisper": whisper,
}  # fmt: skip
"""The formula of each `model_type`."""
