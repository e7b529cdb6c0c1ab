"""Whether what is asked for can be held by this machine, reckoned from sizes alone before anything is allocated.

The numbers are lower bounds: what is refused here could not have worked. What is let through may still be too much,
which `quatrain check` and `quatrain plan` say more exactly.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import TYPE_CHECKING

import torch

from quatrain.core.errors import InputError
from quatrain.core.wording import format_bytes
from quatrain.planning.machine import available_memory

if TYPE_CHECKING:
    from quatrain.models.transformer.config import ModelConfig

LARGEST_MODEL = 2**58
"""Weights whose bytes are counted in 64 bits with room to spare: a million terabytes."""

LAYER_BYTES = 100_000
"""What the modules of a layer take beside their weights."""

_estimating: ContextVar[bool] = ContextVar("estimating", default=False)


@contextlib.contextmanager
def estimating() -> Iterator[None]:
    """Within, nothing is refused: tensors have shapes and no memory."""
    token = _estimating.set(True)
    try:
        yield
    finally:
        _estimating.reset(token)


def check_bytes(size: int, what: str, remedy: str, device: torch.device | str = "cpu") -> None:
    """Raise InputError where `size` bytes are more than a device has left.

    `what` needs them, and `remedy` says what makes it less.
    """
    if _estimating.get() or torch.device(device).type == "meta":
        return
    there = available_memory(device)
    if there is not None and size > there:
        raise InputError(
            f"{what} takes at least {format_bytes(size)}, and this machine has {format_bytes(there)} left; {remedy}"
        )


def check_weights(config: ModelConfig, bits: int = 32, device: torch.device | str = "cpu") -> None:
    """Raise InputError where the weights of a model of this shape, at `bits` each, cannot be held."""
    layers = config.num_hidden_layers + (config.num_encoder_layers if config.architecture == "encoder-decoder" else 0)
    elements = least_parameters(config)
    if elements >= LARGEST_MODEL:
        raise InputError(f"A model of at least {elements:,} weights is larger than anything that can be reckoned.")
    check_bytes(
        elements * bits // 8 + (layers * LAYER_BYTES if torch.device(device).type == "cpu" else 0),
        f"This model ({elements:,} weights: num_hidden_layers {config.num_hidden_layers:,}, hidden_size "
        f"{config.hidden_size:,}, intermediate_size {config.intermediate_size:,}, vocab_size {config.vocab_size:,})",
        "make it smaller, or read it quantized",
        device,
    )


def least_parameters(config: ModelConfig) -> int:
    """The elements of the tables and matrices of a model, without biases and norms: a little less than all."""
    hidden, width = config.hidden_size, config.embedding_size or config.hidden_size
    tables = config.vocab_size * width + (2 * width * hidden if width != hidden else 0)
    if config.position in ("learned", "sinusoidal"):
        tables += config.max_position_embeddings * hidden
    layers = _stack(config)
    if config.architecture == "encoder-decoder":
        layers += _stack(config.encoder) + config.num_hidden_layers * _attention(config)
    return tables + layers


def _attention(config: ModelConfig) -> int:
    query, kv = (heads * config.head_dim for heads in (config.num_attention_heads, config.num_key_value_heads))
    return config.hidden_size * 2 * (query + kv)


def _stack(config: ModelConfig) -> int:
    parts = 3 if config.feed_forward == "gated" else 2
    return config.num_hidden_layers * (_attention(config) + parts * config.hidden_size * config.intermediate_size)


def check_tokens(rows: int, length: int, what: str) -> None:
    """Raise InputError where the ids and labels of a batch alone cannot be held."""
    check_bytes(16 * rows * length, f"{what} of {rows:,} rows of {length:,} tokens", "make it smaller")


def check_step(config: ModelConfig, tokens: int, device: torch.device | str = "cpu") -> None:
    """Raise InputError where a part of a training step of so many tokens cannot be held.

    What is counted is the input of each layer in two bytes, which every way of training keeps.
    """
    check_bytes(
        tokens * (16 + 2 * config.num_hidden_layers * config.hidden_size),
        f"A part of a step of {tokens:,} tokens (train.batch_tokens over train.accumulation)",
        "make train.batch_tokens smaller, or train.accumulation larger",
        device,
    )
