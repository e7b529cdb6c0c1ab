"""Whether what a generation asks for fits into the machine's memory, asked before anything is allocated."""

from __future__ import annotations

from collections.abc import Sequence

from quatrain.core.errors import InputError
from quatrain.core.wording import format_bytes
from quatrain.generation.decoding import Stream
from quatrain.models.transformer.stack import Model
from quatrain.planning.machine import available_memory

UNASKED = 64 * 1024 * 1024
"""Bytes that are taken without looking at what the machine has left."""


def needed(model: Model, rows: int, width: int, new: int) -> int:
    """Bytes for `rows` sequences of `width` tokens, of which `new` are generated: keys and values, scores, and ids.

    Where positions are biases, those of the prompt too, which grow with the square of its length.
    """
    config = model.config
    windows = [config.sliding_window if kind == "sliding" else None for kind in config.layer_types]
    slots = sum(width if not window else min(width, 2 * window) for window in windows)
    item = model.embed_tokens.weight.element_size()
    keys_and_values = 2 * slots * config.num_key_value_heads * config.head_dim * item
    biases = 0
    if config.position in ("relative", "alibi"):  # a distance and each head's bias for every pair of tokens
        biases = (width - new) ** 2 * (2 * 8 + 4 * config.num_attention_heads)
    return rows * (keys_and_values + 3 * 4 * config.vocab_size + 3 * 12 * new) + biases


def check_memory(model: Model, batch: Sequence[Stream], beams: int) -> None:
    """Raise InputError where a batch cannot be held, with what it needs, what there is, and what to lower."""
    new = max(stream.limit for stream in batch)
    read = max(len(stream.prompt) for stream in batch)
    soft = 0 if model.prompt is None else model.prompt.length
    need = needed(model, len(batch) * beams, read + new + soft, new)
    if need <= UNASKED:
        return
    free = available_memory(model.device)
    if free is None or need <= free:
        return
    what = f"{len(batch):,} prompt{'s' * (len(batch) > 1)} at once" + (f", {beams:,} beams each" if beams > 1 else "")
    raise InputError(
        f"This generation needs about {format_bytes(need)} ({what}, up to {new:,} new tokens after {read:,}) and "
        f"{format_bytes(free)} are free: lower max_new_tokens, num_beams or the batch size, or shorten the prompt."
    )
