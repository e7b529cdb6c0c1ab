"""Refuses what this machine's memory cannot hold, from sizes alone and before anything is allocated.

The sizes are lower bounds: what is refused here could not have worked. What passes may still be too large;
`quatrain plan` estimates the whole (`planning.training_memory`), and `quatrain check` measures some steps.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

import torch

from quatrain.core.errors import InputError
from quatrain.core.wording import format_bytes
from quatrain.models.transformer.cache_forms import kv_bytes
from quatrain.models.transformer.config import ModelConfig
from quatrain.models.transformer.recurrence import state_bytes
from quatrain.planning.machine import available_memory

LARGEST_MODEL = 2**58
"""More weights than this are refused: their bytes would come close to the limit of 64 bits."""

LAYER_BYTES = 100_000
"""Memory of a layer's Python modules, without their weights."""

UNCHECKED_GENERATION = 64 * 1024 * 1024
"""Bytes that a generation may take without asking the system how much memory is free."""

_estimating: ContextVar[bool] = ContextVar("estimating", default=False)


@contextlib.contextmanager
def estimating() -> Iterator[None]:
    """Nothing is refused inside this context: its tensors have shapes and no memory."""
    token = _estimating.set(True)
    try:
        yield
    finally:
        _estimating.reset(token)


def is_estimating() -> bool:
    """Whether tensors have shapes and no values, so that what depends on values is assumed to be even."""
    return _estimating.get()


def check_bytes(size: int, what: str, remedy: str, device: torch.device | str = "cpu") -> None:
    """Raise InputError if `size` bytes are more than the device has free.

    The message names what needs the memory (`what`) and ends with the `remedy`.
    """
    if _estimating.get() or torch.device(device).type == "meta":
        return
    free = available_memory(device)
    if free is not None and size > free:
        raise InputError(
            f"{what} takes at least {format_bytes(size)}, and this machine has {format_bytes(free)} left; {remedy}"
        )


def check_weights(config: ModelConfig, bits: int = 32, device: torch.device | str = "cpu") -> None:
    """Raise InputError if the weights of a model of this shape, at `bits` each, do not fit."""
    layers = config.num_hidden_layers + (config.num_encoder_layers if config.architecture == "encoder-decoder" else 0)
    elements = least_parameters(config)
    if elements >= LARGEST_MODEL:
        raise InputError(f"A model of at least {elements:,} weights is too large to estimate.")
    check_bytes(
        elements * bits // 8 + (layers * LAYER_BYTES if torch.device(device).type == "cpu" else 0),
        f"This model ({elements:,} weights: num_hidden_layers {config.num_hidden_layers:,}, hidden_size "
        f"{config.hidden_size:,}, intermediate_size {config.intermediate_size:,}, vocab_size {config.vocab_size:,})",
        "make it smaller, or read it quantized",
        device,
    )


def least_parameters(config: ModelConfig) -> int:
    """Counts the elements of a model's embeddings and matrices, without biases and norms: a little less than all."""
    hidden, width = config.hidden_size, config.embedding_size or config.hidden_size
    tables = config.num_hidden_layers * config.layer_embedding_size * (config.layer_vocab_size or config.vocab_size)
    tables += config.vocab_size * width + (2 * width * hidden if width != hidden else 0)
    if config.position in ("learned", "sinusoidal"):
        tables += config.max_position_embeddings * min(hidden, width)
    layers = _stack(config)
    if config.architecture == "encoder-decoder":
        layers += _stack(config.encoder) + config.num_hidden_layers * _attention(config)
    return tables + layers


def _attention(config: ModelConfig) -> int:
    """Elements of the projections of a layer's attention, or the least that a recurrent layer has."""
    if not config.attends:
        return 3 * config.hidden_size * config.recurrent_heads * config.recurrent_head_dim
    if (latent := config.latent) is not None:
        hidden, heads, rank = config.hidden_size, config.num_attention_heads, latent.query_rank
        queries = rank * (hidden + heads * config.head_dim) if rank else hidden * heads * config.head_dim
        stored = hidden * (latent.kv_rank + latent.rope_dim)
        projected = latent.kv_rank * heads * (latent.nope_dim + latent.value_dim)
        return queries + stored + projected + heads * latent.value_dim * hidden
    query, kv = (heads * config.head_dim for heads in (config.num_attention_heads, config.num_key_value_heads))
    if config.shared_kv_layers or config.full_key_value_heads:  # The least of any layer.
        kv = 0
    return config.hidden_size * 2 * (query + kv)


