"""KV cache: stores the keys and values of past tokens in slots, so that decoding computes each token once.

A slot holds one text. All slots of a layer form one tensor, and each slot has its own length, so that texts of
different lengths are decoded together (continuous batching: Yu et al. 2022, Orca). `docs/decisions/0050-slots.md`
compares slots with pages.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from quatrain.core.errors import InputError
from quatrain.models.transformer.cache_forms import CacheForm, cache_form
from quatrain.models.transformer.config import ModelConfig
from quatrain.models.transformer.positions import original_length, positions_in_segments
from quatrain.models.transformer.recurrence import RecurrentStates, check_kept


class KVCache:
    """Keys and values of every layer, each (slots, num_key_value_heads, capacity, head_dim).

    Layers differ in heads and widths where the configuration says so, and one that uses another layer's keys and values
    stores none. With latent attention, `keys` hold each token's vector (slots, 1, capacity, kv_rank) and `values` its
    rotated key (slots, 1, capacity, rope_dim).

    With `form` = "int8" or "int4" they are rounded (`cache_forms`), and the last axis has their bytes. New tokens are
    rounded before anything attends to them: how a text is cut into passes changes nothing.

    `lengths` is the number of tokens in each slot. A full-attention layer has a capacity of `max_length` tokens, a
    sliding-window layer of twice its window; there slot `s` holds the tokens from position `starts[s]` on. `reserve`
    extends the capacity. `cross_attention` maps a layer to the keys and values of the encoder's output, of which slot
    `s` has `encoded[s]` tokens; `encoder_segments` (slots, S) are the encoder's segments, None without padding.
    A recurrent layer has no keys and values: `states` holds its state after the last token of each slot.

    `model(ids, cache=cache)` reads and extends all slots, one per row. Then a batch may be padded or packed: `segments`
    (slots, length) holds the segment of every token, 0 for padding. `rows` selects slots; each row continues
    at the length of its slot.
    """

    def __init__(
        self,
        config: ModelConfig,
        batch_size: int,
        max_length: int,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        form: str | None = None,
    ):
        self.config, self.dtype, self.device = config, dtype, torch.device(device)
        self.caching = frozenset(config.caching_layers)
        """The layers with keys and values of their own."""
        self.shapes = [
            config.cache_shape(layer) if layer in self.caching else (0, 0, 0)
            for layer in range(config.num_hidden_layers)
        ]
        self.form: str | None = form
        self.forms: list[list[CacheForm]] | None = None
        if form is not None:
            self.forms = [[cache_form(form, width or 1) for width in widths] for _, *widths in self.shapes]
        self.windows = [
            config.sliding_window if kind == "sliding" and config.sliding_window and layer in self.caching else None
            for layer, kind in enumerate(config.layer_types)
        ]
        self.window = next((window for window in self.windows if window is not None), None)
        """The window of the sliding-window layers, or None."""
        self.max_length = max_length
        self.lengths, self.starts = [0] * batch_size, [0] * batch_size
        self.states = RecurrentStates(config, batch_size, self.device)
        """States of the recurrent layers; their keys and values have a capacity of 0."""
        self.keys, self.values = ([self._empty(layer, part, batch_size) for layer in range(len(self.windows))]
                                  for part in (0, 1))  # fmt: skip
        self.cross_attention: dict[int, tuple[Tensor, Tensor]] = {}
        self.encoded = [0] * batch_size
        self.encoder_segments: Tensor | None = None
        self.segments: Tensor | None = None
        self.tokens: Tensor | None = None
        """Ids and positions (2, slots, length) of all tokens, for models that may have to process a text again."""
        self.switch_length = _switch_length(config)

    @property
    def slots(self) -> int:
        """Number of slots."""
        return len(self.lengths)

    @property
    def length(self) -> int:
        """Number of tokens in the longest slot."""
        return max(self.lengths, default=0)

    @property
    def nbytes(self) -> int:
        """Bytes of all keys and values."""
        cross_attention = [tensor for pair in self.cross_attention.values() for tensor in pair]
        return self.states.nbytes + sum(tensor.nbytes for tensor in (*self.keys, *self.values, *cross_attention))

    def rows(
        self,
        first: int = 0,
        count: int | None = None,
        *,
        padding: Sequence[int] | None = None,
        text_length: int | None = None,
    ) -> CacheRows:
        """The slots from `first` on as the rows of a forward pass; the default is all. See `CacheRows`."""
        return CacheRows(self, first, self.slots - first if count is None else count, padding, text_length)

    def _capacity(self, layer: int) -> int:
        window = self.windows[layer]
        if layer not in self.caching:
            return 0
        # When its capacity is full, a window is moved to the front. With two windows of capacity this happens rarely.
        return self.max_length if window is None else min(self.max_length, 2 * window)

    def _empty(self, layer: int, part: int, slots: int, capacity: int | None = None) -> Tensor:
        """Zeros for a layer's keys (part 0) or values (1): at masked positions they are multiplied by 0, so they must
        be finite."""
        heads, *widths = self.shapes[layer]
        width, dtype = widths[part], self.dtype
        if self.forms is not None:
            width, dtype = self.forms[layer][part].row_bytes, torch.uint8
        capacity = self._capacity(layer) if capacity is None else capacity
        return torch.zeros(slots, heads, capacity, width, dtype=dtype, device=self.device)

    def encode(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of a layer as they are stored."""
        if self.forms is None:
            return key, value
        of_keys, of_values = self.forms[layer]
        return of_keys.encode(key), of_values.encode(value)

    def decode(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Stored keys and values of a layer as attention reads them."""
        if self.forms is None:
            return key, value
        of_keys, of_values = self.forms[layer]
        return of_keys.decode(key, self.dtype), of_values.decode(value, self.dtype)

    @torch.inference_mode()
    def reserve(self, slots: int = 0, length: int = 0, window: int = 0) -> None:
        """Extends the cache to `slots` slots of `length` tokens, and to `window` tokens in sliding-window layers."""
        self.max_length = max(length, self.max_length)
        slots = max(slots, self.slots)
        for layer, limit in enumerate(self.windows):
            present = self.keys[layer].shape
            capacity = max(self._capacity(layer), present[2], 0 if limit is None else window)
            if (slots, capacity) != (present[0], present[2]):
                for part, tensors in enumerate((self.keys, self.values)):
                    tensors[layer] = self._resized(tensors[layer], self._empty(layer, part, slots, capacity))
        added = slots - self.slots
        if added:
            self.states.resize(slots)
            self.lengths, self.starts = self.lengths + [0] * added, self.starts + [0] * added
            self.encoded += [0] * added
            for layer, pair in self.cross_attention.items():
                self.cross_attention[layer] = _padded(pair[0], slots), _padded(pair[1], slots)
            if self.encoder_segments is not None:
                self.encoder_segments = _padded(self.encoder_segments, slots)

    def make_room(self, length: int) -> None:
        """Extends the capacity of each slot to `length` tokens, at least by doubling it."""
        if length > self.max_length:
            self.reserve(length=max(length, 2 * self.max_length))

    def _resized(self, old: Tensor, new: Tensor) -> Tensor:
        filled = min(self.length, old.shape[2])
        new[: old.shape[0], :, :filled] = old[:, :, :filled]
        return new

    @torch.inference_mode()
    def release(self, slots: int) -> None:
        """Frees all slots but the first `slots`, and the capacity that these do not use."""
        self.lengths, self.starts, self.encoded = self.lengths[:slots], self.starts[:slots], self.encoded[:slots]
        self.max_length = self.length
        filled = max((length - start for length, start in zip(self.lengths, self.starts, strict=True)), default=0)
        for tensors in (self.keys, self.values):
            for layer, window in enumerate(self.windows):
                capacity = max(self._capacity(layer), 0 if window is None else filled)
                tensors[layer] = tensors[layer][:slots, :, :capacity].clone()
        self.states.resize(slots)
        if not slots:
            self.cross_attention, self.encoder_segments = {}, None
        for layer, pair in self.cross_attention.items():
            self.cross_attention[layer] = pair[0][:slots].clone(), pair[1][:slots].clone()
        if self.encoder_segments is not None:
            self.encoder_segments = self.encoder_segments[:slots].clone()

    @property
    def window_capacity(self) -> int:
        """Tokens that fit in a slot of the sliding-window layers."""
        return self.max_length if self.window is None else self.keys[self.windows.index(self.window)].shape[2]

    @torch.inference_mode()
    def move_windows(self, slots: Sequence[int], count: int) -> None:
        """Makes room for `count` more tokens in the sliding-window layers of these slots: windows move to the front."""
        if self.window is None:
            return
        for slot in slots:
            end = self.lengths[slot] - self.starts[slot]
            if end + count <= self.window_capacity:
                continue
            visible = min(self.window - 1, end)
            for layer, window in enumerate(self.windows):
                if window is not None:
                    for tensors in (self.keys, self.values):
                        tensors[layer][slot, :, :visible] = tensors[layer][slot, :, end - visible : end].clone()
            self.starts[slot] = self.lengths[slot] - visible
            if visible + count > self.window_capacity:
                self.reserve(window=visible + count)

    def can_truncate(self, slot: int, length: int) -> bool:
        """Whether a slot truncated to `length` tokens still contains the whole window before that length.

        A state is that of all tokens: with recurrent layers a slot is kept whole or emptied.
        """
        window = self.window
        if self.states and 0 < length != self.lengths[slot]:
            return False
        return length <= self.lengths[slot] and (window is None or self.starts[slot] <= max(0, length - window + 1))

    @torch.inference_mode()
    def truncate(self, slot: int, length: int) -> None:
        """Removes all tokens of a slot after the first `length`: for a rollback, or to start another text.

        Raises InputError for a recurrent model that would have to go back (`can_truncate`).
        """
        if self.states:
            check_kept(slot, self.lengths[slot], length)
            if length == 0:
                self.states.empty(slot)
        self.lengths[slot] = length
        if length == 0:
            self.starts[slot] = 0

    @torch.inference_mode()
    def clear(self, slot: int) -> None:
        """Overwrites a slot with zeros, so that NaN and inf in it cannot affect the next text."""
        for tensor in (*self.keys, *self.values):
            tensor[slot] = 0
        self.truncate(slot, 0)

    @torch.inference_mode()
    def copy(self, source: int, target: int, length: int) -> None:
        """Copies the first `length` tokens of a slot, and its encoder output, to another slot.

        Raises InputError for a recurrent model that has read more tokens than these.
        """
        start = self.starts[source]
        if self.states:
            check_kept(source, self.lengths[source], length)
            self.states.copy(source, target) if length else self.states.empty(target)
        for layer, window in enumerate(self.windows):
            end = length if window is None else length - start
            for tensors in (self.keys, self.values):
                tensors[layer][target, :, :end] = tensors[layer][source, :, :end]
        for tensor in self._encoded():
            tensor[target] = tensor[source]
        self.lengths[target], self.starts[target] = length, start
        self.encoded[target] = self.encoded[source]

    @torch.inference_mode()
    def swap(self, one: int, other: int) -> None:
        """Exchanges two slots."""
        if one == other:
            return
        for layer, window in enumerate(self.windows):
            ends = [self.lengths[slot] - (0 if window is None else self.starts[slot]) for slot in (one, other)]
            for tensors in (self.keys, self.values):
                _swap(tensors[layer], one, other, max(ends))
        for tensor in self._encoded():
            tensor[[one, other]] = tensor[[other, one]]
        self.states.swap(one, other)
        for numbers in (self.lengths, self.starts, self.encoded):
            numbers[one], numbers[other] = numbers[other], numbers[one]

    def _encoded(self) -> list[Tensor]:
        segments = [] if self.encoder_segments is None else [self.encoder_segments]
        return [*segments, *(tensor for pair in self.cross_attention.values() for tensor in pair)]

    def select(self, rows: Tensor) -> None:
        """Selects slots by index or boolean mask. Indices may repeat: beams are copied."""
        rows = rows.nonzero().flatten() if rows.dtype == torch.bool else rows
        self.keys = [self._selected(layer, key, rows) for layer, key in enumerate(self.keys)]
        self.values = [self._selected(layer, value, rows) for layer, value in enumerate(self.values)]
        self.states.select(rows)
        self.cross_attention = {layer: (key[rows], value[rows]) for layer, (key, value) in self.cross_attention.items()}
        if self.segments is not None:
            self.segments = self.segments[rows]
        if self.tokens is not None:
            self.tokens = self.tokens[:, rows]
        if self.encoder_segments is not None:
            self.encoder_segments = self.encoder_segments[rows]
        chosen = rows.tolist()
        self.lengths = [self.lengths[slot] for slot in chosen]
        self.starts = [self.starts[slot] for slot in chosen]
        self.encoded = [self.encoded[slot] for slot in chosen]

    def _selected(self, layer: int, stored: Tensor, rows: Tensor) -> Tensor:
        """Slots of a layer's keys or values; only the filled part is copied."""
        starts = [0] * self.slots if self.windows[layer] is None else self.starts
        filled = max(length - start for length, start in zip(self.lengths, starts, strict=True))
        chosen = stored.new_zeros(len(rows), *stored.shape[1:])
        torch.index_select(stored[:, :, :filled], 0, rows, out=chosen[:, :, :filled])
        return chosen


@dataclass
class _Columns:
    """The columns of the cache that a forward pass reads and writes in one type of layer.

    read: the columns read as keys. write_start: the first column written, for rows of equal length. write_columns (B,
    T): the columns written, for rows of different lengths. first_position (B, 1): the position of the token in column
    0, for rows of different lengths. overflow: if the new tokens exceed the capacity, the number of cached tokens that
    they attend to.
    """

    read: slice
    write_start: int = 0
    write_columns: Tensor | None = None
    first_position: Tensor | None = None
    overflow: int | None = None


class CacheRows:
    """The slots of one batch, for one forward pass.

    `padding[b]` is the number of padding columns on the right of row b: they are not counted, and no later token
    attends to them. `text_length` is the final length of the texts, for positions that depend on it, if only their
    beginnings are processed in this pass.
    """

    def __init__(
        self,
        cache: KVCache,
        first: int,
        count: int,
        padding: Sequence[int] | None = None,
        text_length: int | None = None,
    ):
        self.cache, self.first, self.count = cache, first, count
        self.padding = padding if padding is not None and any(padding) else None
        self.text_length = text_length
        self.past: int | None = 0
        """Number of cached tokens per row; None if rows differ."""
        self.width = 0
        self.positions: Tensor | None = None
        """Positions of the new tokens (B, T), if rows differ in length."""
        self.segments: Tensor | None = None
        """Segments of all tokens, for a padded or packed batch."""
        self._columns: dict[str, _Columns] = {}
        self._encodes = False

    @property
    def lengths(self) -> list[int]:
        """Number of cached tokens of each row."""
        return self.cache.lengths[self.first : self.first + self.count]

    @property
    def length(self) -> int:
        """Number of cached tokens of the longest row."""
        return max(self.lengths)

    def rows(self) -> CacheRows:
        """These rows."""
        return self

    def token_counts(self, width: int) -> list[int]:
        """Number of tokens of each row after `width` new columns, without padding."""
        padding = self.padding or [0] * self.count
        return [length + width - empty for length, empty in zip(self.lengths, padding, strict=True)]

    def begin(self, width: int, segments: Tensor | None) -> None:
        """Prepares for `width` new tokens per row, with their segments (B, width) if the batch is padded or packed.

        Raises InputError for segments if the rows differ in length.
        """
        cache, lengths = self.cache, self.lengths
        starts = cache.starts[self.first : self.first + self.count]
        self.width = width
        cache.make_room(max(lengths) + width)
        if min(lengths) < max(lengths) or min(starts) < max(starts):
            if segments is not None or cache.segments is not None:
                raise InputError("A padded or packed batch cannot extend cached texts of different lengths.")
            self._begin_apart(lengths)
            return
        self.past = lengths[0]
        self.segments = cache.segments = self._all_segments(segments, width)
        self._columns = {"full": _Columns(slice(0, self.past + width), self.past)}
        if cache.window is not None:
            self._columns["sliding"] = self._begin_sliding(cache.window)

    def _begin_sliding(self, window: int) -> _Columns:
        """The columns of rows of equal length in sliding-window layers: the last `window` - 1, and the new ones."""
        past, cache = self.past or 0, self.cache
        visible, filled = min(window - 1, past), past - cache.starts[self.first]
        capacity = cache.window_capacity
        if filled + self.width > capacity:
            if visible + self.width > capacity and self.padding is None:
                return _Columns(slice(filled - visible, filled), overflow=visible)
            cache.move_windows(range(self.first, self.first + self.count), self.width)
            filled = visible
        return _Columns(slice(filled - visible, filled + self.width), filled)

    def _begin_apart(self, lengths: list[int]) -> None:
        """The columns of rows of different lengths: all up to the longest row; a mask restricts each row to its own."""
        cache, window, device = self.cache, self.cache.window, self.cache.device
        self.past = None
        columns = torch.tensor(lengths, device=device)[:, None] + torch.arange(self.width, device=device)
        # Padding columns may lie beyond the text.
        self.positions = columns if self.text_length is None else columns.clamp(max=self.text_length - 1)
        self._columns = {"full": _Columns(slice(0, max(lengths) + self.width), write_columns=columns)}
        if window is None:
            return
        cache.move_windows(range(self.first, self.first + self.count), self.width)
        starts = cache.starts[self.first : self.first + self.count]
        filled = max(length - start for length, start in zip(lengths, starts, strict=True)) + self.width
        first = torch.tensor(starts, device=device)[:, None]
        self._columns["sliding"] = _Columns(slice(0, filled), write_columns=columns - first, first_position=first)

    def _all_segments(self, segments: Tensor | None, width: int) -> Tensor | None:
        """The segments of the cached and of `width` new tokens; None if each row is one text without padding."""
        before, device = self.cache.segments, self.cache.device
        if segments is None and before is None:
            return None
        if before is None:
            before = torch.ones(self.count, self.length, dtype=torch.long, device=device)
        if segments is None:
            segments = torch.ones(self.count, width, dtype=torch.long, device=device)
        return torch.cat((before, segments), dim=1)

    def tokens_to_process(
        self, ids: Tensor, positions: Tensor | None, segments: Tensor | None
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """The tokens, positions and segments to process for the next tokens `ids` (B, T).

        Normally these are the arguments. LongRoPE changes the frequencies of all tokens of a text once it grows past
        the context length of pre-training. Then all rows are emptied, and the tokens, positions and segments of the
        whole texts (B, length + T) are returned. With `text_length` the caller handles this case.
        """
        cache, past = self.cache, self.length
        if cache.switch_length is None or self.text_length is not None:
            return ids, positions, segments
        together = self._all_segments(segments, ids.shape[1])
        new = positions
        if new is None:
            all_positions = torch.arange(past + ids.shape[1], device=ids.device)[None]
            new = (all_positions if together is None else positions_in_segments(together))[:, past:]
        processed = torch.stack((ids, new.expand_as(ids)))
        if past == 0 or cache.tokens is None:
            cache.tokens = processed
            return ids, positions, segments
        before, after = (each.amax(1) < cache.switch_length for each in (cache.tokens[1], new))
        cache.tokens = torch.cat((cache.tokens, processed), dim=2)
        if not bool((before & ~after).any()):
            return ids, positions, segments
        cache.segments = None
        for slot in range(cache.slots):
            cache.truncate(slot, 0)
        return cache.tokens[0], cache.tokens[1], together

    def num_keys(self, kind: str) -> int:
        """The number of keys, cached and new, in a type of layer."""
        columns = self._columns.get(kind, self._columns["full"])
        return columns.read.stop - columns.read.start + (self.width if columns.overflow is not None else 0)

    def distances(self, kind: str, positions: Tensor) -> Tensor:
        """The distances (B, T, S) of each key from the new tokens at `positions` (B, T); negative: before them."""
        columns = self._columns.get(kind, self._columns["full"])
        keys = torch.arange(columns.read.stop, device=positions.device)[None]
        keys = keys if columns.first_position is None else keys + columns.first_position
        return keys[:, None, :] - positions[:, :, None]

    def recurrent_state(self, layer: int) -> tuple[Tensor, ...]:
        """The state (B, …) of a recurrent layer before the new tokens."""
        return tuple(tensor[self.first : self.first + self.count] for tensor in self.cache.states.layers[layer])

    def store_recurrent_state(self, layer: int, state: Sequence[Tensor]) -> None:
        """Writes the state (B, …) of a recurrent layer after the new tokens."""
        for stored, new in zip(self.cache.states.layers[layer], state, strict=True):
            stored[self.first : self.first + self.count] = new

    def append(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Writes the keys and values (B, H, T, D) of new tokens; returns those that they may attend to (B, H, S, D)."""
        cache = self.cache
        key, value = cache.encode(layer, key, value)
        columns = self._columns["full" if cache.windows[layer] is None else "sliding"]
        keys = cache.keys[layer][self.first : self.first + self.count]
        values = cache.values[layer][self.first : self.first + self.count]
        if columns.overflow is not None:
            return cache.decode(layer, self._overflow(keys, key, columns), self._overflow(values, value, columns))
        if columns.write_columns is None:
            end = columns.write_start + self.width
            keys[:, :, columns.write_start : end], values[:, :, columns.write_start : end] = key, value
        else:
            rows = torch.arange(self.count, device=key.device)[:, None]
            keys[rows, :, columns.write_columns] = key.transpose(1, 2)
            values[rows, :, columns.write_columns] = value.transpose(1, 2)
        return cache.decode(layer, keys[:, :, columns.read], values[:, :, columns.read])

    def _overflow(self, stored: Tensor, new: Tensor, columns: _Columns) -> Tensor:
        """For more new tokens than a sliding-window layer stores: returns all, stores the last window."""
        both = torch.cat((stored[:, :, columns.read], new), dim=2)
        last = self._last_window(both.shape[2])
        stored[:, :, :last] = both[:, :, both.shape[2] - last :]
        return both

    def _last_window(self, count: int) -> int:
        return min(self.cache.window or 1, count)

    def encode(self, segments: Tensor | None, width: int) -> None:
        """Prepares to store new encoder outputs of `width` tokens, with their segments (B, width), in this pass."""
        cache, self._encodes = self.cache, True
        before, own = cache.encoder_segments, slice(self.first, self.first + self.count)
        covers_all = self.count == cache.slots
        if covers_all or not cache.cross_attention:
            cache.cross_attention = {}
        if not covers_all and before is None:
            columns = torch.arange(max(*cache.encoded, width), device=cache.device)[None]
            before = (columns < torch.tensor(cache.encoded, device=cache.device)[:, None]).long()
        cache.encoded[own] = [width] * self.count
        if before is None or covers_all:
            cache.encoder_segments = segments
            return
        cache.encoder_segments = before = _padded(before, before.shape[0], width)
        before[own, :width] = 1 if segments is None else segments
        before[own, width:] = 0

    def store_cross_attention(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Stores the keys and values (B, H, S, D) of the encoder's output; returns them as later passes read them."""
        cache = self.cache
        key, value = cache.encode(layer, key, value)
        if self.count == cache.slots:
            cache.cross_attention[layer] = key, value
            return cache.decode(layer, key, value)
        if layer not in cache.cross_attention:
            empty = key.new_zeros(cache.slots, *key.shape[1:])
            cache.cross_attention[layer] = empty, torch.zeros_like(empty)
        key_store, value_store = cache.cross_attention[layer]
        width = key.shape[2]
        cache.cross_attention[layer] = _with_columns(key_store, width), _with_columns(value_store, width)
        for stored, new in zip(cache.cross_attention[layer], (key, value), strict=True):
            stored[self.first : self.first + self.count, :, : key.shape[2]] = new
        return cache.decode(layer, key, value)

    @property
    def has_encoded(self) -> bool:
        """Whether encoder outputs are stored."""
        return bool(self.cache.cross_attention)

    @property
    def encoder_segments(self) -> Tensor | None:
        """Segments (B, S) of the encoder's input; None without padding."""
        stored = self.cache.encoder_segments
        return None if stored is None else stored[self.first : self.first + self.count, : self.encoded_width]

    @property
    def encoded_width(self) -> int:
        """Number of tokens of the longest encoder output."""
        return max(self.cache.encoded[self.first : self.first + self.count])

    def cross_attention(self, layer: int) -> tuple[Tensor, Tensor] | None:
        """The stored keys and values (B, H, S, D) of the encoder's output; None in the pass that stores them."""
        if self._encodes:
            return None
        own, width = slice(self.first, self.first + self.count), self.encoded_width
        key, value = self.cache.cross_attention[layer]
        return self.cache.decode(layer, key[own, :, :width], value[own, :, :width])

    def advance(self) -> None:
        """Adds the new tokens to the lengths, after every layer has written them."""
        cache, columns = self.cache, self._columns.get("sliding")
        for slot, length in enumerate(self.token_counts(self.width), self.first):
            cache.lengths[slot] = length
            if columns is not None and columns.overflow is not None:
                cache.starts[slot] = cache.lengths[slot] - self._last_window(columns.overflow + self.width)


class StaticRows(CacheRows):
    """The first `count` slots, for steps of one token whose shapes and addresses never change: `state` has the inputs.

    Such a step can be captured in a CUDA graph. It reads the first `width` columns of the cache and a mask hides what a
    row does not see. The caller sees to room, windows, limits and `lengths`.

    Attributes: `state` (4, count) int64 on the cache's device: each row's token, its place in the text, the position of
    the first column of its sliding window, and 1, or 0 for a row that is not in use, whose slot stays as it is.
    """

    def __init__(self, cache: KVCache, count: int, width: int):
        super().__init__(cache, 0, count, text_length=width)
        self.state = torch.zeros(4, count, dtype=torch.long, device=cache.device)
        self.read_width = width

    def token_counts(self, width: int) -> list[int]:
        """Columns that are read: the lengths of texts are not known to the step."""
        return [width] * self.count

    def begin(self, width: int, segments: Tensor | None) -> None:
        """Computes the columns that this step writes from `state`."""
        if width != 1 or segments is not None:
            raise InputError("A static step reads one token of each row, without padding.")
        places, first = self.state[1, :, None], self.state[2, :, None]
        self.past, self.width, self.positions = None, 1, places
        self._columns = {"full": _Columns(slice(0, self.read_width), write_columns=places)}
        if self.cache.window is not None:
            stop = min(self.read_width, self.cache.window_capacity)
            self._columns["sliding"] = _Columns(slice(0, stop), write_columns=places - first, first_position=first)

    def append(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Writes the keys and values (B, H, 1, D) of the rows in use; returns all columns that are read."""
        cache = self.cache
        columns = self._columns["full" if cache.windows[layer] is None else "sliding"]
        slots = torch.arange(self.count, device=key.device)[:, None]
        in_use = self.state[3].bool()[:, None, None, None]
        result = []
        for stored, new in zip((cache.keys[layer], cache.values[layer]), cache.encode(layer, key, value), strict=True):
            own = stored[: self.count]
            before = own[slots, :, columns.write_columns]
            own[slots, :, columns.write_columns] = torch.where(in_use, new.transpose(1, 2), before)
            result.append(own[:, :, columns.read])
        return cache.decode(layer, result[0], result[1])

    def advance(self) -> None:
        """Leaves the lengths to the caller."""


def _switch_length(config: ModelConfig) -> int | None:
    """The text length at which LongRoPE switches frequencies, or None."""
    scalings = [scaling for scaling in (config.rope_scaling, config.local_rope_scaling) if scaling is not None]
    lengths = [
        original_length(scaling, config.max_position_embeddings) for scaling in scalings if scaling.kind == "longrope"
    ]
    return min(lengths) if lengths else None


def _padded(old: Tensor, slots: int, columns: int | None = None) -> Tensor:
    """A tensor (slots, …) with more slots, or segments (slots, S) with more columns, filled with zeros."""
    shape = [slots, *old.shape[1:]]
    if columns is not None:
        shape[1] = max(columns, shape[1])
    if tuple(shape) == tuple(old.shape):
        return old
    new = old.new_zeros(shape)
    new[tuple(slice(size) for size in old.shape)] = old
    return new


def _with_columns(old: Tensor, columns: int) -> Tensor:
    """Keys or values (slots, H, S, D) of encoder outputs, extended to at least `columns` columns."""
    if columns <= old.shape[2]:
        return old
    new = old.new_zeros(*old.shape[:2], columns, old.shape[3])
    new[:, :, : old.shape[2]] = old
    return new


def _swap(stored: Tensor, one: int, other: int, filled: int) -> None:
    """Exchanges the first `filled` columns of two slots."""
    first = stored[one, :, :filled].clone()
    stored[one, :, :filled] = stored[other, :, :filled]
    stored[other, :, :filled] = first
