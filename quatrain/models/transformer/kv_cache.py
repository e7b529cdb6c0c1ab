"""KV cache: stores the keys and values of past tokens, so that decoding computes each token once."""

from __future__ import annotations

import torch
from torch import Tensor

from quatrain.models.transformer.config import ModelConfig
from quatrain.models.transformer.positions import positions_in_segments
from quatrain.models.transformer.rotary_scaling import original_length


class KVCache:
    """Keys and values of every layer, each (B, num_key_value_heads, slots, head_dim).

    `length` is the number of filled slots. A full-attention layer has `max_length` slots, a sliding-window layer those
    of its window. `cross_attention` maps a layer to the keys and values of the encoder's output, from the first step
    on. `segments` (B, max_length) holds the segment of each slot, 0 for padding; None until a padded or packed batch is
    written. `encoder_segments` (B, S) are the encoder's. `tokens` and `positions` (B, max_length) are stored only for
    models that may have to process the whole text again (`tokens_to_process`).
    """

    def __init__(
        self,
        config: ModelConfig,
        batch_size: int,
        max_length: int,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ):
        self.windows = [
            config.sliding_window if kind == "sliding" and config.sliding_window else None
            for kind in config.layer_types
        ]
        # When its slots are full, a window is moved to the front. With two windows of slots this happens rarely.
        capacities = [max_length if window is None else min(max_length, 2 * window) for window in self.windows]
        heads, width = config.num_key_value_heads, config.head_dim
        self.keys = [torch.empty(batch_size, heads, slots, width, dtype=dtype, device=device) for slots in capacities]
        self.values = [torch.empty_like(keys) for keys in self.keys]
        self.starts = [0] * len(capacities)
        self.cross_attention: dict[int, tuple[Tensor, Tensor]] = {}
        self.max_length, self.length = max_length, 0
        self.segments: Tensor | None = None
        self.switch_length = _switch_length(config, max_length)
        self.tokens: Tensor | None = None
        self.positions: Tensor | None = None
        self.encoder_segments: Tensor | None = None

    def attended_slots(self, window: int | None, count: int) -> int:
        """Number of slots that a layer attends to with `count` new tokens: all, or those inside its window."""
        total = self.length + count
        return total if window is None else min(total, window - 1 + count)

    def append(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Writes keys and values (B, H, T, D) of new tokens; returns those of all tokens they attend to (B, H, S, D).

        S is length + T for full attention and window - 1 + T at most for a sliding window. `advance` moves `length`
        once all layers are written.
        """
        count = key.shape[2]
        attended = self.attended_slots(self.windows[layer], count)
        if self.windows[layer] is None:
            return self._write(layer, self.length, key, value, attended)
        capacity, start = self.keys[layer].shape[2], self.starts[layer]
        end = self.length - start + count
        if end > capacity:
            kept = min(attended - count, self.length)
            old = (tensor[layer][:, :, self.length - start - kept : self.length - start] for tensor in self._both)
            old_key, old_value = (tensor.clone() for tensor in old)
            if kept + count > capacity:
                return self._overflow(layer, torch.cat((old_key, key), 2), torch.cat((old_value, value), 2), count)
            self.starts[layer] = self.length - kept
            self.keys[layer][:, :, :kept], self.values[layer][:, :, :kept] = old_key, old_value
        return self._write(layer, self.length - self.starts[layer], key, value, attended)

    @property
    def _both(self) -> tuple[list[Tensor], list[Tensor]]:
        return self.keys, self.values

    def _write(self, layer: int, begin: int, key: Tensor, value: Tensor, attended: int) -> tuple[Tensor, Tensor]:
        end = begin + key.shape[2]
        self.keys[layer][:, :, begin:end], self.values[layer][:, :, begin:end] = key, value
        return self.keys[layer][:, :, end - attended : end], self.values[layer][:, :, end - attended : end]

    def _overflow(self, layer: int, key: Tensor, value: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """For more tokens at once than a sliding-window layer stores: returns all, stores the last window."""
        kept = min(self.windows[layer] or 1, key.shape[2])
        self.keys[layer][:, :, :kept], self.values[layer][:, :, :kept] = key[:, :, -kept:], value[:, :, -kept:]
        self.starts[layer] = self.length + count - kept
        return key, value

    def store_cross_attention(self, layer: int, key: Tensor, value: Tensor) -> None:
        """Stores the keys and values (B, H, S, D) of the encoder's output."""
        self.cross_attention[layer] = key, value

    def write_segments(self, segments: Tensor | None, count: int) -> Tensor | None:
        """Stores the segments (B, count) of the next slots; returns those of all slots, or None if there are none."""
        if segments is None and self.segments is None:
            return None
        if self.segments is None:
            batch_size = self.keys[0].shape[0]
            self.segments = torch.ones(batch_size, self.max_length, dtype=torch.long, device=self.keys[0].device)
        end = self.length + count
        if segments is not None:
            self.segments[:, self.length : end] = segments
        return self.segments[:, :end]

    def tokens_to_process(
        self, ids: Tensor, positions: Tensor | None, segments: Tensor | None
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """The tokens, positions and segments to process for the next tokens `ids` (B, T).

        Normally these are the arguments. LongRoPE changes the frequencies of all tokens of a text once it grows past
        the context length of pre-training. Then the cache is emptied, and the tokens, positions and segments of all
        slots (B, length + T) are returned.
        """
        if self.switch_length is None:
            return ids, positions, segments
        end = self.length + ids.shape[1]
        slots = self.write_segments(segments, ids.shape[1])
        new = positions
        if new is None:
            all_positions = (
                torch.arange(end, device=ids.device)[None] if slots is None else positions_in_segments(slots)
            )
            new = all_positions[:, self.length :]
        if self.tokens is None or self.positions is None:
            self.tokens = ids.new_empty(ids.shape[0], self.max_length)
            self.positions = torch.empty_like(self.tokens)
        self.tokens[:, self.length : end], self.positions[:, self.length : end] = ids, new
        if self.length == 0:
            return ids, positions, segments
        before, after = (each.amax(1) < self.switch_length for each in (self.positions[:, : self.length], new))
        if not bool((before & ~after).any()):
            return ids, positions, segments
        self.length, self.starts = 0, [0] * len(self.starts)
        return self.tokens[:, :end], self.positions[:, :end], slots

    def advance(self, count: int) -> None:
        """Marks `count` more slots as filled, after every layer has written them."""
        self.length += count

    def select(self, rows: Tensor) -> None:
        """Selects rows of the batch by index or boolean mask. Indices may repeat: beams are copied."""
        rows = rows.nonzero().flatten() if rows.dtype == torch.bool else rows
        self.keys = [self._selected(layer, key, rows) for layer, key in enumerate(self.keys)]
        self.values = [self._selected(layer, value, rows) for layer, value in enumerate(self.values)]
        self.cross_attention = {layer: (key[rows], value[rows]) for layer, (key, value) in self.cross_attention.items()}
        if self.segments is not None:
            self.segments = self.segments[rows]
        if self.tokens is not None and self.positions is not None:
            self.tokens, self.positions = self.tokens[rows], self.positions[rows]
        if self.encoder_segments is not None:
            self.encoder_segments = self.encoder_segments[rows]

    def _selected(self, layer: int, stored: Tensor, rows: Tensor) -> Tensor:
        """Rows of a layer's keys or values; only the filled slots are copied."""
        filled = self.length - self.starts[layer]
        chosen = stored.new_empty(len(rows), *stored.shape[1:])
        torch.index_select(stored[:, :, :filled], 0, rows, out=chosen[:, :, :filled])
        return chosen


def _switch_length(config: ModelConfig, max_length: int) -> int | None:
    """The text length at which LongRoPE switches frequencies, or None if no text of `max_length` reaches it."""
    scalings = [scaling for scaling in (config.rope_scaling, config.local_rope_scaling) if scaling is not None]
    lengths = [
        original_length(scaling, config.max_position_embeddings) for scaling in scalings if scaling.kind == "longrope"
    ]
    return min(lengths) if lengths and min(lengths) < max_length else None