def _stack(config: ModelConfig) -> int:
    matrices = {"gated": 3, "plain": 2, "none": 0}[config.feed_forward]
    layers, experts, dense = config.num_blocks, config.experts, config.num_blocks
    widths = 0
    if experts is not None:
        dense = sum(layer < layers for layer in set(experts.dense_layers))
        of_layer = experts.num_experts * experts.intermediate_size + experts.shared_intermediate_size
        widths = (layers - dense) * of_layer
        dense = layers if experts.beside_dense else dense
    return layers * _attention(config) + matrices * config.hidden_size * (widths + dense * config.intermediate_size)


def fits(size: int, device: torch.device | str = "cpu") -> bool:
    """Whether the device has `size` more bytes for a generation; small sizes are not compared with what is free."""
    if size <= UNCHECKED_GENERATION:
        return True
    free = available_memory(device)
    return free is None or size <= free


def check_tokens(rows: int, length: int, what: str) -> None:
    """Raise InputError if the ids and labels of a batch alone do not fit."""
    check_bytes(16 * rows * length, f"{what} of {rows:,} rows of {length:,} tokens", "make it smaller")


def check_step(config: ModelConfig, tokens: int, device: torch.device | str = "cpu") -> None:
    """Raise InputError if a micro-batch of so many tokens does not fit.

    Counts ids, labels and the input of each layer in two bytes: the least that any training keeps.
    """
    check_bytes(
        tokens * (16 + 2 * config.num_hidden_layers * config.hidden_size),
        f"A part of a step of {tokens:,} tokens (train.batch_tokens over train.accumulation)",
        "make train.batch_tokens smaller, or train.accumulation larger",
        device,
    )


def check_training(
    config: ModelConfig, *, weights: int, trained: int, states: int, tokens: int, device: torch.device | str = "cpu"
) -> None:
    """Raise InputError if a training step does not fit.

    `weights` and `states` are the bytes of the model and of the optimizer states on the device, `trained` the number of
    elements with a float32 gradient, `tokens` the tokens of a micro-batch.
    """
    what, remedy = "A step (weights, gradients and optimizer states)", "make the model smaller, or train an adapter"
    check_bytes(weights + 4 * trained + states, what, remedy, device)
    check_step(config, tokens, device)


def check_generation(
    config: ModelConfig, *, prompts: int, beams: int, prompt_tokens: int, new_tokens: int, virtual_tokens: int = 0,
    cache_dtype: str = "float32", device: torch.device | str = "cpu",
) -> None:  # fmt: skip
    """Raise InputError if the KV cache, scores and ids of a batch of generations do not fit.

    Position biases of the prompt, which grow with the square of its length, are included.
    Each of `prompts` * `beams` sequences has `virtual_tokens` of a soft prompt, `prompt_tokens` and up to `new_tokens`
    generated tokens; the cache is stored in `cache_dtype` (`cache_forms.row_bytes`).
    """
    width = virtual_tokens + prompt_tokens + new_tokens
    cache = kv_bytes(config, width, cache_dtype, windows=2) + state_bytes(config)
    biases = 0
    if config.position in ("relative", "alibi"):  # a distance and each head's bias for every pair of tokens
        biases = (width - new_tokens) ** 2 * (2 * 8 + 4 * config.num_attention_heads)
    size = prompts * beams * (cache + 3 * 4 * config.vocab_size + 3 * 12 * new_tokens) + biases
    if size <= UNCHECKED_GENERATION:
        return
    free = available_memory(device)
    if free is None or size <= free:
        return
    what = f"{prompts:,} prompt{'s' * (prompts > 1)} at once" + (f", {beams:,} beams each" if beams > 1 else "")
    raise InputError(
        f"This generation needs about {format_bytes(size)} ({what}, up to {new_tokens:,} new tokens after "
        f"{prompt_tokens:,}) and {format_bytes(free)} are free: lower max_new_tokens, num_beams or the batch size, or "
        "shorten the prompt."
    )
